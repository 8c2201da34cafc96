// The extent allocator by example, and by random operations against a model that marks units.
#include "server/tier/extent_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/base/bytes.h"
#include "core/base/log.h"
#include "core/base/random.h"

namespace reprise::tier {
namespace {

constexpr uint64_t kUnit = limits::kIoAlignment;
using Extent = Run;  // testing::Test has a Run of its own
using limits::kKiB;
using limits::kMiB;

ExtentAllocator Small(uint32_t segments = 2, uint64_t units = 16) {
  return ExtentAllocator(
      {.segment_bytes = units * kUnit, .segment_count = segments, .chunk_bytes = 4 * kUnit});
}

uint64_t BytesOf(const std::vector<Extent>& runs) {
  return std::accumulate(runs.begin(), runs.end(), uint64_t{0},
                         [](uint64_t sum, const Extent& run) { return sum + run.length; });
}

std::vector<Extent> MustReserve(ExtentAllocator& allocator, uint64_t bytes) {
  Result<std::vector<Extent>> runs = allocator.Reserve(bytes, false);
  EXPECT_TRUE(runs.has_value()) << runs.error();
  return runs.value_or(std::vector<Extent>{});
}

TEST(ExtentAllocator, RoundsUpToUnitsAndStaysContiguousWhenItCan) {
  ExtentAllocator allocator = Small();
  std::vector<Extent> runs = MustReserve(allocator, 3 * kUnit - 5);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].length, 3 * kUnit);
  EXPECT_EQ(allocator.used_bytes(), 3 * kUnit);
  EXPECT_EQ(allocator.free_bytes(), 29 * kUnit);
}

TEST(ExtentAllocator, StartsLargeReservationsAtChunkBoundaries) {
  ExtentAllocator allocator = Small();
  MustReserve(allocator, kUnit);
  std::vector<Extent> runs = MustReserve(allocator, 5 * kUnit);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].offset % (4 * kUnit), 0u);
}

TEST(ExtentAllocator, GivesUpAlignmentBeforeItGivesUpRoom) {
  ExtentAllocator allocator = Small(1);
  MustReserve(allocator, kUnit);
  std::vector<Extent> runs = MustReserve(allocator, 15 * kUnit);
  EXPECT_EQ(BytesOf(runs), 15 * kUnit);
  EXPECT_EQ(allocator.free_bytes(), 0u);
}

TEST(ExtentAllocator, PutsSmallReservationsIntoTheTightestGap) {
  ExtentAllocator allocator = Small(1);
  std::vector<Extent> first = MustReserve(allocator, 2 * kUnit);
  MustReserve(allocator, kUnit);
  allocator.Free(first);  // a gap of two units in front, thirteen behind
  std::vector<Extent> runs = MustReserve(allocator, 2 * kUnit);
  EXPECT_EQ(runs, first);
}

TEST(ExtentAllocator, SpreadsOverSegmentsWhenOneIsTooSmall) {
  ExtentAllocator allocator = Small(4);
  std::vector<Extent> runs = MustReserve(allocator, 40 * kUnit);
  EXPECT_EQ(runs.size(), 3u);
  EXPECT_EQ(BytesOf(runs), 40 * kUnit);
}

TEST(ExtentAllocator, TakesPreferredSegmentsFirst) {
  ExtentAllocator allocator = Small(3);
  allocator.SetPreference(0, 2);
  allocator.SetPreference(1, 1);
  EXPECT_EQ(MustReserve(allocator, 16 * kUnit)[0].segment, 2u);
  EXPECT_EQ(MustReserve(allocator, 16 * kUnit)[0].segment, 1u);
  EXPECT_EQ(MustReserve(allocator, 16 * kUnit)[0].segment, 0u);
}

TEST(ExtentAllocator, PlacesNothingInExcludedSegmentsAndStillTakesThemBack) {
  ExtentAllocator allocator = Small(2);
  std::vector<Extent> runs = MustReserve(allocator, 8 * kUnit);
  uint32_t bad = runs[0].segment;
  allocator.Exclude(bad);
  EXPECT_EQ(allocator.free_bytes(), 16 * kUnit);
  EXPECT_NE(MustReserve(allocator, 16 * kUnit)[0].segment, bad);
  allocator.Free(runs);
  EXPECT_EQ(allocator.free_bytes(), 0u);
  EXPECT_EQ(allocator.Reserve(kUnit, true).error().code(), Code::kResourceExhausted);
}

TEST(ExtentAllocator, KeepsTheReserveForCommits) {
  ExtentAllocator allocator(
      {.segment_bytes = 16 * kUnit, .segment_count = 1, .reserve_bytes = 4 * kUnit});
  MustReserve(allocator, 12 * kUnit);
  Result<std::vector<Extent>> data = allocator.Reserve(1, false);
  ASSERT_FALSE(data.has_value());
  EXPECT_EQ(data.error().code(), Code::kResourceExhausted);
  EXPECT_NE(data.error().message().find("delete"), std::string::npos) << "says what to do";
  EXPECT_TRUE(allocator.Reserve(4 * kUnit, true).has_value());
}

TEST(ExtentAllocator, ReserveIsScaledToTheCapacity) {
  EXPECT_EQ(CommitReserveOf(1024 * limits::kGiB), 1024 * limits::kGiB / 50 / kUnit * kUnit);
  EXPECT_EQ(CommitReserveOf(4 * limits::kGiB), 256 * kMiB);
  EXPECT_EQ(CommitReserveOf(256 * kKiB), 32 * kKiB);
}

TEST(ExtentAllocator, RefusesMoreRunsThanAnEntryHolds) {
  constexpr uint64_t kUnits = 2 * limits::kRunsPerShardMax + 4;
  ExtentAllocator allocator = Small(1, kUnits);
  std::vector<std::vector<Extent>> all;
  for (uint64_t i = 0; i < kUnits; ++i) all.push_back(MustReserve(allocator, kUnit));
  for (const std::vector<Extent>& runs : all) {
    if (runs[0].offset / kUnit % 2 == 0) allocator.Free(runs);
  }
  uint64_t free_bytes = allocator.free_bytes();
  Result<std::vector<Extent>> refused = allocator.Reserve(free_bytes, false);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Code::kResourceExhausted);
  EXPECT_NE(refused.error().message().find("fragmented"), std::string::npos);
  EXPECT_EQ(allocator.free_bytes(), free_bytes) << "nothing is kept";
  EXPECT_EQ(MustReserve(allocator, limits::kRunsPerShardMax * kUnit).size(),
            limits::kRunsPerShardMax);
}

TEST(ExtentAllocator, RefusesToAdoptWhatOverlapsOrLiesOutside) {
  ExtentAllocator allocator = Small(2);
  ASSERT_TRUE(allocator.Adopt({{0, 4 * kUnit, 4 * kUnit}}).ok());
  const std::vector<std::vector<Extent>> bad = {
      {{0, 4 * kUnit, kUnit}},                     // taken
      {{0, 0, 5 * kUnit}},                         // reaches into it
      {{1, 0, 2 * kUnit}, {1, kUnit, kUnit}},      // overlaps itself
      {{2, 0, kUnit}},                             // no such segment
      {{1, 15 * kUnit, 2 * kUnit}},                // beyond the end
      {{1, ~uint64_t{0} - kUnit + 1, 2 * kUnit}},  // wraps around
      {{1, 100, kUnit}},
      {{1, 0, 100}},  // unaligned
      {{1, 0, 0}},    // empty
  };
  for (const std::vector<Extent>& runs : bad) {
    EXPECT_EQ(allocator.Adopt(runs).code(), Code::kDataLoss);
    EXPECT_EQ(allocator.used_bytes(), 4 * kUnit) << "nothing of a refused adoption stays";
  }
}

TEST(ExtentAllocator, RefusesNothingAndTheImpossible) {
  ExtentAllocator allocator = Small();
  EXPECT_EQ(allocator.Reserve(0, false).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(allocator.Reserve(~uint64_t{0}, false).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(allocator.Reserve(33 * kUnit, false).error().code(), Code::kResourceExhausted);
}

TEST(ExtentAllocatorDeathTest, FreeingTwiceStopsTheProgram) {
  ExtentAllocator allocator = Small();
  std::vector<Extent> runs = MustReserve(allocator, 4 * kUnit);
  allocator.Free(runs);
  EXPECT_DEATH(allocator.Free(runs), "freed twice");
  EXPECT_DEATH(allocator.Free({{7, 0, kUnit}}), "outside");
}

// --- against a model

class Model {
 public:
  Model(uint32_t segments, uint64_t units) : used_(segments, std::vector<bool>(units, false)) {}
  // Marks the runs; false when a unit was in that state already.
  bool Set(const std::vector<Extent>& runs, bool used) {
    for (const Extent& run : runs) {
      for (uint64_t unit = run.offset / kUnit; unit < (run.offset + run.length) / kUnit; ++unit) {
        if (used_.at(run.segment).at(unit) == used) return false;
        used_[run.segment][unit] = used;
      }
    }
    return true;
  }
  bool IsFree(const Extent& run) const {
    for (uint64_t unit = run.offset / kUnit; unit < (run.offset + run.length) / kUnit; ++unit) {
      if (used_.at(run.segment).at(unit)) return false;
    }
    return true;
  }
  // Lengths in units of the free runs, longest first.
  std::vector<uint64_t> FreeRuns(const std::vector<bool>& excluded) const {
    std::vector<uint64_t> lengths;
    for (size_t segment = 0; segment < used_.size(); ++segment) {
      if (excluded[segment]) continue;
      uint64_t length = 0;
      for (bool used : used_[segment]) {
        if (!used) ++length;
        if (used && length > 0) lengths.push_back(std::exchange(length, 0));
      }
      if (length > 0) lengths.push_back(length);
    }
    std::sort(lengths.rbegin(), lengths.rend());
    return lengths;
  }

 private:
  std::vector<std::vector<bool>> used_;
};

class RandomOperations {
 public:
  explicit RandomOperations(uint64_t seed)
      : rng_(seed),
        segments_(static_cast<uint32_t>(1 + rng_.Below(5))),
        units_(8 + rng_.Below(500)),
        allocator_({.segment_bytes = units_ * kUnit,
                    .segment_count = segments_,
                    .chunk_bytes = kUnit << rng_.Below(5),
                    .reserve_bytes = rng_.Below(units_) * kUnit}),
        model_(segments_, units_),
        excluded_(segments_, false) {}

  void Step() {
    switch (rng_.Below(10)) {
      case 0: allocator_.SetPreference(AnySegment(), static_cast<uint8_t>(rng_.Below(3))); break;
      case 1: Adopt(); break;
      case 2:
        if (rng_.Chance(1, 200)) Exclude();
        break;
      case 3:
      case 4:
      case 5: FreeSome(); break;
      default: Reserve();
    }
    ASSERT_EQ(allocator_.used_bytes(), used_bytes_);
    std::vector<uint64_t> free_runs = model_.FreeRuns(excluded_);
    ASSERT_EQ(allocator_.free_bytes(),
              kUnit * std::accumulate(free_runs.begin(), free_runs.end(), uint64_t{0}));
  }

 private:
  uint32_t AnySegment() { return static_cast<uint32_t>(rng_.Below(segments_)); }

  void Reserve() {
    uint64_t bytes = 1 + rng_.Below(rng_.Chance(1, 10) ? units_ * segments_ * kUnit : 30 * kUnit);
    uint64_t need = AlignUp(bytes, kUnit);
    bool for_commit = rng_.Chance(1, 4);
    std::vector<uint64_t> free_runs = model_.FreeRuns(excluded_);
    Result<std::vector<Extent>> runs = allocator_.Reserve(bytes, for_commit);
    if (runs.has_value()) {
      ASSERT_EQ(BytesOf(*runs), need);
      ASSERT_LE(runs->size(), limits::kRunsPerShardMax);
      for (const Extent& run : *runs) ASSERT_FALSE(excluded_[run.segment]);
      if (!free_runs.empty() && free_runs.front() * kUnit >= need) ASSERT_EQ(runs->size(), 1u);
      ASSERT_TRUE(model_.Set(*runs, true)) << "handed out twice";
      live_.push_back(*runs);
      used_bytes_ += need;
      return;
    }
    ASSERT_EQ(runs.error().code(), Code::kResourceExhausted);
    uint64_t kept = for_commit ? 0 : allocator_.options().reserve_bytes;
    bool too_little = allocator_.free_bytes() < need + kept;
    // Alignment may cost runs: only half of what is possible is promised.
    size_t promised = std::min<size_t>(free_runs.size(), limits::kRunsPerShardMax / 2);
    uint64_t in_few_runs =
        kUnit * std::accumulate(free_runs.begin(), free_runs.begin() + promised, uint64_t{0});
    ASSERT_TRUE(too_little || in_few_runs < need) << "refused although there was room";
  }

  void FreeSome() {
    if (live_.empty()) return;
    size_t which = rng_.Below(live_.size());
    std::vector<Extent> runs = live_[which];
    live_.erase(live_.begin() + static_cast<ptrdiff_t>(which));
    allocator_.Free(runs);
    ASSERT_TRUE(model_.Set(runs, false));
    used_bytes_ -= BytesOf(runs);
  }

  void Adopt() {
    uint64_t offset = rng_.Below(units_);
    Extent run{AnySegment(), offset * kUnit, (1 + rng_.Below(units_ - offset)) * kUnit};
    bool expected = model_.IsFree(run);
    ASSERT_EQ(allocator_.Adopt({run}).ok(), expected);
    if (!expected) return;
    ASSERT_TRUE(model_.Set({run}, true));
    live_.push_back({run});
    used_bytes_ += run.length;
  }

  void Exclude() {
    uint32_t segment = AnySegment();
    allocator_.Exclude(segment);
    excluded_[segment] = true;
  }

  Rng rng_;
  uint32_t segments_;
  uint64_t units_;
  ExtentAllocator allocator_;
  Model model_;
  std::vector<bool> excluded_;
  std::vector<std::vector<Extent>> live_;
  uint64_t used_bytes_ = 0;
};

TEST(ExtentAllocator, AgreesWithAModelUnderRandomOperations) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    RandomOperations operations(seed);
    for (int step = 0; step < 600; ++step) {
      operations.Step();
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace reprise::tier
