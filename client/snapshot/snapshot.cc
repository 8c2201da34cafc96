#include "client/snapshot/snapshot.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/log.h"
#include "core/base/text.h"

namespace reprise::client {
namespace {

// Refusals of a save that the daemon has announced to all ranks itself.
bool IsAnnounced(Code code) {
  return code == Code::kResourceExhausted || code == Code::kFenced || code == Code::kAborted ||
         code == Code::kAlreadyExists || code == Code::kInvalidArgument;
}

// How often the daemon is asked about a save whose connection is gone.
constexpr Nanos kOrphanPause = std::chrono::milliseconds(250);
// Stream ids of such questions, apart from those of readers.
constexpr uint64_t kOrphanStreams = uint64_t{1} << 63;

// Saves without news from daemons that were restarted meanwhile.
constexpr size_t kLiveMax = 32;

// The parts of a slot's shard that hold no piece.
std::vector<CopyPart> GapsOf(const format::Layout& layout) {
  std::vector<CopyPart> gaps;
  uint64_t end = 0;
  for (const format::Piece& piece : layout.pieces) {
    if (piece.position > end) {
      gaps.push_back({.source = nullptr, .target_offset = end, .bytes = piece.position - end});
    }
    end = piece.position + format::BytesOf(piece);
  }
  return gaps;
}

}  // namespace

Saver::Saver(Session& session, CopyEngine& engine, Options options)
    : session_(session),
      engine_(engine),
      options_(options),
      fork_generation_(ForkGeneration()),
      slots_(session, options.slots) {
  session_.SetListener(this);
  thread_ = std::thread([this] { Run(); });
}

Saver::~Saver() {
  if (IsForkChild(fork_generation_)) {
    new std::thread(std::move(thread_));
    return;
  }
  session_.SetListener(nullptr);
  slots_.Interrupt();
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    for (const std::shared_ptr<Save>& save : live_) {
      SaveProgress progress = save->progress();
      // What is copied goes on in the daemon; tickets learn no more about it.
      save->Fail(
          progress.copied_ms < 0
              ? Status(Code::kCancelled, "the client was closed before the copy was complete")
              : Status(Code::kOutcomeUnknown,
                       "the client was closed; the daemon goes on with this save"));
    }
    wake_.notify_all();
  }
  thread_.join();
}

Status Saver::Admit(uint64_t step) {
  uint64_t generation = session_.generation();
  std::optional<SteadyPoint> away = session_.away_since();
  if (away.has_value() && SteadyClock::now() - *away > options_.stall_budget) {
    REPRISE_ASSIGN_STATUS(uint64_t unused, session_.WaitConnected(Deadline::After(Nanos(0))));
    static_cast<void>(unused);
  }
  std::lock_guard lock(mutex_);
  if (fenced_.has_value()) return *fenced_;
  // The newest stays, so that Close can tell how it ended.
  const Save* newest = live_.empty() ? nullptr : live_.back().get();
  std::erase_if(live_, [&](const auto& save) { return save->over() && save.get() != newest; });
  if (live_.size() > kLiveMax) {
    live_.front()->Fail(Status(Code::kOutcomeUnknown,
                               "the node daemon was restarted and said no more about this save"));
  }
  auto occupies = [&](const auto& save) { return save->occupies_slot(generation); };
  if (std::ranges::count_if(live_, occupies) < static_cast<int64_t>(options_.slots.count)) {
    return OkStatus();
  }
  return FailStatus(
      Code::kResourceExhausted,
      "step {}: all {} slots hold saves that are not committed yet (the oldest is step "
      "{}); this step is skipped: save less often, or look at `reprise status`",
      step, options_.slots.count, live_.front()->step);
}

Result<std::shared_ptr<Save>> Saver::Start(uint64_t step, std::span<const PieceView> pieces,
                                           SaveOptions options) {
  SteadyPoint called = SteadyClock::now();
  std::lock_guard one_start(start_mutex_);
  Status admitted = Admit(step);
  if (!admitted.ok()) {
    if (admitted.code() == Code::kResourceExhausted) {
      Skip(step, admitted.message()).IgnoreError();
    }
    return Error(std::move(admitted));
  }
  auto layout = layouts_.Get(pieces, session_.chunk_bytes());
  if (!layout.has_value()) {
    Skip(step, layout.error().message()).IgnoreError();
    return Error(std::move(layout).error());
  }
  auto save = std::make_shared<Save>(step, std::move(options), *layout, options_.stall_budget,
                                     called, progress_);
  ListParts(*save, pieces);
  save->event = engine_.Record();
  REPRISE_ASSIGN(bool all_cloned, CloneVolatile(*save, pieces));
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(save);
    live_.push_back(save);
    wake_.notify_all();
  }
  if (!all_cloned) REPRISE_TRY(save->WaitCopied(Deadline::Never()));
  save->SetStartMillis(MillisSince(called));
  return save;
}

void Saver::ListParts(Save& save, std::span<const PieceView> pieces) {
  const PreparedLayout& layout = *save.layout;
  save.parts.reserve(layout.order.size());
  for (size_t i = 0; i < layout.order.size(); ++i) {
    save.parts.push_back({.source = pieces[layout.order[i]].data,
                          .target_offset = layout.layout.pieces[i].position,
                          .bytes = layout.piece_bytes[i]});
  }
}

Result<bool> Saver::CloneVolatile(Save& save, std::span<const PieceView> pieces) {
  const std::vector<uint32_t>& order = save.layout->order;
  uint64_t total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (pieces[order[i]].is_volatile) total += AlignUp(save.parts[i].bytes, 64);
  }
  if (total == 0) return true;
  if (total > options_.staging_bytes_max) return false;
  std::unique_ptr<Staging> staging;
  {
    std::lock_guard lock(mutex_);
    if (!staging_.empty()) {
      staging = std::move(staging_.back());
      staging_.pop_back();
    }
  }
  if (staging == nullptr) staging = std::make_unique<Staging>();
  if (staging->size() < total) staging->resize(total);
  uint64_t offset = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (!pieces[order[i]].is_volatile) continue;
    uint8_t* target = staging->data() + offset;
    REPRISE_TRY(engine_.Clone(target, save.parts[i].source, save.parts[i].bytes));
    save.parts[i].source = target;
    offset += AlignUp(save.parts[i].bytes, 64);
  }
  save.staging = std::move(staging);
  return true;
}

Status Saver::Skip(uint64_t step, std::string_view reason) {
  return session_.Send(wire::SaveSkip{.step = step, .save = {}, .reason = std::string(reason)});
}

void Saver::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    auto called = [&] { return closing_ || ended_ != 0 || !queue_.empty(); };
    if (std::shared_ptr<Save> orphan = OrphanLocked(); orphan != nullptr) {
      if (!wake_.wait_for(lock, kOrphanPause, called)) {
        lock.unlock();
        AskAbout(*orphan);
        lock.lock();
        continue;
      }
    } else {
      wake_.wait(lock, called);
    }
    if (ended_ != 0) {
      uint64_t ended = std::exchange(ended_, 0);
      lock.unlock();
      // Because the save before may have attached to the next connection already.
      slots_.ReleaseUpTo(ended);
      lock.lock();
      continue;
    }
    // On closing every queued save has failed: processing it only tells the daemon.
    if (queue_.empty()) return;
    std::shared_ptr<Save> save = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    Process(*save);
    Recycle(std::move(save->staging));
    lock.lock();
  }
}

std::shared_ptr<Save> Saver::OrphanLocked() const {
  std::shared_ptr<Save> first;
  for (const std::shared_ptr<Save>& save : live_) {
    if (!save->orphaned_for().has_value()) continue;
    if (save->step > asked_about_) return save;
    if (first == nullptr) first = save;
  }
  return first;
}

void Saver::AskAbout(Save& save) {
  asked_about_ = save.step;
  uint64_t generation = session_.generation();
  std::optional<ReaderTarget> target;
  {
    std::lock_guard lock(mutex_);
    target = target_;
  }
  if (generation == 0 || !target.has_value()) return;
  wire::ReadOpen question;
  question.tenant = target->tenant;
  question.job_name = target->job;
  question.step = save.step;
  question.epoch = target->epoch;
  // A fresh stream each time: an answer that came too late has left the last one open.
  uint64_t stream = kOrphanStreams + ++questions_;
  auto answer = session_.Ask<wire::ReadOk>(question, Deadline::After(kOrphanPause * 4),
                                           "news of a save", generation, stream);
  // A question without an answer may have opened its stream.
  if (answer.has_value() || answer.error().code() == Code::kDeadlineExceeded) {
    session_.SendEmpty(wire::Opcode::kReadClose, generation, stream).IgnoreError();
  }
  if (!answer.has_value()) {
    if (answer.error().code() == Code::kNotFound) GiveUpOrphan(save);
    return;
  }
  save.OnCommitted();
}

void Saver::GiveUpOrphan(Save& save) {
  // A sealed shard outlives its daemon: the next one finds it and tells its state as soon as this
  // rank has registered there (Save::OnState). A shard that it does not hold was not sealed yet, or
  // lost with the node's memory; the other ranks must not wait for it.
  if (save.orphaned_for().value_or(Nanos(0)) < options_.orphan_patience) return;
  save.Fail(
      FailStatus(Code::kOutcomeUnknown,
                 "step {}: the node daemon was restarted and does not hold the shard, and {:.0f} s "
                 "later the checkpoint does not exist; look at `reprise show`",
                 save.step, SecondsOf(options_.orphan_patience)));
  Skip(save.step, "its node daemon was restarted in mid-save").IgnoreError();
}

void Saver::SetRun(ReaderTarget target) {
  std::lock_guard lock(mutex_);
  target_ = std::move(target);
}

void Saver::Recycle(std::unique_ptr<Staging> staging) {
  if (staging == nullptr) return;
  std::lock_guard lock(mutex_);
  staging_.push_back(std::move(staging));
}

void Saver::Process(Save& save) {
  uint64_t generation = 0;
  std::optional<uint64_t> id;
  Status status = Transfer(save, generation, id);
  if (status.ok()) {
    save.SetCopied();
    status = save.status();
    // A failure that came in between is the daemon's, or an Abort that has to be passed on.
    if (status.ok()) return;
  }
  save.Fail(status.Annotate("step " + std::to_string(save.step)));
  Status final_status = save.status();
  if (final_status.code() == Code::kFenced) {
    std::lock_guard lock(mutex_);
    fenced_ = final_status;
  }
  if (save.told_by_daemon()) return;
  wire::SaveSkip skip{.step = save.step, .save = id, .reason = final_status.message()};
  skip.reason.resize(CutText(skip.reason, format::kReasonBytesMax).size());
  // When the daemon is away it finds this save unfinished itself.
  session_.Send(skip, generation).IgnoreError();
}

Status Saver::Transfer(Save& save, uint64_t& generation, std::optional<uint64_t>& id) {
  Deadline patience = Deadline::After(options_.stall_budget);
  Result<wire::SaveGrant> grant = Begin(save, generation, patience);
  // A daemon that was restarted before it granted anything: nothing is lost, ask the new one.
  while (!grant.has_value() && generation != 0 && session_.generation() != generation &&
         !save.over() && !patience.expired()) {
    generation = 0;
    grant = Begin(save, generation, patience);
  }
  if (!grant.has_value()) return grant.error();
  id = grant->save;
  save.SetBegun(generation, grant->save);
  if (!save.BeginReading()) return save.status();
  Status copied = CopyInto(save, *grant, generation);
  save.EndReading();
  if (!copied.ok()) {
    slots_.ForgetGaps(grant->slot);
    Status reason = save.status();
    return reason.ok() ? copied : reason;
  }
  return session_.Send(wire::SaveSeal{.save = grant->save}, generation);
}

Result<wire::SaveGrant> Saver::Begin(Save& save, uint64_t& generation, Deadline patience) {
  if (save.over()) return Error(save.status());
  while (true) {
    Deadline turn = Deadline::After(std::chrono::milliseconds(100));
    Result<uint64_t> connected = session_.WaitConnected(patience.Earlier(turn));
    generation = connected.value_or(0);
    if (connected.has_value()) break;
    bool final = connected.error().code() != Code::kUnavailable || patience.expired();
    if (final || save.over()) return Error(std::move(connected).error());
  }
  Status attached = slots_.Ensure(generation, save.layout->layout.shard_bytes);
  if (!attached.ok()) return Error(std::move(attached));
  save.AddProgress();
  // Given up while the slots were attached: the next save finds them.
  if (save.over()) return Error(save.status());
  if (layouts_generation_ != generation) {
    layouts_generation_ = generation;
    layouts_sent_.clear();
  }
  wire::SaveBegin begin;
  begin.step = save.step;
  begin.length = save.layout->layout.shard_bytes;
  begin.layout = save.layout->digest;
  if (!layouts_sent_.contains(begin.layout)) begin.layout_bytes = save.layout->encoded;
  begin.metadata = save.options.metadata;
  begin.durability = save.options.durability;
  begin.keep = save.options.keep;
  auto grant = AskLeave(save, begin, generation);
  if (!grant.has_value() && grant.error().code() == Code::kNotFound && begin.layout_bytes.empty()) {
    // The daemon keeps a bounded number of layouts: this one has to be sent again.
    layouts_sent_.erase(begin.layout);
    return Begin(save, generation, patience);
  }
  if (grant.has_value()) {
    layouts_sent_.insert(begin.layout);
  } else if (IsAnnounced(grant.error().code())) {
    save.FailByDaemon(grant.error());
  }
  return grant;
}

Result<wire::SaveGrant> Saver::AskLeave(Save& save, const wire::SaveBegin& begin,
                                        uint64_t generation) {
  auto inbox = std::make_shared<Inbox>();
  REPRISE_ASSIGN(uint64_t request, session_.Start(begin, inbox, generation));
  Result<Reply> reply = save.Await(inbox, Deadline::After(options_.stall_budget),
                                   "leave to save (raise stall_budget_s if the node is busy)");
  session_.Forget(request);
  if (!reply.has_value()) return Error(std::move(reply).error());
  return wire::Decode<wire::SaveGrant>(reply->body);
}

Status Saver::CopyInto(Save& save, const wire::SaveGrant& grant, uint64_t generation) {
  const format::Layout& layout = save.layout->layout;
  REPRISE_ASSIGN_STATUS(MutableByteView target, slots_.Data(grant.slot, layout.shard_bytes));
  if (!slots_.ClaimZeroedGaps(grant.slot, save.layout->digest)) {
    for (const CopyPart& gap : GapsOf(layout)) {
      std::memset(target.data() + gap.target_offset, 0, gap.bytes);
    }
  }
  uint64_t chunks = format::ChunkCount(layout.shard_bytes, layout.chunk_bytes);
  uint64_t batch = std::max<uint64_t>(1, options_.announce_bytes / layout.chunk_bytes);
  uint64_t announced = 0;
  Status sent;
  CopyRequest request{.parts = save.parts,
                      .target = target,
                      .chunk_bytes = layout.chunk_bytes,
                      .event = save.event.get(),
                      .cancelled = &save.cancelled(),
                      .on_progress = [&](uint64_t done) {
                        save.AddProgress();
                        if (done - announced < batch && done != chunks) return;
                        wire::SaveChunks ready{
                            .save = grant.save, .first = announced, .count = done - announced};
                        announced = done;
                        if (sent.ok()) sent = session_.Send(ready, generation);
                      }};
  REPRISE_RETURN_IF_ERROR(engine_.Copy(request));
  return sent;
}

void Saver::OnSaveState(const wire::SaveState& state) {
  std::lock_guard lock(mutex_);
  if (state.phase == wire::SavePhase::kFailed && state.code == Code::kFenced) {
    fenced_ = Status(state.code, state.message);
  }
  for (const std::shared_ptr<Save>& save : live_) {
    if (save->step == state.step) save->OnState(state);
  }
}

void Saver::OnDisconnected(uint64_t generation, const Status& why) {
  std::lock_guard lock(mutex_);
  for (const std::shared_ptr<Save>& save : live_) save->OnDisconnected(generation, why);
  ended_ = generation;
  wake_.notify_all();
}

Status Saver::WaitAll(Deadline deadline) {
  std::vector<std::shared_ptr<Save>> live;
  {
    std::lock_guard lock(mutex_);
    live = live_;
  }
  for (const std::shared_ptr<Save>& save : live) {
    if (save->over() && (save->committed() || save->was_observed())) continue;
    REPRISE_RETURN_IF_ERROR(save->Wait(save->options.durability, deadline));
  }
  return OkStatus();
}

}  // namespace reprise::client
