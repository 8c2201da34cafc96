#include "client/snapshot/layout_cache.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"

namespace reprise::client {
namespace {

bool SameBoxes(const PieceView& view, const std::vector<Box>& boxes) {
  if (view.box_count != boxes.size()) return false;
  size_t axes = view.global_shape.size();
  const uint64_t* next = view.boxes.data();
  for (const Box& box : boxes) {
    if (!std::equal(box.offset.begin(), box.offset.end(), next)) return false;
    if (!std::equal(box.extent.begin(), box.extent.end(), next + axes)) return false;
    next += 2 * axes;
  }
  return true;
}

bool SamePiece(const PieceView& view, const format::Piece& piece) {
  bool flat = piece.kind == format::PieceKind::kFlat;
  if (view.name != piece.name || view.dtype != piece.dtype || view.scope != piece.scope ||
      view.world_policy != piece.world_policy || view.auxiliary != piece.auxiliary ||
      view.flat != flat || !std::ranges::equal(view.global_shape, piece.global_shape)) {
    return false;
  }
  if (flat) return view.flat_begin == piece.flat_begin && view.flat_end == piece.flat_end;
  return view.boxes.size() == 2 * view.global_shape.size() * view.box_count &&
         SameBoxes(view, piece.boxes);
}

Status CheckMemory(const PieceView& view, uint64_t bytes) {
  if (view.data_bytes != bytes) {
    return FailStatus(Code::kInvalidArgument,
                      "tensor \"{}\": the caller gave {} bytes, its shape and type take {}",
                      view.name, view.data_bytes, bytes);
  }
  if (view.data == nullptr && bytes != 0) {
    return FailStatus(Code::kInvalidArgument, "tensor \"{}\": its memory is a null pointer",
                      view.name);
  }
  return OkStatus();
}

}  // namespace

Result<format::Piece> PieceOf(const PieceView& view) {
  format::Piece piece;
  piece.name = view.name;
  piece.dtype = view.dtype;
  piece.scope = view.scope;
  piece.world_policy = view.world_policy;
  piece.auxiliary = view.auxiliary;
  piece.global_shape.assign(view.global_shape.begin(), view.global_shape.end());
  if (view.flat) {
    piece.kind = format::PieceKind::kFlat;
    piece.flat_begin = view.flat_begin;
    piece.flat_end = view.flat_end;
    return piece;
  }
  size_t axes = view.global_shape.size();
  if (view.box_count > limits::kBoxesPerPieceMax ||
      view.boxes.size() != 2 * axes * view.box_count) {
    return Fail(
        Code::kInvalidArgument,
        "tensor \"{}\": {} boxes of {} axes need {} numbers, {} were given (at most {} boxes)",
        view.name, view.box_count, axes, 2 * axes * view.box_count, view.boxes.size(),
        limits::kBoxesPerPieceMax);
  }
  for (uint64_t i = 0; i < view.box_count; ++i) {
    auto numbers = view.boxes.subspan(2 * axes * i, 2 * axes);
    Box& box = piece.boxes.emplace_back();
    box.offset.assign(numbers.begin(), numbers.begin() + axes);
    box.extent.assign(numbers.begin() + axes, numbers.end());
  }
  return piece;
}

bool LayoutCache::Matches(std::span<const PieceView> pieces, uint32_t chunk_bytes) const {
  if (prepared_ == nullptr || prepared_->layout.chunk_bytes != chunk_bytes) return false;
  if (prepared_->layout.pieces.size() != pieces.size()) return false;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!SamePiece(pieces[i], prepared_->layout.pieces[position_of_[i]])) return false;
  }
  return true;
}

Result<std::shared_ptr<const PreparedLayout>> LayoutCache::Get(std::span<const PieceView> pieces,
                                                               uint32_t chunk_bytes) {
  if (!Matches(pieces, chunk_bytes)) {
    auto prepared = std::make_shared<PreparedLayout>();
    for (const PieceView& view : pieces) {
      REPRISE_ASSIGN(format::Piece piece, PieceOf(view));
      prepared->layout.pieces.push_back(std::move(piece));
    }
    format::AssignPositions(prepared->layout, chunk_bytes, &prepared->order);
    REPRISE_TRY(format::Validate(prepared->layout));
    prepared->encoded = format::EncodeLayout(prepared->layout);
    prepared->digest = DigestOf(prepared->encoded);
    for (const format::Piece& piece : prepared->layout.pieces) {
      prepared->piece_bytes.push_back(format::BytesOf(piece));
    }
    position_of_.assign(pieces.size(), 0);
    for (uint32_t i = 0; i < prepared->order.size(); ++i) position_of_[prepared->order[i]] = i;
    prepared_ = std::move(prepared);
    ++builds_;
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    REPRISE_TRY(CheckMemory(pieces[i], prepared_->piece_bytes[position_of_[i]]));
  }
  return prepared_;
}

}  // namespace reprise::client
