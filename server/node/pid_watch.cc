#include "server/node/pid_watch.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <thread>
#include <utility>

#include "core/base/check.h"
#include "core/io/transfer.h"
#include "server/node/slab_mapping.h"

namespace reprise::node {
namespace {

class PidfdWatch final : public PidWatch {
 public:
  explicit PidfdWatch(Loop& loop) : loop_(loop) {}
  ~PidfdWatch() override;
  PidfdWatch(const PidfdWatch&) = delete;
  PidfdWatch& operator=(const PidfdWatch&) = delete;

  Status Start();
  Result<WatchId> Watch(pid_t pid, std::function<void()> on_death) override;
  void Unwatch(WatchId id) override { entries_.erase(id); }

 private:
  struct Entry {
    OwnedFd pidfd;
    std::function<void()> on_death;
  };
  void ThreadMain();
  void Fire(WatchId id);

  Loop& loop_;
  OwnedFd epoll_;
  OwnedFd stop_;  // eventfd
  std::map<WatchId, Entry> entries_;
  WatchId next_id_ = 1;  // 0 is the eventfd
  // Posted work finds out through this whether the watch is still there.
  std::shared_ptr<PidfdWatch*> self_ = std::make_shared<PidfdWatch*>(this);
  std::thread thread_;
};

Status PidfdWatch::Start() {
  epoll_ = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  stop_ = OwnedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !stop_.valid()) {
    return StatusFromErrno(errno, "set up the watch over processes");
  }
  epoll_event event{.events = EPOLLIN, .data = {.u64 = 0}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_.get(), &event) != 0) {
    return StatusFromErrno(errno, "set up the watch over processes");
  }
  thread_ = std::thread([this] { ThreadMain(); });
  return OkStatus();
}

PidfdWatch::~PidfdWatch() {
  *self_ = nullptr;
  if (!thread_.joinable()) return;
  uint64_t one = 1;
  // Cannot fail: the counter is far from its limit.
  (void)!::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

Result<PidWatch::WatchId> PidfdWatch::Watch(pid_t pid, std::function<void()> on_death) {
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

void PidfdWatch::Fire(WatchId id) {
  auto entry = entries_.extract(id);
  if (!entry.empty()) entry.mapped().on_death();
}

void PidfdWatch::ThreadMain() {
  std::shared_ptr<PidfdWatch*> self = self_;
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

}  // namespace

Result<std::unique_ptr<PidWatch>> PidWatch::Create(Loop& loop) {
  auto watch = std::make_unique<PidfdWatch>(loop);
  REPRISE_TRY(watch->Start());
  return watch;
}

}  // namespace reprise::node
