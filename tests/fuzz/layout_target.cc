// A layout, and everything that is computed from one: positions, boxes, overlap, coverage, the file
// form, the restore plan. The first byte says whether the rest is an encoded layout, or a script that
// makes one (which gets further: positions and sizes fit by construction).
#include "core/format/layout.h"

#include <algorithm>

#include "client/restore/planner.h"
#include "core/format/boxes.h"
#include "core/format/coverage.h"
#include "core/format/safetensors.h"
#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

bool Touch(const Box& left, const Box& right) {
  if (ElementsOf(left) == 0 || ElementsOf(right) == 0) return false;
  for (size_t axis = 0; axis < left.offset.size(); ++axis) {
    if (left.offset[axis] >= right.offset[axis] + right.extent[axis]) return false;
    if (right.offset[axis] >= left.offset[axis] + left.extent[axis]) return false;
  }
  return true;
}

// FindOverlap against every pair.
void CheckOverlap(const std::vector<Box>& boxes) {
  if (boxes.size() > 40) return;
  std::vector<const Box*> pointers;
  for (const Box& box : boxes) pointers.push_back(&box);
  bool overlap = false;
  for (size_t i = 0; i < boxes.size(); ++i) {
    for (size_t j = i + 1; j < boxes.size(); ++j) overlap |= Touch(boxes[i], boxes[j]);
  }
  auto found = FindOverlap(pointers);
  REPRISE_CHECK(found.has_value() == overlap);
  if (!found.has_value()) return;
  REPRISE_CHECK(found->first < found->second && found->second < boxes.size());
  REPRISE_CHECK(Touch(boxes[found->first], boxes[found->second]));
}

// The boxes of a flat range are disjoint, inside, in order, and as many elements as the range.
void CheckRange(const Piece& piece) {
  std::vector<Box> boxes = BoxesOfRange(piece.global_shape, piece.flat_begin, piece.flat_end);
  REPRISE_CHECK(boxes.size() <= std::max<size_t>(1, 2 * piece.global_shape.size()));
  uint64_t elements = 0;
  for (const Box& box : boxes) {
    REPRISE_CHECK(IsInside(box, piece.global_shape));
    elements += ElementsOf(box);
  }
  REPRISE_CHECK(elements == ElementsOf(piece));
  CheckOverlap(boxes);
}

void CheckFileForm(const Layout& layout) {
  SafetensorsHeader header = HeaderOfLayout(layout, {{"format", "pt"}});
  Result<Bytes> encoded = EncodeSafetensorsHeader(header);
  REPRISE_CHECK(encoded.has_value(), encoded.has_value() ? "" : encoded.error().message());
  Result<SafetensorsHeader> decoded = DecodeSafetensorsHeader(*encoded);
  REPRISE_CHECK(decoded.has_value(), decoded.has_value() ? "" : decoded.error().message());
  REPRISE_CHECK(*decoded == header);
}

// A shard that covers its tensors alone still does beside a replica of itself.
bool CheckCoverageOf(const Layout& layout) {
  std::vector<RankLayout> ranks = {{.rank = 0, .layout = &layout, .piece_digests = nullptr}};
  Status alone = CheckCoverage(ranks);
  if (!alone.ok()) {
    fuzz::CheckRefusal(alone);
    REPRISE_CHECK(alone.code() == Code::kInvalidArgument);
    return false;
  }
  ranks.push_back({.rank = 1, .layout = &layout, .piece_digests = nullptr});
  Status twice = CheckCoverage(ranks);
  REPRISE_CHECK(twice.ok(), twice.message());
  return true;
}

// What was saved can be restored to the same pieces by the same world.
void CheckPlan(const Layout& layout) {
  constexpr uint64_t kPlannedBytesMax = 16 * limits::kMiB;
  if (layout.shard_bytes > kPlannedBytesMax) return;  // a plan is as long as the shard's chunks
  client::SavedState saved{.layouts = {layout}, .layout_of_rank = {0}};
  std::vector<client::WantedPiece> wanted;
  uint64_t bytes = 0;
  for (const Piece& piece : layout.pieces) {
    wanted.push_back({.piece = piece});
    bytes += BytesOf(piece);
  }
  auto plan = client::PlanRestore(saved, wanted, {.rank = 0, .world = 1});
  REPRISE_CHECK(plan.has_value(), plan.has_value() ? "" : plan.error().message());
  REPRISE_CHECK(plan->bytes == bytes);
  for (const client::ShardPlan& shard : plan->shards) {
    REPRISE_CHECK(shard.rank == 0 && shard.chunk_bytes == layout.chunk_bytes);
    REPRISE_CHECK(shard.length == layout.shard_bytes && std::ranges::is_sorted(shard.uses));
    for (const auto& use : shard.uses) {
      REPRISE_CHECK(use.copy < shard.copies.size());
      REPRISE_CHECK(use.chunk * shard.chunk_bytes < shard.length);
    }
  }
}

void CheckValid(const Layout& layout) {
  for (const Piece& piece : layout.pieces) {
    if (piece.kind == PieceKind::kFlat) CheckRange(piece);
    CheckOverlap(piece.boxes);
    REPRISE_CHECK(!PieceFileName(piece).empty());
    REPRISE_CHECK(BytesOf(piece) <= limits::kShardBytesMax);
  }
  Layout ordered = layout;
  std::vector<uint32_t> order;
  AssignPositions(ordered, layout.chunk_bytes, &order);
  REPRISE_CHECK(order.size() == layout.pieces.size());
  if (Status status = Validate(ordered); !status.ok()) {
    REPRISE_CHECK(ordered.shard_bytes > limits::kShardBytesMax, status.message());
  }
  CheckFileForm(layout);
  CheckCoverageOf(layout);
  CheckPlan(layout);
}

void RunEncoded(ByteView bytes) {
  fuzz::AllocationCount allocated;
  Result<Layout> layout = DecodeLayout(bytes);
  REPRISE_CHECK(allocated.bytes() <= 64 * bytes.size() + 16 * 1024);
  if (!layout.has_value()) {
    fuzz::CheckDecodeRefusal(layout.error());
    return;
  }
  REPRISE_CHECK(std::ranges::equal(EncodeLayout(*layout), bytes));
  CheckValid(*layout);
}

uint64_t ScriptedExtent(fuzz::Script& script) {
  uint8_t kind = script.Byte();
  return kind < 240 ? kind % 9 : script.Odd();
}

Piece ScriptedPiece(fuzz::Script& script) {
  Piece piece;
  piece.name = script.Chance(200) ? std::string(1, static_cast<char>('a' + script.Below(26)))
                                  : script.Text();
  piece.dtype = static_cast<Dtype>(script.Below(20));
  piece.kind = script.Chance(180) ? PieceKind::kBoxes : PieceKind::kFlat;
  piece.scope = static_cast<Scope>(1 + script.Below(3));
  piece.world_policy = static_cast<WorldPolicy>(1 + script.Below(4));
  piece.auxiliary = script.Chance(20);
  size_t axes = script.Below(6);
  for (size_t axis = 0; axis < axes; ++axis) piece.global_shape.push_back(ScriptedExtent(script));
  if (piece.kind == PieceKind::kFlat) {
    piece.flat_begin = ScriptedExtent(script);
    piece.flat_end = piece.flat_begin + ScriptedExtent(script);
    return piece;
  }
  for (size_t boxes = script.Below(6); boxes > 0; --boxes) {
    Box box = WholeBox(piece.global_shape);
    for (size_t axis = 0; axis < axes && script.Chance(160); ++axis) {
      box.offset[axis] = ScriptedExtent(script);
      box.extent[axis] = ScriptedExtent(script);
    }
    piece.boxes.push_back(std::move(box));
  }
  return piece;
}

void RunScript(fuzz::Script script) {
  Layout layout;
  uint32_t chunk_bytes = limits::kChunkBytesMin << script.Below(11);
  for (size_t pieces = 1 + script.Below(5); pieces > 0; --pieces) {
    layout.pieces.push_back(ScriptedPiece(script));
  }
  bool fits = std::ranges::all_of(
      layout.pieces, [](const Piece& piece) { return BytesOf(piece) <= limits::kShardBytesMax; });
  if (!fits) return;  // AssignPositions is for pieces that CheckPiece accepts
  AssignPositions(layout, chunk_bytes);
  Status valid = Validate(layout);
  Bytes encoded = EncodeLayout(layout);
  Result<Layout> decoded = DecodeLayout(encoded);
  REPRISE_CHECK(decoded.has_value() == valid.ok());
  if (!valid.ok()) {
    fuzz::CheckRefusal(valid);
    return;
  }
  REPRISE_CHECK(*decoded == layout);
  CheckValid(layout);
}

void RunInput(ByteView input) {
  if (input.empty()) return;
  if (input[0] % 2 == 0) {
    RunEncoded(input.subspan(1));
  } else {
    RunScript(fuzz::Script(input.subspan(1)));
  }
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(9);
  auto add = [&](uint8_t mode, Bytes bytes) {
    bytes.insert(bytes.begin(), mode);
    seeds.push_back(std::move(bytes));
  };
  add(0, fuzz::Golden("layout"));
  for (int i = 0; i < 12; ++i) add(0, EncodeLayout(RandomLayout(rng, 4)));
  Box left{{0, 0}, {4, 8}}, right{{4, 0}, {4, 8}};
  Piece halves = BoxPiece("w", {8, 8}, left);
  halves.boxes.push_back(right);
  add(0, EncodeLayout(LayoutOf({WholePiece("a", {3, 5}), halves, FlatPiece("f", {4, 6}, 3, 20)})));
  for (int i = 0; i < 12; ++i) {
    Bytes script(64);
    for (uint8_t& byte : script) byte = static_cast<uint8_t>(rng.Next());
    add(1, std::move(script));
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::format

REPRISE_FUZZ_TARGET(layout) = {.name = "layout",
                               .run = reprise::format::RunInput,
                               .seeds = reprise::format::Seeds,
                               .input_bytes_max = 1024};
