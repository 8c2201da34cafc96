// PidWatch: tells when a process ends, at once, even while its children hold its sockets open.
//
// Create makes the one around pidfd and epoll, the only place of the node role with a thread: the
// thread sleeps in epoll_wait over pidfds and posts each death to the loop. Where the process cannot
// be seen (another pid namespace, an old kernel) Watch says so and the caller relies on end-of-file.
// The simulator has another one (machine.h).
//
// Thread rule: all methods on the loop's thread; callbacks run on the loop, never inline. The
// destructor joins the thread; a callback posted before it is dropped.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "core/async/loop.h"
#include "reprise/status.h"

namespace reprise::node {

class PidWatch {
 public:
  using WatchId = uint64_t;

  static Result<std::unique_ptr<PidWatch>> Create(Loop& loop);
  virtual ~PidWatch() = default;

  // Calls `on_death` once when process `pid` has ended, unless Unwatch comes first. NOT_FOUND: no
  // such process (any more). UNIMPLEMENTED: it cannot be watched from here.
  virtual Result<WatchId> Watch(pid_t pid, std::function<void()> on_death) = 0;
  // No effect when it has fired already.
  virtual void Unwatch(WatchId id) = 0;
};

}  // namespace reprise::node
