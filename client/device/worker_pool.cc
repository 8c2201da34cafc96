#include "client/device/worker_pool.h"

#include "client/session/fork.h"

namespace reprise::client {

WorkerPool::WorkerPool(uint32_t threads) : fork_generation_(ForkGeneration()) {
  for (uint32_t i = 1; i < threads; ++i) helpers_.emplace_back([this] { Help(); });
}

WorkerPool::~WorkerPool() {
  if (IsForkChild(fork_generation_)) {
    // The threads exist in the parent only: neither join nor terminate.
    new std::vector<std::thread>(std::move(helpers_));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    started_.notify_all();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void WorkerPool::Run(uint32_t count, const std::function<void(uint32_t)>& work) {
  std::lock_guard one_job(run_mutex_);
  std::unique_lock lock(mutex_);
  work_ = &work;
  next_ = 0;
  count_ = count;
  started_.notify_all();
  Drain(lock);
  finished_.wait(lock, [&] { return running_ == 0; });
  work_ = nullptr;
}

void WorkerPool::Help() {
  std::unique_lock lock(mutex_);
  while (true) {
    started_.wait(lock, [&] { return closing_ || (work_ != nullptr && next_ < count_); });
    if (closing_) return;
    Drain(lock);
  }
}

void WorkerPool::Drain(std::unique_lock<std::mutex>& lock) {
  while (work_ != nullptr && next_ < count_) {
    uint32_t index = next_++;
    const std::function<void(uint32_t)>& work = *work_;
    ++running_;
    lock.unlock();
    work(index);
    lock.lock();
    --running_;
  }
  if (running_ == 0) finished_.notify_all();
}

}  // namespace reprise::client
