#include "server/node/uploader.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "core/base/log.h"

namespace reprise::node {
namespace {

// A sealed snapshot of a run that is over is kept this long for the next run's settle to adopt it; then
// the verdict, which comes as an event, must have been missed.
constexpr Nanos kSettlePatience = std::chrono::minutes(1);
constexpr Nanos kRateWindow = std::chrono::milliseconds(250);
// The trainer hears of progress this often over a shard.
constexpr uint64_t kProgressParts = 16;

bool IsOlder(const std::shared_ptr<Save>& left, const std::shared_ptr<Save>& right) {
  return std::tie(left->spec.shard.key, left->spec.shard.rank) <
         std::tie(right->spec.shard.key, right->spec.shard.rank);
}

}  // namespace

Uploader::Uploader(NodeContext& context, Slab& slab, OnFailure on_failure)
    : context_(context),
      slab_(slab),
      on_failure_(std::move(on_failure)),
      changed_(context.loop),
      rate_since_(context.loop.Now()) {}

void Uploader::Enqueue(std::shared_ptr<Save> save) {
  if (!slab_.mutations().discard_reused_slot) save->queued = SlotUse(save->slot);
  waiting_.push_back(std::move(save));
  Pump();
}

void Uploader::Pump() {
  std::erase_if(waiting_, [](const std::shared_ptr<Save>& save) { return save->over(); });
  while (active_ < context_.options.upload_streams_max && !waiting_.empty()) {
    Gate::Hold hold = context_.gate.Enter();
    if (!hold) return;
    auto oldest = std::ranges::min_element(waiting_, IsOlder);
    std::shared_ptr<Save> save = *oldest;
    waiting_.erase(oldest);
    ++active_;
    context_.loop.Spawn(Run(this, std::move(save), std::move(hold)));
  }
}

Task<void> Uploader::Run(Uploader* uploader, std::shared_ptr<Save> save, Gate::Hold) {
  std::optional<SlotUse> use(std::in_place, save->slot);
  save->queued = SlotUse();
  co_await uploader->UploadWithRetries(save);
  use.reset();
  uploader->slab_.DropSuperseded();
  --uploader->active_;
  uploader->Pump();
  uploader->changed_.Notify();
}

Task<bool> Uploader::WaitIdle(TimePoint deadline) {
  co_return co_await changed_.WaitFor([this] { return pending() == 0; }, deadline);
}

Task<void> Uploader::UploadWithRetries(std::shared_ptr<Save> save) {
  Backoff backoff;
  TimePoint last_progress = context_.loop.Now();
  std::optional<TimePoint> fenced_at;
  while (!context_.closing && !save->over()) {
    uint64_t sent_before = save->bytes_sent;
    save->upload_asked = false;
    Status status = co_await UploadOnce(save);
    if (status.ok()) {
      save->uploaded = true;
      save->changed.Notify();
      co_return;
    }
    if (save->over() || context_.closing) co_return;
    if (status.code() == Code::kDataLoss && !co_await VerifySlot(save)) {
      on_failure_(save, FailStatus(Code::kDataLoss,
                                   "{}: the snapshot changed in the slab after it was taken; does "
                                   "the process write to memory of a finished save?",
                                   save->spec.who));
      co_return;
    }
    TimePoint now = context_.loop.Now();
    bool waits_for_settle = status.code() == Code::kFenced && save->manifest != nullptr;
    if (waits_for_settle && !fenced_at.has_value()) fenced_at = now;
    waits_for_settle = waits_for_settle && now - *fenced_at < kSettlePatience;
    if (!IsTransient(status.code()) && status.code() != Code::kDataLoss && !waits_for_settle) {
      on_failure_(save, status.Annotate(save->spec.who + ": upload"));
      co_return;
    }
    if (save->bytes_sent > sent_before) {
      last_progress = now;
      backoff.Reset();
    }
    if (now - last_progress >= context_.options.upload_retry_max) {
      on_failure_(save, status.Annotate(fmt::format(
                            "{}: no progress in uploading for {:.0f} s (node.upload_retry)",
                            save->spec.who, SecondsOf(now - last_progress))));
      co_return;
    }
    Nanos pause = backoff.Next();
    LogWarn("upload of step {} of {} is repeated in {} ms: {}", save->spec.shard.key.step,
            save->spec.who, std::chrono::duration_cast<std::chrono::milliseconds>(pause).count(),
            status.ToString());
    co_await save->changed.WaitFor(
        [&] { return save->over() || context_.closing || save->upload_asked; }, now + pause);
  }
}

Task<Status> Uploader::UploadOnce(std::shared_ptr<Save> save) {
  wire::PutOpen request;
  request.shard = save->spec.shard;
  request.length = save->spec.length;
  request.chunk_bytes = save->spec.chunk_bytes;
  request.layout = save->spec.layout_digest;
  if (save->manifest != nullptr) request.root_if_sealed = save->manifest->root;
  auto opened = co_await context_.store.OpenUpload(request);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(opened));
  std::unique_ptr<dataplane::ShardUpload> upload = std::move(*opened);
  if (upload->already_sealed()) {
    co_await upload->Abandon();
    co_return OkStatus();
  }
  Status status = co_await SendAll(save, *upload);
  if (!status.ok()) {
    co_await upload->Abandon();
    co_return status;
  }
  co_return co_await upload->Seal(save->manifest->piece_digests, *save->spec.layout_bytes,
                                  save->manifest->root);
}

Task<Status> Uploader::SendAll(std::shared_ptr<Save> save, dataplane::ShardUpload& upload) {
  size_t next = 0;
  uint64_t moved = 0;
  auto ended = [&] { return save->over() || context_.closing; };
  while (next < save->chunk_count()) {
    co_await save->changed.WaitFor([&] { return ended() || next < save->hashed_order.size(); });
    while (!ended() && next < save->hashed_order.size()) {
      uint64_t index = save->hashed_order[next];
      ByteView chunk = save->Chunk(index);
      REPRISE_CO_RETURN_IF_ERROR(co_await upload.Send(index, chunk, save->digests[index]));
      ++next;
      moved += chunk.size();
      // What a repeated upload sends again is no progress.
      if (moved > save->bytes_sent) CountSent(*save, moved - save->bytes_sent);
    }
    if (ended()) break;
  }
  co_await save->changed.WaitFor([&] { return ended() || save->manifest != nullptr; });
  if (save->over()) co_return Status(Code::kAborted, "the save was given up");
  if (context_.closing) co_return Status(Code::kCancelled, "the node daemon is shutting down");
  co_return OkStatus();
}

void Uploader::CountSent(Save& save, uint64_t bytes) {
  uint64_t part = std::max<uint64_t>(save.spec.length / kProgressParts, 1);
  bool report = (save.bytes_sent + bytes) / part > save.bytes_sent / part;
  save.bytes_sent += bytes;
  context_.stats.bytes_uploaded += bytes;
  if (report && save.manifest == nullptr) save.Emit(wire::SavePhase::kTransferring);
  rate_bytes_ += bytes;
  TimePoint now = context_.loop.Now();
  if (now - rate_since_ < kRateWindow) return;
  drain_rate_ = static_cast<double>(rate_bytes_) / SecondsOf(now - rate_since_);
  rate_since_ = now;
  rate_bytes_ = 0;
}

Task<bool> Uploader::VerifySlot(std::shared_ptr<Save> save) {
  for (uint64_t index : save->hashed_order) {
    if (save->over() || context_.closing) co_return true;
    if (DigestOf(save->Chunk(index)) != save->digests[index]) {
      LogError("slab: chunk {} of step {} of {} no longer has the digest it had when it was copied",
               index, save->spec.shard.key.step, save->spec.who);
      slab_.Quarantine(save->slot);
      co_return false;
    }
    co_await context_.loop.Yield();
  }
  co_return true;
}

}  // namespace reprise::node
