// Coverage: do the shards of all ranks together make whole tensors? Checked before a commit, so that
// a checkpoint that exists can be restored.
//
// What is demanded of a tensor depends on its scope (docs/format.md, "Scope"):
//   global      one dtype and shape; the pieces cover every element; ranks overlap only in identical
//               boxes (replicas of one shard), and replicas have equal digests
//   replicated  one dtype, shape and digest; a rank holds all of it or nothing
//   rank        nothing
// and a name has the same scope on every rank that has it. O(n log n) in the boxes of all ranks for
// shards that form a grid along any axes; other shapes cost more.
//
// Thread rule: pure function; no I/O. Takes seconds for millions of boxes: not for a data loop.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/digest.h"
#include "core/format/layout.h"
#include "reprise/status.h"

namespace reprise::format {

struct RankLayout {
  uint32_t rank = 0;
  const Layout* layout = nullptr;                      // valid in the sense of Validate()
  const std::vector<Digest>* piece_digests = nullptr;  // by piece; null or zero: not compared
};

// INVALID_ARGUMENT names the first tensor (in byte order of names) that does not fit, the ranks at
// odds, and what to change. Each rank occurs at most once in `ranks`.
Status CheckCoverage(std::span<const RankLayout> ranks);

}  // namespace reprise::format
