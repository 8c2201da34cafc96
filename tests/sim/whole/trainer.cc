#include "tests/sim/whole/trainer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

constexpr Nanos kAnswer = 60s;  // longer than any deadline the product promises for these calls

}  // namespace

Trainer::Trainer(TrainerParts parts, std::string host, std::shared_ptr<Run> run, uint32_t rank)
    : parts_(parts),
      host_(std::move(host)),
      run_(std::move(run)),
      rank_(rank),
      rng_(parts.world.rng().Next()),
      process_(rng_.NewId()),
      io_(std::make_unique<SimIo>(parts.loop, parts.world, host_)),
      collective_(parts.loop),
      layout_(LayoutOf(run_->launch().shape, rank, run_->launch().world)) {
  run_->Join(&collective_);
  parts_.processes.Begin(io_->process());
  parts_.loop.Spawn(Main(this));
}

Trainer::~Trainer() {
  if (io_ != nullptr) Kill(SimCrash::kProcessDeath);
}

void Trainer::Kill(SimCrash how) {
  if (io_ == nullptr) return;
  run_->Leave(&collective_);
  io_->CrashHost(how);
  parts_.loop.DestroyAll();
  link_ = nullptr;
  parts_.processes.End(io_->process());
  io_ = nullptr;
  if (exit_ == Exit::kRunning) exit_ = Exit::kKilled;
}

Task<void> Trainer::Main(Trainer* self) {
  Status status = co_await self->Live();
  self->CloseLink();
  self->why_ = status.ToString();
  if (status.ok()) {
    self->exit_ = Exit::kFinished;
  } else {
    self->exit_ = status.code() == Code::kFenced ? Exit::kFenced : Exit::kFailed;
  }
  self->parts_.on_exit();
}

bool Trainer::NoteCode(const Status& status, std::string_view call,
                       std::initializer_list<Code> allowed) {
  if (status.ok() || std::ranges::find(allowed, status.code()) != allowed.end()) return true;
  parts_.model.Violate(fmt::format("{} of rank {} answers {}, which is not documented", call, rank_,
                                   status.ToString()));
  return false;
}

// --- life

Task<Status> Trainer::Live() {
  REPRISE_CO_RETURN_IF_ERROR(co_await Connect());
  if (resume_.has_value()) {
    // A node daemon that dies meanwhile costs the try, not the run.
    Status restored;
    for (int attempt = 0; attempt < 4; ++attempt) {
      restored = co_await Restore(*resume_);
      if (restored.ok() || restored.code() != Code::kUnavailable) break;
      co_await Think(200ms);
      // Anew, which also gives back the ring buffers of the try that failed.
      REPRISE_CO_RETURN_IF_ERROR(co_await Connect());
    }
    if (restored.code() == Code::kDataLoss) {
      SOMETIMES(parts_.counts, Path::kDamageReported);
      if (!parts_.model.may_lose) {
        parts_.model.Violate("restore says DATA_LOSS and nothing was damaged: " +
                             restored.ToString());
      }
    }
    if (!restored.ok()) co_return restored.Annotate("restore");
  }
  uint64_t first = std::max(run_->first_step, resume_.has_value() ? resume_->step + 1 : 1);
  for (uint64_t step = first; step < first + run_->steps; ++step) {
    REPRISE_CO_RETURN_IF_ERROR(co_await Step(step));
  }
  co_await Drain();
  if (!link_->ended) {
    (void)(co_await SendBytes(link_, wire::Session::PackBody(wire::Opcode::kBye, {}, 0))).ok();
  }
  co_return OkStatus();
}

Task<Status> Trainer::Step(uint64_t step) {
  co_await Think(Nanos{1 + rng().Below(static_cast<uint64_t>(run_->step_time.count()))});
  if (link_->ended) REPRISE_CO_RETURN_IF_ERROR(co_await Connect());
  Status saved = co_await Save(step);
  if (saved.code() == Code::kFenced) {
    SOMETIMES(parts_.counts, Path::kFencedBegin);
    co_return saved;
  }
  // Storage trouble never stops training: the step counts as not saved.
  saved.IgnoreError();
  run_->Arrive(step);
  bool together = co_await collective_.WaitFor([&] { return zombie_ || run_->AllArrived(step); },
                                               parts_.loop.Now() + 90s);
  co_return together ? OkStatus() : Status(Code::kAborted, "a collective hangs");
}

// Waits until every save has ended, one way or the other.
Task<void> Trainer::Drain() {
  TimePoint give_up = parts_.loop.Now() + run_->drain_time;
  while (!unsure_.empty() && parts_.loop.Now() < give_up) {
    if (link_->ended && !(co_await Connect()).ok()) co_return;
    co_await link_->changed.WaitFor([&] { return unsure_.empty() || link_->ended; },
                                    std::min(give_up, parts_.loop.Now() + 1s));
  }
}

// --- connection

Task<Status> Trainer::Connect() {
  TimePoint give_up = parts_.loop.Now() + 40s;
  Status status;
  while (parts_.loop.Now() < give_up) {
    CloseLink();
    status = co_await ConnectOnce();
    if (status.ok()) co_return status;
    bool away = status.code() == Code::kUnavailable || status.code() == Code::kDeadlineExceeded ||
                status.code() == Code::kCancelled || status.code() == Code::kOutcomeUnknown;
    if (!away) co_return status;
    co_await Think(30ms + Nanos{rng().Below(70'000'000)});
  }
  co_return status;
}

Task<Status> Trainer::ConnectOnce() {
  LinkPtr link = std::make_shared<Link>(parts_.loop);
  REPRISE_CO_ASSIGN_STATUS(link->socket, co_await io_->Connect("unix:" + std::string(kNodeSocket),
                                                               parts_.loop.Now() + 1s));
  link_ = link;
  wire::Hello hello;
  hello.peer = process_;
  hello.description = "simulated trainer";
  REPRISE_CO_RETURN_IF_ERROR(co_await SendBytes(link, link->session.MakeHello(hello)));
  parts_.loop.Spawn(ReadLoop(this, link));
  co_await link->changed.WaitFor([&] { return link->ended || link->chunk_bytes != 0; },
                                 parts_.loop.Now() + kAnswer);
  if (link->chunk_bytes == 0) co_return Status(Code::kUnavailable, "no HELLO_OK");
  if (link->chunk_bytes != kChunkBytes) {
    // The daemon has not reached the store yet, and assumes; saves with its guess would be refused.
    co_return Status(Code::kUnavailable, "the chunk size is not known yet");
  }
  REPRISE_CO_RETURN_IF_ERROR(co_await Register());
  co_return co_await Attach();
}

void Trainer::CloseLink() {
  if (link_ == nullptr) return;
  LinkPtr link = std::exchange(link_, nullptr);
  if (link->socket.valid()) io_->Shutdown(link->socket);  // the reader closes it
}

Task<Status> Trainer::Register() {
  const Launch& launch = run_->launch();
  wire::Register message;
  message.tenant = "team";
  message.job = launch.job;
  message.rank = rank_;
  message.world = launch.world;
  message.process = process_;
  message.launcher = run_->launcher;
  message.host = host_;
  message.takeover = run_->takeover;
  message.timeout_ms = 20000;
  message.epoch = epoch_;
  LinkPtr link = link_;
  link->again = epoch_ != 0;
  Result<Message> answer = co_await Ask(link, message, 0, kAnswer);
  Status status = StatusOf(answer);
  NoteCode(status, "REGISTER",
           {Code::kUnavailable, Code::kDeadlineExceeded, Code::kFenced, Code::kAlreadyExists,
            Code::kInvalidArgument, Code::kCancelled, Code::kDataLoss, Code::kOutcomeUnknown});
  if (status.code() == Code::kInvalidArgument) {
    parts_.model.Violate("a correct registration is refused: " + status.ToString());
  }
  if (status.code() == Code::kDataLoss && !parts_.model.may_lose) {
    parts_.model.Violate("registration says DATA_LOSS and nothing was damaged: " +
                         status.ToString());
  }
  if (status.code() == Code::kFenced) SOMETIMES(parts_.counts, Path::kFencedRegister);
  REPRISE_CO_RETURN_IF_ERROR(status);
  REPRISE_CO_ASSIGN_STATUS(wire::Registered registered,
                           wire::Decode<wire::Registered>(answer->body));
  parts_.model.Registered(launch, rank_,
                          {registered.job, registered.epoch, registered.resume, registered.skipped},
                          link->again);
  if (link->again) {
    SOMETIMES(parts_.counts, Path::kRejoined);
    if (registered.epoch != epoch_) {
      parts_.model.Violate(fmt::format("rank {} joins epoch {} again and is told epoch {}", rank_,
                                       epoch_, registered.epoch));
    }
  }
  job_ = registered.job;
  epoch_ = registered.epoch;
  resume_ = registered.resume;
  co_return OkStatus();
}

Task<Status> Trainer::Attach() {
  LinkPtr link = link_;
  uint64_t request = next_request_;
  Result<Message> answer = co_await Ask(link, wire::Attach{layout_.shard_bytes, 2}, 0, kAnswer);
  NoteCode(
      StatusOf(answer), "ATTACH",
      {Code::kUnavailable, Code::kDeadlineExceeded, Code::kResourceExhausted, Code::kCancelled});
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(answer));
  REPRISE_CO_ASSIGN_STATUS(link->attached, wire::Decode<wire::Attached>(answer->body));
  for (uint32_t i = 0; i < link->attached.slots; ++i) {
    Result<Message> slot = co_await Await(link, request, kAnswer);
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(slot));
    REPRISE_CO_ASSIGN_STATUS(wire::SlotInfo info, wire::Decode<wire::SlotInfo>(slot->body));
    if (!slot->fd.valid()) {
      parts_.model.Violate("SLOT came without its descriptor");
      co_return Status(Code::kInternal, "no descriptor");
    }
    link->slots.emplace(info.index, SharedMemory(std::move(slot->fd), true));
  }
  co_return OkStatus();
}

// --- frames

Task<Status> Trainer::SendBytes(LinkPtr link, Bytes frames) {
  if (link->ended) co_return Status(Code::kUnavailable, "the connection ended");
  ++link->senders;
  Status sent = co_await SendFully(*io_, link->socket, frames, parts_.loop.Now() + kAnswer);
  --link->senders;
  link->changed.Notify();
  co_return sent;
}

Task<Result<Trainer::Message>> Trainer::ReadFrame(LinkPtr link) {
  while (true) {
    std::array<uint8_t, limits::kFrameHeaderBytes> bytes{};
    Message message;
    size_t have = 0;
    while (have < bytes.size()) {
      Io::Operation receive = io_->RecvFd(link->socket, MutableByteView(bytes).subspan(have));
      int64_t moved = co_await receive;
      if (receive.passed_fd() >= 0) message.fd = node::OwnedFd(receive.passed_fd());
      if (moved <= 0) co_return Error(Code::kUnavailable, "the connection ended");
      have += static_cast<size_t>(moved);
    }
    REPRISE_CO_ASSIGN(wire::Session::Expect expect, link->session.OnHeader(bytes));
    Bytes payload(expect.header.payload_bytes);
    REPRISE_CO_TRY(co_await RecvFully(*io_, link->socket, payload));
    REPRISE_CO_ASSIGN(auto incoming, link->session.OnBody(expect.header, payload));
    if (!incoming.has_value()) continue;
    message.header = incoming->header;
    message.body = std::move(incoming->body);
    co_return message;
  }
}

Task<void> Trainer::ReadLoop(Trainer* self, LinkPtr link) {
  while (true) {
    Result<Message> message = co_await self->ReadFrame(link);
    if (!message.has_value()) {
      self->NoteCode(message.error(), "a connection",
                     {Code::kUnavailable, Code::kCancelled, Code::kDeadlineExceeded});
      break;
    }
    if (message->header.opcode == wire::Opcode::kHelloOk) {
      auto hello = wire::Decode<wire::HelloOk>(message->body);
      link->chunk_bytes = hello.has_value() ? hello->chunk_bytes : 1;
    } else if (message->header.opcode == wire::Opcode::kSaveState) {
      auto state = wire::Decode<wire::SaveState>(message->body);
      if (state.has_value()) self->OnState(*link, *state);
    } else {
      link->inbox.push_back(std::move(*message));
    }
    link->changed.Notify();
  }
  link->ended = true;
  link->changed.Notify();
  self->io_->Shutdown(link->socket);
  co_await link->changed.WaitFor([&] { return link->senders == 0; });
  self->io_->CloseSocket(link->socket);
}

Task<Result<Trainer::Message>> Trainer::Await(LinkPtr link, uint64_t request, Nanos timeout) {
  std::deque<Message>::iterator found;
  auto arrived = [&] {
    found = std::ranges::find_if(
        link->inbox, [&](const Message& message) { return message.header.request == request; });
    return found != link->inbox.end();
  };
  bool there = co_await link->changed.WaitFor([&] { return arrived() || link->ended; },
                                              parts_.loop.Now() + timeout);
  if (!arrived()) {
    if (!there) {
      parts_.model.Violate(
          fmt::format("rank {}: request {} (the last is {}) was not answered in {:.0f} s", rank_,
                      request, asked_, SecondsOf(timeout)));
    }
    co_return Error(Code::kUnavailable, "the connection ended");
  }
  Message message = std::move(*found);
  link->inbox.erase(found);
  if (message.header.opcode == wire::Opcode::kError) {
    REPRISE_CO_ASSIGN(wire::ErrorBody body, wire::Decode<wire::ErrorBody>(message.body));
    co_return Error(Status(body.code, body.message));
  }
  co_return message;
}

template <typename T>
Task<Result<Trainer::Message>> Trainer::Ask(LinkPtr link, T message, uint64_t stream,
                                            Nanos timeout) {
  uint64_t request = next_request_++;
  asked_ = wire::OpcodeName(wire::kOpcodeOf<T>);
  REPRISE_CO_TRY(co_await SendBytes(link, wire::Session::Pack(message, request, stream)));
  co_return co_await Await(link, request, timeout);
}

// --- saving

void Trainer::OnState(Link& link, const wire::SaveState& state) {
  const Launch& launch = run_->launch();
  bool known = link.saves.contains(state.save);
  OpenSave& save = link.saves[state.save];
  save.step = state.step;
  if (!known) SOMETIMES(parts_.counts, Path::kRejoinToldAState);
  if (save.over) {
    parts_.model.Violate(fmt::format("rank {} hears of step {} after its end", rank_, state.step));
  }
  switch (state.phase) {
    case wire::SavePhase::kTransferring: break;
    case wire::SavePhase::kLocalSealed:
    case wire::SavePhase::kLocalAll:
      save.sealed = true;
      parts_.model.LocalSealed(launch, epoch_, state.step, rank_);
      break;
    case wire::SavePhase::kCommitted:
      save.over = true;
      save.committed = true;
      unsure_.erase(state.step);
      parts_.model.Committed(launch, epoch_, state.step, rank_);
      break;
    case wire::SavePhase::kFailed:
      save.over = true;
      unsure_.erase(state.step);
      NoteCode(Status(state.code, state.message), "a save",
               {Code::kAborted, Code::kFenced, Code::kUnavailable, Code::kDeadlineExceeded,
                Code::kResourceExhausted, Code::kCancelled, Code::kDataLoss,
                Code::kFailedPrecondition, Code::kOutcomeUnknown, Code::kAlreadyExists});
      parts_.model.Failed(launch, epoch_, state.step, rank_, Status(state.code, state.message));
      break;
  }
}

Task<Status> Trainer::Save(uint64_t step) {
  LinkPtr link = link_;
  if (run_->skip_ppm != 0 && rng().Chance(run_->skip_ppm, 1'000'000)) {
    SOMETIMES(parts_.counts, Path::kSkipped);
    wire::SaveSkip skip{step, std::nullopt, "not now"};
    co_return StatusOf(co_await Ask(link, skip, 0, kAnswer));
  }
  wire::SaveBegin begin;
  begin.step = step;
  begin.length = layout_.shard_bytes;
  begin.layout = format::LayoutDigest(layout_);
  if (!link->layout_sent) begin.layout_bytes = format::EncodeLayout(layout_);
  if (link->layout_sent) SOMETIMES(parts_.counts, Path::kLayoutByDigest);
  link->layout_sent = true;
  begin.metadata = "{}";
  begin.keep = run_->launch().keep;
  parts_.model.Began(run_->launch(), epoch_, step, rank_);
  Result<Message> answer = co_await Ask(link, begin, 0, kAnswer);
  Status status = StatusOf(answer);
  NoteCode(status, "SAVE_BEGIN",
           {Code::kUnavailable, Code::kFenced, Code::kResourceExhausted, Code::kDeadlineExceeded});
  if (status.code() == Code::kResourceExhausted) SOMETIMES(parts_.counts, Path::kNoSlot);
  REPRISE_CO_RETURN_IF_ERROR(status);
  REPRISE_CO_ASSIGN_STATUS(wire::SaveGrant grant, wire::Decode<wire::SaveGrant>(answer->body));
  CheckGrant(*link, grant);
  link->saves[grant.save].step = step;
  link->saves[grant.save].slot = grant.slot;
  Status filled = co_await Fill(link, grant, step);
  if (!filled.ok()) co_return filled;
  if (run_->wait_each) {
    co_await link->changed.WaitFor([&] { return link->ended || !unsure_.contains(step); },
                                   parts_.loop.Now() + 20s);
  }
  co_return OkStatus();
}

void Trainer::CheckGrant(const Link& link, const wire::SaveGrant& grant) {
  for (const auto& [id, held] : link.saves) {
    if (held.slot != grant.slot || (held.over && !held.committed)) continue;
    bool newer = std::ranges::any_of(link.saves, [&](const auto& item) {
      return item.second.committed && item.second.step > held.step;
    });
    if (newer || id == grant.save) continue;
    parts_.model.Violate(
        fmt::format("rank {} is given slot {} while it holds step {}, the newest copy", rank_,
                    grant.slot, held.step));
  }
}

Task<Status> Trainer::Fill(LinkPtr link, wire::SaveGrant grant, uint64_t step) {
  Bytes shard = ShardOf(layout_, run_->launch().number, step, rank_);
  auto slot = link->slots.find(grant.slot);
  if (slot == link->slots.end()) {
    parts_.model.Violate("a save was granted a slot that was never attached");
    co_return Status(Code::kInternal, "slot");
  }
  MutableByteView target = slot->second.bytes().subspan(link->attached.data_offset);
  uint64_t chunks = format::ChunkCount(shard.size(), kChunkBytes);
  uint64_t first = 0;
  while (first < chunks) {
    if (link->saves[grant.save].over) co_return Status(Code::kAborted, "failed meanwhile");
    uint64_t count = 1 + rng().Below(chunks - first);
    uint64_t from = first * kChunkBytes;
    uint64_t until = std::min<uint64_t>((first + count) * kChunkBytes, shard.size());
    std::memcpy(target.data() + from, shard.data() + from, until - from);
    wire::SaveChunks ready{grant.save, first, count};
    REPRISE_CO_RETURN_IF_ERROR(co_await SendBytes(link, wire::Session::Pack(ready, 0)));
    first += count;
    if (rng().Chance(1, 3)) co_await Think(Nanos{rng().Below(300'000)});
  }
  if (link->saves[grant.save].over) co_return Status(Code::kAborted, "failed meanwhile");
  unsure_.insert(step);
  parts_.model.SealRequested(run_->launch(), epoch_, step, rank_);
  co_return co_await SendBytes(link, wire::Session::Pack(wire::SaveSeal{grant.save}, 0));
}

// --- restoring

Task<Status> Trainer::Restore(CheckpointKey key) {
  LinkPtr link = link_;
  const Launch& launch = run_->launch();
  wire::ReadOpen open;
  open.tenant = "team";
  open.job_name = launch.job;
  constexpr uint64_t kStream = 7;
  uint64_t stream = kStream + next_request_;
  Result<Message> answer = co_await Ask(link, open, stream, kAnswer);
  Status opened = StatusOf(answer);
  if (opened.code() == Code::kNotFound && !parts_.model.IsNewest(launch.job, epoch_)) {
    // A newer run goes on from there and need not keep it for this one.
    co_return Status(Code::kFenced, opened.message());
  }
  NoteCode(opened, "READ_OPEN",
           {Code::kUnavailable, Code::kDataLoss, Code::kDeadlineExceeded, Code::kCancelled,
            Code::kOutcomeUnknown, Code::kResourceExhausted});
  REPRISE_CO_RETURN_IF_ERROR(opened);
  REPRISE_CO_ASSIGN_STATUS(wire::ReadOk ok, wire::Decode<wire::ReadOk>(answer->body));
  if (ok.key != key) {
    parts_.model.Violate(fmt::format("rank {} was to resume from {} and is given {}", rank_,
                                     NameOf(launch.job, key), NameOf(launch.job, ok.key)));
  }
  REPRISE_CO_ASSIGN_STATUS(format::CheckpointManifest manifest,
                           format::DecodeCheckpointManifest(ok.checkpoint_manifest));
  if (!link->ring.mapped()) {
    Result<Message> ring = co_await Ask(link, wire::RingAttach{2}, 0, kAnswer);
    NoteCode(StatusOf(ring), "RING_ATTACH",
             {Code::kUnavailable, Code::kResourceExhausted, Code::kCancelled});
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(ring));
    REPRISE_CO_ASSIGN_STATUS(link->ring_info, wire::Decode<wire::RingInfo>(ring->body));
    link->ring = SharedMemory(std::move(ring->fd), false);
  }
  if (manifest.world != launch.world) SOMETIMES(parts_.counts, Path::kRestoredOverAWorldChange);
  // Its own shard; of another world, all of them; sometimes a neighbour's too.
  for (uint32_t rank = 0; rank < manifest.world; ++rank) {
    bool wanted = rank == rank_ || manifest.world != launch.world || rng().Chance(1, 4);
    if (wanted) REPRISE_CO_RETURN_IF_ERROR(co_await RestoreShard(stream, manifest, rank));
  }
  uint64_t request = next_request_++;
  REPRISE_CO_RETURN_IF_ERROR(co_await SendBytes(
      link, wire::Session::PackBody(wire::Opcode::kReadClose, {}, request, stream)));
  co_return StatusOf(co_await Await(link, request, kAnswer));
}

Task<Status> Trainer::RestoreShard(uint64_t stream, const format::CheckpointManifest& manifest,
                                   uint32_t rank) {
  LinkPtr link = link_;
  std::initializer_list<Code> allowed = {Code::kUnavailable, Code::kDataLoss,
                                         Code::kDeadlineExceeded, Code::kCancelled,
                                         Code::kResourceExhausted};
  Result<Message> answer = co_await Ask(link, wire::ReadShard{rank}, stream, kAnswer);
  NoteCode(StatusOf(answer), "READ_SHARD", allowed);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(answer));
  REPRISE_CO_ASSIGN_STATUS(wire::BlobBody blob, wire::Decode<wire::BlobBody>(answer->body));
  REPRISE_CO_ASSIGN_STATUS(format::ShardManifest shard, format::DecodeShardManifest(blob.data));
  if (shard.root != manifest.shards[rank].root) {
    co_return Status(Code::kDataLoss, "the shard's manifest is not the checkpoint's");
  }
  Result<Message> encoded = co_await Ask(link, wire::ReadLayout{shard.layout}, stream, kAnswer);
  NoteCode(StatusOf(encoded), "READ_LAYOUT", allowed);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(encoded));
  REPRISE_CO_ASSIGN_STATUS(wire::BlobBody layout_blob, wire::Decode<wire::BlobBody>(encoded->body));
  REPRISE_CO_ASSIGN_STATUS(format::Layout layout, format::DecodeLayout(layout_blob.data));
  Result<Bytes> bytes = co_await FetchAll(stream, shard);
  NoteCode(StatusOf(bytes), "FETCH", allowed);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(bytes));
  parts_.model.Restored(run_->launch().job, manifest.key, rank, *bytes, layout, "by a trainer");
  co_return OkStatus();
}

Task<Result<Bytes>> Trainer::FetchAll(uint64_t stream, const format::ShardManifest& shard) {
  LinkPtr link = link_;
  Bytes out(shard.length, 0xee);
  auto chunks = static_cast<uint32_t>(shard.chunk_digests.size());
  if (chunks > link->ring_info.chunks) SOMETIMES(parts_.counts, Path::kRingWaited);
  uint64_t request = next_request_++;
  wire::Fetch fetch{shard.identity.rank, 0, chunks};
  REPRISE_CO_TRY(co_await SendBytes(link, wire::Session::Pack(fetch, request, stream)));
  for (uint32_t i = 0; i < chunks; ++i) {
    REPRISE_CO_ASSIGN(Message answer, co_await Await(link, request, kAnswer));
    REPRISE_CO_ASSIGN(wire::ChunkAt at, wire::Decode<wire::ChunkAt>(answer.body));
    REPRISE_CO_TRY(co_await TakeChunk(stream, next_request_++, shard, at, out));
    wire::RingFree release{{at.ring_index}};
    REPRISE_CO_TRY(co_await SendBytes(link, wire::Session::Pack(release, 0, stream)));
  }
  co_return out;
}

// Compares one chunk with its digest, asks for it again when it differs, and copies it.
Task<Status> Trainer::TakeChunk(uint64_t stream, uint64_t request,
                                const format::ShardManifest& shard, wire::ChunkAt at, Bytes& out) {
  LinkPtr link = link_;
  bool sane = at.index < shard.chunk_digests.size() && at.ring_index < link->ring_info.chunks &&
              at.length == format::ChunkLength(shard.length, shard.chunk_bytes, at.index);
  if (!sane) {
    parts_.model.Violate(fmt::format("CHUNK_AT names chunk {} of {} bytes", at.index, at.length));
    co_return Status(Code::kInternal, "CHUNK_AT");
  }
  SOMETIMES(parts_.counts, at.source == wire::Source::kLocalSlab ? Path::kRestoredFromSlab
                                                                 : Path::kRestoredFromStore);
  auto view = [&] {
    return ByteView(link->ring.bytes())
        .subspan(at.ring_index * link->ring_info.stride_bytes, at.length);
  };
  if (DigestOf(view()) != shard.chunk_digests[at.index]) {
    wire::Corrupt corrupt{shard.identity.rank, at.index, at.ring_index, at.source};
    REPRISE_CO_RETURN_IF_ERROR(
        co_await SendBytes(link, wire::Session::Pack(corrupt, request, stream)));
    Result<Message> again = co_await Await(link, request, kAnswer);
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(again));
    REPRISE_CO_ASSIGN_STATUS(at, wire::Decode<wire::ChunkAt>(again->body));
    if (DigestOf(view()) != shard.chunk_digests[at.index]) {
      parts_.model.Violate("a chunk that was repaired fails its digest");
    }
    SOMETIMES(parts_.counts, Path::kDamageHealed);
  }
  std::memcpy(out.data() + at.index * shard.chunk_bytes, view().data(), at.length);
  co_return OkStatus();
}

}  // namespace reprise::sim
