// Session: the client's lasting relation to the node daemon. One I/O thread connects, shakes hands,
// dispatches answers, and connects again with growing pauses when the daemon was restarted.
//
// Each connection has a *generation*. What belongs to a connection (slots, saves in the making, open
// readers) is void once its generation has ended; the registration is not: it is replayed, and the
// daemon answers the same process uuid with the same epoch. Requests and their answers are matched by
// request id. Frames in both directions: docs/wire.md, "Local socket".
//
// Thread rule: any thread; listener calls come from the I/O thread and must not block or call Close.
// Blocking rule: sending never blocks (bytes wait in a bounded buffer); only waits with a deadline do.
// fork(): dead in the child; the destructor then does nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "client/session/connection.h"
#include "client/session/inbox.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "core/wire/messages.h"

namespace reprise::client {

// What the daemon says unasked, and what happens to the connection.
class SessionListener {
 public:
  virtual ~SessionListener() = default;
  virtual void OnSaveState(const wire::SaveState& state) = 0;
  // Connection `generation` ended.
  virtual void OnDisconnected(uint64_t generation, const Status& why) = 0;
};

class Session {
 public:
  struct Options {
    std::string socket_path;
    wire::Hello hello;
    Nanos connect_timeout = std::chrono::seconds(10);
    Nanos backoff_min = std::chrono::milliseconds(20);
    Nanos backoff_max = std::chrono::seconds(1);
  };
  // Bytes that may wait for a daemon that does not read.
  static constexpr size_t kOutBytesMax = 256 * limits::kMiB;

  // Connects within connect_timeout. UNAVAILABLE and the daemon's own refusals otherwise.
  static Result<std::unique_ptr<Session>> Open(Options options);
  // Says kBye, ends the I/O thread. All inboxes must be gone.
  ~Session();

  // At most one listener, which outlives the session or is reset to nullptr first.
  void SetListener(SessionListener* listener);
  // Sent first on every later connection.
  void SetReplay(wire::Register registration);

  // The current generation; 0 while the daemon is away.
  uint64_t generation() const { return generation_.load(std::memory_order_acquire); }
  // Of the last daemon that answered; never 0 after Open.
  uint32_t chunk_bytes() const { return chunk_bytes_.load(std::memory_order_relaxed); }
  // When the daemon went away; nullopt while it is there.
  std::optional<SteadyPoint> away_since() const;
  // The current generation once the daemon is there. UNAVAILABLE says since when and why it is not;
  // FENCED and the like when it refused the replayed registration for good.
  Result<uint64_t> WaitConnected(Deadline deadline);

  // Replaces the connection by a new one: the old one ends when the new one is registered, so that the
  // daemon never takes this process for gone. Returns at once; WaitConnected waits for the new one.
  void Reconnect(uint64_t generation);

  // Sends a message that has no answer, on connection `generation` (0: the current one). UNAVAILABLE:
  // that connection is over.
  template <typename Message>
  Status Send(const Message& message, uint64_t generation = 0, uint64_t stream = 0) {
    return SendFrames(wire::Session::Pack(message, 0, stream), generation);
  }
  // The same for a message without a body.
  Status SendEmpty(wire::Opcode opcode, uint64_t generation, uint64_t stream) {
    return SendFrames(wire::Session::PackBody(opcode, {}, 0, stream), generation);
  }
  // Sends a request whose answers go to `inbox`. Returns its id.
  template <typename Message>
  Result<uint64_t> Start(const Message& message, const std::shared_ptr<Inbox>& inbox,
                         uint64_t generation = 0, uint64_t stream = 0) {
    uint64_t request = next_request_.fetch_add(1, std::memory_order_relaxed);
    return StartFrames(wire::Session::Pack(message, request, stream), request, inbox, generation);
  }
  // The request will get no further answers, or they are not wanted any more.
  void Forget(uint64_t request);
  // Frees the ring buffer of a kChunkAt that nobody will read; nothing when connection `generation`, on
  // which it came, is over.
  void GiveBack(const Reply& reply, uint64_t generation);
  // One request, one answer under opcode `expected`. INTERNAL: the daemon answered something else.
  template <typename Message>
  Result<Reply> Call(const Message& message, wire::Opcode expected, Deadline deadline,
                     std::string_view what, uint64_t generation = 0, uint64_t stream = 0) {
    auto inbox = std::make_shared<Inbox>();
    REPRISE_ASSIGN(uint64_t request, Start(message, inbox, generation, stream));
    Result<Reply> reply = inbox->Next(deadline, what);
    Forget(request);
    if (reply.has_value() && reply->header.opcode != expected) {
      return Fail(Code::kInternal, "the node daemon answered {} with {}", what,
                  wire::OpcodeName(reply->header.opcode));
    }
    return reply;
  }
  // The same, decoded.
  template <typename Answer, typename Message>
  Result<Answer> Ask(const Message& message, Deadline deadline, std::string_view what,
                     uint64_t generation = 0, uint64_t stream = 0) {
    REPRISE_ASSIGN(Reply reply,
                   Call(message, wire::kOpcodeOf<Answer>, deadline, what, generation, stream));
    return wire::Decode<Answer>(reply.body);
  }

 private:
  explicit Session(Options options);
  void Run();
  Status ConnectOnce(Deadline deadline);
  Status Replay(Connection& connection, const wire::Register& registration);
  // Runs the connection to its end; returns it, still open, when it is to be replaced.
  std::unique_ptr<Connection> Serve();
  Status PumpOnce();
  void Dispatch(Reply reply);
  std::unique_ptr<Connection> Disconnect(const Status& why);
  Status SendFrames(ByteView bytes, uint64_t generation);
  Result<uint64_t> StartFrames(ByteView bytes, uint64_t request,
                               const std::shared_ptr<Inbox>& inbox, uint64_t generation);
  void GiveBackLocked(const Reply& reply);
  Status SendLocked(ByteView bytes, uint64_t generation);
  void Wake();

  const Options options_;
  const uint64_t fork_generation_;
  std::atomic<uint64_t> next_request_{1};
  std::atomic<uint64_t> generation_{0};
  std::atomic<uint32_t> chunk_bytes_{0};
  Descriptor wake_;
  std::thread thread_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_; connection_ is replaced by the I/O thread only, which alone reads from it.
  std::unique_ptr<Connection> connection_;
  uint64_t generations_ = 0;
  Bytes out_;
  size_t out_sent_ = 0;
  std::map<uint64_t, std::weak_ptr<Inbox>> inboxes_;
  std::optional<wire::Register> replay_;
  SteadyPoint away_since_;
  Status away_why_;
  std::optional<Status> refused_;  // the daemon's final word: no further attempts
  bool closing_ = false;
  bool replacing_ = false;

  std::mutex listener_mutex_;
  SessionListener* listener_ = nullptr;
};

}  // namespace reprise::client
