// Connection: one training (or reading) process on the local socket, from accept to its end.
//
//   REGISTER    -> coordinator; REGISTERED or ERROR. Nothing that saves is legal before it
//   ATTACH      -> ATTACHED, then one SLOT frame with a descriptor per slot, all with its
//                  request id
//   SAVE_BEGIN  -> SAVE_GRANT at once (the attempt is named meanwhile), or ERROR, and the step is
//                  skipped for all ranks; SAVE_CHUNKS and SAVE_SEAL are not answered
//   SAVE_STATE  unasked, request id 0, until kCommitted or kFailed; before REGISTERED also of saves
//                  that an earlier connection of this rank had sealed. After kFailed the process must
//                  have stopped writing to the slot before its next SAVE_BEGIN
//   READ_*, RING_ATTACH, FETCH, CORRUPT, SLOT_OF: restore_service.h. The stream id is the client's
//   SAVE_SKIP, READ_CLOSE: DONE when the request id is not 0. BYE: orderly end
//
// The end of the process (pidfd; else end of stream) ends its filling saves for all ranks at once;
// what it had sealed, or had asked to seal, stays and is uploaded.
//
// Thread rule: the node's loop. Lives as a shared_ptr until its coroutines have ended.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "core/wire/session.h"
#include "server/node/outbox.h"
#include "server/node/pid_watch.h"
#include "server/node/restore_service.h"
#include "server/node/save_service.h"

namespace reprise::node {

// The parts a connection works with; all outlive it.
struct ConnectionParts {
  NodeContext& context;
  Slab& slab;
  SaveService& saves;
  PidWatch& pids;
  std::function<void()> inventory_changed;
  // True when another connection speaks for this process (it has reconnected).
  std::function<bool(const class Connection*, const Id& process)> is_served_elsewhere;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(ConnectionParts parts, SocketId socket);

  // Serves until the process is gone or End is called; then closes the socket.
  static Task<void> Serve(std::shared_ptr<Connection> self);
  // Ends it soon (shutdown of the daemon).
  void Stop(std::string reason);
  // Epochs of `job` up to `epoch` are over: no new saves.
  void OnFenced(const Id& job, uint64_t epoch);

  // Of the registration; zero before it and after the end.
  Id process() const {
    return registration_.has_value() && !ended_ ? registration_->process : Id{};
  }

 private:
  using Incoming = wire::Session::Incoming;
  using Shared = std::shared_ptr<Connection>;

  static Task<void> RunOutbox(Shared self, Gate::Hold hold);
  Task<Status> Handshake();
  Task<void> ProbeChunkSize();
  Task<Result<Incoming>> ReadMessage(std::optional<TimePoint> deadline);
  Task<void> ReadLoop();
  // Handles what must keep its order at once, starts a coroutine for the rest.
  Status Dispatch(Incoming incoming);
  Status DispatchSave(const Incoming& incoming);
  Status DispatchRead(const Incoming& incoming);
  void End();
  void EndSaves();
  std::string Who() const;
  std::string Fate() const;

  Status StartRegister(const Incoming& incoming);
  static Task<void> RunRegister(Shared self, wire::Register message, uint64_t request,
                                Gate::Hold hold);
  Task<Result<lifecycle::RegisterAnswer>> AskRegister(wire::Register message);
  // A call of Register under way; outlives the connection when the process leaves meanwhile.
  struct PendingRegistration {
    explicit PendingRegistration(Loop& loop) : changed(loop) {}
    std::optional<Result<lifecycle::RegisterAnswer>> answer;
    bool abandoned = false;
    std::string reason;  // why it was abandoned
    Notifier changed;
  };
  static Task<void> CallRegister(lifecycle::CoordinatorApi* coordinator,
                                 lifecycle::RegisterRequest request, TimePoint deadline,
                                 std::shared_ptr<PendingRegistration> pending);
  void AbandonRegistration();
  static Task<void> RunWithdraw(ConnectionParts parts, wire::Register who, std::string reason,
                                Gate::Hold hold);
  static Task<void> RunReportGone(ConnectionParts parts, lifecycle::RankGone gone, Gate::Hold hold);
  static Task<void> RunAttach(Shared self, wire::Attach message, uint64_t request, Gate::Hold hold);
  Task<Status> Attach(wire::Attach message, uint64_t request);
  static Task<void> RunAnswer(Shared self, Task<Status> call, uint64_t request, uint64_t stream,
                              bool done, Gate::Hold hold);
  void Answer(Task<Status> call, const wire::FrameHeader& header, bool done = false);
  Status Begin(const wire::SaveBegin& message, uint64_t request);
  Result<SaveSpec> MakeSpec(const wire::SaveBegin& message);
  Result<LayoutCache::Entry*> FindLayout(const wire::SaveBegin& message);
  Status Skip(const wire::SaveSkip& message);
  SaveService::Observer SaveObserver();
  void OnSaveState(const wire::SaveState& state);
  std::shared_ptr<Save> FindSave(uint64_t id) const;
  std::optional<RestoreService::Pinned> pinned() const;
  void Send(Bytes frames, OwnedFd fd = {});
  void SendError(const Status& status, uint64_t request, uint64_t stream);

  ConnectionParts parts_;
  NodeContext& context_;
  SocketId socket_;
  wire::Session session_{wire::Role::kLocalServer};
  Outbox outbox_;
  Gate gate_;
  PeerCredentials peer_;
  std::string description_;  // the peer's own, from HELLO
  PidWatch::WatchId watch_ = 0;
  bool died_ = false;
  Notifier death_;
  bool said_bye_ = false;
  bool ended_ = false;
  std::string stop_reason_;

  std::optional<wire::Register> registration_;  // as asked
  std::optional<lifecycle::RegisterAnswer> registered_;
  bool registering_ = false;
  std::shared_ptr<PendingRegistration> pending_;
  Notifier registration_changed_;
  bool fenced_ = false;
  Id owner_;  // of the slots; zero before ATTACH
  bool attaching_ = false;
  uint64_t slot_bytes_ = 0;
  std::map<uint64_t, std::shared_ptr<Save>> saves_;  // not over yet
  LayoutCache layouts_;
  RestoreService restore_;
};

}  // namespace reprise::node
