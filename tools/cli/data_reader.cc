#include "tools/cli/data_reader.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/wire/messages.h"
#include "core/wire/session.h"

namespace reprise::cli {
namespace {

// Chunks asked for at once. One request at a time: the store reads ahead within it, and answers to
// two requests may come interleaved.
constexpr uint32_t kChunksPerRequest = 1024;

// A connected stream socket with a timeout on every call.
class Stream {
 public:
  ~Stream() {
    if (fd_ >= 0) ::close(fd_);
  }

  Status Connect(const std::string& address, std::chrono::milliseconds timeout) {
    address_ = address;
    Status status =
        address.starts_with("unix:") ? ConnectUnix(address.substr(5)) : ConnectTcp(address);
    REPRISE_RETURN_IF_ERROR(status);
    timeval limit{timeout.count() / 1000, (timeout.count() % 1000) * 1000};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    return OkStatus();
  }

  Status Send(ByteView data) {
    while (!data.empty()) {
      ssize_t sent = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0) return Broken("send");
      data = data.subspan(static_cast<size_t>(sent));
    }
    return OkStatus();
  }

  Status Receive(MutableByteView buffer) {
    while (!buffer.empty()) {
      ssize_t got = ::recv(fd_, buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Broken("receive");
      if (got == 0) {
        return FailStatus(Code::kUnavailable, "the store at {} closed the connection", address_);
      }
      buffer = buffer.subspan(static_cast<size_t>(got));
    }
    return OkStatus();
  }

 private:
  Status Broken(std::string_view operation) const {
    if (errno == EAGAIN) {
      return FailStatus(Code::kDeadlineExceeded,
                        "{} from the store at {}: no progress; raise --timeout", operation,
                        address_);
    }
    return FailStatus(Code::kUnavailable, "{}: store at {}: {}", operation, address_,
                      std::strerror(errno));
  }

  Status ConnectUnix(const std::string& path) {
    sockaddr_un target{};
    target.sun_family = AF_UNIX;
    if (path.size() >= sizeof(target.sun_path)) {
      return FailStatus(Code::kInvalidArgument, "socket path {} is too long", path);
    }
    std::memcpy(target.sun_path, path.c_str(), path.size() + 1);
    fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd_ < 0 || ::connect(fd_, reinterpret_cast<sockaddr*>(&target), sizeof(target)) != 0) {
      return Broken("connect");
    }
    return OkStatus();
  }

  Status ConnectTcp(const std::string& address) {
    size_t colon = address.rfind(':');
    if (colon == std::string::npos) {
      return FailStatus(Code::kInvalidArgument, "'{}' is not host:port", address);
    }
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    int error =
        getaddrinfo(address.substr(0, colon).c_str(), address.c_str() + colon + 1, &hints, &found);
    if (error != 0) {
      return FailStatus(Code::kUnavailable, "{}: {}", address, gai_strerror(error));
    }
    Status status(Code::kUnavailable, "no address for " + address);
    for (addrinfo* item = found; item != nullptr && !status.ok(); item = item->ai_next) {
      if (fd_ >= 0) ::close(fd_);
      fd_ = ::socket(item->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      bool connected = fd_ >= 0 && ::connect(fd_, item->ai_addr, item->ai_addrlen) == 0;
      status = connected ? OkStatus() : Broken("connect");
    }
    freeaddrinfo(found);
    return status;
  }

  int fd_ = -1;
  std::string address_;
};

class Reader final : public DataReader {
 public:
  Status Start(const std::string& address, const Id& job, CheckpointKey key,
               std::chrono::milliseconds timeout) {
    REPRISE_RETURN_IF_ERROR(stream_.Connect(address, timeout));
    wire::Hello hello;
    hello.peer = Rng(RandomSeed()).NewId();
    hello.description = fmt::format("reprise CLI (pid {})", getpid());
    REPRISE_RETURN_IF_ERROR(stream_.Send(session_.MakeHello(hello)));
    REPRISE_ASSIGN_STATUS(auto hello_ok, NextMessage(wire::Opcode::kHelloOk));
    wire::ReadOpen open;
    open.job = job;
    open.key = key;
    REPRISE_ASSIGN_STATUS(auto answer, Ask(open, wire::Opcode::kReadOk));
    REPRISE_ASSIGN_STATUS(wire::ReadOk ok, wire::Decode<wire::ReadOk>(answer));
    REPRISE_ASSIGN_STATUS(manifest_, format::DecodeCheckpointManifest(ok.checkpoint_manifest));
    return OkStatus();
  }

  const format::CheckpointManifest& manifest() const override { return manifest_; }

  Result<format::Layout> ReadLayout(const Digest& layout) override {
    REPRISE_ASSIGN(auto answer, Ask(wire::ReadLayout{layout}, wire::Opcode::kLayout));
    REPRISE_ASSIGN(wire::BlobBody blob, wire::Decode<wire::BlobBody>(answer));
    if (DigestOf(blob.data) != layout) {
      return Error(Code::kDataLoss, "a layout does not match its digest");
    }
    return format::DecodeLayout(blob.data);
  }

  Result<format::ShardManifest> ReadShardManifest(uint32_t rank) override {
    REPRISE_ASSIGN(auto answer, Ask(wire::ReadShard{rank}, wire::Opcode::kShardManifest));
    REPRISE_ASSIGN(wire::BlobBody blob, wire::Decode<wire::BlobBody>(answer));
    REPRISE_ASSIGN(format::ShardManifest shard, format::DecodeShardManifest(blob.data));
    if (rank >= manifest_.shards.size() || shard.root != manifest_.shards[rank].root) {
      return Fail(Code::kDataLoss, "the manifest of rank {} does not match its root", rank);
    }
    return shard;
  }

  Status ReadShard(const format::ShardManifest& shard,
                   const std::function<Status(uint64_t, ByteView, const Status&)>& chunk) override {
    uint64_t count = shard.chunk_digests.size();
    uint64_t asked = 0;
    Bytes buffer(shard.chunk_bytes);
    for (uint64_t index = 0; index < count; ++index) {
      if (index == asked) {
        auto size = static_cast<uint32_t>(std::min<uint64_t>(kChunksPerRequest, count - asked));
        REPRISE_RETURN_IF_ERROR(stream_.Send(wire::Session::Pack(
            wire::ReadChunks{shard.identity.rank, asked, size}, next_request_++, kStream)));
        asked += size;
      }
      uint64_t length = format::ChunkLength(shard.length, shard.chunk_bytes, index);
      MutableByteView bytes(buffer.data(), length);
      REPRISE_RETURN_IF_ERROR(NextChunk(index, bytes));
      Status status;
      if (DigestOf(bytes) != shard.chunk_digests[index]) {
        status = FailStatus(Code::kDataLoss, "rank {} chunk {} fails its digest",
                            shard.identity.rank, index);
      }
      REPRISE_RETURN_IF_ERROR(chunk(index, bytes, status));
    }
    return OkStatus();
  }

 private:
  static constexpr uint64_t kStream = 1;

  template <typename Message>
  Result<Bytes> Ask(const Message& message, wire::Opcode answer) {
    REPRISE_TRY(stream_.Send(wire::Session::Pack(message, next_request_++, kStream)));
    return NextMessage(answer);
  }

  Result<wire::Session::Expect> NextHeader() {
    std::array<uint8_t, limits::kFrameHeaderBytes> header{};
    REPRISE_TRY(stream_.Receive(header));
    return session_.OnHeader(header);
  }

  // The next whole message; an ERROR becomes its status.
  Result<Bytes> NextMessage(wire::Opcode wanted) {
    while (true) {
      REPRISE_ASSIGN(auto expect, NextHeader());
      REPRISE_ASSIGN(auto message, Body(expect));
      if (!message.has_value()) continue;
      if (message->header.opcode == wire::Opcode::kError) return Error(ErrorOf(message->body));
      if (message->header.opcode != wanted) {
        return Fail(Code::kInternal, "the store sent {} where {} was due",
                    wire::OpcodeName(message->header.opcode), wire::OpcodeName(wanted));
      }
      return std::move(message->body);
    }
  }

  Result<std::optional<wire::Session::Incoming>> Body(const wire::Session::Expect& expect) {
    Bytes payload(expect.header.payload_bytes);
    REPRISE_TRY(stream_.Receive(payload));
    return session_.OnBody(expect.header, payload);
  }

  Status NextChunk(uint64_t index, MutableByteView bytes) {
    REPRISE_ASSIGN_STATUS(auto expect, NextHeader());
    if (!expect.chunk) {
      REPRISE_ASSIGN_STATUS(auto message, Body(expect));
      bool is_error = message.has_value() && message->header.opcode == wire::Opcode::kError;
      return is_error ? ErrorOf(message->body)
                      : Status(Code::kInternal, "the store sent no chunk where one was due");
    }
    if (expect.header.offset != index || expect.header.payload_bytes != bytes.size()) {
      return FailStatus(Code::kDataLoss, "the store sent chunk {} ({} bytes) for chunk {}",
                        expect.header.offset, expect.header.payload_bytes, index);
    }
    return stream_.Receive(bytes);
  }

  static Status ErrorOf(ByteView body) {
    Result<wire::ErrorBody> error = wire::Decode<wire::ErrorBody>(body);
    return error.has_value() ? Status(error->code, error->message) : error.error();
  }

  Stream stream_;
  wire::Session session_{wire::Role::kStoreClient};
  uint64_t next_request_ = 1;
  format::CheckpointManifest manifest_;
};

}  // namespace

Result<std::unique_ptr<DataReader>> DataReader::Open(const std::string& address, const Id& job,
                                                     CheckpointKey key,
                                                     std::chrono::milliseconds timeout) {
  auto reader = std::make_unique<Reader>();
  REPRISE_TRY(reader->Start(address, job, key, timeout));
  return reader;
}

}  // namespace reprise::cli
