// ThreadIo: the I/O engine for hosts that forbid io_uring (the default in containers).
//
// File requests run as pread, pwrite and fdatasync on the pool; sockets are non-blocking, tried at
// submission and then whenever epoll (edge-triggered) says that something changed. The contract is
// Io's; the differences are speed and one thread hop per file request.
//
// Thread rule: the loop's thread, except Wake().
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/io/posix_io.h"

namespace reprise {

class ThreadIo final : public PosixIo {
 public:
  // Fails only when the process has no descriptors left.
  static Result<std::unique_ptr<ThreadIo>> Create(Loop& loop, const IoOptions& options);
  ~ThreadIo() override;

  void Poll(std::optional<Nanos> timeout) override;
  void Wake() override;
  void Shutdown(SocketId socket) override;
  void CloseSocket(SocketId socket) override;
  uint64_t RegisterBuffers(std::vector<MutableByteView>) override { return 0; }
  std::string Name() const override { return "threads"; }

 protected:
  void Submit(IoRequest& request) override;
  void Cancel(IoRequest& request) override;

 private:
  struct Socket {
    std::deque<IoRequest*> readers;  // recv, accept
    std::deque<IoRequest*> writers;
    bool watched = false;  // registered with epoll
    bool ended = false;    // Shutdown was called
  };

  ThreadIo(Loop& loop, const IoOptions& options, int epoll, int wake);
  void Complete(IoRequest& request, int64_t result);
  void Serve(int handle, Socket& socket);
  void ServeQueue(std::deque<IoRequest*>& queue, int handle, Socket& socket);
  void Watch(int handle, Socket& socket);

  const int epoll_fd_;
  const int wake_fd_;
  std::atomic<bool> woken_{false};
  std::map<int, Socket> sockets_;
};

}  // namespace reprise
