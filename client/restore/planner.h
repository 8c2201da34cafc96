// Planner: from what was saved and what is wanted to who sends which chunks and where they go.
//
// Any saved world to any wanted pieces: boxes and flat ranges are intersected, overlapping copies are
// used once, each chunk of a shard is fetched once however many pieces need it. The rank's own shard is
// preferred (its slot may still be in this node's slab); for the rest readers of different ranks begin
// with different copies. All defects are found and listed before a byte moves.
//
// Scopes: pieces saved as kRank come from one rank: the wanted source_rank, else the own rank in an
// equal world, else as the saved policy says. All others come from any rank that has them.
//
// Thread rule: pure function; no I/O. Cost: O(saved pieces + overlaps log chunks).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/restore/strided.h"
#include "core/format/layout.h"
#include "reprise/status.h"

namespace reprise::client {

// The pieces of a saved checkpoint; ranks with equal pieces share a layout.
struct SavedState {
  std::vector<format::Layout> layouts;
  std::vector<uint32_t> layout_of_rank;  // one per saved rank
  uint32_t world() const { return static_cast<uint32_t>(layout_of_rank.size()); }
};

struct WantedPiece {
  format::Piece piece;       // position and world_policy do not matter
  int32_t source_rank = -1;  // of whose shard; -1: as the scope says
};

struct ShardPlan {
  uint32_t rank = 0;
  uint32_t chunk_bytes = 0;
  uint64_t length = 0;  // of the shard
  std::vector<StridedCopy> copies;
  // What each needed chunk is for: pairs (chunk, index of copy), ascending.
  struct Use {
    uint64_t chunk = 0;
    uint32_t copy = 0;
    auto operator<=>(const Use&) const = default;
  };
  std::vector<Use> uses;
};

struct RestorePlan {
  std::vector<ShardPlan> shards;  // the own rank's first
  uint64_t bytes = 0;             // into targets
};

struct PlanOptions {
  uint32_t rank = 0;  // of the reader
  uint32_t world = 1;
};

// NOT_FOUND: names that are missing and regions that no rank saved, listed. INVALID_ARGUMENT: types or
// shapes that differ, rank-scoped pieces of another world, listed.
Result<RestorePlan> PlanRestore(const SavedState& saved, std::span<const WantedPiece> wanted,
                                const PlanOptions& options);

}  // namespace reprise::client
