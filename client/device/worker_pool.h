// WorkerPool: a fixed set of threads that run the parts of one job at a time beside the caller.
//
// Thread rule: Run from any thread, one at a time (later callers wait). fork(): the destructor does
// nothing in a child.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace reprise::client {

class WorkerPool {
 public:
  // `threads` counts the caller: threads - 1 helpers are started.
  explicit WorkerPool(uint32_t threads);
  ~WorkerPool();

  // Runs work(0) .. work(count - 1); returns when all have returned.
  void Run(uint32_t count, const std::function<void(uint32_t)>& work);
  uint32_t threads() const { return static_cast<uint32_t>(helpers_.size()) + 1; }

 private:
  void Help();
  void Drain(std::unique_lock<std::mutex>& lock);

  const uint64_t fork_generation_;
  std::mutex run_mutex_;  // one Run at a time
  std::mutex mutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  const std::function<void(uint32_t)>* work_ = nullptr;
  uint32_t next_ = 0;
  uint32_t count_ = 0;
  uint32_t running_ = 0;
  bool closing_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace reprise::client
