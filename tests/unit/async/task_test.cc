// Task: values, laziness, and the destruction of suspended frames.
#include "core/async/task.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/async/loop.h"
#include "core/async/sync.h"

namespace reprise {
namespace {

using namespace std::chrono_literals;

// Counts how many are alive: a leak or a double destruction shows.
struct Tracked {
  explicit Tracked(int& alive) : alive_(&alive) { ++*alive_; }
  Tracked(Tracked&& other) noexcept : alive_(other.alive_) { ++*alive_; }
  Tracked& operator=(Tracked&&) = delete;
  ~Tracked() { --*alive_; }
  int* alive_;
};

class TaskTest : public ::testing::Test {
 protected:
  SystemClock clock_;
  Loop loop_{clock_};
};

Task<int> Add(int left, int right) { co_return left + right; }

Task<int> Fibonacci(int n) {
  if (n < 2) co_return n;
  co_return co_await Add(co_await Fibonacci(n - 1), co_await Fibonacci(n - 2));
}

TEST_F(TaskTest, NestedTasksYieldTheirValues) { EXPECT_EQ(loop_.RunTask(Fibonacci(12)), 144); }

TEST_F(TaskTest, MoveOnlyValuesPassThrough) {
  auto value = loop_.RunTask([]() -> Task<std::unique_ptr<std::string>> {
    co_return std::make_unique<std::string>("moved");
  }());
  EXPECT_EQ(*value, "moved");
}

TEST_F(TaskTest, ATaskDoesNotStartBeforeItIsAwaited) {
  bool started = false;
  {
    Task<void> task = [](bool& flag) -> Task<void> {
      flag = true;
      co_return;
    }(started);
  }
  EXPECT_FALSE(started);
}

TEST_F(TaskTest, AMillionCompletedAwaitsDoNotGrowTheStack) {
  int sum = loop_.RunTask([]() -> Task<int> {
    int total = 0;
    for (int i = 0; i < 1'000'000; ++i) total += co_await Add(1, 0);
    co_return total;
  }());
  EXPECT_EQ(sum, 1'000'000);
}

Task<void> HoldAndSleep(Loop& loop, Tracked held, int depth) {
  if (depth > 0) {
    co_await HoldAndSleep(loop, Tracked(*held.alive_), depth - 1);
  } else {
    co_await loop.Sleep(24h);
  }
}

TEST_F(TaskTest, DestroyingALoopDestroysSuspendedFramesAndWhatTheyHold) {
  int alive = 0;
  {
    Loop loop(clock_);
    loop.Spawn(HoldAndSleep(loop, Tracked(alive), 5));
    loop.Spawn(HoldAndSleep(loop, Tracked(alive), 0));
    loop.RunOnce(false);
    EXPECT_GE(alive, 7);  // and the temporaries of the co_await expressions
    EXPECT_EQ(loop.spawned_count(), 2u);
  }
  EXPECT_EQ(alive, 0);
}

TEST_F(TaskTest, DestroyAllLeavesAUsableLoop) {
  int alive = 0;
  loop_.Spawn(HoldAndSleep(loop_, Tracked(alive), 2));
  loop_.RunOnce(false);
  loop_.DestroyAll();
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(loop_.spawned_count(), 0u);
  EXPECT_EQ(loop_.RunTask(Add(1, 2)), 3);
}

TEST_F(TaskTest, AFrameDestroyedWhileItWaitsLeavesTheWaitList) {
  WaitList waiters(loop_);
  loop_.Spawn([](WaitList& list) -> Task<void> {
    (void)co_await list.Wait(list.loop().Now() + 24h);
    ADD_FAILURE() << "a destroyed frame resumed";
  }(waiters));
  loop_.RunOnce(false);
  EXPECT_FALSE(waiters.empty());
  loop_.DestroyAll();
  EXPECT_TRUE(waiters.empty());
  EXPECT_FALSE(waiters.WakeOne());
}

TEST_F(TaskTest, AFinishedSpawnIsForgottenAtOnce) {
  int alive = 0;
  loop_.Spawn([](Tracked) -> Task<void> { co_return; }(Tracked(alive)));
  EXPECT_EQ(alive, 1);
  loop_.RunOnce(false);
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(loop_.spawned_count(), 0u);
}

}  // namespace
}  // namespace reprise
