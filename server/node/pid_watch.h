// PidWatch: tells when a process ends, at once, even while its children hold its sockets open.
//
// The adapter around pidfd and epoll, and the only place of the node role with a thread: the thread
// sleeps in epoll_wait over pidfds and posts each death to the loop. Where the process cannot be
// seen (another pid namespace, an old kernel) Watch says so and the caller relies on end-of-file.
//
// Thread rule: all methods on the loop's thread; callbacks run on the loop, never inline. The
// destructor joins the thread; a callback posted before it is dropped.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "core/async/loop.h"
#include "reprise/status.h"
#include "server/node/slab_mapping.h"

namespace reprise::node {

class PidWatch {
 public:
  using WatchId = uint64_t;

  static Result<std::unique_ptr<PidWatch>> Create(Loop& loop);
  ~PidWatch();
  PidWatch(const PidWatch&) = delete;
  PidWatch& operator=(const PidWatch&) = delete;

  // Calls `on_death` once when process `pid` has ended, unless Unwatch comes first. NOT_FOUND: no
  // such process (any more). UNIMPLEMENTED: it cannot be watched from here.
  Result<WatchId> Watch(pid_t pid, std::function<void()> on_death);
  // No effect when it has fired already.
  void Unwatch(WatchId id);

 private:
  struct Entry {
    OwnedFd pidfd;
    std::function<void()> on_death;
  };
  explicit PidWatch(Loop& loop) : loop_(loop) {}
  void ThreadMain();
  void Fire(WatchId id);

  Loop& loop_;
  OwnedFd epoll_;
  OwnedFd stop_;  // eventfd
  std::map<WatchId, Entry> entries_;
  WatchId next_id_ = 1;  // 0 is the eventfd
  // Posted work finds out through this whether the watch is still there.
  std::shared_ptr<PidWatch*> self_ = std::make_shared<PidWatch*>(this);
  std::thread thread_;
};

}  // namespace reprise::node
