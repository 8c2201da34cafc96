#include "core/io/transfer.h"

#include <cerrno>
#include <cstring>
#include <string>

namespace reprise {
namespace {

Code CodeFromErrno(int errno_value) {
  switch (errno_value) {
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EMFILE:
    case ENFILE: return Code::kResourceExhausted;
    case ENOENT: return Code::kNotFound;
    case EEXIST: return Code::kAlreadyExists;
    case EACCES:
    case EPERM: return Code::kPermissionDenied;
    case ETIME:
    case ETIMEDOUT: return Code::kDeadlineExceeded;
    case ECANCELED: return Code::kCancelled;
    case EINVAL: return Code::kInvalidArgument;
    default: return Code::kUnavailable;
  }
}

}  // namespace

Status StatusFromErrno(int errno_value, std::string_view operation) {
  char text[128];
  // GNU strerror_r: may return its own static string instead of filling `text`.
  const char* description = strerror_r(errno_value, text, sizeof(text));
  return Status(CodeFromErrno(errno_value), std::string(operation) + ": " + description);
}

Task<Status> ReadFully(Io& io, FileId file, MutableByteView buffer, uint64_t offset) {
  while (!buffer.empty()) {
    int64_t moved = co_await io.Read(file, buffer, offset);
    if (moved == -EINTR || moved == -EAGAIN) continue;
    if (moved < 0) co_return StatusFromErrno(static_cast<int>(-moved), "read");
    if (moved == 0) co_return Status(Code::kOutOfRange, "read: end of file");
    buffer = buffer.subspan(static_cast<size_t>(moved));
    offset += static_cast<uint64_t>(moved);
  }
  co_return OkStatus();
}

Task<Status> WriteFully(Io& io, FileId file, ByteView data, uint64_t offset) {
  while (!data.empty()) {
    int64_t moved = co_await io.Write(file, data, offset);
    if (moved == -EINTR || moved == -EAGAIN) continue;
    if (moved < 0) co_return StatusFromErrno(static_cast<int>(-moved), "write");
    // A direct write that makes no progress, or stops inside a block, cannot be resubmitted.
    if (moved == 0) co_return Status(Code::kUnavailable, "write: no progress");
    data = data.subspan(static_cast<size_t>(moved));
    offset += static_cast<uint64_t>(moved);
  }
  co_return OkStatus();
}

Task<Status> FlushFile(Io& io, FileId file) {
  int64_t result = co_await io.Flush(file);
  // Never retried, not even on EINTR: see io.h.
  if (result < 0) co_return StatusFromErrno(static_cast<int>(-result), "fdatasync");
  co_return OkStatus();
}

Task<Status> RecvFully(Io& io, SocketId socket, MutableByteView buffer,
                       std::optional<TimePoint> deadline) {
  while (!buffer.empty()) {
    int64_t moved = co_await io.Recv(socket, buffer, deadline);
    if (moved == -EINTR || moved == -EAGAIN) continue;
    if (moved < 0) co_return StatusFromErrno(static_cast<int>(-moved), "recv");
    if (moved == 0) co_return Status(Code::kUnavailable, "recv: the peer closed the connection");
    buffer = buffer.subspan(static_cast<size_t>(moved));
  }
  co_return OkStatus();
}

Task<Status> SendFully(Io& io, SocketId socket, ByteView data, std::optional<TimePoint> deadline) {
  while (!data.empty()) {
    int64_t moved = co_await io.Send(socket, data, deadline);
    if (moved == -EINTR || moved == -EAGAIN) continue;
    if (moved < 0) co_return StatusFromErrno(static_cast<int>(-moved), "send");
    data = data.subspan(static_cast<size_t>(moved));
  }
  co_return OkStatus();
}

}  // namespace reprise
