#include "core/io/thread_io.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/check.h"
#include "core/io/fd_message.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

bool IsFileOp(IoOp op) { return op == IoOp::kRead || op == IoOp::kWrite || op == IoOp::kFlush; }

int64_t ResultOf(ssize_t result) { return result < 0 ? -errno : static_cast<int64_t>(result); }

// Blocking; on a pool thread.
int64_t PerformFile(const IoRequest& request) {
  auto offset = static_cast<off_t>(request.offset);
  switch (request.op) {
    case IoOp::kRead: return ResultOf(pread(request.handle, request.data, request.size, offset));
    case IoOp::kWrite: return ResultOf(pwrite(request.handle, request.data, request.size, offset));
    default: return ResultOf(fdatasync(request.handle));
  }
}

// Never blocks: -EAGAIN when the socket is not ready.
int64_t PerformSocket(IoRequest& request) {
  if (request.op == IoOp::kAccept) {
    return ResultOf(accept4(request.handle, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }
  if (request.op == IoOp::kRecv && request.want_fd) {
    FdMessage message(request);
    int64_t result = ResultOf(recvmsg(request.handle, &message.header, MSG_CMSG_CLOEXEC));
    if (result >= 0) request.pass_fd = message.TakeFd();
    return result;
  }
  if (request.op == IoOp::kRecv) {
    return ResultOf(recv(request.handle, request.data, request.size, 0));
  }
  if (request.pass_fd >= 0) {
    FdMessage message(request);
    return ResultOf(sendmsg(request.handle, &message.header, MSG_NOSIGNAL));
  }
  return ResultOf(send(request.handle, request.data, request.size, MSG_NOSIGNAL));
}

}  // namespace

Result<std::unique_ptr<ThreadIo>> ThreadIo::Create(Loop& loop, const IoOptions& options) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0) return Error(StatusFromErrno(errno, "epoll_create1"));
  int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake;
  if (wake < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, wake, &event) != 0) {
    Status failure = StatusFromErrno(errno, "eventfd");
    if (wake >= 0) close(wake);
    close(epoll);
    return Error(failure);
  }
  return std::unique_ptr<ThreadIo>(new ThreadIo(loop, options, epoll, wake));
}

ThreadIo::ThreadIo(Loop& loop, const IoOptions& options, int epoll, int wake)
    : PosixIo(loop, options.file_threads, /*nonblocking=*/true), epoll_fd_(epoll), wake_fd_(wake) {
  loop_.SetReactor(this);
}

ThreadIo::~ThreadIo() {
  Stop();
  close(wake_fd_);
  close(epoll_fd_);
}

void ThreadIo::Wake() {
  if (woken_.exchange(true, std::memory_order_acq_rel)) return;
  uint64_t one = 1;
  ssize_t written = write(wake_fd_, &one, sizeof(one));
  REPRISE_CHECK(written == sizeof(one) || errno == EAGAIN);
}

void ThreadIo::Poll(std::optional<Nanos> timeout) {
  epoll_event events[64];
  timespec limit{};
  if (timeout.has_value()) {
    limit.tv_sec = static_cast<time_t>(timeout->count() / 1'000'000'000);
    limit.tv_nsec = static_cast<long>(timeout->count() % 1'000'000'000);
  }
  int count = epoll_pwait2(epoll_fd_, events, 64, timeout.has_value() ? &limit : nullptr, nullptr);
  REPRISE_CHECK(count >= 0 || errno == EINTR);
  for (int i = 0; i < count; ++i) {
    int handle = events[i].data.fd;
    if (handle == wake_fd_) {
      uint64_t value;
      (void)!read(wake_fd_, &value, sizeof(value));
      // Pairs with the exchange in Wake: whoever found `true` has its work seen by this turn.
      woken_.exchange(false, std::memory_order_acq_rel);
      continue;
    }
    auto found = sockets_.find(handle);
    if (found != sockets_.end()) Serve(handle, found->second);
  }
}

void ThreadIo::Complete(IoRequest& request, int64_t result) {
  --in_flight_;
  PassFaultPoint(request);
  request.result = request.op == IoOp::kAccept ? AcceptResult(result) : result;
  loop_.Schedule(request.waiter);
}

void ThreadIo::Submit(IoRequest& request) {
  if (AnsweredByFault(request)) return;
  ++in_flight_;
  if (IsFileOp(request.op)) {
    file_pool_.Run([this, target = &request] {
      target->result = PerformFile(*target);
      loop_.Post([this, target] { Complete(*target, target->result); });
    });
    return;
  }
  Socket& socket = sockets_[request.handle];
  auto& queue = request.op == IoOp::kSend ? socket.writers : socket.readers;
  queue.push_back(&request);
  if (queue.size() == 1) ServeQueue(queue, request.handle, socket);
}

void ThreadIo::Serve(int handle, Socket& socket) {
  ServeQueue(socket.readers, handle, socket);
  ServeQueue(socket.writers, handle, socket);
}

// Performs requests in order until one has to wait.
void ThreadIo::ServeQueue(std::deque<IoRequest*>& queue, int handle, Socket& socket) {
  while (!queue.empty()) {
    IoRequest& request = *queue.front();
    int64_t result = PerformSocket(request);
    if (result == -EINTR) continue;
    // A Unix listener that was shut down still answers EAGAIN.
    if (result == -EAGAIN && socket.ended) result = -ECANCELED;
    if (result == -EAGAIN) {
      if (socket.watched) return;
      // Registering reports the state at once, so that nothing is missed in between.
      Watch(handle, socket);
      return;
    }
    queue.pop_front();
    Complete(request, result);
  }
}

void ThreadIo::Watch(int handle, Socket& socket) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.fd = handle;
  int result = epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, handle, &event);
  REPRISE_CHECK(result == 0 || errno == EEXIST);
  socket.watched = true;
}

void ThreadIo::Cancel(IoRequest& request) {
  auto found = sockets_.find(request.handle);
  if (found == sockets_.end()) return;
  for (auto* queue : {&found->second.readers, &found->second.writers}) {
    auto place = std::ranges::find(*queue, &request);
    if (place == queue->end()) continue;
    queue->erase(place);
    Complete(request, -ECANCELED);
    return;
  }
}

void ThreadIo::Shutdown(SocketId socket) {
  PosixIo::Shutdown(socket);
  Socket& ended = sockets_[socket.value];
  ended.ended = true;
  Serve(socket.value, ended);
}

void ThreadIo::CloseSocket(SocketId socket) {
  Shutdown(socket);
  // Every request has ended with the Shutdown: nothing on an ended socket waits.
  auto found = sockets_.find(socket.value);
  REPRISE_CHECK(found->second.readers.empty() && found->second.writers.empty());
  if (found->second.watched) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, socket.value, nullptr);
  sockets_.erase(found);
  close(socket.value);
}

}  // namespace reprise
