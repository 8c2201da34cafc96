#include "core/io/worker_pool.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

#include "core/base/check.h"

namespace reprise {

void WorkerPool::Run(std::function<void()> work) {
  std::lock_guard lock(mutex_);
  REPRISE_CHECK(!stopping_);
  queue_.push_back(std::move(work));
  if (queue_.size() > idle_ && threads_.size() < threads_max_) {
    // Signals are for the main thread: a new thread inherits the blocked mask.
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);  // a fault of this thread: blocked, it would end the process unhandled
    pthread_sigmask(SIG_SETMASK, &all, &old);
    threads_.emplace_back([this] { Work(); });
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }
  wake_.notify_one();
}

void WorkerPool::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    wake_.wait(lock, [this] { return !queue_.empty() || stopping_; });
    --idle_;
    if (queue_.empty()) return;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // what it holds is destroyed outside the lock
    lock.lock();
  }
}

void WorkerPool::Stop() {
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    threads.swap(threads_);
  }
  wake_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace reprise
