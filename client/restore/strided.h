// StridedCopy: a block of equal runs, from a shard to a target's memory. What box geometry comes down to.
//
// Run r of a copy starts at source_begin + sum(i_a * source_stride_a) in the shard and at
// target_begin + sum(i_a * target_stride_a) in the target, where (i_a) are the digits of r, outermost
// axis first. Runs ascend in the shard, so the part of a copy that lies in a given chunk is found by
// bisection, and a plan's size does not grow with the number of runs.
//
// Thread rule: pure values and functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "reprise/types.h"

namespace reprise::client {

struct StridedCopy {
  struct Axis {
    uint64_t count = 0;
    uint64_t source_stride = 0;
    uint64_t target_stride = 0;
    bool operator==(const Axis&) const = default;
  };
  uint64_t source_begin = 0;
  uint32_t target = 0;  // index of the wanted piece
  uint64_t target_begin = 0;
  uint64_t run_bytes = 0;
  std::vector<Axis> axes;

  uint64_t runs() const {
    uint64_t count = 1;
    for (const Axis& axis : axes) count *= axis.count;
    return count;
  }
  uint64_t bytes() const { return runs() * run_bytes; }
  struct Place {
    uint64_t source = 0;
    uint64_t target = 0;
  };
  Place RunAt(uint64_t run) const {
    Place place{source_begin, target_begin};
    for (size_t a = axes.size(); a-- > 0;) {
      uint64_t digit = run % axes[a].count;
      run /= axes[a].count;
      place.source += digit * axes[a].source_stride;
      place.target += digit * axes[a].target_stride;
    }
    return place;
  }
  // The first run that ends after shard offset `offset`; runs() when there is none.
  uint64_t FirstRunAfter(uint64_t offset) const {
    uint64_t low = 0;
    uint64_t high = runs();
    while (low < high) {
      uint64_t middle = low + (high - low) / 2;
      if (RunAt(middle).source + run_bytes > offset) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

// Two boxes of one tensor: where `overlap` (inside both) lies in each one's row-major bytes.
// `source_begin` and `target_begin` are where the boxes' own bytes begin.
StridedCopy MakeStridedCopy(const Box& source, uint64_t source_begin, const Box& target,
                            uint64_t target_begin, const Box& overlap, uint64_t element_bytes);

// Calls move(shard_offset, target_offset, bytes) for every part of `copy` inside [begin, end) of the
// shard, ascending.
template <typename Move>
void ForEachRun(const StridedCopy& copy, uint64_t begin, uint64_t end, Move&& move) {
  uint64_t count = copy.runs();
  for (uint64_t run = copy.FirstRunAfter(begin); run < count; ++run) {
    StridedCopy::Place place = copy.RunAt(run);
    if (place.source >= end) return;
    uint64_t from = std::max(begin, place.source);
    uint64_t to = std::min(end, place.source + copy.run_bytes);
    move(from, place.target + (from - place.source), to - from);
  }
}

}  // namespace reprise::client
