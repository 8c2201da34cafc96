#include "server/node/pid_watch.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/io/transfer.h"

namespace reprise::node {

Result<std::unique_ptr<PidWatch>> PidWatch::Create(Loop& loop) {
  auto watch = std::unique_ptr<PidWatch>(new PidWatch(loop));
  watch->epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  watch->stop_ = OwnedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!watch->epoll_.valid() || !watch->stop_.valid()) {
    return Error(StatusFromErrno(errno, "set up the watch over processes"));
  }
  epoll_event event{.events = EPOLLIN, .data = {.u64 = 0}};
  if (::epoll_ctl(watch->epoll_.get(), EPOLL_CTL_ADD, watch->stop_.get(), &event) != 0) {
    return Error(StatusFromErrno(errno, "set up the watch over processes"));
  }
  watch->thread_ = std::thread([raw = watch.get()] { raw->ThreadMain(); });
  return watch;
}

PidWatch::~PidWatch() {
  *self_ = nullptr;
  if (!thread_.joinable()) return;
  uint64_t one = 1;
  // Cannot fail: the counter is far from its limit.
  (void)!::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

Result<PidWatch::WatchId> PidWatch::Watch(pid_t pid, std::function<void()> on_death) {
  if (pid <= 0) return Error(Code::kUnimplemented, "the process is in another pid namespace");
  OwnedFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) {
    if (errno == ESRCH) return Error(Code::kNotFound, "no such process");
    return Error(Code::kUnimplemented, StatusFromErrno(errno, "pidfd_open").message());
  }
  WatchId id = next_id_++;
  // ONESHOT: the thread must not spin on a process that stays dead until the loop unwatches it.
  epoll_event event{.events = EPOLLIN | EPOLLONESHOT, .data = {.u64 = id}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, pidfd.get(), &event) != 0) {
    return Error(Code::kUnimplemented, StatusFromErrno(errno, "watch a process").message());
  }
  entries_.emplace(id, Entry{std::move(pidfd), std::move(on_death)});
  return id;
}

void PidWatch::Unwatch(WatchId id) { entries_.erase(id); }

void PidWatch::Fire(WatchId id) {
  auto entry = entries_.extract(id);
  if (!entry.empty()) entry.mapped().on_death();
}

void PidWatch::ThreadMain() {
  std::shared_ptr<PidWatch*> self = self_;
  while (true) {
    epoll_event event{};
    int count = ::epoll_wait(epoll_.get(), &event, 1, -1);
    if (count < 0 && errno != EINTR) return;
    if (count <= 0) continue;
    if (event.data.u64 == 0) return;
    loop_.Post([self, id = event.data.u64] {
      if (*self != nullptr) (*self)->Fire(id);
    });
  }
}

}  // namespace reprise::node
