// WorkerPool: a few threads for calls that block (open, fallocate, name resolution, pread).
//
// Work runs in order of arrival on whichever thread is free; threads are started when there is work
// and nobody idle, up to a maximum. The destructor runs what is queued and joins.
//
// Thread rule: Run from any thread. Work must not throw. Owner: an I/O engine.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace reprise {

class WorkerPool {
 public:
  explicit WorkerPool(uint32_t threads_max) : threads_max_(threads_max) {}
  ~WorkerPool() { Stop(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Queues `work`. After Stop nothing may be queued.
  void Run(std::function<void()> work);
  // Finishes what is queued and joins all threads.
  void Stop();

 private:
  void Work();

  const uint32_t threads_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool stopping_ = false;
};

}  // namespace reprise
