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
  // Gives runs back at once (an unused reservation, or extents of a durable ABORT or DELETE). No
  // Write into them may be in flight. Freeing what is not allocated is a programming error.
  virtual void Free(const std::vector<Run>& runs) = 0;
  // Recovery: these runs are alive. DATA_LOSS (nothing adopted) when they overlap something alive,
  // lie outside, or their segment is gone. Every Adopt comes before the first Reserve: from then on
  // the tier may write zeros over segments in which nothing is alive.
  virtual Status Adopt(const std::vector<Run>& runs) = 0;

  // Writes `data` at byte `position` of the concatenated `runs`. Position and address are multiples
  // of 4 KiB and so is the size (pad the tail with zeros). May be called any number of times at once.
  // UNAVAILABLE: the segment failed, reserve elsewhere. RESOURCE_EXHAUSTED: the disk is full. What
  // the range holds after a failure is undefined.
  virtual Task<Status> Write(const std::vector<Run>& runs, uint64_t position, ByteView data) = 0;
  // Reads a 4 KiB-aligned range of the concatenated runs. Bytes are not verified here. UNAVAILABLE:
  // the device failed to read. DATA_LOSS: the segment is missing or too short.
  virtual Task<Status> Read(const std::vector<Run>& runs, uint64_t position,
                            MutableByteView buffer) = 0;
  // Makes completed writes into the segments of `runs` durable. After a failure nothing in those
  // segments that was not durable before may be relied upon, and no later Flush changes that.
  virtual Task<Status> Flush(const std::vector<Run>& runs) = 0;

  // Overwrites `run`, which lies in one segment, with zeros and makes that durable. Works in a segment
  // that has failed, too, as long as the device takes it: OK speaks for these bytes only.
  virtual Task<Status> Erase(format::Run run) = 0;

  virtual TierUsage usage() const = 0;
  // Waits for calls in progress, then ends background work (pre-writing). No call may follow.
  virtual Task<void> Close() = 0;
};

}  // namespace reprise::tier
