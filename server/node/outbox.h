// Outbox: what waits to be sent on one local connection. Frames leave whole and in order, each with
// the descriptor that belongs to it attached to its first byte.
//
// Bounded: a process that does not read its answers loses its connection (Full), not the daemon its
// memory. Owner: Connection, which runs Drain in one coroutine.
//
// Thread rule: the node's loop.
#pragma once

#include <deque>
#include <utility>

#include "core/async/sync.h"
#include "core/io/io.h"
#include "core/io/transfer.h"
#include "server/node/slab_mapping.h"

namespace reprise::node {

class Outbox {
 public:
  Outbox(Io& io, SocketId socket) : io_(io), socket_(socket), changed_(io.loop()) {}

  void Add(Bytes frames, OwnedFd fd = {}) {
    if (ended_) return;
    bytes_ += frames.size();
    items_.push_back({std::move(frames), std::move(fd)});
    changed_.Notify();
  }
  bool full() const { return bytes_ > kBytesMax; }
  // After what is queued has left, Drain ends.
  void Finish() {
    ended_ = true;
    changed_.Notify();
  }

  // Sends until Finish, or until the peer is gone (then the rest is dropped).
  Task<void> Drain() {
    while (true) {
      co_await changed_.WaitFor([this] { return ended_ || !items_.empty(); });
      if (items_.empty()) co_return;
      Item item = std::move(items_.front());
      items_.pop_front();
      Status sent = co_await Send(item.frames, item.fd.get());
      bytes_ -= item.frames.size();
      if (sent.ok()) continue;
      ended_ = true;
      items_.clear();
      io_.Shutdown(socket_);
      co_return;
    }
  }

  static constexpr size_t kBytesMax = size_t{256} << 20;

 private:
  struct Item {
    Bytes frames;
    OwnedFd fd;
  };
  // `frames` lives in the caller's frame.
  Task<Status> Send(ByteView frames, int fd) {
    if (fd >= 0) {
      int64_t moved = -EAGAIN;
      while (moved == -EAGAIN || moved == -EINTR) {
        moved = co_await io_.SendFd(socket_, frames, fd);
      }
      if (moved < 0) co_return StatusFromErrno(static_cast<int>(-moved), "send");
      frames = frames.subspan(static_cast<size_t>(moved));
    }
    co_return co_await SendFully(io_, socket_, frames);
  }

  Io& io_;
  SocketId socket_;
  std::deque<Item> items_;
  size_t bytes_ = 0;
  bool ended_ = false;
  Notifier changed_;
};

}  // namespace reprise::node
