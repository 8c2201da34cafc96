// Loop: order of ready work, timers and posted work; when it sleeps and when it must not.
#include "core/async/loop.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <utility>
#include <vector>

namespace reprise {
namespace {

using namespace std::chrono_literals;

// A clock that moves when told to.
class ManualClock final : public Clock {
 public:
  TimePoint Now() const override { return now; }
  int64_t WallMicros() const override { return 0; }
  TimePoint now{1s};
};

// Records how long the loop was willing to wait, and lets that time pass.
class RecordingReactor final : public Reactor {
 public:
  explicit RecordingReactor(ManualClock& clock) : clock_(clock) {}
  void Poll(std::optional<Nanos> timeout) override {
    polls.push_back(timeout);
    if (on_poll) on_poll();
    if (timeout.has_value()) clock_.now = clock_.now + *timeout;
  }
  void Wake() override { ++wakes; }
  std::vector<std::optional<Nanos>> polls;
  int wakes = 0;
  std::function<void()> on_poll;

 private:
  ManualClock& clock_;
};

class LoopTest : public ::testing::Test {
 public:
  LoopTest() { loop_.SetReactor(&reactor_); }
  ~LoopTest() override { loop_.SetReactor(nullptr); }

  Task<void> Mark(int value) {
    marks_.push_back(value);
    co_return;
  }

  ManualClock clock_;
  RecordingReactor reactor_{clock_};
  Loop loop_{clock_};
  std::vector<int> marks_;
};

TEST_F(LoopTest, ReadyWorkRunsFirstInFirstOut) {
  for (int i = 0; i < 5; ++i) loop_.Spawn(Mark(i));
  loop_.RunOnce(false);
  EXPECT_EQ(marks_, (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST_F(LoopTest, WorkScheduledInATurnWaitsForTheNext) {
  loop_.Spawn([](LoopTest& test) -> Task<void> {
    test.marks_.push_back(1);
    co_await test.loop_.Yield();
    test.marks_.push_back(2);
  }(*this));
  loop_.RunOnce(false);
  EXPECT_EQ(marks_, (std::vector<int>{1}));
  loop_.RunOnce(false);
  EXPECT_EQ(marks_, (std::vector<int>{1, 2}));
}

TEST_F(LoopTest, TimersFireByTimeThenByCreation) {
  TimePoint now = loop_.Now();
  loop_.AddTimer(now + 2s, [this] { marks_.push_back(3); });
  loop_.AddTimer(now + 1s, [this] { marks_.push_back(1); });
  loop_.AddTimer(now + 1s, [this] { marks_.push_back(2); });
  Loop::TimerId cancelled = loop_.AddTimer(now + 1s, [this] { marks_.push_back(99); });
  loop_.CancelTimer(cancelled);
  loop_.CancelTimer(cancelled);  // no effect
  loop_.RunUntil([this] { return marks_.size() == 3; });
  EXPECT_EQ(marks_, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(loop_.Now(), now + 2s);
}

TEST_F(LoopTest, ATimerMayCancelAnotherThatIsDueAtTheSameTime) {
  Loop::TimerId second = 0;
  loop_.AddTimer(loop_.Now() + 1s, [&] { loop_.CancelTimer(second); });
  second = loop_.AddTimer(loop_.Now() + 1s, [this] { marks_.push_back(99); });
  loop_.RunOnce(true);
  loop_.RunOnce(true);
  EXPECT_TRUE(marks_.empty());
}

TEST_F(LoopTest, TheLoopSleepsExactlyUntilItsNextTimer) {
  loop_.AddTimer(loop_.Now() + 5s, [] {});
  EXPECT_FALSE(loop_.RunOnce(true));
  ASSERT_EQ(reactor_.polls.size(), 1u);
  EXPECT_EQ(reactor_.polls[0], 5s);
}

TEST_F(LoopTest, ATurnThatDidSomethingDoesNotSleep) {
  loop_.Spawn(Mark(1));
  EXPECT_TRUE(loop_.RunOnce(true));
  loop_.Post([this] { marks_.push_back(2); });
  EXPECT_TRUE(loop_.RunOnce(true));
  for (const auto& timeout : reactor_.polls) EXPECT_EQ(timeout, Nanos{0});
  EXPECT_EQ(marks_, (std::vector<int>{1, 2}));
  EXPECT_EQ(reactor_.wakes, 0);  // it was not asleep
}

TEST_F(LoopTest, ASleepingLoopIsWokenOnceByWhatIsPosted) {
  reactor_.on_poll = [this] {
    loop_.Post([this] { marks_.push_back(1); });
    loop_.Post([this] { marks_.push_back(2); });
  };
  EXPECT_FALSE(loop_.RunOnce(true));
  EXPECT_EQ(reactor_.wakes, 1);
  reactor_.on_poll = nullptr;
  EXPECT_TRUE(loop_.RunOnce(true));
  EXPECT_EQ(marks_, (std::vector<int>{1, 2}));
}

TEST_F(LoopTest, SleepResumesWhenItsTimeHasCome) {
  TimePoint start = loop_.Now();
  loop_.RunTask([](Loop& loop) -> Task<void> { co_await loop.Sleep(3s); }(loop_));
  EXPECT_EQ(loop_.Now() - start, 3s);
}

TEST(LoopThreads, PostedWorkArrivesInOrderFromAnotherThread) {
  SystemClock clock;
  Loop loop(clock);
  std::vector<int> seen;
  std::thread poster([&] {
    for (int i = 0; i < 1000; ++i) loop.Post([&seen, i] { seen.push_back(i); });
  });
  loop.RunUntil([&] { return seen.size() == 1000; });
  poster.join();
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], i);
}

TEST(LoopThreads, StopEndsRunFromAnotherThread) {
  SystemClock clock;
  Loop loop(clock);
  std::thread runner([&] { loop.Run(); });
  loop.Stop();
  runner.join();
}

}  // namespace
}  // namespace reprise
