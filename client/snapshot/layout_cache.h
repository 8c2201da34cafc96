// LayoutCache: the layout of a piece list, made once and re-used while the list stays the same.
//
// A training step saves the same names, types, shapes and boxes as the one before; comparing them
// costs tens of nanoseconds a piece, building and validating a layout some microseconds. The cache
// holds one entry: the last list.
//
// Thread rule: one owner. No I/O.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/format/layout.h"
#include "reprise/client.h"

namespace reprise::client {

// An immutable layout with what saving needs of it.
struct PreparedLayout {
  format::Layout layout;
  Bytes encoded;
  Digest digest;
  std::vector<uint32_t> order;        // layout piece i was list piece order[i]
  std::vector<uint64_t> piece_bytes;  // of layout piece i
};

// The layout's piece for `view`, without a position. INVALID_ARGUMENT: boxes that do not fit together.
Result<format::Piece> PieceOf(const PieceView& view);

class LayoutCache {
 public:
  // The layout of `pieces` for chunks of `chunk_bytes`. INVALID_ARGUMENT names the malformed piece (see
  // format::Validate), or the one whose data_bytes is not what its boxes take, or whose data is null.
  Result<std::shared_ptr<const PreparedLayout>> Get(std::span<const PieceView> pieces,
                                                    uint32_t chunk_bytes);
  // How often a layout was built, for tests and reports.
  uint64_t builds() const { return builds_; }

 private:
  bool Matches(std::span<const PieceView> pieces, uint32_t chunk_bytes) const;
  std::shared_ptr<const PreparedLayout> prepared_;
  std::vector<uint32_t> position_of_;  // list piece i is layout piece position_of_[i]
  uint64_t builds_ = 0;
};

}  // namespace reprise::client
