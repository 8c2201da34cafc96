// Layout: what one rank's shard consists of. An ordered list of pieces, content-addressed.
//
// A *piece* is the part of one tensor (or one auxiliary item) that a rank contributes: a list of
// boxes, or a flat range of the row-major tensor. Piece bytes are the boxes' elements, box after box,
// each in row-major order. Positions are byte offsets in the shard as it lies in slab and segment;
// gaps are zero. Encoding and worked example: docs/format.md, "Layout".
//
// Thread rule: pure values and functions; no I/O.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::format {

enum class PieceKind : uint8_t {
  kBoxes = 1,  // `boxes`
  kFlat = 2,   // elements [flat_begin, flat_end) of the row-major tensor
};

struct Piece {
  std::string name;  // fully qualified, UTF-8, at most limits::kTensorNameLengthMax bytes
  Dtype dtype = Dtype::kU8;
  std::vector<uint64_t> global_shape;  // of the whole tensor
  PieceKind kind = PieceKind::kBoxes;
  std::vector<Box> boxes;
  uint64_t flat_begin = 0;
  uint64_t flat_end = 0;
  Scope scope = Scope::kReplicated;
  WorldPolicy world_policy = WorldPolicy::kSameWorld;
  bool auxiliary = false;  // an encoded value (aux tree), not a tensor: U8, one axis
  uint64_t position = 0;   // byte offset in the shard

  bool operator==(const Piece&) const = default;
};

// Elements of a box / of a shape; saturates at UINT64_MAX on overflow.
uint64_t ElementsOf(const Box& box);
uint64_t ElementsOf(const std::vector<uint64_t>& shape);
uint64_t ElementsOf(const Piece& piece);
uint64_t BytesOf(const Piece& piece);
// A piece that is the whole tensor.
bool IsWhole(const Piece& piece);
Box WholeBox(const std::vector<uint64_t>& shape);

// Every position is a multiple of this (of the chunk size for a piece of at least one chunk).
inline constexpr uint64_t kPieceAlignment = 64;

struct Layout {
  std::vector<Piece> pieces;  // in shard order
  uint32_t chunk_bytes = 0;   // the chunk size positions were made for
  uint64_t shard_bytes = 0;   // end of the last piece

  bool operator==(const Layout&) const = default;
};

// Sorts pieces into shard order (tensors by dtype size descending, then bytes descending, then name;
// auxiliary items last), gives each its position (a multiple of kPieceAlignment; a chunk boundary
// when it has at least one chunk) and sets shard_bytes. `order_out`, when given, receives for each
// new index the index the piece had before. `chunk_bytes` is a power of two.
void AssignPositions(Layout& layout, uint32_t chunk_bytes,
                     std::vector<uint32_t>* order_out = nullptr);

// INVALID_ARGUMENT names the first piece that is malformed: a name that is empty, too long or twice
// in the layout, boxes outside the shape or overlapping, sizes over the limits, positions that are
// not aligned or not ascending, a shard_bytes that is not the end of the last piece. The order of
// AssignPositions is not demanded. A piece may be empty (no box, or one without elements).
Status Validate(const Layout& layout);

Bytes EncodeLayout(const Layout& layout);
// Decodes and validates; DATA_LOSS says what is malformed. Allocates in proportion to the input.
Result<Layout> DecodeLayout(ByteView bytes);
// XXH3-128 of the encoding.
Digest LayoutDigest(const Layout& layout);

}  // namespace reprise::format
