// Tier: where shard bytes and manifests lie. Reserve, write in any order, flush, read, free.
//
// The tier knows space, not meaning: which extents are alive is the ledger's business (lifecycle),
// which tells the tier at recovery (Adopt) and after a recorded ABORT or DELETE (Free). A reservation
// lives in RAM only; a crash forgets it.
//
// Durability: bytes are durable after a Flush that was *called* after their Write completed. One
// fdatasync serves all callers that were waiting when it started (group flush). A failed flush fails
// the whole group and marks the segment suspect: nothing new is placed there, nothing is retried.
//
// Implementations under tests/conformance/tier_test.cc: MemoryTier, NvmeTier.
// Thread rule: the owner's loop.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/async/task.h"
#include "core/base/bytes.h"
#include "core/format/manifest.h"
#include "reprise/status.h"

namespace reprise::tier {

using format::Run;

struct TierUsage {
  uint64_t capacity_bytes = 0;  // what reservations may use in total
  uint64_t used_bytes = 0;      // reserved or adopted
  uint64_t suspect_bytes = 0;   // in segments that failed a write or a flush
};

class Tier {
 public:
  virtual ~Tier() = default;

  // Reserves `bytes` rounded up to 4 KiB in at most limits::kRunsPerShardMax runs.
  // RESOURCE_EXHAUSTED says how much is free and how to get more. `for_commit` may use the last
  // reserve, so that manifests of sealed shards and deletes always have room.
  virtual Result<std::vector<Run>> Reserve(uint64_t bytes, bool for_commit = false) = 0;
  // Gives runs back at once (an unused reservation, or extents of a durable ABORT or DELETE).
  virtual void Free(const std::vector<Run>& runs) = 0;
  // Recovery: these runs are alive. DATA_LOSS when they overlap something alive or lie outside.
  virtual Status Adopt(const std::vector<Run>& runs) = 0;

  // Writes `data` at byte `position` of the concatenated `runs`. Position and address are multiples
  // of 4 KiB and so is the size (pad the tail with zeros). May be called any number of times at once.
  virtual Task<Status> Write(const std::vector<Run>& runs, uint64_t position, ByteView data) = 0;
  // Reads a 4 KiB-aligned range of the concatenated runs. Bytes are not verified here.
  virtual Task<Status> Read(const std::vector<Run>& runs, uint64_t position,
                            MutableByteView buffer) = 0;
  // Makes completed writes into the segments of `runs` durable.
  virtual Task<Status> Flush(const std::vector<Run>& runs) = 0;

  virtual TierUsage usage() const = 0;
  // Ends background work (pre-writing of segments). No call may follow.
  virtual Task<void> Close() = 0;
};

}  // namespace reprise::tier
