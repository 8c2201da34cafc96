// Io: the only way Reprise's daemons reach disks and networks. One instance serves one Loop.
//
// Three engines keep one contract (tests/conformance/io_test.cc runs all three):
//   UringIo   io_uring, SINGLE_ISSUER | DEFER_TASKRUN where the kernel has it, registered buffers
//   ThreadIo  a pool of blocking threads for files, epoll for sockets
//   SimIo     simulated disk and network driven by a seed (tests and simulator)
//
// Contract
//   - Results are the kernel's: bytes moved, or -errno. Short reads and writes are legal results;
//     the helpers in core/io/transfer.h loop over them.
//   - NO ORDER between requests in flight, on one file or on several. A flush covers exactly the
//     writes whose completion was seen before the flush was submitted. Nothing is ever linked.
//   - Flush (fdatasync) failing is final: what it covered may be lost, and a second flush proves
//     nothing (docs/architecture.md).
//   - A completion resumes its coroutine in a later turn of the loop, exactly once, never inline.
//   - Buffers stay valid and untouched until the completion. A coroutine suspended on a request
//   must
//     not be destroyed; deadlines on sockets cancel the request and wait for its completion.
//   - Files opened `direct` need offset, length and address aligned to limits::kIoAlignment.
//
// Thread rule: the loop's thread, except Wake().
#pragma once

#include <sys/types.h>

#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/async/loop.h"
#include "core/async/task.h"
#include "core/base/bytes.h"
#include "core/base/clock.h"
#include "reprise/status.h"

namespace reprise {

// Handles of an Io instance; meaningless to any other. Negative means none.
struct FileId {
  int value = -1;
  bool valid() const { return value >= 0; }
  auto operator<=>(const FileId&) const = default;
};
struct SocketId {
  int value = -1;
  bool valid() const { return value >= 0; }
  auto operator<=>(const SocketId&) const = default;
};

struct OpenOptions {
  bool write = true;
  bool create = false;     // make the file when missing
  bool exclusive = false;  // with create: fail with ALREADY_EXISTS when it is there
  bool direct = true;      // O_DIRECT
  bool dsync = false;      // O_DSYNC: a completed write is durable
};

// Who is at the other end of a Unix socket (SO_PEERCRED).
struct PeerCredentials {
  pid_t pid = -1;
  uid_t uid = 0;
  gid_t gid = 0;
};

enum class IoOp : uint8_t { kRead, kWrite, kFlush, kRecv, kSend, kAccept };

// One submitted operation. Lives in the awaiting coroutine's frame until it completes.
struct IoRequest {
  IoOp op = IoOp::kRead;
  int handle = -1;          // FileId or SocketId value
  uint8_t* data = nullptr;  // read, write, recv, send
  size_t size = 0;
  uint64_t offset = 0;
  int pass_fd = -1;      // send: descriptor to pass along; recv: descriptor received, or -1
  bool want_fd = false;  // recv: accept a passed descriptor
  int64_t result = 0;
  std::coroutine_handle<> waiter = nullptr;
  uint64_t engine_slot = 0;  // the engine's own use while in flight
};

class Io : public Reactor {
 public:
  explicit Io(Loop& loop) : loop_(loop) {}
  ~Io() override = default;

  // Awaits one request: int64_t bytes or -errno; on sockets -ETIME when `deadline` passed first.
  class [[nodiscard]] Operation {
   public:
    Operation(Io& io, IoRequest request, std::optional<TimePoint> deadline)
        : io_(io), loop_(io.loop_), request_(request), deadline_(deadline) {}
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;
    // A frame destroyed while suspended (only legal after its engine dropped the request) must not
    // leave a timer behind. The engine may be gone by then; the loop is not.
    ~Operation() {
      if (timer_ != 0) loop_.CancelTimer(timer_);
    }
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> caller);
    int64_t await_resume();
    // recv with want_fd: the descriptor that came along, or -1. The caller owns it.
    int passed_fd() const { return request_.pass_fd; }

   private:
    Io& io_;
    Loop& loop_;
    IoRequest request_;
    std::optional<TimePoint> deadline_;
    Loop::TimerId timer_ = 0;
    bool timed_out_ = false;
  };

  Operation Read(FileId file, MutableByteView buffer, uint64_t offset) {
    return {*this, {IoOp::kRead, file.value, buffer.data(), buffer.size(), offset}, {}};
  }
  Operation Write(FileId file, ByteView data, uint64_t offset) {
    return {*this,
            {IoOp::kWrite, file.value, const_cast<uint8_t*>(data.data()), data.size(), offset},
            {}};
  }
  // fdatasync: covers every write of `file` completed before this call.
  Operation Flush(FileId file) { return {*this, {IoOp::kFlush, file.value}, {}}; }
  // At least one byte, or 0 at end of stream.
  Operation Recv(SocketId socket, MutableByteView buffer, std::optional<TimePoint> deadline = {}) {
    return {*this, {IoOp::kRecv, socket.value, buffer.data(), buffer.size()}, deadline};
  }
  // Like Recv on a Unix socket, accepting one passed descriptor (Operation::passed_fd).
  Operation RecvFd(SocketId socket, MutableByteView buffer,
                   std::optional<TimePoint> deadline = {}) {
    IoRequest request{IoOp::kRecv, socket.value, buffer.data(), buffer.size()};
    request.want_fd = true;
    return {*this, request, deadline};
  }
  Operation Send(SocketId socket, ByteView data, std::optional<TimePoint> deadline = {}) {
    return {*this,
            {IoOp::kSend, socket.value, const_cast<uint8_t*>(data.data()), data.size()},
            deadline};
  }
  // Sends `data` with a copy of descriptor `fd` attached (Unix sockets only).
  Operation SendFd(SocketId socket, ByteView data, int fd, std::optional<TimePoint> deadline = {}) {
    IoRequest request{IoOp::kSend, socket.value, const_cast<uint8_t*>(data.data()), data.size()};
    request.pass_fd = fd;
    return {*this, request, deadline};
  }
  // The accepted socket's handle value, or -errno (-ECANCELED after Shutdown of the listener).
  Operation Accept(SocketId listener, std::optional<TimePoint> deadline = {}) {
    return {*this, {IoOp::kAccept, listener.value}, deadline};
  }

  // --- files and directories; each annotates errors with the operation, the path and errno text.
  virtual Task<Result<FileId>> Open(std::string path, OpenOptions options) = 0;
  // No request on `file` may be in flight.
  virtual Task<Status> Close(FileId file) = 0;
  virtual Task<Result<uint64_t>> Size(FileId file) = 0;
  // Reserves blocks for [offset, offset + length) and extends the size; RESOURCE_EXHAUSTED if full.
  virtual Task<Status> Allocate(FileId file, uint64_t offset, uint64_t length) = 0;
  virtual Task<Status> Truncate(FileId file, uint64_t size) = 0;
  // Exclusive advisory lock held until Close; FAILED_PRECONDITION names the holder when known.
  virtual Task<Status> Lock(FileId file) = 0;
  // Creates one directory; an existing one is OK.
  virtual Task<Status> MakeDirectory(std::string path) = 0;
  // Names in a directory (no "." and ".."), sorted; NOT_FOUND when there is none.
  virtual Task<Result<std::vector<std::string>>> List(std::string path) = 0;
  virtual Task<Status> Remove(std::string path) = 0;
  // Makes entries of `path` durable (fsync of the directory).
  virtual Task<Status> SyncDirectory(std::string path) = 0;
  virtual Task<Result<uint64_t>> FreeBytes(std::string path) = 0;

  // --- sockets. Addresses: "host:port" (TCP; port 0 picks one) or "unix:/path".
  virtual Task<Result<SocketId>> Listen(std::string address) = 0;
  virtual Task<Result<SocketId>> Connect(std::string address, TimePoint deadline) = 0;
  // "host:port" or "unix:/path" this listener or socket is bound to.
  virtual Result<std::string> LocalAddress(SocketId socket) = 0;
  virtual Result<PeerCredentials> Credentials(SocketId socket) = 0;
  // Ends both directions: requests in flight complete (0, -ECANCELED or -EPIPE). Then Close.
  virtual void Shutdown(SocketId socket) = 0;
  virtual void CloseSocket(SocketId socket) = 0;

  // Registers long-lived buffer memory so that requests inside it avoid per-request page pinning.
  // A hint: on failure (memlock, no support) I/O works as before. Returns how many bytes were
  // registered.
  virtual uint64_t RegisterBuffers(std::vector<MutableByteView> regions) = 0;
  // Must precede the unmapping of registered memory: a later mapping at the same address would
  // otherwise be mistaken for it. No request may be in flight in `regions`. Any region is accepted.
  virtual void UnregisterBuffers(std::vector<MutableByteView> regions) { (void)regions; }

  // "io_uring", "threads" or "simulated", and why this one was chosen.
  virtual std::string Name() const = 0;

  Loop& loop() { return loop_; }

 protected:
  friend class Operation;
  // Queues `request`; fills `result` and schedules `waiter` when done.
  virtual void Submit(IoRequest& request) = 0;
  // Asks a socket request to complete soon with -ECANCELED; it may also complete normally.
  virtual void Cancel(IoRequest& request) = 0;

  Loop& loop_;
};

// Options of CreateIo.
struct IoOptions {
  // "auto" probes for io_uring and falls back; "uring" or "threads" insist. REPRISE_IO overrides.
  std::string engine = "auto";
  uint32_t queue_depth = 256;
  uint32_t file_threads = 4;  // ThreadIo's pool, and UringIo's for open, allocate and the like
};

// Makes the engine for `loop` and connects it as the loop's reactor. The choice and its reason are
// logged once. Fails only when an engine was insisted on and cannot run.
Result<std::unique_ptr<Io>> CreateIo(Loop& loop, IoOptions options = {});

}  // namespace reprise
