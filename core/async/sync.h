// Waiting between coroutines of one loop: Event, Semaphore, Gate, OneShot, and calls across loops.
//
// All waiters resume in a later turn of the loop, first come first served. A wait with a deadline
// removes itself when the deadline fires and answers false; the caller turns that into an error that
// names what it waited for.
//
// Thread rule: one loop each, except CallOn, which is the bridge between two loops.
#pragma once

#include <coroutine>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <utility>

#include "core/async/loop.h"

namespace reprise {

// A list of suspended coroutines with optional deadlines. Building block of the types below.
class WaitList {
 public:
  explicit WaitList(Loop& loop) : loop_(loop) {}
  WaitList(const WaitList&) = delete;
  WaitList& operator=(const WaitList&) = delete;

  struct Awaiter {
    WaitList& list;
    std::optional<TimePoint> deadline;
    bool woken = false;
    std::coroutine_handle<> handle = nullptr;
    Loop::TimerId timer = 0;
    std::list<Awaiter*>::iterator place{};
    bool linked = false;

    Awaiter(WaitList& owner, std::optional<TimePoint> until) : list(owner), deadline(until) {}
    Awaiter(const Awaiter&) = delete;
    Awaiter& operator=(const Awaiter&) = delete;
    ~Awaiter() {
      if (!linked) return;
      list.waiters_.erase(place);
      if (timer != 0) list.loop_.CancelTimer(timer);
    }
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> caller) {
      handle = caller;
      place = list.waiters_.insert(list.waiters_.end(), this);
      linked = true;
      if (deadline.has_value()) {
        timer = list.loop_.AddTimer(*deadline, [this] {
          timer = 0;
          list.waiters_.erase(place);
          linked = false;
          list.loop_.Schedule(handle);
        });
      }
    }
    // True when woken, false when the deadline passed first.
    bool await_resume() const noexcept { return woken; }
  };

  Awaiter Wait(std::optional<TimePoint> deadline = {}) { return Awaiter(*this, deadline); }
  // Wakes the first waiter; false when there is none.
  bool WakeOne() {
    if (waiters_.empty()) return false;
    Awaiter* first = waiters_.front();
    waiters_.pop_front();
    first->linked = false;
    first->woken = true;
    if (first->timer != 0) loop_.CancelTimer(std::exchange(first->timer, 0));
    loop_.Schedule(first->handle);
    return true;
  }
  void WakeAll() {
    while (WakeOne()) {
    }
  }
  bool empty() const { return waiters_.empty(); }
  Loop& loop() { return loop_; }

 private:
  friend struct Awaiter;
  Loop& loop_;
  std::list<Awaiter*> waiters_;
};

// A condition that changes: waiters re-check after every Notify.
class Notifier {
 public:
  explicit Notifier(Loop& loop) : waiters_(loop) {}
  void Notify() { waiters_.WakeAll(); }
  // Resumes when `condition()` holds (true) or at `deadline` (false).
  Task<bool> WaitFor(std::function<bool()> condition, std::optional<TimePoint> deadline = {}) {
    while (!condition()) {
      if (!co_await waiters_.Wait(deadline)) co_return condition();
    }
    co_return true;
  }

 private:
  WaitList waiters_;
};

// Counts permits; the data plane's back-pressure.
class Semaphore {
 public:
  Semaphore(Loop& loop, uint64_t permits) : permits_(permits), waiters_(loop) {}
  // Takes one permit; false when `deadline` passed first.
  Task<bool> Acquire(std::optional<TimePoint> deadline = {}) {
    while (permits_ == 0) {
      if (!co_await waiters_.Wait(deadline)) co_return false;
    }
    --permits_;
    co_return true;
  }
  void Release(uint64_t count = 1) {
    permits_ += count;
    while (count-- > 0) waiters_.WakeOne();
  }
  uint64_t available() const { return permits_; }

 private:
  uint64_t permits_;
  WaitList waiters_;
};

// Counts operations in progress, so that an owner can refuse new ones and wait for the rest.
class Gate {
 public:
  explicit Gate(Loop& loop) : waiters_(loop) {}

  class [[nodiscard]] Hold {
   public:
    Hold() = default;
    explicit Hold(Gate* gate) : gate_(gate) {}
    Hold(Hold&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(gate_, other.gate_);
      return *this;
    }
    ~Hold() {
      if (gate_ != nullptr) gate_->Leave();
    }
    explicit operator bool() const { return gate_ != nullptr; }

   private:
    Gate* gate_ = nullptr;
  };

  // An empty Hold when the gate is closed.
  Hold Enter() {
    if (closed_) return {};
    ++inside_;
    return Hold(this);
  }
  // Refuses newcomers and resumes when all have left.
  Task<void> Close() {
    closed_ = true;
    while (inside_ > 0) co_await waiters_.Wait();
  }
  bool closed() const { return closed_; }
  uint64_t inside() const { return inside_; }

 private:
  void Leave() {
    if (--inside_ == 0) waiters_.WakeAll();
  }
  uint64_t inside_ = 0;
  bool closed_ = false;
  WaitList waiters_;
};

// A value that arrives once. Set at most once; any number of waiters.
template <typename T>
class OneShot {
 public:
  explicit OneShot(Loop& loop) : waiters_(loop) {}
  void Set(T value) {
    REPRISE_CHECK(!value_.has_value());
    value_.emplace(std::move(value));
    waiters_.WakeAll();
  }
  bool ready() const { return value_.has_value(); }
  const T& value() const { return *value_; }
  // The value, or nothing when `deadline` passed first. Copies, because there may be more waiters.
  Task<std::optional<T>> Wait(std::optional<TimePoint> deadline = {}) {
    while (!value_.has_value()) {
      if (!co_await waiters_.Wait(deadline)) break;
    }
    co_return value_;
  }

 private:
  std::optional<T> value_;
  WaitList waiters_;
};

// Runs `make()`'s task on `target` and resumes the caller on `home` with its value. When both are
// the same loop the task runs in place. `make` is called on the target's thread.
template <typename T>
Task<T> CallOn(Loop& home, Loop& target, std::function<Task<T>()> make) {
  if (&home == &target) co_return co_await make();
  struct Bridge {
    Loop& home;
    Loop& target;
    std::function<Task<T>()> make;
    std::optional<T> value;
    std::coroutine_handle<> caller = nullptr;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      caller = handle;
      target.Post([this] { target.Spawn(Execute(this)); });
    }
    T await_resume() { return std::move(*value); }
    static Task<void> Execute(Bridge* bridge) {
      bridge->value.emplace(co_await bridge->make());
      bridge->home.Post([bridge] { bridge->home.Schedule(bridge->caller); });
    }
  };
  Bridge bridge{home, target, std::move(make), std::nullopt};
  co_return co_await bridge;
}

}  // namespace reprise
