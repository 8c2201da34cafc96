// The contract of Tier (server/tier/tier.h), kept by MemoryTier, NvmeTier on the simulated disk, and
// NvmeTier on a real disk through the engine that REPRISE_IO names (or the one chosen by probe).
#include "server/tier/tier.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "core/base/aligned_buffer.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "server/tier/memory_tier.h"
#include "server/tier/nvme_tier.h"

namespace reprise::tier {
namespace {

namespace fs = std::filesystem;
using Extents = std::vector<format::Run>;

constexpr uint64_t kBlock = limits::kIoAlignment;
constexpr uint64_t kSegmentBytes = 2 * limits::kMiB;
constexpr uint32_t kSegmentCount = 4;

class Fixture {
 public:
  virtual ~Fixture() = default;
  virtual Loop& loop() = 0;
  virtual Result<std::unique_ptr<Tier>> Open() = 0;
};

class MemoryFixture final : public Fixture {
 public:
  Loop& loop() override { return loop_; }
  Result<std::unique_ptr<Tier>> Open() override {
    return MemoryTier::Make({kSegmentBytes, kSegmentCount});
  }

 private:
  SystemClock clock_;
  Loop loop_{clock_};
};

class SimulatedFixture final : public Fixture {
 public:
  SimulatedFixture() {
    world_.disk("host").faults.reorder = true;
    world_.disk("host").faults.short_ppm = 20'000;
  }
  Loop& loop() override { return world_.loop(); }
  Result<std::unique_ptr<Tier>> Open() override {
    return loop().RunTask(
        NvmeTier::Open(io_, {"/seg", kSegmentBytes, kSegmentCount, /*prewrite=*/true, {}}));
  }

 private:
  SimWorld world_{11};
  SimIo io_{world_.loop(), world_, "host"};
};

class RealFixture final : public Fixture {
 public:
  RealFixture() {
    static int count = 0;
    root_ = fs::path("build") / fmt::format("tier_test.{}.{}", getpid(), count++);
    fs::create_directories(root_);
    Result<std::unique_ptr<Io>> io = CreateIo(loop_);
    if (io.has_value()) io_ = std::move(*io);
  }
  ~RealFixture() override {
    io_.reset();
    fs::remove_all(root_);
  }
  bool available() const { return io_ != nullptr; }
  Loop& loop() override { return loop_; }
  Result<std::unique_ptr<Tier>> Open() override {
    return loop().RunTask(NvmeTier::Open(
        *io_, {(root_ / "seg").string(), kSegmentBytes, kSegmentCount, /*prewrite=*/true, {}}));
  }

 private:
  SystemClock clock_;
  Loop loop_{clock_};
  std::unique_ptr<Io> io_;
  fs::path root_;
};

AlignedBuffer RandomBytes(uint64_t size, uint64_t seed) {
  AlignedBuffer buffer(size);
  Rng rng(seed);
  for (size_t i = 0; i < buffer.size(); i += 8) {
    uint64_t word = rng.Next();
    std::memcpy(buffer.data() + i, &word, 8);
  }
  return buffer;
}

class TierTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "memory") fixture_ = std::make_unique<MemoryFixture>();
    if (GetParam() == "simulated") fixture_ = std::make_unique<SimulatedFixture>();
    if (GetParam() == "real") {
      auto real = std::make_unique<RealFixture>();
      if (!real->available()) GTEST_SKIP() << "this machine does not have the engine asked for";
      fixture_ = std::move(real);
    }
    Reopen();
  }
  void TearDown() override {
    if (tier_ != nullptr) loop().RunTask(tier_->Close());
    tier_.reset();
    fixture_.reset();
  }
  void Reopen() {
    if (tier_ != nullptr) loop().RunTask(tier_->Close());
    tier_.reset();
    Result<std::unique_ptr<Tier>> opened = fixture_->Open();
    ASSERT_TRUE(opened.has_value()) << opened.error();
    tier_ = std::move(*opened);
  }
  Loop& loop() { return fixture_->loop(); }
  Extents Reserve(uint64_t bytes, bool for_commit = false) {
    Result<Extents> runs = tier_->Reserve(bytes, for_commit);
    EXPECT_TRUE(runs.has_value()) << runs.error();
    return runs.value_or(Extents{});
  }
  Status Write(const Extents& runs, uint64_t position, ByteView data) {
    return loop().RunTask(tier_->Write(runs, position, data));
  }
  Status Flush(const Extents& runs) { return loop().RunTask(tier_->Flush(runs)); }
  void ExpectContent(const Extents& runs, uint64_t position, ByteView expected) {
    AlignedBuffer found(expected.size());
    Status read = loop().RunTask(tier_->Read(runs, position, found.span()));
    ASSERT_TRUE(read.ok()) << read;
    EXPECT_TRUE(std::ranges::equal(found.view(), expected));
  }

  std::unique_ptr<Fixture> fixture_;
  std::unique_ptr<Tier> tier_;
};

TEST_P(TierTest, ReadsBackWhatWasWritten) {
  AlignedBuffer data = RandomBytes(40 * kBlock, 1);
  Extents runs = Reserve(data.size());
  ASSERT_TRUE(Write(runs, 0, data.view()).ok());
  ExpectContent(runs, 0, data.view());
  ASSERT_TRUE(Flush(runs).ok());
  ExpectContent(runs, 7 * kBlock, data.view().subspan(7 * kBlock, 5 * kBlock));
}

TEST_P(TierTest, WritesAndReadsAcrossRunsAndSegments) {
  AlignedBuffer data = RandomBytes(5 * limits::kMiB + 3 * kBlock, 2);
  Extents runs = Reserve(data.size());
  ASSERT_GE(runs.size(), 3u);
  ASSERT_TRUE(Write(runs, 0, data.view()).ok());
  ASSERT_TRUE(Flush(runs).ok());
  ExpectContent(runs, 0, data.view());
  for (uint64_t position = 0; position + 3 * kBlock <= data.size(); position += 37 * kBlock) {
    ExpectContent(runs, position, data.view().subspan(position, 3 * kBlock));
  }
}

TEST_P(TierTest, TakesManyWritesAtOnceInAnyOrder) {
  constexpr int kParts = 24;
  constexpr uint64_t kPart = 32 * kBlock;
  AlignedBuffer data = RandomBytes(kParts * kPart, 3);
  Extents runs = Reserve(data.size());
  int left = kParts;
  for (int i = 0; i < kParts; ++i) {
    uint64_t position = static_cast<uint64_t>(i * 7 % kParts) * kPart;
    loop().Spawn(
        [](Tier& tier, Extents where, uint64_t at, ByteView part, int& count) -> Task<void> {
          Status written = co_await tier.Write(where, at, part);
          EXPECT_TRUE(written.ok()) << written;
          --count;
        }(*tier_, runs, position, data.view().subspan(position, kPart), left));
  }
  loop().RunUntil([&] { return left == 0; });
  ASSERT_TRUE(Flush(runs).ok());
  ExpectContent(runs, 0, data.view());
}

TEST_P(TierTest, AnswersEveryConcurrentFlush) {
  AlignedBuffer data = RandomBytes(kBlock, 4);
  std::vector<Extents> all;
  for (int i = 0; i < 10; ++i) {
    all.push_back(Reserve(kBlock));
    ASSERT_TRUE(Write(all.back(), 0, data.view()).ok());
  }
  int left = 10;
  for (const Extents& runs : all) {
    loop().Spawn([](Tier& tier, Extents where, int& count) -> Task<void> {
      Status flushed = co_await tier.Flush(where);
      EXPECT_TRUE(flushed.ok()) << flushed;
      --count;
    }(*tier_, runs, left));
  }
  loop().RunUntil([&] { return left == 0; });
}

TEST_P(TierTest, CountsWhatIsUsedAndGivesItBack) {
  TierUsage empty = tier_->usage();
  EXPECT_EQ(empty.used_bytes, 0u);
  EXPECT_GT(empty.capacity_bytes, 6 * limits::kMiB);
  EXPECT_LT(empty.capacity_bytes, 8 * limits::kMiB) << "a part is kept for commits";
  Extents runs = Reserve(3 * kBlock - 1);
  EXPECT_EQ(tier_->usage().used_bytes, 3 * kBlock);
  tier_->Free(runs);
  EXPECT_EQ(tier_->usage().used_bytes, 0u);
}

TEST_P(TierTest, SaysWhenItIsFullAndKeepsTheReserveForCommits) {
  Extents most = Reserve(tier_->usage().capacity_bytes);
  Result<Extents> refused = tier_->Reserve(kBlock);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Code::kResourceExhausted);
  Extents manifest = Reserve(kBlock, /*for_commit=*/true);
  AlignedBuffer data = RandomBytes(kBlock, 5);
  EXPECT_TRUE(Write(manifest, 0, data.view()).ok());
  EXPECT_TRUE(Flush(manifest).ok());
  tier_->Free(most);
  EXPECT_TRUE(tier_->Reserve(kBlock).has_value());
}

TEST_P(TierTest, RefusesToAdoptWhatIsOutside) {
  EXPECT_EQ(tier_->Adopt({{kSegmentCount, 0, kBlock}}).code(), Code::kDataLoss);
  EXPECT_EQ(tier_->Adopt({{0, kSegmentBytes, kBlock}}).code(), Code::kDataLoss);
  EXPECT_EQ(tier_->usage().used_bytes, 0u);
}

// Tiers that outlive their process.
class PersistentTierTest : public TierTest {};

TEST_P(PersistentTierTest, FindsAfterReopeningWhatWasFlushedAndAdopted) {
  AlignedBuffer first = RandomBytes(3 * limits::kMiB, 6);
  AlignedBuffer second = RandomBytes(5 * kBlock, 7);
  Extents first_runs = Reserve(first.size());
  Extents second_runs = Reserve(second.size());
  ASSERT_TRUE(Write(first_runs, 0, first.view()).ok());
  ASSERT_TRUE(Write(second_runs, 0, second.view()).ok());
  ASSERT_TRUE(Flush(first_runs).ok());
  ASSERT_TRUE(Flush(second_runs).ok());
  Reopen();
  EXPECT_EQ(tier_->usage().used_bytes, 0u) << "the ledger decides what is alive";
  ASSERT_TRUE(tier_->Adopt(first_runs).ok());
  ASSERT_TRUE(tier_->Adopt(second_runs).ok());
  EXPECT_EQ(tier_->Adopt(second_runs).code(), Code::kDataLoss) << "overlap";
  EXPECT_EQ(tier_->usage().used_bytes, first.size() + second.size());
  Extents others = Reserve(limits::kMiB);
  AlignedBuffer noise = RandomBytes(limits::kMiB, 8);
  ASSERT_TRUE(Write(others, 0, noise.view()).ok());
  ExpectContent(first_runs, 0, first.view());
  ExpectContent(second_runs, 0, second.view());
}

// Random reservations, overwrites, frees and checks of everything alive.
TEST_P(TierTest, KeepsEverythingAliveApartUnderRandomOperations) {
  struct Object {
    Extents runs;
    AlignedBuffer content;
  };
  Rng rng(9);
  std::vector<Object> alive;
  for (int step = 0; step < 150; ++step) {
    if (!alive.empty() && rng.Chance(2, 5)) {
      size_t which = rng.Below(alive.size());
      ExpectContent(alive[which].runs, 0, alive[which].content.view());
      tier_->Free(alive[which].runs);
      alive.erase(alive.begin() + static_cast<ptrdiff_t>(which));
      continue;
    }
    uint64_t size = (1 + rng.Below(rng.Chance(1, 4) ? 400 : 20)) * kBlock;
    Result<Extents> runs = tier_->Reserve(size);
    if (!runs.has_value()) {
      ASSERT_EQ(runs.error().code(), Code::kResourceExhausted);
      continue;
    }
    alive.push_back({*runs, RandomBytes(size, rng.Next())});
    ASSERT_TRUE(Write(*runs, 0, alive.back().content.view()).ok());
    if (rng.Chance(1, 4)) ASSERT_TRUE(Flush(*runs).ok());
  }
  for (const Object& object : alive) ExpectContent(object.runs, 0, object.content.view());
}

INSTANTIATE_TEST_SUITE_P(All, TierTest, testing::Values("memory", "simulated", "real"),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(All, PersistentTierTest, testing::Values("simulated", "real"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace reprise::tier
