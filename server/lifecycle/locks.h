// Locks between coroutines of one loop: AsyncMutex (a job's lock) and SharedLock (the ledger's).
//
// Both are fair: first come, first served, and a waiting exclusive holder keeps later shared ones
// out. Holds are released by their destructor. Neither may be destroyed while held or waited for.
//
// Thread rule: one loop.
#pragma once

#include <cstdint>
#include <utility>

#include "core/async/sync.h"
#include "core/async/task.h"

namespace reprise::lifecycle {

class SharedLock {
 public:
  explicit SharedLock(Loop& loop) : waiters_(loop) {}

  class [[nodiscard]] Hold {
   public:
    Hold() = default;
    Hold(SharedLock* lock, bool exclusive) : lock_(lock), exclusive_(exclusive) {}
    Hold(Hold&& other) noexcept
        : lock_(std::exchange(other.lock_, nullptr)), exclusive_(other.exclusive_) {}
    Hold& operator=(Hold&& other) noexcept {
      std::swap(lock_, other.lock_);
      std::swap(exclusive_, other.exclusive_);
      return *this;
    }
    ~Hold() {
      if (lock_ != nullptr) lock_->Release(exclusive_);
    }

   private:
    SharedLock* lock_ = nullptr;
    bool exclusive_ = false;
  };

  Task<Hold> Share() {
    uint64_t ticket = next_ticket_++;
    while (serving_ != ticket || exclusive_) co_await waiters_.Wait();
    ++serving_;
    ++shared_;
    waiters_.WakeAll();
    co_return Hold(this, false);
  }
  Task<Hold> Exclude() {
    uint64_t ticket = next_ticket_++;
    while (serving_ != ticket || exclusive_ || shared_ > 0) co_await waiters_.Wait();
    ++serving_;
    exclusive_ = true;
    co_return Hold(this, true);
  }

 private:
  void Release(bool exclusive) {
    if (exclusive) {
      exclusive_ = false;
    } else {
      --shared_;
    }
    waiters_.WakeAll();
  }

  WaitList waiters_;
  uint64_t next_ticket_ = 0;
  uint64_t serving_ = 0;
  uint64_t shared_ = 0;
  bool exclusive_ = false;
};

class AsyncMutex {
 public:
  explicit AsyncMutex(Loop& loop) : lock_(loop) {}
  using Hold = SharedLock::Hold;
  Task<Hold> Lock() { return lock_.Exclude(); }

 private:
  SharedLock lock_;
};

}  // namespace reprise::lifecycle
