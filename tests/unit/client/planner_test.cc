#include "client/restore/planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "core/base/random.h"
#include "core/format/boxes.h"

namespace reprise::client {
namespace {

using format::Piece;
using format::PieceKind;

constexpr uint32_t kChunk = 4096;

// Every element of every tensor has a value that names it: 8 bytes (tensor number, element index).
uint64_t ValueOf(uint64_t tensor, uint64_t element) { return tensor << 48 | (element + 1); }

std::vector<uint64_t> ElementsIn(const Piece& piece) {
  std::vector<uint64_t> elements;
  if (piece.kind == PieceKind::kFlat) {
    for (uint64_t e = piece.flat_begin; e < piece.flat_end; ++e) elements.push_back(e);
    return elements;
  }
  for (const Box& box : piece.boxes) {
    uint64_t count = format::ElementsOf(box);
    for (uint64_t i = 0; i < count; ++i) {
      uint64_t rest = i;
      uint64_t element = 0;
      uint64_t stride = 1;
      for (size_t a = box.extent.size(); a-- > 0;) {
        element += (box.offset[a] + rest % box.extent[a]) * stride;
        rest /= box.extent[a];
        stride *= piece.global_shape[a];
      }
      elements.push_back(element);
    }
  }
  return elements;
}

Bytes BytesFor(const Piece& piece, uint64_t tensor) {
  Bytes bytes;
  for (uint64_t element : ElementsIn(piece)) {
    uint64_t value = ValueOf(tensor, element);
    const auto* raw = reinterpret_cast<const uint8_t*>(&value);
    bytes.insert(bytes.end(), raw, raw + sizeof(value));
  }
  return bytes;
}

struct Saved {
  SavedState state;
  std::vector<Bytes> shards;
};

// What carrying out the plan writes into each wanted piece.
std::vector<Bytes> Execute(const Saved& saved, const RestorePlan& plan,
                           const std::vector<WantedPiece>& wanted) {
  std::vector<Bytes> targets;
  for (const WantedPiece& want : wanted) targets.emplace_back(format::BytesOf(want.piece), 0xCC);
  for (const ShardPlan& shard : plan.shards) {
    std::set<std::pair<uint64_t, uint32_t>> seen;
    for (const ShardPlan::Use& use : shard.uses) {
      EXPECT_TRUE(seen.emplace(use.chunk, use.copy).second) << "a use is listed twice";
      uint64_t begin = use.chunk * shard.chunk_bytes;
      uint64_t end = std::min<uint64_t>(begin + shard.chunk_bytes, shard.length);
      const StridedCopy& copy = shard.copies[use.copy];
      size_t runs = 0;
      ForEachRun(copy, begin, end, [&](uint64_t from, uint64_t to, uint64_t bytes) {
        ++runs;
        ASSERT_LE(to + bytes, targets[copy.target].size());
        std::memcpy(targets[copy.target].data() + to, saved.shards[shard.rank].data() + from,
                    bytes);
      });
      EXPECT_GT(runs, 0u) << "a chunk is fetched for nothing";
    }
  }
  return targets;
}

// Divides a tensor among ranks along random axes at random cuts; some pieces may be empty.
class Sharder {
 public:
  explicit Sharder(Rng& rng) : rng_(rng) {}

  std::vector<Piece> Shard(const std::string& name, const std::vector<uint64_t>& shape,
                           uint32_t world) {
    std::vector<Piece> pieces(world);
    for (Piece& piece : pieces) {
      piece.name = name;
      piece.dtype = Dtype::kF64;
      piece.global_shape = shape;
      piece.scope = Scope::kGlobal;
    }
    switch (rng_.Below(4)) {
      case 0: Replicate(pieces, shape); break;
      case 1: CutFlat(pieces, shape); break;
      default: CutBoxes(pieces, shape); break;
    }
    return pieces;
  }

 private:
  void Replicate(std::vector<Piece>& pieces, const std::vector<uint64_t>& shape) {
    for (Piece& piece : pieces) {
      piece.scope = Scope::kReplicated;
      piece.boxes = {format::WholeBox(shape)};
    }
  }
  void CutFlat(std::vector<Piece>& pieces, const std::vector<uint64_t>& shape) {
    std::vector<uint64_t> cuts = Cuts(format::ElementsOf(shape), pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
      pieces[i].kind = PieceKind::kFlat;
      pieces[i].flat_begin = cuts[i];
      pieces[i].flat_end = cuts[i + 1];
    }
  }
  void CutBoxes(std::vector<Piece>& pieces, const std::vector<uint64_t>& shape) {
    std::vector<Box> boxes{format::WholeBox(shape)};
    size_t wanted = pieces.size() + rng_.Below(4);
    for (size_t tries = 0; boxes.size() < wanted && tries < 50; ++tries) {
      size_t which = rng_.Below(boxes.size());
      if (shape.empty()) break;
      size_t axis = rng_.Below(shape.size());
      if (boxes[which].extent[axis] < 2) continue;
      uint64_t at = 1 + rng_.Below(boxes[which].extent[axis] - 1);
      Box upper = boxes[which];
      upper.offset[axis] += at;
      upper.extent[axis] -= at;
      boxes[which].extent[axis] = at;
      boxes.push_back(upper);
    }
    for (const Box& box : boxes) pieces[rng_.Below(pieces.size())].boxes.push_back(box);
  }
  std::vector<uint64_t> Cuts(uint64_t length, size_t parts) {
    std::vector<uint64_t> cuts{0, length};
    for (size_t i = 1; i < parts; ++i) cuts.push_back(rng_.Below(length + 1));
    std::ranges::sort(cuts);
    return cuts;
  }
  Rng& rng_;
};

struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;
};

std::vector<Tensor> RandomTensors(Rng& rng) {
  std::vector<Tensor> tensors;
  size_t count = 1 + rng.Below(4);
  for (size_t t = 0; t < count; ++t) {
    std::vector<uint64_t> shape(rng.Below(4));
    for (uint64_t& extent : shape) extent = 1 + rng.Below(shape.size() == 1 ? 3000 : 20);
    tensors.push_back({"t" + std::to_string(t), shape});
  }
  return tensors;
}

Saved SaveAll(const std::vector<std::vector<Piece>>& pieces_of_rank) {
  Saved saved;
  for (const std::vector<Piece>& pieces : pieces_of_rank) {
    format::Layout layout;
    layout.pieces = pieces;
    format::AssignPositions(layout, kChunk);
    EXPECT_TRUE(format::Validate(layout).ok()) << format::Validate(layout);
    Bytes shard(layout.shard_bytes, 0);
    for (const Piece& piece : layout.pieces) {
      Bytes bytes = BytesFor(piece, piece.name[1] - '0');
      if (!bytes.empty()) std::memcpy(shard.data() + piece.position, bytes.data(), bytes.size());
    }
    auto same = std::ranges::find(saved.state.layouts, layout);
    saved.state.layout_of_rank.push_back(static_cast<uint32_t>(same - saved.state.layouts.begin()));
    if (same == saved.state.layouts.end()) saved.state.layouts.push_back(layout);
    saved.shards.push_back(std::move(shard));
  }
  return saved;
}

Piece WholePiece(const std::string& name, const std::vector<uint64_t>& shape) {
  Piece piece;
  piece.name = name;
  piece.dtype = Dtype::kF64;
  piece.global_shape = shape;
  piece.boxes = {format::WholeBox(shape)};
  return piece;
}

TEST(Planner, AnySavedWorldGivesAnyWantedWorldItsExactBytes) {
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Sharder sharder(rng);
    std::vector<Tensor> tensors = RandomTensors(rng);
    auto saved_world = static_cast<uint32_t>(1 + rng.Below(8));
    auto wanted_world = static_cast<uint32_t>(1 + rng.Below(8));
    std::vector<std::vector<Piece>> saves(saved_world);
    std::vector<std::vector<WantedPiece>> wants(wanted_world);
    for (const Tensor& tensor : tensors) {
      auto pieces = sharder.Shard(tensor.name, tensor.shape, saved_world);
      for (uint32_t r = 0; r < saved_world; ++r) saves[r].push_back(pieces[r]);
      auto wanted = sharder.Shard(tensor.name, tensor.shape, wanted_world);
      for (uint32_t r = 0; r < wanted_world; ++r) wants[r].push_back({wanted[r], -1});
    }
    Saved saved = SaveAll(saves);
    for (uint32_t rank = 0; rank < wanted_world; ++rank) {
      auto plan = PlanRestore(saved.state, wants[rank], {.rank = rank, .world = wanted_world});
      ASSERT_TRUE(plan.has_value()) << plan.error();
      std::vector<Bytes> got = Execute(saved, *plan, wants[rank]);
      for (size_t i = 0; i < wants[rank].size(); ++i) {
        const Piece& piece = wants[rank][i].piece;
        ASSERT_EQ(got[i], BytesFor(piece, piece.name[1] - '0')) << piece.name << " rank " << rank;
      }
    }
    if (HasFailure()) return;
  }
}

TEST(Planner, NoByteIsMovedTwiceThoughReplicasOverlap) {
  std::vector<std::vector<Piece>> saves;
  for (int rank = 0; rank < 3; ++rank) saves.push_back({WholePiece("t0", {40, 10})});
  // A fourth rank holds an overlapping part in a layout of its own.
  Piece part = WholePiece("t0", {40, 10});
  part.boxes = {{{5, 0}, {20, 7}}};
  saves.push_back({part});
  Saved saved = SaveAll(saves);
  std::vector<WantedPiece> want{{WholePiece("t0", {40, 10}), -1}};
  for (uint32_t rank = 0; rank < 4; ++rank) {
    auto plan = PlanRestore(saved.state, want, {.rank = rank, .world = 4});
    ASSERT_TRUE(plan.has_value());
    EXPECT_EQ(plan->bytes, 40 * 10 * 8u);
    EXPECT_EQ(Execute(saved, *plan, want)[0], BytesFor(want[0].piece, 0));
  }
}

TEST(Planner, RegionsThatNobodySavedAreReportedAndNothingElse) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    Piece piece = WholePiece("t0", {12, 9});
    std::vector<std::vector<Piece>> saves(3);
    Sharder sharder(rng);
    auto pieces = sharder.Shard("t0", {12, 9}, 3);
    auto lost = static_cast<uint32_t>(rng.Below(3));
    std::set<uint64_t> covered;
    for (uint32_t r = 0; r < 3; ++r) {
      if (r == lost) pieces[r].boxes.clear(), pieces[r].flat_end = pieces[r].flat_begin;
      for (uint64_t e : ElementsIn(pieces[r])) covered.insert(e);
      saves[r] = {pieces[r]};
    }
    Saved saved = SaveAll(saves);
    std::vector<WantedPiece> want{{piece, -1}};
    auto plan = PlanRestore(saved.state, want, {.rank = 0, .world = 3});
    EXPECT_EQ(plan.has_value(), covered.size() == 12 * 9);
    if (!plan.has_value()) {
      EXPECT_EQ(plan.error().code(), Code::kNotFound);
      EXPECT_NE(plan.error().message().find("t0: no rank saved the region"), std::string::npos);
    }
  }
}

TEST(Planner, EachChunkIsListedOnceForEachCopyThatNeedsIt) {
  Piece wide = WholePiece("t0", {64, 2048});  // rows of 16 KiB: four chunks each
  Saved saved = SaveAll({{wide}});
  Piece column = wide;
  column.boxes = {{{0, 0}, {64, 8}}};
  std::vector<WantedPiece> want{{column, -1}};
  auto plan = PlanRestore(saved.state, want, {.rank = 0, .world = 1});
  ASSERT_TRUE(plan.has_value());
  // 64 runs of 64 bytes, one in every fourth chunk; the others are not fetched.
  ASSERT_EQ(plan->shards.size(), 1u);
  EXPECT_EQ(plan->shards[0].uses.size(), 64u);
  EXPECT_EQ(plan->shards[0].uses[1].chunk, 4u);
  EXPECT_EQ(plan->shards[0].copies.size(), 1u);
}

TEST(Planner, AllDefectsAreListedTogether) {
  Saved saved = SaveAll({{WholePiece("t0", {4}), WholePiece("t1", {4})}});
  std::vector<WantedPiece> want{
      {WholePiece("t9", {4}), -1}, {WholePiece("t0", {5}), -1}, {WholePiece("t1", {4}), -1}};
  want[2].piece.dtype = Dtype::kI64;
  auto plan = PlanRestore(saved.state, want, {.rank = 0, .world = 1});
  ASSERT_FALSE(plan.has_value());
  EXPECT_EQ(plan.error().code(), Code::kNotFound);
  const std::string& text = plan.error().message();
  EXPECT_NE(text.find("t9: is not in the checkpoint"), std::string::npos) << text;
  EXPECT_NE(text.find("t0: saved with shape [4], wanted with [5]"), std::string::npos) << text;
  EXPECT_NE(text.find("t1: saved as F64, wanted as I64"), std::string::npos) << text;
}

TEST(Planner, TheOwnShardIsPreferredAndOthersAreSpread) {
  Saved saved =
      SaveAll({{WholePiece("t0", {4})}, {WholePiece("t0", {4})}, {WholePiece("t0", {4})}});
  std::vector<WantedPiece> want{{WholePiece("t0", {4}), -1}};
  for (uint32_t rank = 0; rank < 3; ++rank) {
    auto plan = PlanRestore(saved.state, want, {.rank = rank, .world = 3});
    EXPECT_EQ(plan->shards[0].rank, rank);
  }
  std::set<uint32_t> sources;
  for (uint32_t rank = 3; rank < 6; ++rank) {
    sources.insert(PlanRestore(saved.state, want, {.rank = rank, .world = 6})->shards[0].rank);
  }
  EXPECT_EQ(sources.size(), 3u);
}

class PlannerScope : public testing::Test {
 protected:
  Saved SaveRankScoped(WorldPolicy policy) {
    std::vector<std::vector<Piece>> saves;
    for (uint64_t rank = 0; rank < 2; ++rank) {
      Piece piece = WholePiece("t" + std::to_string(0), {4 + rank});
      piece.scope = Scope::kRank;
      piece.world_policy = policy;
      saves.push_back({piece});
    }
    return SaveAll(saves);
  }
  Result<RestorePlan> Plan(const Saved& saved, uint64_t extent, uint32_t rank, uint32_t world,
                           int32_t source = -1) {
    std::vector<WantedPiece> want{{WholePiece("t0", {extent}), source}};
    want[0].piece.scope = Scope::kRank;
    return PlanRestore(saved.state, want, {.rank = rank, .world = world});
  }
};

TEST_F(PlannerScope, RankScopedPiecesComeFromTheSameRankOfAnEqualWorld) {
  Saved saved = SaveRankScoped(WorldPolicy::kSameWorld);
  EXPECT_EQ(Plan(saved, 4, 0, 2)->shards[0].rank, 0u);
  EXPECT_EQ(Plan(saved, 5, 1, 2)->shards[0].rank, 1u);
}

TEST_F(PlannerScope, InAnotherWorldTheSavedPolicyDecides) {
  EXPECT_EQ(Plan(SaveRankScoped(WorldPolicy::kBroadcast), 4, 2, 3)->shards[0].rank, 0u);
  for (WorldPolicy policy : {WorldPolicy::kSameWorld, WorldPolicy::kSplit, WorldPolicy::kDrop}) {
    auto plan = Plan(SaveRankScoped(policy), 4, 0, 3);
    ASSERT_FALSE(plan.has_value());
    EXPECT_EQ(plan.error().code(), Code::kInvalidArgument);
  }
}

TEST_F(PlannerScope, ANamedSourceRankIsTaken) {
  Saved saved = SaveRankScoped(WorldPolicy::kSplit);
  EXPECT_EQ(Plan(saved, 5, 0, 3, 1)->shards[0].rank, 1u);
  EXPECT_EQ(Plan(saved, 5, 0, 3, 7).error().code(), Code::kInvalidArgument);
}

TEST(Planner, ATensorWithoutElementsIsRestoredWithoutAByte) {
  Piece empty = WholePiece("t0", {0, 7});
  Saved saved = SaveAll({{empty}});
  std::vector<WantedPiece> want{{empty, -1}};
  auto plan = PlanRestore(saved.state, want, {.rank = 0, .world = 1});
  ASSERT_TRUE(plan.has_value()) << plan.error();
  EXPECT_EQ(plan->bytes, 0u);
  EXPECT_TRUE(plan->shards.empty());
}

}  // namespace
}  // namespace reprise::client
