#include "core/format/coverage.h"

#include <gtest/gtest.h>

#include <deque>

#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

Digest DigestNumber(uint8_t number) {
  Digest digest;
  digest.bytes[0] = number;
  return digest;
}

// The layouts of a world under test, one tensor after another.
class World {
 public:
  // Adds `piece` to the shard of `rank`.
  World& Add(uint32_t rank, Piece piece, Digest digest = {}) {
    if (shards_.size() <= rank) shards_.resize(rank + 1);
    shards_[rank].layout.pieces.push_back(std::move(piece));
    shards_[rank].digests.push_back(digest);
    return *this;
  }
  Status Check() const {
    std::vector<RankLayout> ranks;
    for (uint32_t rank = 0; rank < shards_.size(); ++rank) {
      ranks.push_back({rank, &shards_[rank].layout, &shards_[rank].digests});
    }
    return CheckCoverage(ranks);
  }
  // The message of a refusal, "" when everything is covered.
  std::string Refusal() const {
    Status status = Check();
    if (!status.ok()) EXPECT_EQ(status.code(), Code::kInvalidArgument);
    return status.message();
  }

 private:
  struct Shard {
    Layout layout;
    std::vector<Digest> digests;
  };
  std::deque<Shard> shards_;
};

Piece Rows(uint64_t begin, uint64_t end, std::vector<uint64_t> shape = {12, 8}) {
  Box box = WholeBox(shape);
  box.offset[0] = begin;
  box.extent[0] = end - begin;
  return BoxPiece("w", std::move(shape), std::move(box));
}

TEST(Coverage, OfNothingIsComplete) {
  EXPECT_TRUE(CheckCoverage({}).ok());
  Layout empty;
  RankLayout rank{.layout = &empty};
  EXPECT_TRUE(CheckCoverage({&rank, 1}).ok());
}

TEST(Coverage, OfUnevenRowsIsComplete) {
  World world;
  world.Add(0, Rows(0, 5)).Add(1, Rows(5, 10)).Add(2, Rows(10, 12)).Add(3, Rows(12, 12));
  EXPECT_EQ(world.Refusal(), "");
}

TEST(Coverage, NamesTheMissingRows) {
  World world;
  world.Add(0, Rows(0, 4)).Add(2, Rows(7, 12));
  EXPECT_EQ(world.Refusal(),
            "tensor \"w\" is incomplete: all ranks together hold 72 of its 96 elements; [4, 7) is "
            "missing; save it on every rank that has a part of it");
  World tail;
  tail.Add(0, Rows(0, 4));
  EXPECT_TRUE(tail.Refusal().contains("[4, 12) is missing"));
}

TEST(Coverage, RefusesOverlapsNamingBothRanks) {
  World world;
  world.Add(0, Rows(0, 4)).Add(1, Rows(4, 9)).Add(2, Rows(8, 12));
  EXPECT_EQ(world.Refusal(),
            "tensor \"w\": ranks 1 and 2 hold overlapping parts, [4, 9) x [0, 8) and "
            "[8, 12) x [0, 8); parts of one tensor must be disjoint or identical, check how it is "
            "sharded");
}

TEST(Coverage, AcceptsReplicasOfAShard) {
  // Two replica groups of two shards each; digests are known for some.
  World world;
  world.Add(0, Rows(0, 6), DigestNumber(1)).Add(1, Rows(6, 12), DigestNumber(2));
  world.Add(2, Rows(0, 6)).Add(3, Rows(6, 12), DigestNumber(2));
  EXPECT_EQ(world.Refusal(), "");
}

TEST(Coverage, RefusesReplicasThatDifferNamingBothRanks) {
  World world;
  world.Add(0, Rows(0, 6)).Add(1, Rows(6, 12), DigestNumber(2));
  world.Add(2, Rows(0, 6), DigestNumber(1)).Add(3, Rows(6, 12), DigestNumber(2));
  world.Add(4, Rows(0, 6), DigestNumber(7)).Add(5, Rows(6, 12));
  EXPECT_TRUE(world.Refusal().starts_with(
      "tensor \"w\": ranks 2 and 4 hold the same part with different contents"));
}

TEST(Coverage, AcceptsReplicasThatAreCutIntoOtherPieces) {
  Piece both = Rows(0, 6);
  both.boxes.push_back({{6, 0}, {6, 8}});
  World world;
  world.Add(0, both).Add(1, Rows(0, 6)).Add(2, FlatPiece("w", {12, 8}, 48, 96));
  EXPECT_EQ(world.Refusal(), "");
}

TEST(Coverage, DoesNotCountAReplicaTwice) {
  World world;
  world.Add(0, Rows(0, 6)).Add(1, Rows(0, 6));
  EXPECT_TRUE(world.Refusal().contains("48 of its 96 elements"));
}

TEST(Coverage, OfAGridAlongTwoAxesIsComplete) {
  for (int missing = -1; missing < 12; ++missing) {
    World world;
    for (uint32_t rank = 0; rank < 12; ++rank) {
      if (static_cast<int>(rank) == missing) continue;
      world.Add(rank, BoxPiece("w", {12, 8}, {{rank / 2 * 2, rank % 2 * 4}, {2, 4}}));
    }
    EXPECT_EQ(world.Check().ok(), missing == -1);
  }
}

TEST(Coverage, OfFlatRangesIsCompleteWhereverTheyAreCut) {
  for (uint64_t cut = 0; cut <= 96; ++cut) {
    World world;
    world.Add(0, FlatPiece("w", {12, 8}, 0, cut)).Add(1, FlatPiece("w", {12, 8}, cut, 96));
    ASSERT_EQ(world.Refusal(), "");
  }
}

TEST(Coverage, NamesTheMissingElementsOfFlatRanges) {
  World world;
  world.Add(0, FlatPiece("w", {12, 8}, 0, 40)).Add(1, FlatPiece("w", {12, 8}, 41, 96));
  EXPECT_TRUE(world.Refusal().contains("[40, 41) is missing"));
  World overlap;
  overlap.Add(0, FlatPiece("w", {12, 8}, 0, 41)).Add(1, FlatPiece("w", {12, 8}, 40, 96));
  EXPECT_TRUE(overlap.Refusal().contains("ranks 0 and 1 hold overlapping parts"));
}

TEST(Coverage, OfFlatRangesBesideBoxesIsComplete) {
  World world;
  world.Add(0, FlatPiece("w", {12, 8}, 0, 11)).Add(1, FlatPiece("w", {12, 8}, 11, 48));
  world.Add(2, Rows(6, 12));
  EXPECT_EQ(world.Refusal(), "");
  World overlap;
  overlap.Add(0, FlatPiece("w", {12, 8}, 0, 50)).Add(1, Rows(6, 12));
  EXPECT_TRUE(overlap.Refusal().contains("overlapping"));
}

TEST(Coverage, OfPiecesOfSeveralBoxesIsComplete) {
  Piece even = Rows(0, 2);
  even.boxes.push_back({{4, 0}, {2, 8}});
  even.boxes.push_back({{8, 0}, {2, 8}});
  Piece odd = Rows(2, 4);
  odd.boxes.push_back({{6, 0}, {2, 8}});
  World world;
  world.Add(0, even).Add(1, odd).Add(2, Rows(10, 12));
  EXPECT_EQ(world.Refusal(), "");
  World missing;
  missing.Add(0, even).Add(1, odd);
  EXPECT_TRUE(missing.Refusal().contains("[10, 12) is missing"));
}

TEST(Coverage, OfScalarsAndEmptyTensorsIsComplete) {
  World world;
  world.Add(0, WholePiece("step", {})).Add(1, WholePiece("step", {}));
  world.Add(0, WholePiece("nothing", {0, 4}));
  EXPECT_EQ(world.Refusal(), "");
  Piece no_box = WholePiece("step", {});
  no_box.boxes.clear();
  World missing;
  missing.Add(0, no_box);
  EXPECT_TRUE(missing.Refusal().contains("0 of its 1 elements"));
}

TEST(Coverage, RefusesDifferentShapesAndDtypesNamingBothRanks) {
  World shapes;
  shapes.Add(0, Rows(0, 6)).Add(1, Rows(6, 12, {12, 9}));
  EXPECT_EQ(shapes.Refusal(),
            "tensor \"w\" is F32 [12, 8] on rank 0 and F32 [12, 9] on rank 1; "
            "save it with scope \"rank\" if each rank has its own");
  Piece half = Rows(6, 12);
  half.dtype = Dtype::kBF16;
  World dtypes;
  dtypes.Add(0, Rows(0, 6)).Add(5, half);
  EXPECT_TRUE(dtypes.Refusal().contains("F32 [12, 8] on rank 0 and BF16 [12, 8] on rank 5"));
}

TEST(Coverage, RefusesAReplicatedTensorThatDiffersNamingBothRanks) {
  World world;
  for (uint32_t rank = 0; rank < 4; ++rank) {
    Digest digest = rank == 1 ? Digest{} : DigestNumber(rank == 3 ? 9 : 5);
    world.Add(rank, WholePiece("bn.running_mean", {64}, Scope::kReplicated), digest);
  }
  EXPECT_EQ(world.Refusal(),
            "tensor \"bn.running_mean\" is marked replicated but ranks 0 and 3 hold different "
            "contents; save it with scope \"rank\" if each rank has its own");
}

TEST(Coverage, AcceptsAReplicatedTensorOfOneRankOrOfAll) {
  World world;
  world.Add(0, WholePiece("all", {4}, Scope::kReplicated), DigestNumber(1));
  world.Add(1, WholePiece("all", {4}, Scope::kReplicated), DigestNumber(1));
  Piece elsewhere = WholePiece("one", {4}, Scope::kReplicated);
  elsewhere.boxes.clear();
  world.Add(0, elsewhere).Add(1, WholePiece("one", {4}, Scope::kReplicated), DigestNumber(2));
  EXPECT_EQ(world.Refusal(), "");
}

TEST(Coverage, RefusesAReplicatedTensorThatIsAPartOrNowhere) {
  World part;
  part.Add(2, BoxPiece("w", {4}, {{0}, {2}}, Scope::kReplicated));
  EXPECT_TRUE(part.Refusal().contains("rank 2 holds only a part"));
  Piece elsewhere = WholePiece("w", {4}, Scope::kReplicated);
  elsewhere.boxes.clear();
  World nowhere;
  nowhere.Add(0, elsewhere).Add(1, elsewhere);
  EXPECT_TRUE(nowhere.Refusal().contains("no rank holds it"));
}

TEST(Coverage, DemandsNothingOfRankScope) {
  World world;
  world.Add(0, WholePiece("buffer", {4}, Scope::kRank), DigestNumber(1));
  world.Add(1, WholePiece("buffer", {7, 7}, Scope::kRank), DigestNumber(2));
  world.Add(2, BoxPiece("buffer", {4}, {{0}, {1}}, Scope::kRank));
  EXPECT_EQ(world.Refusal(), "");
}

TEST(Coverage, RefusesOneNameWithTwoScopes) {
  World world;
  world.Add(0, WholePiece("w", {4}, Scope::kGlobal));
  world.Add(1, WholePiece("w", {4}, Scope::kReplicated));
  EXPECT_TRUE(world.Refusal().contains("\"global\" on rank 0 and \"replicated\" on rank 1"));
}

TEST(Coverage, ReportsTheSameTensorWhateverTheOrderOfRanks) {
  Layout left = LayoutOf({Rows(0, 4), BoxPiece("a", {4}, {{0}, {1}})});
  Layout right = LayoutOf({Rows(0, 5), BoxPiece("a", {4}, {{1}, {1}})});
  RankLayout forward[] = {{.rank = 0, .layout = &left}, {.rank = 1, .layout = &right}};
  RankLayout backward[] = {forward[1], forward[0]};
  Status status = CheckCoverage(forward);
  EXPECT_TRUE(status.message().contains("tensor \"a\""));
  EXPECT_EQ(status, CheckCoverage(backward));
}

TEST(Coverage, OfRandomPartitionsIsCompleteUntilAPartIsTakenAway) {
  Rng rng(1);
  for (int round = 0; round < 300; ++round) {
    uint64_t rows = 1 + rng.Below(40);
    std::vector<std::pair<uint64_t, uint64_t>> parts;
    for (uint64_t begin = 0; begin < rows;) {
      uint64_t end = begin + 1 + rng.Below(rows - begin);
      parts.emplace_back(begin, end);
      begin = end;
    }
    size_t taken = rng.Below(parts.size());
    World complete;
    World incomplete;
    for (uint32_t i = 0; i < parts.size(); ++i) {
      Piece piece = rng.Chance(1, 2)
                        ? Rows(parts[i].first, parts[i].second, {rows, 3})
                        : FlatPiece("w", {rows, 3}, parts[i].first * 3, parts[i].second * 3);
      complete.Add(i, piece);
      if (i != taken) incomplete.Add(i, piece);
    }
    ASSERT_EQ(complete.Refusal(), "");
    if (parts.size() > 1) ASSERT_TRUE(incomplete.Refusal().contains("incomplete"));
  }
}

TEST(Coverage, OfAThousandRanksTakesNoQuadraticTime) {
  std::deque<Layout> layouts;
  std::vector<RankLayout> ranks;
  for (uint32_t rank = 0; rank < 1000; ++rank) {
    Layout& layout = layouts.emplace_back();
    for (int tensor = 0; tensor < 30; ++tensor) {
      Piece piece = BoxPiece("layers." + std::to_string(tensor), {1000, 1000},
                             {{rank / 10 * 10, rank % 10 * 100}, {10, 100}});
      layout.pieces.push_back(std::move(piece));
    }
    ranks.push_back({.rank = rank, .layout = &layout});
  }
  EXPECT_TRUE(CheckCoverage(ranks).ok());
  layouts[567].pieces[11].boxes[0].extent[1] -= 1;
  EXPECT_TRUE(CheckCoverage(ranks).message().contains("layers.11"));
}

}  // namespace
}  // namespace reprise::format
