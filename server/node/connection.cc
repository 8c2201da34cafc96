#include "server/node/connection.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::node {
namespace {

constexpr Nanos kHandshakeTimeout = std::chrono::seconds(30);
// A dying process closes its sockets a moment before its pidfd tells.
constexpr Nanos kDeathGrace = std::chrono::milliseconds(250);
// A process that does not read gets this long to take its last answers.
constexpr Nanos kLastAnswers = std::chrono::seconds(1);

}  // namespace

Connection::Connection(ConnectionParts parts, SocketId socket)
    : parts_(std::move(parts)),
      context_(parts_.context),
      socket_(socket),
      outbox_(context_.io, socket),
      gate_(context_.loop),
      death_(context_.loop),
      registration_changed_(context_.loop),
      restore_(
          context_, parts_.slab,
          [this](Bytes frames, OwnedFd fd) { Send(std::move(frames), std::move(fd)); },
          parts_.inventory_changed) {}

std::string Connection::Who() const {
  if (!registration_.has_value()) return fmt::format("process {} ({})", peer_.pid, description_);
  return fmt::format("rank {} on {} (pid {})", registration_->rank, registration_->host, peer_.pid);
}

std::string Connection::Fate() const {
  if (died_) return "died";
  if (said_bye_) return "detached";
  if (!stop_reason_.empty()) return "lost its node daemon: " + stop_reason_;
  return "closed its connection";
}

Task<void> Connection::RunOutbox(Shared self, Gate::Hold) { co_await self->outbox_.Drain(); }

Task<void> Connection::Serve(std::shared_ptr<Connection> self) {
  NodeContext& context = self->context_;
  context.loop.Spawn(RunOutbox(self, self->gate_.Enter()));
  Status status = co_await self->Handshake();
  if (status.ok()) {
    ++context.stats.clients;
    co_await self->ReadLoop();
    if (self->watch_ != 0 && !self->said_bye_ && self->stop_reason_.empty()) {
      co_await self->death_.WaitFor([&] { return self->died_ || !self->stop_reason_.empty(); },
                                    context.loop.Now() + kDeathGrace);
    }
    --context.stats.clients;
  } else {
    LogWarn("local connection of pid {}: {}", self->peer_.pid, status.ToString());
  }
  self->End();
  self->restore_.BeginClosing();
  self->outbox_.Finish();
  Loop::TimerId timer = context.loop.AddTimer(
      context.loop.Now() + kLastAnswers,
      [self_raw = self.get()] { self_raw->context_.io.Shutdown(self_raw->socket_); });
  co_await self->gate_.Close();
  context.loop.CancelTimer(timer);
  co_await self->restore_.Close();
  context.io.Shutdown(self->socket_);
  context.io.CloseSocket(self->socket_);
}

void Connection::Stop(std::string reason) {
  if (stop_reason_.empty()) stop_reason_ = std::move(reason);
  death_.Notify();
  context_.io.Shutdown(socket_);
}

void Connection::OnFenced(const Id& job, uint64_t epoch) {
  if (registered_.has_value() && registered_->job == job && registered_->epoch <= epoch) {
    fenced_ = true;
  }
}

Task<Status> Connection::Handshake() {
  Result<PeerCredentials> peer = context_.io.Credentials(socket_);
  if (peer.has_value()) peer_ = *peer;
  Result<Incoming> first = co_await ReadMessage(context_.loop.Now() + kHandshakeTimeout);
  Status status = StatusOf(first);
  if (status.ok()) {
    Result<wire::Hello> hello = wire::Decode<wire::Hello>(first->body);
    status = StatusOf(hello);
    if (status.ok()) {
      description_ = hello->description;
      if (context_.store.chunk_bytes() == 0) co_await ProbeChunkSize();
      wire::HelloOk ours;
      ours.self = context_.node;
      ours.chunk_bytes = context_.chunk_bytes();
      ours.description = "reprised node";
      Result<Bytes> answer = session_.AcceptHello(*hello, ours);
      status = StatusOf(answer);
      if (status.ok()) Send(std::move(*answer));
    }
  }
  if (!status.ok()) {
    Send(wire::Session::PackError(status, 0));
    co_return status;
  }
  Shared self = shared_from_this();
  std::weak_ptr<Connection> weak = self;
  auto watch = parts_.pids.Watch(peer_.pid, [weak] {
    Shared connection = weak.lock();
    if (connection == nullptr) return;
    // What it had sent before it died can still be read; then comes the end of the stream, even
    // while a child of the process holds the socket open.
    connection->died_ = true;
    connection->death_.Notify();
    connection->watch_ = 0;
    if (!connection->ended_) connection->context_.io.Shutdown(connection->socket_);
  });
  if (watch.has_value()) {
    watch_ = *watch;
  } else if (watch.error().code() == Code::kNotFound) {
    died_ = true;
    context_.io.Shutdown(socket_);
  } else {
    LogInfo("the end of pid {} is seen by its connection only: {}", peer_.pid,
            watch.error().message());
  }
  co_return OkStatus();
}

// Any read makes the link connect; only the chunk size that it learns then matters.
Task<void> Connection::ProbeChunkSize() {
  auto probe = co_await context_.store.OpenRead(Id{}, CheckpointKey{});
  if (probe.has_value()) co_await (*probe)->Close();
  if (context_.store.chunk_bytes() == 0) {
    LogWarn("the store was not reached yet; assuming its chunk size is {}",
            HumanBytes(context_.chunk_bytes()));
  }
}

Task<Result<Connection::Incoming>> Connection::ReadMessage(std::optional<TimePoint> deadline) {
  while (true) {
    std::array<uint8_t, limits::kFrameHeaderBytes> header{};
    REPRISE_CO_TRY(co_await RecvFully(context_.io, socket_, header, deadline));
    REPRISE_CO_ASSIGN(wire::Session::Expect expect, session_.OnHeader(header));
    if (expect.chunk)
      co_return Error(Code::kInvalidArgument, "chunks do not travel on this socket");
    Bytes payload(expect.header.payload_bytes);
    REPRISE_CO_TRY(co_await RecvFully(context_.io, socket_, payload, deadline));
    REPRISE_CO_ASSIGN(std::optional<Incoming> incoming, session_.OnBody(expect.header, payload));
    if (incoming.has_value()) co_return std::move(*incoming);
  }
}

Task<void> Connection::ReadLoop() {
  while (!said_bye_) {
    Result<Incoming> incoming = co_await ReadMessage({});
    if (!incoming.has_value()) {
      if (session_.broken()) {
        LogWarn("{}: {}", Who(), incoming.error().ToString());
        Send(wire::Session::PackError(incoming.error(), 0));
      }
      co_return;
    }
    wire::FrameHeader header = incoming->header;
    Status status = Dispatch(std::move(*incoming));
    if (!status.ok()) SendError(status, header.request, header.stream);
    if (outbox_.full()) {
      LogWarn("{} does not read its answers: connection closed", Who());
      co_return;
    }
  }
}

Status Connection::Dispatch(Incoming incoming) {
  switch (incoming.header.opcode) {
    case wire::Opcode::kRegister: return StartRegister(incoming);
    case wire::Opcode::kAttach: {
      REPRISE_ASSIGN_STATUS(wire::Attach message, wire::Decode<wire::Attach>(incoming.body));
      Gate::Hold hold = gate_.Enter();
      context_.loop.Spawn(
          RunAttach(shared_from_this(), message, incoming.header.request, std::move(hold)));
      return OkStatus();
    }
    case wire::Opcode::kSaveBegin:
    case wire::Opcode::kSaveChunks:
    case wire::Opcode::kSaveSeal:
    case wire::Opcode::kSaveSkip: return DispatchSave(incoming);
    case wire::Opcode::kBye: said_bye_ = true; return OkStatus();
    default: return DispatchRead(incoming);
  }
}

Status Connection::DispatchSave(const Incoming& incoming) {
  switch (incoming.header.opcode) {
    case wire::Opcode::kSaveBegin: {
      REPRISE_ASSIGN_STATUS(wire::SaveBegin message, wire::Decode<wire::SaveBegin>(incoming.body));
      return Begin(message, incoming.header.request);
    }
    case wire::Opcode::kSaveChunks: {
      REPRISE_ASSIGN_STATUS(wire::SaveChunks chunks, wire::Decode<wire::SaveChunks>(incoming.body));
      // A save that has failed is no longer known: its last chunks may cross the news.
      if (auto save = FindSave(chunks.save))
        parts_.saves.AddReady(save, chunks.first, chunks.count);
      return OkStatus();
    }
    case wire::Opcode::kSaveSeal: {
      REPRISE_ASSIGN_STATUS(wire::SaveSeal seal, wire::Decode<wire::SaveSeal>(incoming.body));
      if (auto save = FindSave(seal.save)) parts_.saves.RequestSeal(save);
      return OkStatus();
    }
    default: {
      REPRISE_ASSIGN_STATUS(wire::SaveSkip skip, wire::Decode<wire::SaveSkip>(incoming.body));
      REPRISE_RETURN_IF_ERROR(Skip(skip));
      if (incoming.header.request != 0) {
        Send(wire::Session::PackBody(wire::Opcode::kDone, {}, incoming.header.request));
      }
      return OkStatus();
    }
  }
}

Status Connection::DispatchRead(const Incoming& incoming) {
  const wire::FrameHeader& header = incoming.header;
  uint64_t request = header.request;
  uint64_t stream = header.stream;
  ByteView body = incoming.body;
  switch (header.opcode) {
    case wire::Opcode::kReadOpen: {
      REPRISE_ASSIGN_STATUS(wire::ReadOpen message, wire::Decode<wire::ReadOpen>(body));
      Answer(restore_.ReadOpen(std::move(message), request, stream, pinned()), header);
      return OkStatus();
    }
    case wire::Opcode::kReadShard: {
      REPRISE_ASSIGN_STATUS(wire::ReadShard message, wire::Decode<wire::ReadShard>(body));
      Answer(restore_.ReadShard(message, request, stream), header);
      return OkStatus();
    }
    case wire::Opcode::kReadLayout: {
      REPRISE_ASSIGN_STATUS(wire::ReadLayout message, wire::Decode<wire::ReadLayout>(body));
      Answer(restore_.ReadLayout(message, request, stream, layouts_), header);
      return OkStatus();
    }
    case wire::Opcode::kReadClose:
      Answer(restore_.ReadClose(stream), header, request != 0);
      return OkStatus();
    case wire::Opcode::kRingAttach: {
      REPRISE_ASSIGN_STATUS(wire::RingAttach message, wire::Decode<wire::RingAttach>(body));
      Answer(restore_.RingAttach(message, request), header);
      return OkStatus();
    }
    case wire::Opcode::kRingFree: {
      REPRISE_ASSIGN_STATUS(wire::RingFree message, wire::Decode<wire::RingFree>(body));
      restore_.RingFree(message);
      return OkStatus();
    }
    case wire::Opcode::kFetch: {
      REPRISE_ASSIGN_STATUS(wire::Fetch message, wire::Decode<wire::Fetch>(body));
      Answer(restore_.Fetch(message, request, stream), header);
      return OkStatus();
    }
    case wire::Opcode::kCorrupt: {
      REPRISE_ASSIGN_STATUS(wire::Corrupt message, wire::Decode<wire::Corrupt>(body));
      Answer(restore_.Corrupt(message, request, stream), header);
      return OkStatus();
    }
    case wire::Opcode::kSlotOf: {
      REPRISE_ASSIGN_STATUS(wire::SlotOf message, wire::Decode<wire::SlotOf>(body));
      return restore_.SlotOf(message, request, stream, owner_);
    }
    default:
      return FailStatus(Code::kUnimplemented, "{} is not served here",
                        wire::OpcodeName(header.opcode));
  }
}

void Connection::Answer(Task<Status> call, const wire::FrameHeader& header, bool done) {
  Gate::Hold hold = gate_.Enter();
  context_.loop.Spawn(RunAnswer(shared_from_this(), std::move(call), header.request, header.stream,
                                done, std::move(hold)));
}

Task<void> Connection::RunAnswer(Shared self, Task<Status> call, uint64_t request, uint64_t stream,
                                 bool done, Gate::Hold) {
  Status status = co_await std::move(call);
  if (!status.ok()) {
    self->SendError(status, request, stream);
  } else if (done) {
    self->Send(wire::Session::PackBody(wire::Opcode::kDone, {}, request, stream));
  }
}

void Connection::Send(Bytes frames, OwnedFd fd) {
  if (!ended_) outbox_.Add(std::move(frames), std::move(fd));
}

void Connection::SendError(const Status& status, uint64_t request, uint64_t stream) {
  if (request != 0) {
    Send(wire::Session::PackError(status, request, stream));
    return;
  }
  // Nobody waits for an answer to it.
  LogWarn("{}: {}", Who(), status.ToString());
}

std::optional<RestoreService::Pinned> Connection::pinned() const {
  if (!registered_.has_value()) return std::nullopt;
  return RestoreService::Pinned{registration_->tenant, registration_->job, registered_->job,
                                registered_->resume};
}

void Connection::End() {
  if (ended_) return;
  ended_ = true;
  if (watch_ != 0) parts_.pids.Unwatch(watch_);
  registration_changed_.Notify();
  EndSaves();
  if (!owner_.IsZero()) {
    parts_.slab.Release(owner_);
    parts_.inventory_changed();
  }
  if (!registration_.has_value()) return;
  LogInfo("{} {}", Who(), Fate());
  if (parts_.is_served_elsewhere(this, registration_->process)) return;
  if (registering_ && pending_ != nullptr) AbandonRegistration();
  if (!registered_.has_value()) return;
  Gate::Hold hold = context_.gate.Enter();
  if (!hold) return;
  lifecycle::RankGone gone{registered_->job, registered_->epoch, registration_->rank,
                           registration_->process, Who() + " " + Fate()};
  context_.loop.Spawn(RunReportGone(parts_, std::move(gone), std::move(hold)));
}

void Connection::EndSaves() {
  auto saves = std::move(saves_);
  saves_.clear();
  for (auto& [id, save] : saves) {
    // A later connection of this process may have taken it over.
    if (save->watcher == this) save->observer = nullptr;
    // All its bytes are in the slot: it needs its process no more.
    if (save->seal_requested) continue;
    parts_.saves.Fail(save, Status(Code::kAborted, Who() + " " + Fate() + " in mid-save"), true);
  }
}

Task<void> Connection::RunReportGone(ConnectionParts parts, lifecycle::RankGone gone, Gate::Hold) {
  NodeContext& context = parts.context;
  Backoff backoff;
  TimePoint give_up = context.loop.Now() + context.options.upload_retry_max;
  // A process that has connected again meanwhile is not gone.
  while (!parts.is_served_elsewhere(nullptr, gone.process)) {
    Status status = co_await context.coordinator.ReportRankGone(gone);
    if (status.ok() || !IsTransient(status.code())) co_return;
    if (context.closing || context.loop.Now() >= give_up) co_return;
    co_await context.Pause(backoff.Next());
  }
}

}  // namespace reprise::node
