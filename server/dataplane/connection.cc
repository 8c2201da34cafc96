#include "server/dataplane/connection.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::dataplane {
namespace {

using wire::FrameHeader;
using wire::Opcode;
using wire::Session;

// Gives the turn to send to the next when it goes out of scope.
class Turn {
 public:
  explicit Turn(Semaphore& semaphore) : semaphore_(semaphore) {}
  ~Turn() { semaphore_.Release(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Semaphore& semaphore_;
};

bool IsTransient(int64_t result) { return result == -EINTR || result == -EAGAIN; }

}  // namespace

Connection::Connection(Io& io, SocketId socket, wire::Role role, ConnectionOptions options)
    : io_(io),
      socket_(socket),
      options_(std::move(options)),
      session_(role),
      send_turn_(io.loop(), 1),
      last_progress_(io.loop().Now()) {}

Connection::~Connection() { io_.CloseSocket(socket_); }

void Connection::Shutdown() {
  if (std::exchange(ended_, true)) return;
  io_.Shutdown(socket_);
}

void Connection::Progress(Opcode opcode) {
  last_progress_ = io_.loop().Now();
  last_opcode_ = opcode;
}

std::string Connection::LastProgress() const {
  return fmt::format("last frame {}, {:.1f} s ago", wire::OpcodeName(last_opcode_),
                     SecondsOf(io_.loop().Now() - last_progress_));
}

Status Connection::Timeout(std::string_view phase, Opcode opcode) const {
  return FailStatus(Code::kDeadlineExceeded,
                    "{} {}: {} made no progress for {:.1f} s ({}); look at that host and the "
                    "network, or raise {}",
                    phase, wire::OpcodeName(opcode), options_.peer, SecondsOf(options_.timeout),
                    LastProgress(), options_.setting);
}

// Whatever cut the connection: to the caller it is a peer that is away.
Status Connection::CutOff(int64_t result, std::string_view operation) const {
  if (result == -EFAULT) {
    // The pages are gone from under a mapping: its file was made shorter. Trying again cannot help.
    return FailStatus(Code::kDataLoss, "{}: the memory to {} has disappeared", options_.peer,
                      operation);
  }
  Status status = StatusFromErrno(static_cast<int>(-result), operation).Annotate(options_.peer);
  return Status(Code::kUnavailable, status.message());
}

Task<Status> Connection::Fill(MutableByteView buffer, std::string_view phase, Opcode opcode) {
  while (!buffer.empty()) {
    int64_t moved = co_await io_.Recv(socket_, buffer, io_.loop().Now() + options_.timeout);
    if (IsTransient(moved)) continue;
    if (moved <= 0) {
      Shutdown();
      if (moved == -ETIME) co_return Timeout(phase, opcode);
      if (moved == 0) {
        co_return FailStatus(Code::kUnavailable, "{} {}: {} closed the connection", phase,
                             wire::OpcodeName(opcode), options_.peer);
      }
      co_return CutOff(moved, "recv");
    }
    buffer = buffer.subspan(static_cast<size_t>(moved));
    bytes_received_ += static_cast<uint64_t>(moved);
  }
  co_return OkStatus();
}

Task<Status> Connection::Drain(ByteView data, std::string_view phase) {
  while (!data.empty()) {
    if (ended_) co_return FailStatus(Code::kUnavailable, "{}: connection ended", options_.peer);
    int64_t moved = co_await io_.Send(socket_, data, io_.loop().Now() + options_.timeout);
    if (IsTransient(moved)) continue;
    if (moved <= 0) {
      Shutdown();
      if (moved == -ETIME) co_return Timeout(phase, last_opcode_);
      co_return CutOff(moved == 0 ? -EPIPE : moved, "send");
    }
    data = data.subspan(static_cast<size_t>(moved));
    bytes_sent_ += static_cast<uint64_t>(moved);
  }
  co_return OkStatus();
}

Task<Result<Session::Expect>> Connection::NextHeader(std::optional<TimePoint> deadline) {
  while (header_filled_ < header_.size()) {
    if (ended_) co_return Fail(Code::kUnavailable, "{}: connection ended", options_.peer);
    MutableByteView rest = MutableByteView(header_).subspan(header_filled_);
    int64_t moved = co_await io_.Recv(socket_, rest, deadline);
    if (IsTransient(moved)) continue;
    if (moved == -ETIME) co_return Fail(Code::kDeadlineExceeded, "waiting for a frame");
    if (moved <= 0) {
      Shutdown();
      co_return Fail(Code::kUnavailable, "{} closed the connection ({})", options_.peer,
                     LastProgress());
    }
    header_filled_ += static_cast<size_t>(moved);
    bytes_received_ += static_cast<uint64_t>(moved);
  }
  header_filled_ = 0;
  Result<Session::Expect> expect = session_.OnHeader(header_);
  if (!expect.has_value()) {
    co_return Error(expect.error().Annotate(options_.peer));
  }
  Progress(expect->header.opcode);
  co_return expect;
}

Task<Result<std::optional<Session::Incoming>>> Connection::Body(FrameHeader header) {
  Bytes payload(header.payload_bytes);
  REPRISE_CO_TRY(co_await Fill(payload, "receiving", header.opcode));
  Progress(header.opcode);
  auto body = session_.OnBody(header, payload);
  if (!body.has_value()) co_return Error(body.error().Annotate(options_.peer));
  co_return body;
}

Task<Status> Connection::Payload(FrameHeader header, MutableByteView buffer) {
  REPRISE_CHECK(buffer.size() == header.payload_bytes);
  Status status = co_await Fill(buffer, "receiving", header.opcode);
  Progress(header.opcode);
  co_return status;
}

Task<Status> Connection::Skip(FrameHeader header) {
  Bytes scratch(std::min<uint64_t>(header.payload_bytes, 64 * limits::kKiB));
  uint64_t left = header.payload_bytes;
  while (left > 0) {
    size_t part = std::min<uint64_t>(left, scratch.size());
    REPRISE_CO_RETURN_IF_ERROR(
        co_await Fill(MutableByteView(scratch).first(part), "receiving", header.opcode));
    left -= part;
  }
  Progress(header.opcode);
  co_return OkStatus();
}

Task<Status> Connection::Send(Bytes frames) {
  co_await send_turn_.Acquire();
  Turn turn(send_turn_);
  Status status = co_await Drain(frames, "sending after");
  if (status.ok()) last_progress_ = io_.loop().Now();
  co_return status;
}

Task<Status> Connection::SendChunk(FrameHeader header, ByteView payload) {
  header.opcode = Opcode::kChunk;
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  std::array<uint8_t, limits::kFrameHeaderBytes> bytes;
  wire::EncodeFrameHeader(header, bytes);
  co_await send_turn_.Acquire();
  Turn turn(send_turn_);
  Status status = co_await Drain(bytes, "sending after");
  if (status.ok()) status = co_await Drain(payload, "sending a chunk after");
  if (status.ok()) last_progress_ = io_.loop().Now();
  co_return status;
}

Task<Result<wire::HelloOk>> Connection::Greet(wire::Hello hello, TimePoint deadline) {
  REPRISE_CO_TRY(co_await Send(session_.MakeHello(hello)));
  Result<Session::Expect> expect = co_await NextHeader(deadline);
  if (!expect.has_value()) {
    co_return Error(expect.error().Annotate("handshake with " + options_.peer));
  }
  REPRISE_CO_ASSIGN(std::optional<Session::Incoming> body, co_await Body(expect->header));
  if (!body.has_value()) {
    co_return Fail(Code::kInvalidArgument, "{}: an endless handshake", options_.peer);
  }
  if (body->header.opcode == Opcode::kError) {
    REPRISE_CO_ASSIGN(wire::ErrorBody error, wire::Decode<wire::ErrorBody>(body->body));
    co_return Error(error.code, options_.peer + " refused the connection: " + error.message);
  }
  co_return wire::Decode<wire::HelloOk>(body->body);
}

Task<Result<wire::Hello>> Connection::Welcome(wire::HelloOk answer, TimePoint deadline) {
  Result<Session::Expect> expect = co_await NextHeader(deadline);
  if (!expect.has_value()) co_return Error(expect.error().Annotate("handshake"));
  REPRISE_CO_ASSIGN(std::optional<Session::Incoming> body, co_await Body(expect->header));
  Result<wire::Hello> hello = wire::Decode<wire::Hello>(body->body);
  Status status = StatusOf(hello);
  if (status.ok()) {
    Result<Bytes> reply = session_.AcceptHello(*hello, answer);
    status = StatusOf(reply);
    if (status.ok()) {
      REPRISE_CO_TRY(co_await Send(*std::move(reply)));
      co_return hello;
    }
  }
  REPRISE_CO_TRY(co_await Send(Session::PackError(status, 0)));
  co_return Error(status);
}

}  // namespace reprise::dataplane
