// ExtentAllocator: which 4 KiB units of which segments are free. Pure bookkeeping in RAM.
//
// Reservations are contiguous where possible. Those of a chunk or more start at chunk boundaries
// while there is room for that; small ones take the tightest gap. Segments have a preference (lower
// is taken first, whatever the gap sizes) and may be excluded, which takes their free space away
// and leaves what is allocated there. The last `reserve_bytes` of free space are for commits only.
//
// Free of anything that is not allocated is a programming error (CHECK): the ledger decides what is
// alive. Adopt of an overlap is the disk's word against the disk's, hence a Status.
//
// Thread rule: one owner. Cost: O(log free runs) for each run.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

#include "core/base/limits.h"
#include "core/format/manifest.h"
#include "reprise/status.h"

namespace reprise::tier {

using format::Run;

// The last max(256 MiB, 2 %) of `capacity_bytes`, but never more than an eighth of it.
uint64_t CommitReserveOf(uint64_t capacity_bytes);

class ExtentAllocator {
 public:
  struct Options {
    uint64_t segment_bytes = 0;  // multiple of 4 KiB
    uint32_t segment_count = 0;
    uint64_t chunk_bytes = limits::kChunkBytesDefault;  // power of two, at least 4 KiB
    uint64_t reserve_bytes = 0;
    uint8_t preference = 0;  // of every segment at the start
  };

  explicit ExtentAllocator(Options options);

  // Reserves `bytes` rounded up to 4 KiB. RESOURCE_EXHAUSTED says how much is free, or that free
  // space is too fragmented for limits::kRunsPerShardMax runs; nothing is reserved then.
  // INVALID_ARGUMENT: zero bytes.
  Result<std::vector<Run>> Reserve(uint64_t bytes, bool for_commit);
  // Makes allocated runs free again.
  void Free(const std::vector<Run>& runs);
  // Allocates exactly these runs. DATA_LOSS (nothing adopted): malformed, outside, or overlapping
  // something allocated or each other.
  Status Adopt(const std::vector<Run>& runs);

  // Lower is taken first.
  void SetPreference(uint32_t segment, uint8_t preference);
  // Nothing is placed in `segment` from now on.
  void Exclude(uint32_t segment);
  bool excluded(uint32_t segment) const { return segments_[segment].excluded; }

  // Free bytes that Reserve could hand out, the commit reserve included.
  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t used_bytes(uint32_t segment) const { return segments_[segment].used_bytes; }
  const Options& options() const { return options_; }

 private:
  struct Segment {
    std::map<uint64_t, uint64_t> free;  // offset -> length, disjoint, never adjacent
    uint64_t used_bytes = 0;
    uint8_t preference = 0;
    bool excluded = false;
  };
  // Free runs that may be handed out, by preference, then length.
  using Gap =
      std::tuple<uint8_t, uint64_t, uint32_t, uint64_t>;  // preference, length, segment, offset

  void Index(uint32_t segment, uint64_t offset, uint64_t length);
  void Unindex(uint32_t segment, uint64_t offset, uint64_t length);
  void InsertFree(const Run& run);
  // Takes `run` out of the free runs; false when it is not wholly free.
  bool TakeFree(const Run& run);
  Status CheckShape(const Run& run) const;

  uint64_t AlignmentFor(uint64_t bytes) const;
  std::optional<Run> FindContiguous(uint64_t bytes, uint64_t alignment) const;
  std::optional<Run> FindLargest(uint8_t preference, uint64_t bytes, uint64_t alignment) const;
  std::optional<Run> FindPiece(uint64_t bytes) const;

  const Options options_;
  std::vector<Segment> segments_;
  std::set<Gap> gaps_;
  std::map<uint8_t, uint32_t> preferences_;  // preference -> segments that have it
  uint64_t free_bytes_ = 0;
  uint64_t used_bytes_ = 0;
};

}  // namespace reprise::tier
