// Loop: one thread's event loop. Coroutines, timers and I/O completions of one owner run here.
//
// A loop runs ready coroutines, fires due timers, then lets its Reactor (an Io engine, or the
// built-in condition wait when there is none) block until the next timer, a completion or a Wake.
// Order is deterministic: first in, first out for ready work; by time, then by creation, for timers.
// The same Loop runs in production and in the simulator, where Clock and Reactor are simulated.
//
// Thread rule: everything but Post() and Stop() is for the loop's own thread.
// Shutdown: close gates, drain, Stop(); the destructor then destroys whatever is still suspended.
#pragma once

#include <atomic>
#include <condition_variable>
#include <coroutine>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/async/task.h"
#include "core/base/clock.h"

namespace reprise {

// What a loop waits in. Implemented by the Io engines.
class Reactor {
 public:
  virtual ~Reactor() = default;
  // Blocks until something completed, Wake() was called, or `timeout` passed (none: no limit; zero:
  // do not block). Hands completions to the loop before it returns.
  virtual void Poll(std::optional<Nanos> timeout) = 0;
  // Makes a Poll in progress, or the next one, return soon. Any thread.
  virtual void Wake() = 0;
};

class Loop {
 public:
  using TimerId = uint64_t;

  explicit Loop(Clock& clock);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Set before Run by the engine that serves this loop; reset (nullptr) before the engine goes away.
  void SetReactor(Reactor* reactor);

  Clock& clock() { return clock_; }
  TimePoint Now() const { return clock_.Now(); }

  // Runs until Stop(). The calling thread becomes the loop's thread.
  void Run();
  // One turn: everything ready now, due timers, one Poll that blocks only if nothing was ready and
  // `may_block`. Returns false when nothing was done.
  bool RunOnce(bool may_block);
  // Runs turns until `done()` is true. For tests and tools.
  template <typename Predicate>
  void RunUntil(Predicate done) {
    while (!done()) RunOnce(true);
  }
  // Runs `task` to its end on this loop from a thread that is not inside it; returns its value.
  template <typename T>
  T RunTask(Task<T> task);

  // Any thread: runs `work` on the loop's thread, in order of arrival.
  void Post(std::function<void()> work);
  // Any thread.
  void Stop();

  // Resumes `handle` in a later turn (never inline).
  void Schedule(std::coroutine_handle<> handle) { ready_.push_back(handle); }
  // Starts `task` in a later turn and owns it until it ends. Use a Gate to wait for it.
  void Spawn(Task<void> task);

  // Calls `fire` at `when` or as soon after as the loop gets to it.
  TimerId AddTimer(TimePoint when, std::function<void()> fire);
  // No effect when it has fired already.
  void CancelTimer(TimerId id);

  // co_await loop.Sleep(d): resumes after `span`.
  auto Sleep(Nanos span) {
    struct Awaiter {
      Loop& loop;
      Nanos span;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) {
        loop.AddTimer(loop.Now() + span, [&loop = loop, handle] { loop.Schedule(handle); });
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this, span};
  }
  // co_await loop.Yield(): lets everything ready run first.
  auto Yield() {
    struct Awaiter {
      Loop& loop;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) { loop.Schedule(handle); }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this};
  }

  // Destroys every spawned coroutine that is still suspended, and forgets timers and posted work.
  // The simulator's "process crash". Requires that no engine still refers to a frame.
  void DestroyAll();
  size_t spawned_count() const { return roots_.size(); }

 private:
  struct Root;
  using TimerKey = std::pair<TimePoint, TimerId>;

  Root RunRoot(Task<void> task, std::list<Root>::iterator self);
  bool TakePosted();
  bool FireTimers();
  std::optional<Nanos> TimeToNextTimer() const;
  void Wait(std::optional<Nanos> timeout);
  // Wakes the loop if it is in Wait. Under mutex_, so that the reactor cannot be taken away meanwhile.
  void WakeLocked();

  Clock& clock_;
  Reactor* reactor_ = nullptr;
  std::deque<std::coroutine_handle<>> ready_;
  std::list<Root> roots_;
  std::map<TimerKey, std::function<void()>> timers_;
  std::map<TimerId, TimePoint> timer_times_;
  TimerId next_timer_id_ = 1;

  // Shared with other threads.
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> posted_;
  bool asleep_ = false;  // in Wait, and nobody has woken it yet; under mutex_
  std::atomic<bool> has_posted_{false};
  std::atomic<bool> stop_{false};
};

// The frame that owns a spawned task; it removes itself from the loop's list when the task ends.
struct Loop::Root {
  struct promise_type {
    Loop* loop = nullptr;
    std::list<Root>::iterator self;
    Root get_return_object() {
      return Root{std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    auto final_suspend() const noexcept {
      struct Remove {
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<promise_type> done) const noexcept {
          Loop* loop = done.promise().loop;
          loop->roots_.erase(done.promise().self);  // destroys the frame: touch nothing after
        }
        void await_resume() const noexcept {}
      };
      return Remove{};
    }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };

  explicit Root(std::coroutine_handle<promise_type> handle) : frame(handle) {}
  Root(Root&& other) noexcept : frame(std::exchange(other.frame, nullptr)) {}
  Root& operator=(Root&& other) noexcept {
    std::swap(frame, other.frame);
    return *this;
  }
  ~Root() {
    if (frame) frame.destroy();
  }
  std::coroutine_handle<promise_type> frame;
};

template <typename T>
T Loop::RunTask(Task<T> task) {
  if constexpr (std::is_void_v<T>) {
    bool done = false;
    Spawn([](Task<void> inner, bool& flag) -> Task<void> {
      co_await std::move(inner);
      flag = true;
    }(std::move(task), done));
    RunUntil([&] { return done; });
  } else {
    std::optional<T> value;
    Spawn([](Task<T> inner, std::optional<T>& slot) -> Task<void> {
      slot.emplace(co_await std::move(inner));
    }(std::move(task), value));
    RunUntil([&] { return value.has_value(); });
    return std::move(*value);
  }
}

}  // namespace reprise
