#include <thread>

#include "tests/unit/client/client_fixture.h"

namespace reprise::client::test {
namespace {

class RestoreTest : public ClientTest {
 protected:
  // A checkpoint of `world` ranks; rank r holds rows [r, r + 1) * rows of a matrix of U8.
  void Save(uint32_t world, uint64_t rows_each, uint64_t columns) {
    rows_ = rows_each * world;
    columns_ = columns;
    matrix_.resize(rows_ * columns_);
    Rng rng(11);
    for (uint8_t& byte : matrix_) byte = static_cast<uint8_t>(rng.Next());
    std::vector<StoredShard> shards;
    for (uint32_t rank = 0; rank < world; ++rank) {
      StoredShard shard;
      format::Piece piece;
      piece.name = "m";
      piece.dtype = Dtype::kU8;
      piece.scope = Scope::kGlobal;
      piece.global_shape = {rows_, columns_};
      piece.boxes = {{{rank * rows_each, 0}, {rows_each, columns_}}};
      shard.layout.pieces = {piece};
      format::AssignPositions(shard.layout, 4096);
      auto begin = matrix_.begin() + static_cast<ptrdiff_t>(rank * rows_each * columns_);
      shard.bytes.assign(begin, begin + static_cast<ptrdiff_t>(rows_each * columns_));
      shards.push_back(std::move(shard));
    }
    daemon_.SetCheckpoint(MakeCheckpoint({4, 100}, shards, R"({"loss":0.5})"));
  }
  // The columns [begin, end) of the whole matrix.
  Result<ReadStats> ReadColumns(uint64_t begin, uint64_t end) {
    if (client_ == nullptr) Open();
    auto checkpoint = client_->OpenCheckpoint(100, std::nullopt, 10);
    if (!checkpoint.has_value()) return Error(checkpoint.error());
    got_.assign(rows_ * (end - begin), 0);
    std::vector<uint64_t> shape{rows_, columns_};
    std::vector<uint64_t> box{0, begin, rows_, end - begin};
    PieceView piece{.name = "m",
                    .dtype = Dtype::kU8,
                    .global_shape = shape,
                    .boxes = box,
                    .box_count = 1,
                    .data = got_.data(),
                    .data_bytes = got_.size()};
    Status status = (*checkpoint)->Read({&piece, 1}, 20);
    if (!status.ok()) return Error(status);
    for (uint64_t r = 0; r < rows_; ++r) {
      for (uint64_t c = begin; c < end; ++c) {
        if (got_[r * (end - begin) + c - begin] != matrix_[r * columns_ + c]) {
          return Error(Code::kInternal, "wrong bytes at row " + std::to_string(r));
        }
      }
    }
    return (*checkpoint)->stats();
  }

  uint64_t rows_ = 0;
  uint64_t columns_ = 0;
  Bytes matrix_;
  Bytes got_;
};

TEST_F(RestoreTest, ReadsAnotherShardingThroughARingSmallerThanTheState) {
  Save(4, 40, 1000);
  auto stats = ReadColumns(0, 1000);
  ASSERT_TRUE(stats.has_value()) << stats.error();
  EXPECT_EQ(stats->bytes_nvme, 4 * 40 * 1000u);
  EXPECT_EQ(stats->chunks_corrupt, 0u);
  ASSERT_TRUE(ReadColumns(17, 600).has_value());
  ASSERT_TRUE(ReadColumns(999, 1000).has_value());
  EXPECT_TRUE(daemon_.AwaitRingFree());
}

TEST_F(RestoreTest, ADamagedChunkIsFetchedAgainAndCounted) {
  daemon_.Set([](auto& b) {
    b.damage[{0, 0}] = 1;
    b.damage[{1, 3}] = 2;
  });
  Save(2, 40, 1000);
  auto stats = ReadColumns(0, 1000);
  ASSERT_TRUE(stats.has_value()) << stats.error();
  EXPECT_EQ(stats->chunks_corrupt, 3u);
}

TEST_F(RestoreTest, AChunkThatIsDamagedEverywhereIsDataLossNeverWrongBytes) {
  daemon_.Set([](auto& b) { b.damage[{1, 3}] = 1000; });
  Save(2, 40, 1000);
  auto stats = ReadColumns(0, 1000);
  ASSERT_FALSE(stats.has_value());
  EXPECT_EQ(stats.error().code(), Code::kDataLoss);
  EXPECT_NE(stats.error().message().find("chunk 3 of rank 1"), std::string::npos);
  // What does not need that chunk is still read, and the ring was not leaked.
  daemon_.Set([](auto& b) { b.damage.clear(); });
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(ReadColumns(0, 1000).has_value());
}

TEST_F(RestoreTest, ASealedSlotIsReadDirectlyAndVerified) {
  daemon_.Set([](auto& b) {
    b.offer_slots = true;
    b.damage_slot[{1, 2}] = 1;
  });
  Save(2, 40, 1000);
  auto stats = ReadColumns(0, 1000);
  ASSERT_TRUE(stats.has_value()) << stats.error();
  EXPECT_EQ(stats->chunks_corrupt, 1u);
  EXPECT_EQ(stats->bytes_nvme, 4096u);
  EXPECT_EQ(stats->bytes_slab, 2 * 40 * 1000u - 4096);
}

TEST_F(RestoreTest, ADaemonThatDiesInTheMiddleIsFoundAgainAndTheReadGoesOn) {
  Save(4, 40, 1000);
  daemon_.Set([](auto& b) { b.die_after_chunks = 13; });
  Open();
  std::thread restarter([&] {
    ASSERT_TRUE(daemon_.AwaitConnections(1));
    while (!daemon_.died()) std::this_thread::yield();
    daemon_.Start();
  });
  auto stats = ReadColumns(0, 1000);
  restarter.join();
  ASSERT_TRUE(stats.has_value()) << stats.error();
  EXPECT_LE(stats->bytes_nvme, 4 * 40 * 1000u);
}

TEST_F(RestoreTest, AnErrorOfTheDaemonEndsTheReadWithItsWords) {
  Save(2, 40, 1000);
  daemon_.Set([](auto& b) { b.fail_fetch = Status(Code::kDataLoss, "store 3 lost its disk"); });
  auto stats = ReadColumns(0, 1000);
  EXPECT_EQ(stats.error().code(), Code::kDataLoss);
  EXPECT_NE(stats.error().message().find("store 3"), std::string::npos);
}

TEST_F(RestoreTest, MisfitsAreListedBeforeAnyByteMoves) {
  Save(2, 40, 1000);
  Open();
  auto checkpoint = client_->OpenCheckpoint(100, std::nullopt, 10);
  State state(1, {500});
  State before(1, {500});
  Status status = (*checkpoint)->Read(state.Pieces(), 10);
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_NE(status.message().find("layer.0: is not in the checkpoint"), std::string::npos);
  EXPECT_TRUE(state.Equals(before));
}

TEST_F(RestoreTest, ItemsTellWhatIsInACheckpoint) {
  Save(2, 40, 1000);
  Open();
  auto checkpoint = client_->OpenCheckpoint(std::nullopt, std::nullopt, 10);
  ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error();
  EXPECT_EQ((*checkpoint)->items_json(),
            R"({"epoch":4,"items":[{"aux":false,"bytes":80000,"dtype":"U8","name":"m",)"
            R"("policy":"same_world","ranks":[0,1],"scope":"global","shape":[80,1000]}],)"
            R"("metadata":{"loss":0.5},"step":100,"world":2})");
}

TEST_F(RestoreTest, ARegisteredRankReadsWhatItsRunWasPinnedTo) {
  Save(2, 40, 1000);
  daemon_.Set([](auto& b) { b.resume = CheckpointKey{4, 100}; });
  OpenAndRegister();
  EXPECT_EQ((*client_->OpenCheckpoint(std::nullopt, std::nullopt, 10))->key(),
            (CheckpointKey{4, 100}));
}

TEST_F(RestoreTest, AFirstRunHasNothingToResumeThoughOthersSavedMeanwhile) {
  Save(2, 40, 1000);
  OpenAndRegister();
  auto checkpoint = client_->OpenCheckpoint(std::nullopt, std::nullopt, 10);
  ASSERT_FALSE(checkpoint.has_value());
  EXPECT_EQ(checkpoint.error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace reprise::client::test
