// Rng: the same seed gives the same sequence, and its bounds hold.
#include "core/base/random.h"

#include <gtest/gtest.h>

#include <set>

namespace reprise {
namespace {

TEST(Rng, RepeatsWithTheSeedAndDiffersWithAnother) {
  Rng first(42);
  Rng second(42);
  Rng other(43);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    uint64_t value = first.Next();
    EXPECT_EQ(value, second.Next());
    differs = differs || value != other.Next();
  }
  EXPECT_TRUE(differs);
}

TEST(Rng, StaysBelowItsBoundAndReachesAllOfIt) {
  Rng rng(1);
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) {
    uint64_t value = rng.Below(7);
    EXPECT_LT(value, 7u);
    seen.insert(value);
  }
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_EQ(rng.Below(1), 0u);
}

TEST(Rng, ChancesComeAboutAsOftenAsTheySay) {
  Rng rng(5);
  int hits = 0;
  for (int i = 0; i < 100'000; ++i) hits += rng.Chance(1, 10) ? 1 : 0;
  EXPECT_NEAR(hits, 10'000, 500);
  EXPECT_FALSE(rng.Chance(0, 10));
  EXPECT_TRUE(rng.Chance(10, 10));
}

TEST(Rng, KernelSeedsDoNotRepeat) { EXPECT_NE(RandomSeed(), RandomSeed()); }

}  // namespace
}  // namespace reprise
