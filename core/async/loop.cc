#include "core/async/loop.h"

#include <chrono>

namespace reprise {

Loop::Loop(Clock& clock) : clock_(clock) {}

Loop::~Loop() { DestroyAll(); }

void Loop::DestroyAll() {
  ready_.clear();
  timers_.clear();
  timer_times_.clear();
  {
    std::lock_guard lock(mutex_);
    posted_.clear();
    has_posted_ = false;
  }
  // Frames may hold objects whose destructors schedule or cancel; they must find sane containers.
  while (!roots_.empty()) {
    Root root(nullptr);
    // The youngest first: what a frame spawned may refer to what the frame owns.
    std::swap(root.frame, roots_.back().frame);
    roots_.pop_back();
  }
  ready_.clear();
}

void Loop::Run() {
  while (!stop_.load(std::memory_order_acquire)) RunOnce(true);
}

void Loop::Stop() {
  std::lock_guard lock(mutex_);
  stop_.store(true, std::memory_order_release);
  has_posted_.store(true, std::memory_order_release);
  WakeLocked();
}

void Loop::SetReactor(Reactor* reactor) {
  std::lock_guard lock(mutex_);
  reactor_ = reactor;
}

void Loop::WakeLocked() {
  // A loop that runs looks at what was posted before it sleeps: a wake-up is two system calls and, on
  // a virtual machine, an interrupt of another processor.
  if (!asleep_) return;
  asleep_ = false;
  wake_.notify_one();
  if (reactor_ != nullptr) reactor_->Wake();
}

bool Loop::RunOnce(bool may_block) {
  bool worked = TakePosted();
  worked = FireTimers() || worked;
  // Only what is ready now: work scheduled by this turn waits for the next, so that I/O is not starved.
  for (size_t count = ready_.size(); count > 0 && !ready_.empty(); --count) {
    std::coroutine_handle<> handle = ready_.front();
    ready_.pop_front();
    handle.resume();
    worked = true;
  }
  if (stop_.load(std::memory_order_acquire)) return worked;
  // Whoever drives the loop must see what this turn did before the loop sleeps on it.
  bool more = worked || !ready_.empty() || has_posted_.load(std::memory_order_acquire);
  if (more || !may_block) {
    if (reactor_ != nullptr) reactor_->Poll(Nanos{0});
  } else {
    Wait(TimeToNextTimer());
  }
  return worked || !ready_.empty();
}

void Loop::Wait(std::optional<Nanos> timeout) {
  std::unique_lock lock(mutex_);
  auto woken = [this] { return has_posted_.load(std::memory_order_acquire); };
  asleep_ = !woken();
  if (reactor_ != nullptr) {
    if (!asleep_) timeout = Nanos{0};
    lock.unlock();
    reactor_->Poll(timeout);
    lock.lock();
  } else if (timeout.has_value()) {
    wake_.wait_for(lock, *timeout, woken);
  } else {
    wake_.wait(lock, woken);
  }
  asleep_ = false;
}

void Loop::Post(std::function<void()> work) {
  std::lock_guard lock(mutex_);
  posted_.push_back(std::move(work));
  has_posted_.store(true, std::memory_order_release);
  WakeLocked();
}

bool Loop::TakePosted() {
  if (!has_posted_.load(std::memory_order_acquire)) return false;
  std::vector<std::function<void()>> work;
  {
    std::lock_guard lock(mutex_);
    work.swap(posted_);
    has_posted_.store(false, std::memory_order_release);
  }
  for (std::function<void()>& item : work) item();
  return true;
}

Loop::Root Loop::RunRoot(Task<void> task, std::list<Root>::iterator) { co_await std::move(task); }

void Loop::Spawn(Task<void> task) {
  auto self = roots_.insert(roots_.end(), Root(nullptr));
  Root root = RunRoot(std::move(task), self);
  root.frame.promise().loop = this;
  root.frame.promise().self = self;
  std::swap(self->frame, root.frame);
  Schedule(self->frame);
}

Loop::TimerId Loop::AddTimer(TimePoint when, std::function<void()> fire) {
  TimerId id = next_timer_id_++;
  timers_.emplace(TimerKey{when, id}, std::move(fire));
  timer_times_.emplace(id, when);
  return id;
}

void Loop::CancelTimer(TimerId id) {
  auto found = timer_times_.find(id);
  if (found == timer_times_.end()) return;
  timers_.erase(TimerKey{found->second, id});
  timer_times_.erase(found);
}

bool Loop::FireTimers() {
  if (timers_.empty()) return false;
  TimePoint now = Now();
  bool fired = false;
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    auto node = timers_.extract(timers_.begin());
    timer_times_.erase(node.key().second);
    node.mapped()();
    fired = true;
  }
  return fired;
}

std::optional<Nanos> Loop::TimeToNextTimer() const {
  if (timers_.empty()) return std::nullopt;
  Nanos left = timers_.begin()->first.first - Now();
  return std::max(left, Nanos{0});
}

}  // namespace reprise
