// StoreChannel: one connection to a store, from the node's side: calls and their answers, upload
// streams and their credits. Used by TcpStoreLink; internal to server/dataplane.
//
// A reader coroutine, which keeps the channel alive, delivers what arrives. A call or send that fails
// on the wire, or whose deadline passes, ends the channel: every other wait fails with the same
// status. A channel is never repaired; the link opens a new one.
//
// Thread rule: the Io's loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "server/dataplane/connection.h"

namespace reprise::dataplane {

// What a call may wait for instead of a message: chunks, in order, into buffers of the caller.
struct ChunkSink {
  uint64_t first = 0;
  std::vector<MutableByteView> buffers;  // exactly the length of each chunk
};

class StoreChannel : public std::enable_shared_from_this<StoreChannel> {
 public:
  // One upload. Owned by the upload, known to the reader while it is registered.
  struct Stream {
    uint32_t credits = 0;
    TimePoint last_credit;
    Status failure;
  };

  StoreChannel(Io& io, SocketId socket, ConnectionOptions options);
  // Greets the store and starts the reader, which holds `hold` until the channel has ended.
  Task<Status> Start(wire::Hello hello, TimePoint deadline, Gate::Hold hold);

  uint64_t NextId() { return next_id_++; }
  // Sends a request and returns its answer, which must be an `expected`. An ERROR is returned as
  // the Status it carries, annotated with `phase`. DEADLINE_EXCEEDED after `timeout` without
  // progress, naming `setting`; the channel has ended then, and nothing writes to the sink anymore.
  struct CallOptions {
    std::string phase;  // "sealing rank 3"
    Nanos timeout{};
    std::string setting;
  };
  Task<Result<Bytes>> Call(Bytes frames, uint64_t request, wire::Opcode expected,
                           CallOptions options, ChunkSink sink = {});

  void Register(uint64_t stream, std::shared_ptr<Stream> state) { streams_[stream] = state; }
  void Unregister(uint64_t stream) { streams_.erase(stream); }
  // Takes one credit of `stream` if there is one and nothing has failed.
  bool TryTakeCredit(Stream& stream);
  // Waits for one credit of `stream`; its failure, the channel's, or DEADLINE_EXCEEDED.
  Task<Status> TakeCredit(std::shared_ptr<Stream> stream, CallOptions options);
  Task<Status> SendChunk(wire::FrameHeader header, ByteView chunk);

  // Ends the channel; OK while it works.
  void End(const Status& why);
  const Status& status() const { return status_; }
  uint32_t chunk_bytes() const { return chunk_bytes_; }
  const std::string& peer() const { return link_.peer(); }

 private:
  struct Pending {
    wire::Opcode expected = wire::Opcode::kDone;
    ChunkSink sink;
    size_t received = 0;     // chunks of the sink
    bool receiving = false;  // the reader is writing to the sink
    TimePoint progress;
    std::optional<Result<Bytes>> answer;
  };

  Task<void> ReadLoop(std::shared_ptr<StoreChannel> self, Gate::Hold hold);
  Task<Status> ReadFrame();
  Task<Status> OnChunk(wire::FrameHeader header);
  Status OnMessage(wire::Session::Incoming message);
  Status OnError(const wire::Session::Incoming& message);
  void OnCredit(const wire::FrameHeader& header);

  Loop& loop_;
  Connection link_;
  Status status_;
  uint32_t chunk_bytes_ = 0;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::shared_ptr<Pending>> pending_;  // by request id
  std::map<uint64_t, std::shared_ptr<Stream>> streams_;
  Notifier changed_;
};

}  // namespace reprise::dataplane
