// Semaphore, Gate, OneShot, Notifier, CallOn: who wakes, in which order, and what deadlines do.
#include "core/async/sync.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace reprise {
namespace {

using namespace std::chrono_literals;

class ManualClock final : public Clock {
 public:
  TimePoint Now() const override { return now; }
  int64_t WallMicros() const override { return 0; }
  TimePoint now{1s};
};

// Time passes when the loop sleeps.
class SyncTest : public ::testing::Test, public Reactor {
 public:
  SyncTest() { loop_.SetReactor(this); }
  ~SyncTest() override {
    loop_.DestroyAll();
    loop_.SetReactor(nullptr);
  }
  void Poll(std::optional<Nanos> timeout) override {
    if (timeout.has_value()) clock_.now = clock_.now + *timeout;
  }
  void Wake() override {}
  void Turns(int count) {
    for (int i = 0; i < count; ++i) loop_.RunOnce(false);
  }

  ManualClock clock_;
  Loop loop_{clock_};
  std::vector<std::string> log_;
};

TEST_F(SyncTest, ASemaphoreHandsItsPermitsOutInOrder) {
  Semaphore semaphore(loop_, 1);
  for (std::string who : {"a", "b", "c"}) {
    loop_.Spawn([](SyncTest& test, Semaphore& permits, std::string name) -> Task<void> {
      EXPECT_TRUE(co_await permits.Acquire());
      test.log_.push_back(name);
    }(*this, semaphore, who));
  }
  Turns(3);
  EXPECT_EQ(log_, (std::vector<std::string>{"a"}));
  semaphore.Release();
  Turns(2);
  EXPECT_EQ(log_, (std::vector<std::string>{"a", "b"}));
  semaphore.Release(2);
  Turns(2);
  EXPECT_EQ(log_, (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(semaphore.available(), 1u);
}

TEST_F(SyncTest, AnAcquireGivesUpAtItsDeadlineAndLeavesThePermitToOthers) {
  Semaphore semaphore(loop_, 0);
  bool taken = loop_.RunTask(semaphore.Acquire(loop_.Now() + 2s));
  EXPECT_FALSE(taken);
  EXPECT_EQ(clock_.now.since_start, 3s);
  semaphore.Release();
  EXPECT_TRUE(loop_.RunTask(semaphore.Acquire(loop_.Now())));
}

TEST_F(SyncTest, AClosingGateRefusesNewcomersAndWaitsForThoseInside) {
  Gate gate(loop_);
  Gate::Hold first = gate.Enter();
  Gate::Hold second = gate.Enter();
  EXPECT_TRUE(first && second);
  bool closed = false;
  loop_.Spawn([](Gate& target, bool& flag) -> Task<void> {
    co_await target.Close();
    flag = true;
  }(gate, closed));
  Turns(2);
  EXPECT_FALSE(gate.Enter());
  first = Gate::Hold();
  Turns(3);
  EXPECT_FALSE(closed);
  EXPECT_EQ(gate.inside(), 1u);
  second = Gate::Hold();
  Turns(3);
  EXPECT_TRUE(closed);
}

TEST_F(SyncTest, ClosingAnEmptyGateDoesNotWait) {
  Gate gate(loop_);
  loop_.RunTask(gate.Close());
  EXPECT_TRUE(gate.closed());
}

TEST_F(SyncTest, AOneShotReachesEveryWaiterAndLatecomers) {
  OneShot<int> value(loop_);
  int sum = 0;
  for (int i = 0; i < 3; ++i) {
    loop_.Spawn([](OneShot<int>& source, int& total) -> Task<void> {
      total += (co_await source.Wait()).value();
    }(value, sum));
  }
  Turns(2);
  EXPECT_EQ(sum, 0);
  value.Set(5);
  Turns(2);
  EXPECT_EQ(sum, 15);
  EXPECT_EQ(loop_.RunTask(value.Wait()), 5);
}

TEST_F(SyncTest, AOneShotThatNeverComesYieldsNothingAtTheDeadline) {
  OneShot<int> value(loop_);
  EXPECT_EQ(loop_.RunTask(value.Wait(loop_.Now() + 1s)), std::nullopt);
  EXPECT_EQ(clock_.now.since_start, 2s);
}

TEST_F(SyncTest, ANotifierChecksItsConditionAgainAfterEachChange) {
  Notifier changes(loop_);
  int level = 0;
  bool reached = false;
  loop_.Spawn([](Notifier& notifier, int& value, bool& flag) -> Task<void> {
    flag = co_await notifier.WaitFor([&value] { return value >= 3; });
  }(changes, level, reached));
  for (level = 1; level < 3; ++level) {
    changes.Notify();
    Turns(2);
    EXPECT_FALSE(reached);
  }
  changes.Notify();
  Turns(2);
  EXPECT_TRUE(reached);
  EXPECT_FALSE(loop_.RunTask(changes.WaitFor([] { return false; }, loop_.Now() + 1s)));
}

TEST_F(SyncTest, WakingBeatsADeadlineOfTheSameTurn) {
  WaitList waiters(loop_);
  std::optional<bool> woken;
  loop_.Spawn([](WaitList& list, std::optional<bool>& result) -> Task<void> {
    result = co_await list.Wait(list.loop().Now() + 1s);
  }(waiters, woken));
  Turns(1);
  EXPECT_TRUE(waiters.WakeOne());
  clock_.now = clock_.now + 5s;
  Turns(2);
  EXPECT_EQ(woken, true);
}

TEST_F(SyncTest, CallOnTheOwnLoopRunsInPlace) {
  int answer = loop_.RunTask(CallOn<int>(loop_, loop_, []() -> Task<int> { co_return 7; }));
  EXPECT_EQ(answer, 7);
}

TEST(SyncThreads, CallOnRunsOnTheOtherThreadAndComesBack) {
  SystemClock clock;
  Loop home(clock);
  Loop target(clock);
  std::thread thread([&] { target.Run(); });
  for (int i = 0; i < 200; ++i) {
    auto [ran_on, value] = home.RunTask(CallOn<std::pair<std::thread::id, int>>(
        home, target, [i]() -> Task<std::pair<std::thread::id, int>> {
          return [](int number) -> Task<std::pair<std::thread::id, int>> {
            co_return std::pair(std::this_thread::get_id(), number);
          }(i);
        }));
    EXPECT_EQ(ran_on, thread.get_id());
    EXPECT_EQ(value, i);
  }
  target.Stop();
  thread.join();
}

}  // namespace
}  // namespace reprise
