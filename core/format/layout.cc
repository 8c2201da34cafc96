#include "core/format/layout.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <tuple>
#include <unordered_set>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/format/boxes.h"
#include "core/format/fields.h"

namespace reprise::format {
namespace {

constexpr uint64_t kMagic = MagicOf("RPRJLAY1");
// Smallest encoding of a piece: name of one byte, six bytes, an empty box list, position.
constexpr size_t kPieceBytesMin = 4 + 1 + 6 + 4 + 8;
constexpr uint64_t kSaturated = std::numeric_limits<uint64_t>::max();

uint64_t Product(const std::vector<uint64_t>& factors) {
  if (std::ranges::find(factors, 0u) != factors.end()) return 0;
  uint64_t product = 1;
  for (uint64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return kSaturated;
  }
  return product;
}

uint64_t AlignmentOf(uint64_t piece_bytes, uint32_t chunk_bytes) {
  return piece_bytes >= chunk_bytes ? chunk_bytes : kPieceAlignment;
}

Status Malformed(const Piece& piece, std::string_view why) {
  return FailStatus(Code::kInvalidArgument, "tensor \"{}\": {}", piece.name, why);
}

Status CheckName(const Piece& piece) {
  if (piece.name.empty()) return Malformed(piece, "a tensor must have a name");
  if (piece.name.size() > limits::kTensorNameLengthMax) {
    return FailStatus(Code::kInvalidArgument, "tensor \"{}...\": the name has {} bytes, at most {}",
                      CutText(piece.name, 64), piece.name.size(), limits::kTensorNameLengthMax);
  }
  if (!IsUtf8(piece.name)) return Status(Code::kInvalidArgument, "a tensor name is not UTF-8");
  if (piece.name == "__metadata__") return Malformed(piece, "this name is reserved by safetensors");
  return OkStatus();
}

Status CheckBoxes(const Piece& piece) {
  if (piece.flat_begin != 0 || piece.flat_end != 0) {
    return Malformed(piece, "a piece of boxes has no flat range");
  }
  if (piece.boxes.size() > limits::kBoxesPerPieceMax) return Malformed(piece, "too many boxes");
  std::vector<const Box*> boxes;
  boxes.reserve(piece.boxes.size());
  for (const Box& box : piece.boxes) {
    if (!IsInside(box, piece.global_shape)) {
      return Malformed(piece, "a box lies outside the global shape");
    }
    boxes.push_back(&box);
  }
  if (FindOverlap(boxes).has_value()) return Malformed(piece, "two of its boxes overlap");
  return OkStatus();
}

Status CheckShape(const Piece& piece) {
  uint32_t dtype_bytes = DtypeBytes(piece.dtype);
  if (dtype_bytes == 0) return Malformed(piece, "unknown element type");
  if (piece.global_shape.size() > limits::kTensorRankMax) return Malformed(piece, "too many axes");
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(ElementsOf(piece.global_shape), uint64_t{dtype_bytes}, &bytes) ||
      bytes == kSaturated) {
    return Malformed(piece, "its global shape passes 2^64 bytes");
  }
  if (piece.auxiliary && (piece.dtype != Dtype::kU8 || piece.global_shape.size() != 1)) {
    return Malformed(piece, "an auxiliary item must be U8 with one axis");
  }
  return OkStatus();
}

Status CheckPiece(const Piece& piece) {
  REPRISE_RETURN_IF_ERROR(CheckName(piece));
  REPRISE_RETURN_IF_ERROR(CheckShape(piece));
  auto in = [](auto value, auto low, auto high) { return value >= low && value <= high; };
  if (!in(piece.scope, Scope::kGlobal, Scope::kRank) ||
      !in(piece.world_policy, WorldPolicy::kSameWorld, WorldPolicy::kDrop)) {
    return Malformed(piece, "unknown scope or world policy");
  }
  if (piece.kind == PieceKind::kBoxes) return CheckBoxes(piece);
  if (piece.kind != PieceKind::kFlat) return Malformed(piece, "unknown kind of piece");
  if (!piece.boxes.empty()) return Malformed(piece, "a flat range has no boxes");
  if (piece.flat_begin > piece.flat_end || piece.flat_end > ElementsOf(piece.global_shape)) {
    return Malformed(piece, "its flat range lies outside the tensor");
  }
  return OkStatus();
}

Status CheckPositions(const Layout& layout) {
  uint64_t end = 0;
  for (const Piece& piece : layout.pieces) {
    uint64_t bytes = BytesOf(piece);
    if (!IsAligned(piece.position, AlignmentOf(bytes, layout.chunk_bytes))) {
      return Malformed(piece, "its position is not aligned");
    }
    if (piece.position < end) return Malformed(piece, "it overlaps the piece before it");
    if (bytes > limits::kShardBytesMax || piece.position > limits::kShardBytesMax - bytes) {
      return Malformed(piece, "the shard grows past 4 TiB: use more ranks");
    }
    end = piece.position + bytes;
  }
  if (end != layout.shard_bytes) {
    return FailStatus(Code::kInvalidArgument, "shard_bytes is {}, but the last piece ends at {}",
                      layout.shard_bytes, end);
  }
  return OkStatus();
}

void PutPiece(ByteWriter& writer, const Piece& piece) {
  writer.String(piece.name);
  writer.U8(static_cast<uint8_t>(piece.dtype));
  writer.U8(static_cast<uint8_t>(piece.kind));
  writer.U8(static_cast<uint8_t>(piece.scope));
  writer.U8(static_cast<uint8_t>(piece.world_policy));
  writer.U8(piece.auxiliary);
  writer.U8(static_cast<uint8_t>(piece.global_shape.size()));
  for (uint64_t extent : piece.global_shape) writer.U64(extent);
  if (piece.kind == PieceKind::kFlat) {
    writer.U64(piece.flat_begin);
    writer.U64(piece.flat_end);
  } else {
    writer.U32(static_cast<uint32_t>(piece.boxes.size()));
    for (const Box& box : piece.boxes) {
      for (uint64_t offset : box.offset) writer.U64(offset);
      for (uint64_t extent : box.extent) writer.U64(extent);
    }
  }
  writer.U64(piece.position);
}

std::vector<uint64_t> GetNumbers(ByteReader& reader, size_t count) {
  std::vector<uint64_t> numbers;
  numbers.reserve(count);
  for (size_t i = 0; i < count; ++i) numbers.push_back(reader.U64());
  return numbers;
}

void GetBoxes(ByteReader& reader, Piece& piece) {
  size_t axes = piece.global_shape.size();
  // A scalar's box has no bytes, so its count is bounded by what makes sense: one.
  uint32_t count = axes == 0 ? reader.U32() : reader.Count(2 * sizeof(uint64_t) * axes);
  if (count > (axes == 0 ? 1 : limits::kBoxesPerPieceMax)) reader.Fail();
  if (!reader.ok()) return;
  piece.boxes.resize(count);
  for (Box& box : piece.boxes) {
    box.offset = GetNumbers(reader, axes);
    box.extent = GetNumbers(reader, axes);
  }
}

Piece GetPiece(ByteReader& reader) {
  Piece piece;
  piece.name = reader.String(limits::kTensorNameLengthMax);
  piece.dtype = GetEnum(reader, Dtype::kBool, Dtype::kComplex128);
  piece.kind = GetEnum(reader, PieceKind::kBoxes, PieceKind::kFlat);
  piece.scope = GetEnum(reader, Scope::kGlobal, Scope::kRank);
  piece.world_policy = GetEnum(reader, WorldPolicy::kSameWorld, WorldPolicy::kDrop);
  piece.auxiliary = GetBool(reader);
  uint8_t axes = reader.U8();
  if (axes > limits::kTensorRankMax) reader.Fail();
  if (!reader.ok()) return piece;
  piece.global_shape = GetNumbers(reader, axes);
  if (piece.kind == PieceKind::kFlat) {
    piece.flat_begin = reader.U64();
    piece.flat_end = reader.U64();
  } else {
    GetBoxes(reader, piece);
  }
  piece.position = reader.U64();
  return piece;
}

}  // namespace

uint64_t ElementsOf(const Box& box) { return Product(box.extent); }

uint64_t ElementsOf(const std::vector<uint64_t>& shape) { return Product(shape); }

uint64_t ElementsOf(const Piece& piece) {
  if (piece.kind == PieceKind::kFlat) {
    return piece.flat_end >= piece.flat_begin ? piece.flat_end - piece.flat_begin : 0;
  }
  uint64_t elements = 0;
  for (const Box& box : piece.boxes) {
    if (__builtin_add_overflow(elements, ElementsOf(box), &elements)) return kSaturated;
  }
  return elements;
}

uint64_t BytesOf(const Piece& piece) {
  uint64_t bytes = 0;
  bool overflow = __builtin_mul_overflow(ElementsOf(piece), DtypeBytes(piece.dtype), &bytes);
  return overflow ? kSaturated : bytes;
}

bool IsWhole(const Piece& piece) {
  uint64_t elements = ElementsOf(piece.global_shape);
  if (elements == 0) return true;
  if (piece.kind == PieceKind::kFlat) return piece.flat_begin == 0 && piece.flat_end == elements;
  return piece.boxes.size() == 1 && piece.boxes[0] == WholeBox(piece.global_shape);
}

Box WholeBox(const std::vector<uint64_t>& shape) {
  return {.offset = std::vector<uint64_t>(shape.size(), 0), .extent = shape};
}

void AssignPositions(Layout& layout, uint32_t chunk_bytes, std::vector<uint32_t>* order_out) {
  REPRISE_CHECK(std::has_single_bit(chunk_bytes) && chunk_bytes >= kPieceAlignment);
  std::vector<uint32_t> order(layout.pieces.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<uint64_t> bytes;
  bytes.reserve(layout.pieces.size());
  for (const Piece& piece : layout.pieces) bytes.push_back(BytesOf(piece));
  auto precedes = [&](uint32_t left_index, uint32_t right_index) {
    const Piece& left = layout.pieces[left_index];
    const Piece& right = layout.pieces[right_index];
    // Where larger comes first, the sides are swapped.
    return std::tuple(left.auxiliary, DtypeBytes(right.dtype), bytes[right_index],
                      std::string_view(left.name), left_index) <
           std::tuple(right.auxiliary, DtypeBytes(left.dtype), bytes[left_index],
                      std::string_view(right.name), right_index);
  };
  std::ranges::sort(order, precedes);

  std::vector<Piece> pieces;
  pieces.reserve(layout.pieces.size());
  uint64_t end = 0;
  for (uint32_t index : order) {
    Piece& piece = pieces.emplace_back(std::move(layout.pieces[index]));
    piece.position = AlignUp(end, AlignmentOf(bytes[index], chunk_bytes));
    end = piece.position + bytes[index];
  }
  layout.pieces = std::move(pieces);
  layout.chunk_bytes = chunk_bytes;
  layout.shard_bytes = end;
  if (order_out != nullptr) *order_out = std::move(order);
}

Status Validate(const Layout& layout) {
  if (!std::has_single_bit(layout.chunk_bytes) || layout.chunk_bytes < limits::kChunkBytesMin ||
      layout.chunk_bytes > limits::kChunkBytesMax) {
    return FailStatus(Code::kInvalidArgument,
                      "the chunk size of {} bytes is not a power of two from 4 KiB to 4 MiB",
                      layout.chunk_bytes);
  }
  if (layout.pieces.size() > limits::kPiecesPerLayoutMax) {
    return FailStatus(Code::kInvalidArgument, "a shard of {} tensors is over the limit of {}",
                      layout.pieces.size(), limits::kPiecesPerLayoutMax);
  }
  std::unordered_set<std::string_view> names;
  names.reserve(layout.pieces.size());
  for (const Piece& piece : layout.pieces) {
    REPRISE_RETURN_IF_ERROR(CheckPiece(piece));
    if (!names.insert(piece.name).second) {
      return Malformed(piece, "the name is used twice in one shard");
    }
  }
  return CheckPositions(layout);
}

Bytes EncodeLayout(const Layout& layout) {
  ByteWriter writer;
  PutHead(writer, kMagic, layout.chunk_bytes);
  writer.U64(layout.shard_bytes);
  writer.U32(static_cast<uint32_t>(layout.pieces.size()));
  for (const Piece& piece : layout.pieces) PutPiece(writer, piece);
  return writer.Take();
}

Result<Layout> DecodeLayout(ByteView bytes) {
  if (bytes.size() > limits::kLayoutBytesMax) {
    return Fail(Code::kDataLoss, "a layout of {} is over the limit of {}", HumanBytes(bytes.size()),
                HumanBytes(limits::kLayoutBytesMax));
  }
  ByteReader reader(bytes);
  Layout layout;
  REPRISE_ASSIGN(layout.chunk_bytes, GetHead(reader, kMagic, "layout"));
  layout.shard_bytes = reader.U64();
  uint32_t count = reader.Count(kPieceBytesMin);
  for (uint32_t i = 0; i < count && reader.ok(); ++i) layout.pieces.push_back(GetPiece(reader));
  if (!reader.AtEnd()) {
    return Fail(Code::kDataLoss, "the layout is malformed at byte {} of {}", reader.position(),
                bytes.size());
  }
  Status valid = Validate(layout);
  if (!valid.ok()) return Fail(Code::kDataLoss, "the layout is malformed: {}", valid.message());
  return layout;
}

Digest LayoutDigest(const Layout& layout) { return DigestOf(EncodeLayout(layout)); }

}  // namespace reprise::format
