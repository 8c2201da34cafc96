// The part of Connection that registers, attaches and saves.
#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "server/node/connection.h"

namespace reprise::node {
namespace {

constexpr uint32_t kSlotsMax = 16;
constexpr Nanos kLastNews = std::chrono::milliseconds(50);

}  // namespace

Status Connection::StartRegister(const Incoming& incoming) {
  REPRISE_ASSIGN_STATUS(wire::Register message, wire::Decode<wire::Register>(incoming.body));
  if (registering_) return Status(Code::kFailedPrecondition, "a registration is under way");
  if (message.rank >= message.world || message.world > limits::kWorldMax) {
    return FailStatus(Code::kInvalidArgument, "rank {} of a world of {}", message.rank,
                      message.world);
  }
  if (registration_.has_value() &&
      (registration_->process != message.process || registration_->rank != message.rank ||
       registration_->tenant != message.tenant || registration_->job != message.job)) {
    return Status(Code::kFailedPrecondition,
                  "this connection is registered as " + Who() + ": use one connection per rank");
  }
  registration_ = message;
  registering_ = true;
  Gate::Hold hold = gate_.Enter();
  context_.loop.Spawn(RunRegister(shared_from_this(), std::move(message), incoming.header.request,
                                  std::move(hold)));
  return OkStatus();
}

Task<void> Connection::RunRegister(Shared self, wire::Register message, uint64_t request,
                                   Gate::Hold) {
  Result<lifecycle::RegisterAnswer> answer = co_await self->AskRegister(message);
  self->registering_ = false;
  if (answer.has_value() && !self->ended_) {
    self->registered_ = *answer;
    // Before the answer: a client that reads it knows all that is known here.
    auto rejoined =
        self->parts_.saves.Rejoin(answer->job, answer->epoch, message.rank, self->SaveObserver());
    for (const auto& save : rejoined) self->saves_.emplace(save->id, save);
    wire::Registered registered{answer->job, answer->epoch, answer->resume, answer->skipped};
    self->Send(wire::Session::Pack(registered, request));
  } else if (!answer.has_value()) {
    self->Send(wire::Session::PackError(answer.error(), request));
  }
  self->registration_changed_.Notify();
}

Task<Result<lifecycle::RegisterAnswer>> Connection::AskRegister(wire::Register message) {
  lifecycle::RegisterRequest request;
  request.who = {message.tenant,  message.job,      message.rank, message.world,
                 message.process, message.launcher, message.host, peer_.pid};
  request.node = context_.node;
  request.takeover = message.takeover;
  request.epoch = message.epoch;
  TimePoint deadline = context_.loop.Now() + std::chrono::milliseconds(message.timeout_ms);
  Backoff backoff;
  while (true) {
    pending_ = std::make_shared<PendingRegistration>(context_.loop);
    context_.loop.Spawn(CallRegister(&context_.coordinator, request, deadline, pending_));
    std::shared_ptr<PendingRegistration> pending = pending_;
    co_await pending->changed.WaitFor(
        [pending] { return pending->answer.has_value() || pending->abandoned; });
    if (pending->abandoned) co_return Error(Code::kCancelled, "the connection has ended");
    const Result<lifecycle::RegisterAnswer>& answer = *pending->answer;
    // A coordinator that is away may come back in time; one that has waited long enough has spoken.
    bool retry = !answer.has_value() && answer.error().code() != Code::kDeadlineExceeded &&
                 IsTransient(answer.error().code()) && context_.loop.Now() < deadline;
    if (!retry || ended_ || context_.closing) co_return answer;
    co_await context_.Pause(backoff.Next());
    // A registration for a process that died in the pause would fence the run that follows it.
    if (pending->abandoned || ended_ || context_.closing) co_return answer;
  }
}

// Not held by any gate: the call may last for minutes, and the daemon need not. Touches nothing of
// this connection or node but `pending`.
Task<void> Connection::CallRegister(lifecycle::CoordinatorApi* coordinator,
                                    lifecycle::RegisterRequest request, TimePoint deadline,
                                    std::shared_ptr<PendingRegistration> pending) {
  Result<lifecycle::RegisterAnswer> answer = co_await coordinator->Register(request, deadline);
  if (pending->abandoned && answer.has_value()) {
    // The process left while the others were still being waited for, and the news came too late.
    Status told = co_await coordinator->ReportRankGone(
        {answer->job, answer->epoch, request.who.rank, request.who.process, pending->reason});
    if (!told.ok()) LogWarn("{}: {}", pending->reason, told.ToString());
    co_return;
  }
  pending->answer = std::move(answer);
  pending->changed.Notify();
}

void Connection::AbandonRegistration() {
  pending_->abandoned = true;
  pending_->reason = Who() + " " + Fate();
  pending_->changed.Notify();
  Gate::Hold hold = context_.gate.Enter();
  if (!hold) return;
  context_.loop.Spawn(RunWithdraw(parts_, *registration_, pending_->reason, std::move(hold)));
}

// Takes the rank out of an epoch that is still being gathered, so that no epoch opens with the
// dead.
Task<void> Connection::RunWithdraw(ConnectionParts parts, wire::Register who, std::string reason,
                                   Gate::Hold hold) {
  auto job = co_await parts.context.coordinator.GetJob(who.tenant, who.job);
  if (!job.has_value()) co_return;
  lifecycle::RankGone gone{job->job, 0, who.rank, who.process, std::move(reason)};
  co_await RunReportGone(std::move(parts), std::move(gone), std::move(hold));
}

Task<void> Connection::RunAttach(Shared self, wire::Attach message, uint64_t request, Gate::Hold) {
  Status status = co_await self->Attach(message, request);
  if (!status.ok()) {
    LogWarn("{}: attach: {}", self->Who(), status.ToString());
    self->Send(wire::Session::PackError(status, request));
  }
}

Task<Status> Connection::Attach(wire::Attach message, uint64_t request) {
  if (!registration_.has_value()) {
    co_return Status(Code::kFailedPrecondition, "ATTACH before REGISTER");
  }
  if (attaching_ || !owner_.IsZero()) {
    co_return Status(Code::kFailedPrecondition, "this connection has its slots already");
  }
  if (message.slots < 2 || message.slots > kSlotsMax ||
      format::ChunkCount(message.slot_bytes, context_.chunk_bytes()) > limits::kChunksPerShardMax) {
    co_return FailStatus(Code::kInvalidArgument, "{} slots of {}: 2 to {} slots of at most {}",
                         message.slots, HumanBytes(message.slot_bytes), kSlotsMax,
                         HumanBytes(uint64_t{limits::kChunksPerShardMax} * context_.chunk_bytes()));
  }
  GrantRequest grant;
  grant.owner = context_.rng.NewId();
  grant.process = registration_->process;
  grant.rank = registration_->rank;
  grant.slot_bytes = std::max<uint64_t>(AlignUp(message.slot_bytes, context_.chunk_bytes()),
                                        context_.chunk_bytes());
  grant.slots = message.slots;
  attaching_ = true;
  auto slots = co_await parts_.slab.Grant(grant);
  if (!slots.has_value() && slots.error().code() == Code::kResourceExhausted && registering_) {
    // Opening the epoch decides about the predecessor's snapshots, which may make room.
    co_await registration_changed_.WaitFor([&] { return ended_ || !registering_; });
    if (!ended_) slots = co_await parts_.slab.Grant(grant);
  }
  attaching_ = false;
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(slots));
  if (ended_) {
    parts_.slab.Release(grant.owner);
    co_return Status(Code::kCancelled, "the process is gone");
  }
  owner_ = grant.owner;
  slot_bytes_ = grant.slot_bytes;
  wire::Attached attached{grant.slots, grant.slot_bytes, kSlotDataOffset, context_.chunk_bytes()};
  Send(wire::Session::Pack(attached, request));
  for (const std::shared_ptr<Slot>& slot : *slots) {
    // A descriptor of its own: the frame may still wait when the slot is given up.
    REPRISE_CO_ASSIGN_STATUS(OwnedFd fd, slot->mapping().Duplicate());
    wire::SlotInfo info{slot->index(), slot->file_bytes(), kSlotDataOffset, false};
    Send(wire::Session::Pack(info, request), std::move(fd));
  }
  co_return OkStatus();
}

Result<LayoutCache::Entry*> Connection::FindLayout(const wire::SaveBegin& message) {
  if (!message.layout_bytes.empty() && layouts_.Find(message.layout) == nullptr) {
    if (DigestOf(message.layout_bytes) != message.layout) {
      return Error(Code::kInvalidArgument, "the layout does not have the digest it was sent under");
    }
    layouts_.Add({message.layout, std::make_shared<const Bytes>(message.layout_bytes), nullptr});
  }
  LayoutCache::Entry* entry = layouts_.Find(message.layout);
  if (entry == nullptr) {
    return Error(Code::kNotFound, "the layout is not known here (any more): send it along");
  }
  if (entry->decoded == nullptr) {
    REPRISE_ASSIGN(format::Layout layout, format::DecodeLayout(*entry->encoded));
    entry->decoded = std::make_shared<const format::Layout>(std::move(layout));
  }
  return entry;
}

Result<SaveSpec> Connection::MakeSpec(const wire::SaveBegin& message) {
  if (fenced_) {
    return Error(Code::kFenced, "a newer run of this job has started; this one may not save");
  }
  if (owner_.IsZero()) return Error(Code::kFailedPrecondition, "SAVE_BEGIN before ATTACH");
  if (message.metadata.size() > format::kMetadataBytesMax) {
    return Fail(Code::kInvalidArgument, "step {}: {} of metadata, at most {} are kept",
                message.step, HumanBytes(message.metadata.size()),
                HumanBytes(format::kMetadataBytesMax));
  }
  if (message.length > slot_bytes_) {
    return Fail(Code::kResourceExhausted,
                "step {}: a shard of {} does not fit the slots of {} that were attached: connect "
                "anew and attach larger ones",
                message.step, HumanBytes(message.length), HumanBytes(slot_bytes_));
  }
  REPRISE_ASSIGN(LayoutCache::Entry * layout, FindLayout(message));
  if (layout->decoded->shard_bytes != message.length ||
      layout->decoded->chunk_bytes != context_.chunk_bytes()) {
    return Fail(
        Code::kInvalidArgument,
        "step {}: the layout is for {} bytes in chunks of {}, the save for {} in chunks of {}",
        message.step, layout->decoded->shard_bytes, layout->decoded->chunk_bytes, message.length,
        context_.chunk_bytes());
  }
  SaveSpec spec;
  spec.shard.job = registered_->job;
  spec.shard.key = {registered_->epoch, message.step};
  spec.shard.rank = registration_->rank;
  spec.shard.world = registration_->world;
  spec.process = registration_->process;
  spec.who = Who();
  spec.length = message.length;
  spec.chunk_bytes = context_.chunk_bytes();
  spec.layout_digest = message.layout;
  spec.layout_bytes = layout->encoded;
  spec.layout = layout->decoded;
  spec.metadata = message.metadata;
  spec.keep = message.keep;
  return spec;
}

Status Connection::Begin(const wire::SaveBegin& message, uint64_t request) {
  if (!registered_.has_value()) {
    return Status(Code::kFailedPrecondition, "SAVE_BEGIN before REGISTERED");
  }
  Result<SaveSpec> spec = MakeSpec(message);
  Status status = StatusOf(spec);
  std::shared_ptr<Slot> slot;
  if (status.ok()) {
    Result<std::shared_ptr<Slot>> taken = parts_.slab.Take(owner_, spec->shard);
    status = StatusOf(taken);
    if (status.ok()) {
      slot = *taken;
    } else if (status.code() == Code::kResourceExhausted) {
      status = FailStatus(Code::kResourceExhausted,
                          "{}; the store drains at {}/s: save less often, attach more slots, or "
                          "give the store more bandwidth",
                          status.message(),
                          HumanBytes(static_cast<uint64_t>(parts_.saves.uploader().drain_rate())));
    }
  }
  if (!status.ok()) {
    // This rank will not take part: the others must not wait for it. A missing layout is repaired
    // by the client's next try.
    if (status.code() != Code::kFenced && status.code() != Code::kNotFound) {
      parts_.saves.Announce(registered_->job, {registered_->epoch, message.step},
                            registration_->rank, Who() + ": " + status.message());
    }
    return status;
  }
  uint32_t slot_index = slot->index();
  std::shared_ptr<Save> save =
      parts_.saves.Start(std::move(*spec), std::move(slot), SaveObserver());
  saves_.emplace(save->id, save);
  Send(wire::Session::Pack(wire::SaveGrant{save->id, slot_index}, request));
  return OkStatus();
}

std::shared_ptr<Save> Connection::FindSave(uint64_t id) const {
  auto found = saves_.find(id);
  return found == saves_.end() ? nullptr : found->second;
}

Status Connection::Skip(const wire::SaveSkip& message) {
  if (!registered_.has_value()) {
    return Status(Code::kFailedPrecondition, "SAVE_SKIP before REGISTERED");
  }
  std::string reason = Who() + ": " + message.reason;
  if (!message.save.has_value()) {
    parts_.saves.Announce(registered_->job, {registered_->epoch, message.step}, registration_->rank,
                          std::move(reason));
  } else if (auto save = FindSave(*message.save)) {
    parts_.saves.Fail(save, Status(Code::kAborted, std::move(reason)), true);
  }
  return OkStatus();
}

SaveService::Observer Connection::SaveObserver() {
  return {this, [this](const wire::SaveState& state) { OnSaveState(state); }};
}

void Connection::OnSaveState(const wire::SaveState& state) {
  Send(wire::Session::Pack(state, 0));
  std::shared_ptr<Save> save = FindSave(state.save);
  // The slot is gone, and with one slot less this process could not save again.
  bool lost_slot = save != nullptr && save->failed() && save->slot->mapping().damaged();
  if (lost_slot) {
    // After it has read why.
    context_.loop.AddTimer(context_.loop.Now() + kLastNews, [weak = weak_from_this()] {
      if (Shared self = weak.lock()) self->Stop("one of its slots was truncated");
    });
  }
  if (state.phase == wire::SavePhase::kCommitted || state.phase == wire::SavePhase::kFailed) {
    saves_.erase(state.save);
  }
}

}  // namespace reprise::node
