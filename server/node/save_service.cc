#include "server/node/save_service.h"

#include <utility>

#include "core/base/log.h"

namespace reprise::node {
namespace {

// For some ranks times the saves that a process may have open.
constexpr size_t kEndedMax = 256;

}  // namespace

SaveService::SaveService(NodeContext& context, Slab& slab, std::function<void()> inventory_changed)
    : context_(context),
      slab_(slab),
      inventory_changed_(std::move(inventory_changed)),
      uploader_(context, slab, [this](const std::shared_ptr<Save>& save, Status why) {
        Fail(save, std::move(why), true);
      }) {}

std::shared_ptr<Save> SaveService::Start(SaveSpec spec, std::shared_ptr<Slot> slot,
                                         Observer observer) {
  auto save = std::make_shared<Save>(context_.loop, next_id_++, std::move(spec), std::move(slot));
  save->watcher = observer.watcher;
  save->observer = std::move(observer.tell);
  // A step that is saved again: what became of it before is no news any more.
  const format::ShardIdentity& shard = save->spec.shard;
  std::erase_if(ended_, [&](const Ended& ended) {
    return ended.shard.job == shard.job && ended.shard.key == shard.key &&
           ended.shard.rank == shard.rank;
  });
  saves_.emplace(save->id, save);
  Gate::Hold begin_hold = context_.gate.Enter();
  Gate::Hold hash_hold = context_.gate.Enter();
  if (begin_hold && hash_hold) {
    context_.loop.Spawn(RunBegin(this, save, std::move(begin_hold)));
    context_.loop.Spawn(RunHash(this, save, std::move(hash_hold)));
  }
  return save;
}

void SaveService::Resume(std::shared_ptr<Slot> slot) {
  auto save = Save::OfSealedSlot(context_.loop, next_id_++, std::move(slot));
  saves_.emplace(save->id, save);
  uploader_.Enqueue(save);
}

Task<void> SaveService::RunBegin(SaveService* service, std::shared_ptr<Save> save, Gate::Hold) {
  NodeContext& context = service->context_;
  lifecycle::BeginRequest request;
  request.job = save->spec.shard.job;
  request.epoch = save->spec.shard.key.epoch;
  request.step = save->spec.shard.key.step;
  request.rank = save->spec.shard.rank;
  request.process = save->spec.process;
  request.metadata = save->spec.metadata;
  request.keep = save->spec.keep;
  Backoff backoff;
  TimePoint give_up = context.loop.Now() + context.options.upload_retry_max;
  while (!save->over() && !context.closing) {
    Result<lifecycle::BeginAnswer> answer = co_await context.coordinator.Begin(request);
    if (answer.has_value()) {
      if (save->over()) co_return;
      save->spec.shard.attempt = answer->attempt;
      save->changed.Notify();
      service->uploader_.Enqueue(save);
      co_return;
    }
    const Status& status = answer.error();
    if (!IsTransient(status.code()) || context.loop.Now() >= give_up) {
      service->Fail(save, status.Annotate(save->spec.who + ": begin"), true);
      co_return;
    }
    co_await context.Pause(backoff.Next());
  }
}

Task<void> SaveService::RunHash(SaveService* service, std::shared_ptr<Save> save, Gate::Hold) {
  co_await service->HashAll(save);
  NodeContext& context = service->context_;
  co_await save->changed.WaitFor([&] {
    return save->over() || context.closing || (save->seal_requested && save->has_attempt());
  });
  if (!save->over() && !context.closing) co_await service->SealLocally(save);
  save->sealing = SlotUse();
}

Task<void> SaveService::HashAll(std::shared_ptr<Save> save) {
  auto ended = [&] { return save->over() || context_.closing; };
  TimePoint slice_end = context_.loop.Now() + kHashSlice;
  while (!ended() && !save->all_hashed()) {
    if (save->to_hash.empty()) {
      co_await save->changed.WaitFor([&] { return ended() || !save->to_hash.empty(); });
      slice_end = context_.loop.Now() + kHashSlice;
      continue;
    }
    save->HashOne();
    context_.stats.bytes_hashed += save->Chunk(save->hashed_order.back()).size();
    save->changed.Notify();
    if (context_.loop.Now() < slice_end) continue;
    co_await context_.loop.Yield();
    slice_end = context_.loop.Now() + kHashSlice;
  }
  // Chunks that came out of order.
  while (!ended() && save->AdvancePieces()) {
    if (context_.loop.Now() < slice_end) continue;
    co_await context_.loop.Yield();
    slice_end = context_.loop.Now() + kHashSlice;
  }
}

Task<void> SaveService::SealLocally(std::shared_ptr<Save> save) {
  if (save->slot->mapping().damaged()) {
    Fail(save,
         FailStatus(Code::kDataLoss,
                    "{}: the memory of its snapshot was cut short while it was being read: a "
                    "process has truncated {}",
                    save->spec.who, save->slot->name()),
         true);
    co_return;
  }
  auto manifest = std::make_shared<const format::ShardManifest>(save->MakeManifest());
  Status sealed = co_await slab_.Seal(save->slot, manifest, save->spec.layout_bytes);
  // Ended meanwhile: whoever ended it has dealt with the slot, unless the seal came first.
  if (save->over()) {
    // Only an abort can have come first: nothing commits before it is sealed.
    if (sealed.ok() && save->has_slot()) slab_.Discard(save->slot);
    co_return;
  }
  if (!sealed.ok()) {
    Fail(save, sealed.Annotate(save->spec.who + ": sealing the snapshot"), true);
    co_return;
  }
  save->manifest = std::move(manifest);
  save->Emit(wire::SavePhase::kLocalSealed);
  save->changed.Notify();
  inventory_changed_();
}

std::vector<std::shared_ptr<Save>> SaveService::Rejoin(const Id& job, uint64_t epoch, uint32_t rank,
                                                       const Observer& observer) {
  auto is_theirs = [&](const format::ShardIdentity& shard) {
    return shard.job == job && shard.key.epoch == epoch && shard.rank == rank;
  };
  for (const Ended& ended : ended_) {
    if (is_theirs(ended.shard)) observer.tell(ended.state);
  }
  std::vector<std::shared_ptr<Save>> open;
  for (const auto& [id, save] : saves_) {
    if (!is_theirs(save->spec.shard) || !save->seal_requested) continue;
    save->watcher = observer.watcher;
    save->observer = observer.tell;
    observer.tell(save->State());
    open.push_back(save);
  }
  return open;
}

void SaveService::Remember(const Save& save) {
  if (!save.seal_requested) return;
  ended_.push_back({save.spec.shard, save.State()});
  if (ended_.size() > kEndedMax) ended_.pop_front();
}

void SaveService::AddReady(const std::shared_ptr<Save>& save, uint64_t first, uint64_t count) {
  if (save->over()) return;
  Status status = save->AddReady(first, count);
  if (!status.ok()) {
    Fail(save, status.Annotate(save->spec.who), true);
    return;
  }
  save->changed.Notify();
}

void SaveService::RequestSeal(const std::shared_ptr<Save>& save) {
  if (save->over()) return;
  if (!save->all_ready()) {
    Fail(save,
         FailStatus(Code::kInvalidArgument, "{}: sealed step {} with {} of {} chunks copied",
                    save->spec.who, save->spec.shard.key.step, save->ready_count,
                    save->chunk_count()),
         true);
    return;
  }
  save->seal_requested = true;
  save->sealing = SlotUse(save->slot);
  save->changed.Notify();
}

void SaveService::Fail(const std::shared_ptr<Save>& save, Status why, bool announce) {
  if (save->over()) return why.IgnoreError();  // it was told how it ended
  LogWarn("step {} of {} failed: {}", save->spec.shard.key.step, save->spec.who, why.ToString());
  save->failure = why;
  saves_.erase(save->id);
  save->queued = SlotUse();
  if (save->has_slot() || slab_.mutations().discard_reused_slot) slab_.Discard(save->slot);
  save->Emit(wire::SavePhase::kFailed);
  Remember(*save);
  save->changed.Notify();
  if (save->manifest != nullptr) inventory_changed_();
  if (announce) {
    Announce(save->spec.shard.job, save->spec.shard.key, save->spec.shard.rank, why.message());
  }
}

void SaveService::Announce(Id job, CheckpointKey key, uint32_t rank, std::string reason) {
  Gate::Hold hold = context_.gate.Enter();
  if (!hold) return;
  lifecycle::SkipRequest skip{job, key.epoch, key.step, rank, std::move(reason)};
  context_.loop.Spawn(RunAnnounce(this, std::move(skip), std::move(hold)));
}

Task<void> SaveService::RunAnnounce(SaveService* service, lifecycle::SkipRequest skip, Gate::Hold) {
  NodeContext& context = service->context_;
  Backoff backoff;
  TimePoint give_up = context.loop.Now() + context.options.upload_retry_max;
  while (true) {
    Status status = co_await context.coordinator.Skip(skip);
    // FENCED and the like: the attempt is over anyway.
    if (status.ok() || !IsTransient(status.code())) co_return;
    if (context.closing || context.loop.Now() >= give_up) {
      LogWarn("could not tell the coordinator that rank {} skips step {}: {}", skip.rank, skip.step,
              status.ToString());
      co_return;
    }
    co_await context.Pause(backoff.Next());
  }
}

std::vector<std::shared_ptr<Save>> SaveService::SavesOf(const lifecycle::NodeEvent& event) const {
  std::vector<std::shared_ptr<Save>> found;
  for (const auto& [id, save] : saves_) {
    const format::ShardIdentity& shard = save->spec.shard;
    if (shard.job != event.job || shard.key != event.key) continue;
    // The event may overtake the answer to Begin.
    if (save->has_attempt() && shard.attempt != event.attempt) continue;
    found.push_back(save);
  }
  return found;
}

void SaveService::OnEvent(const lifecycle::NodeEvent& event) {
  using Kind = lifecycle::NodeEvent::Kind;
  switch (event.kind) {
    case Kind::kCommitted: OnCommitted(event); break;
    case Kind::kAborted: OnAborted(event); break;
    case Kind::kFenced: OnFenced(event); break;
    case Kind::kLocalSealed:
      for (const std::shared_ptr<Save>& save : SavesOf(event)) {
        save->Emit(wire::SavePhase::kLocalAll);
        save->upload_asked = true;
        save->changed.Notify();
      }
      break;
    case Kind::kSettle: break;  // membership answers it
  }
}

void SaveService::Wake() {
  for (const auto& [id, save] : saves_) save->changed.Notify();
}

void SaveService::OnCommitted(const lifecycle::NodeEvent& event) {
  for (const std::shared_ptr<Save>& save : SavesOf(event)) {
    save->committed = true;
    save->queued = SlotUse();
    saves_.erase(save->id);
    save->Emit(wire::SavePhase::kCommitted);
    Remember(*save);
    save->changed.Notify();
  }
  slab_.OnCommitted(event.job, event.key, event.attempt);
  inventory_changed_();
}

void SaveService::OnAborted(const lifecycle::NodeEvent& event) {
  for (const std::shared_ptr<Save>& save : SavesOf(event)) {
    Fail(save, Status(Code::kAborted, event.reason), false);
  }
  slab_.OnAborted(event.job, event.key, event.attempt);
}

void SaveService::OnFenced(const lifecycle::NodeEvent& event) {
  auto all = saves_;
  for (const auto& [id, save] : all) {
    const format::ShardIdentity& shard = save->spec.shard;
    if (shard.job != event.job || shard.key.epoch > event.key.epoch) continue;
    // A sealed snapshot may still be adopted by the new epoch: the coordinator decides.
    if (save->manifest != nullptr) continue;
    Fail(
        save,
        FailStatus(Code::kFenced, "a newer run of this job has started ({}); this one may not save",
                   event.reason.empty() ? "epoch fenced" : event.reason),
        false);
  }
}

}  // namespace reprise::node
