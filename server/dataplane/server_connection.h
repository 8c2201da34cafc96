// ServerConnection: one connection of the StoreServer and the streams open on it.
//
// Internal to server/dataplane. One coroutine (Run) reads frames; each request, and each chunk being
// written, is a coroutine of its own that holds operations_. A stream is one upload or one open
// checkpoint, named by a stream id that the peer chose.
//
// Thread rule: the server's loop. Destroy it only after Run has returned.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "server/dataplane/connection.h"
#include "server/dataplane/store_server.h"

namespace reprise::dataplane {

class ServerConnection {
 public:
  ServerConnection(StoreServer& server, SocketId socket);

  // Serves until the peer leaves, the connection fails or Shutdown. Returns when every operation has
  // ended and every session is destroyed: OK for an orderly end, else why it ended.
  Task<Status> Run();
  void Shutdown() { link_.Shutdown(); }

  uint64_t bytes_received() const { return link_.bytes_received(); }
  uint64_t bytes_sent() const { return link_.bytes_sent(); }

 private:
  struct PutStream {
    uint64_t id = 0;
    format::ShardIdentity shard;
    uint64_t length = 0;
    uint64_t chunk_count = 0;
    std::unique_ptr<lifecycle::PutSession> session;  // none: not granted yet, or failed
    std::vector<bool> received;                      // by chunk index
    uint64_t received_count = 0;
    uint32_t granted = 0;     // credits the sender holds
    uint32_t credit_due = 0;  // credits to be sent
    bool sending_credit = false;
    uint32_t writing = 0;  // chunks being hashed or written
    bool sealing = false;
    Status failure;
  };
  struct ReadStream {
    uint64_t id = 0;
    std::unique_ptr<lifecycle::ReadSession> session;  // none: not open yet
    // Manifests of the shards read last; at most kManifestsKept.
    std::map<uint32_t, std::shared_ptr<const format::ShardManifest>> manifests;
    bool closing = false;
  };
  using Put = std::shared_ptr<PutStream>;
  using Reading = std::shared_ptr<ReadStream>;
  using Manifest = std::shared_ptr<const format::ShardManifest>;
  struct ReadSlot;
  using ReadWindow = std::deque<std::shared_ptr<ReadSlot>>;

  // A request being served: counts against requests_per_connection_max until it is destroyed.
  class Request {
   public:
    Request(ServerConnection& owner, wire::FrameHeader header);
    Request(Request&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)),
          header_(other.header_),
          hold_(std::move(other.hold_)) {}
    Request& operator=(Request&&) = delete;
    ~Request();
    uint64_t id() const { return header_.request; }
    uint64_t stream() const { return header_.stream; }

   private:
    ServerConnection* owner_;
    wire::FrameHeader header_;
    Gate::Hold hold_;
  };

  // --- the reader
  Task<Status> ReadFrames();
  Task<Result<wire::Session::Expect>> NextHeader();
  Task<Status> OnMessage(wire::Session::Incoming message);
  Status OnPutOpen(const wire::Session::Incoming& message);
  Status OnPutMessage(const wire::Session::Incoming& message);
  Status OnReadOpen(const wire::Session::Incoming& message);
  Status OnReadMessage(const wire::Session::Incoming& message);
  Task<Status> OnChunk(wire::FrameHeader header);
  Status CheckChunk(const Put& put, const wire::FrameHeader& header) const;
  Status CheckNewStream(uint64_t stream) const;
  bool IsBusy() const;

  // --- requests, each its own coroutine
  Task<void> OpenPut(Put put, wire::PutOpen open, Request request);
  Task<void> StoreChunk(Put put, uint64_t index, size_t size, Digest announced,
                        BufferPool::Buffer buffer, Gate::Hold hold);
  Task<void> SendCredits(Put put);
  Task<void> SealPut(Put put, wire::PutSeal seal, Request request);
  Task<void> AbandonPut(Put put, Request request);
  Task<void> OpenRead(Reading reading, wire::ReadOpen open, Request request);
  Task<void> SendShardManifest(Reading reading, uint32_t rank, Request request);
  Task<void> SendLayout(Reading reading, Digest layout, Request request);
  Task<void> SendChunks(Reading reading, wire::ReadChunks wanted, Request request);
  Task<Status> StreamChunks(Reading reading, wire::ReadChunks wanted, uint64_t request_id,
                            ReadWindow* window);
  Task<void> ReadInto(std::shared_ptr<ReadSlot> slot, Reading reading, Manifest manifest,
                      Gate::Hold hold);
  Task<void> CloseRead(Reading reading, Request request);
  Task<Result<Manifest>> ManifestOf(Reading reading, uint32_t rank);

  void FailPut(const Put& put, Status status);
  std::string NameOf(const PutStream& put) const;
  // Sends an answer; a failure has ended the connection, which the reader notices.
  Task<void> Reply(Bytes frames);
  Task<void> ReplyError(Status status, uint64_t request_id, uint64_t stream);

  StoreServer& server_;
  lifecycle::ShardStore& store_;
  const StoreServerOptions& options_;
  Loop& loop_;
  Connection link_;
  std::map<uint64_t, Put> puts_;
  std::map<uint64_t, Reading> reads_;
  uint32_t requests_ = 0;
  bool left_ = false;  // BYE arrived
  Notifier changed_;   // a write, a request or a stream ended
  Gate operations_;
};

}  // namespace reprise::dataplane
