#include "client/session/connection.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::client {
namespace {

Status NobodyAnswers(const std::string& path, int error) {
  return FailStatus(
      Code::kUnavailable,
      "no Reprise daemon answers at {} ({}): start reprised on this host, or name its "
      "socket with the option `socket` or REPRISE_SOCKET",
      path, strerror(error));
}

Status Lost(int error) {
  return FailStatus(Code::kUnavailable, "the connection to the node daemon broke ({})",
                    error == 0 ? "it closed the socket" : strerror(error));
}

// Waits for `events` on `descriptor`; DEADLINE_EXCEEDED names `what`.
Status WaitFor(int descriptor, short events, Deadline deadline, std::string_view what) {
  while (true) {
    pollfd entry{.fd = descriptor, .events = events, .revents = 0};
    int ready = ::poll(&entry, 1, deadline.poll_ms());
    if (ready > 0) return OkStatus();
    if (ready == 0) {
      return FailStatus(Code::kDeadlineExceeded, "the node daemon did not answer in time: {}",
                        what);
    }
    if (errno != EINTR) return Lost(errno);
  }
}

Result<Descriptor> ConnectSocket(const std::string& path, Deadline deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return Fail(Code::kInvalidArgument, "the socket path {} has {} bytes; the system allows {}",
                path, path.size(), sizeof(address.sun_path) - 1);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  Descriptor made(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!made.valid()) return Fail(Code::kResourceExhausted, "socket: {}", strerror(errno));
  while (::connect(made.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EINTR) continue;
    // A full backlog: a connecting Unix socket has nothing to poll for, so ask again shortly.
    if (errno != EAGAIN || deadline.expired()) return Error(NobodyAnswers(path, errno));
    ::poll(nullptr, 0, 5);
  }
  return made;
}

}  // namespace

Result<std::unique_ptr<Connection>> Connection::Connect(const std::string& socket_path,
                                                        const wire::Hello& hello,
                                                        Deadline deadline) {
  REPRISE_ASSIGN(Descriptor socket, ConnectSocket(socket_path, deadline));
  std::unique_ptr<Connection> connection(new Connection(std::move(socket)));
  REPRISE_TRY(connection->Handshake(hello, deadline));
  return connection;
}

Status Connection::Handshake(const wire::Hello& hello, Deadline deadline) {
  REPRISE_RETURN_IF_ERROR(SendAll(wire_.MakeHello(hello), deadline));
  REPRISE_ASSIGN_STATUS(Reply reply, ReadReply(deadline, "its answer to HELLO"));
  if (reply.header.opcode == wire::Opcode::kError) {
    REPRISE_ASSIGN_STATUS(auto error, wire::Decode<wire::ErrorBody>(reply.body));
    return Status(error.code == Code::kOk ? Code::kInternal : error.code, error.message)
        .Annotate("the node daemon refused the connection");
  }
  if (reply.header.opcode != wire::Opcode::kHelloOk) {
    return FailStatus(Code::kInternal, "the node daemon answered HELLO with {}",
                      wire::OpcodeName(reply.header.opcode));
  }
  REPRISE_ASSIGN_STATUS(peer_, wire::Decode<wire::HelloOk>(reply.body));
  return OkStatus();
}

Result<size_t> Connection::TrySend(ByteView bytes) {
  while (true) {
    ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<size_t>(sent);
    if (errno == EAGAIN || errno == EWOULDBLOCK) return size_t{0};
    if (errno != EINTR) return Error(Lost(errno));
  }
}

Status Connection::SendAll(ByteView bytes, Deadline deadline) {
  while (!bytes.empty()) {
    REPRISE_ASSIGN_STATUS(size_t sent, TrySend(bytes));
    bytes = bytes.subspan(sent);
    if (sent == 0) REPRISE_RETURN_IF_ERROR(WaitFor(socket_.get(), POLLOUT, deadline, "sending"));
  }
  return OkStatus();
}

Result<bool> Connection::Fill(MutableByteView target, size_t& have, bool with_descriptor) {
  while (have < target.size()) {
    iovec piece{.iov_base = target.data() + have, .iov_len = target.size() - have};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))];
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (with_descriptor) {
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
    }
    ssize_t got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      return Error(Lost(errno));
    }
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int descriptor = -1;
        std::memcpy(&descriptor, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
        passed_ = Descriptor(descriptor);
      }
    }
    if (got == 0) return Error(Lost(0));
    have += static_cast<size_t>(got);
  }
  return true;
}

Result<std::optional<Reply>> Connection::ReadSome() {
  while (true) {
    if (!header_.has_value()) {
      // Exactly one header a call: a descriptor then belongs to this message and to no other.
      REPRISE_ASSIGN(bool whole, Fill(header_bytes_, header_have_, /*with_descriptor=*/true));
      if (!whole) return std::nullopt;
      REPRISE_ASSIGN(wire::Session::Expect expect, wire_.OnHeader(header_bytes_));
      if (expect.chunk) return Fail(Code::kInternal, "the node daemon sent a chunk on its socket");
      header_ = expect.header;
      payload_.resize(expect.header.payload_bytes);
      payload_have_ = 0;
    }
    REPRISE_ASSIGN(bool whole, Fill(payload_, payload_have_, /*with_descriptor=*/false));
    if (!whole) return std::nullopt;
    wire::FrameHeader header = *header_;
    header_.reset();
    header_have_ = 0;
    REPRISE_ASSIGN(std::optional<wire::Session::Incoming> message, wire_.OnBody(header, payload_));
    if (!message.has_value()) continue;
    return Reply{.header = message->header,
                 .body = std::move(message->body),
                 .descriptor = std::move(passed_)};
  }
}

Result<Reply> Connection::ReadReply(Deadline deadline, std::string_view what) {
  while (true) {
    REPRISE_ASSIGN(std::optional<Reply> reply, ReadSome());
    if (reply.has_value()) return std::move(*reply);
    REPRISE_TRY(WaitFor(socket_.get(), POLLIN, deadline, what));
  }
}

}  // namespace reprise::client
