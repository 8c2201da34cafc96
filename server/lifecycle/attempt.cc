#include "server/lifecycle/attempt.h"

#include <algorithm>
#include <utility>

#include "core/base/text.h"

namespace reprise::lifecycle {
namespace {

constexpr size_t kRankRangesShown = 16;
constexpr size_t kReasonBytesMax = 512;  // an ABORT entry must fit a slot with room to spare

std::set<uint32_t> RanksWithout(uint32_t world, const std::set<uint32_t>& present) {
  std::set<uint32_t> missing;
  for (uint32_t rank = 0; rank < world; ++rank) {
    if (!present.contains(rank)) missing.insert(missing.end(), rank);
  }
  return missing;
}

}  // namespace

std::string RankList(const std::set<uint32_t>& ranks) {
  std::string text;
  size_t shown = 0;
  size_t ranges = 0;
  for (auto it = ranks.begin(); it != ranks.end() && ranges < kRankRangesShown; ++ranges) {
    uint32_t first = *it;
    uint32_t last = first;
    for (++it, ++shown; it != ranks.end() && *it == last + 1; ++it, ++shown) last = *it;
    if (!text.empty()) text += ", ";
    text += first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last);
  }
  if (shown < ranks.size()) text += fmt::format(" and {} more", ranks.size() - shown);
  return text;
}

Result<AttemptPtr> Attempts::Begin(const BeginRequest& request, uint32_t world) {
  CheckpointKey key{request.epoch, request.step};
  const JobState* job = core_.state.FindJob(request.job);
  REPRISE_CHECK(job != nullptr);
  if (job->checkpoints.contains(key)) {
    return Fail(Code::kAlreadyExists, "{} is committed already", NameOf(key));
  }
  if (auto over = job->over.find(key); over != job->over.end()) {
    if (over->second.committed) {
      return Fail(Code::kAlreadyExists, "{} was committed, and deleted since", NameOf(key));
    }
    return Fail(Code::kAborted, "{} was aborted: {}", NameOf(key), over->second.end.reason);
  }
  AttemptPtr attempt = ByKey(request.job, key);
  if (attempt == nullptr) {
    REPRISE_ASSIGN(attempt, MintFor(request, world));
  }
  if (!attempt->accepts()) {
    return Fail(Code::kAborted, "{} was aborted: {}", NameOf(key), attempt->reason);
  }
  attempt->begun.insert(request.rank);
  if (request.rank == 0) {
    attempt->metadata = request.metadata;
    attempt->keep = request.keep;
  }
  return attempt;
}

Result<AttemptPtr> Attempts::MintFor(const BeginRequest& request, uint32_t world) {
  std::string open;
  size_t open_count = 0;
  for (const AttemptPtr& other : OfJob(request.job)) {
    if (other->key.epoch != request.epoch || !other->accepts()) continue;
    ++open_count;
    open += fmt::format("{}step {} lacks ranks {}", open.empty() ? "" : "; ", other->key.step,
                        MissingRanks(*other));
  }
  if (open_count >= core_.options.open_attempts_max) {
    return Fail(Code::kFailedPrecondition,
                "rank {} begins step {} while {} other steps are being saved ({}): ranks disagree "
                "on the step, or saves take longer than their interval",
                request.rank, request.step, open_count, open);
  }
  return Make(core_.rng.NewId(), request.job, {request.epoch, request.step}, world);
}

AttemptPtr Attempts::Make(const Id& id, const Id& job, const CheckpointKey& key, uint32_t world) {
  auto attempt = std::make_shared<Attempt>();
  attempt->id = id;
  attempt->job = job;
  attempt->key = key;
  attempt->world = world;
  attempt->wall_micros = core_.WallMicros();
  attempt->last_progress = core_.Now();
  attempt->begin_deadline = core_.Now() + core_.options.begin_window;
  by_id_[id] = attempt;
  by_key_[{job, key}] = attempt;
  Watch(attempt);
  return attempt;
}

Status Attempts::WhyOver(const JobState& job, const format::ShardIdentity& shard) const {
  if (auto row = job.checkpoints.find(shard.key); row != job.checkpoints.end()) {
    if (row->second.commit.attempt == shard.attempt) {
      return FailStatus(Code::kAlreadyExists, "{} is committed", NameOf(shard.key));
    }
    return FailStatus(Code::kAborted, "{} was committed by another attempt", NameOf(shard.key));
  }
  if (auto row = job.over.find(shard.key); row != job.over.end()) {
    if (row->second.committed && row->second.end.attempt == shard.attempt) {
      return FailStatus(Code::kAlreadyExists, "{} was committed, and deleted since",
                        NameOf(shard.key));
    }
    return FailStatus(Code::kAborted, "{} was aborted: {}", NameOf(shard.key),
                      row->second.end.reason);
  }
  return OkStatus();
}

Result<AttemptPtr> Attempts::Find(const format::ShardIdentity& shard) {
  const JobState* job = core_.state.FindJob(shard.job);
  if (job == nullptr) return Fail(Code::kNotFound, "no such job: register first");
  if (Status over = WhyOver(*job, shard); !over.ok()) return Error(std::move(over));
  AttemptPtr attempt = Revive(shard);
  bool by_step = core_.mutations.shards_keyed_by_step && attempt != nullptr;
  uint64_t epoch = by_step ? attempt->key.epoch : shard.key.epoch;
  if (epoch < core_.FenceOf(*job) && (attempt == nullptr || !attempt->adopted)) {
    return Fail(Code::kFenced, "epoch {} is over: epoch {} of this job runs now", epoch,
                job->epoch());
  }
  if (attempt == nullptr) {
    return Fail(Code::kAborted, "{}: this attempt is not known: begin the next step",
                NameOf(shard.key));
  }
  if (!attempt->accepts()) {
    return Fail(Code::kAborted, "{} was aborted: {}", NameOf(shard.key), attempt->reason);
  }
  return attempt;
}

AttemptPtr Attempts::Revive(const format::ShardIdentity& shard) {
  const JobState* job = core_.state.FindJob(shard.job);
  if (job == nullptr || shard.attempt.IsZero()) return nullptr;
  if (core_.mutations.shards_keyed_by_step) {
    for (const AttemptPtr& other : OfJob(shard.job)) {
      if (other->key.step == shard.key.step && other->accepts()) return other;
    }
  }
  if (AttemptPtr known = ById(shard.attempt); known != nullptr) {
    bool same = known->job == shard.job && known->key == shard.key && known->world == shard.world;
    return same ? known : nullptr;
  }
  // What a later run has resumed without is over for good, also while a still later one settles.
  bool unsettled = shard.key.epoch < job->epoch() && !job->resumed();
  for (auto later = job->epochs.upper_bound(shard.key.epoch); later != job->epochs.end(); ++later) {
    unsettled = unsettled && !later->second.resume.has_value();
  }
  bool possible = shard.key.epoch != 0 && (shard.key.epoch == job->epoch() || unsettled);
  if (!possible || ByKey(shard.job, shard.key) != nullptr || !WhyOver(*job, shard).ok()) {
    return nullptr;
  }
  auto epoch = job->epochs.find(shard.key.epoch);
  if (epoch == job->epochs.end() || epoch->second.grant.world != shard.world) return nullptr;
  // Made-up attempts must not crowd out real ones: slots in slabs hold a few snapshots, not thousands.
  size_t open = 0;
  for (const AttemptPtr& other : OfJob(shard.job)) open += other->accepts() ? 1 : 0;
  if (open >= kRevivedMax && core_.state.FindAttempt(shard.attempt) == nullptr) return nullptr;
  return Make(shard.attempt, shard.job, shard.key, shard.world);
}

AttemptPtr Attempts::ById(const Id& attempt) const {
  auto found = by_id_.find(attempt);
  return found == by_id_.end() ? nullptr : found->second;
}

AttemptPtr Attempts::ByKey(const Id& job, const CheckpointKey& key) const {
  auto found = by_key_.find({job, key});
  return found == by_key_.end() ? nullptr : found->second;
}

std::vector<AttemptPtr> Attempts::OfJob(const Id& job) const {
  std::vector<AttemptPtr> attempts;
  for (auto it = by_key_.lower_bound({job, CheckpointKey{}});
       it != by_key_.end() && it->first.first == job; ++it) {
    attempts.push_back(it->second);
  }
  return attempts;
}

Task<Status> Attempts::Abort(AttemptPtr attempt, std::string reason) {
  if (attempt->accepts()) {
    attempt->phase = AttemptPhase::kFailing;
    attempt->reason = CutText(reason, kReasonBytesMax);
  }
  AsyncMutex::Hold job_lock = co_await core_.JobLock(attempt->job).Lock();
  SharedLock::Hold ledger = co_await core_.ledger.Exclude();
  if (attempt->phase != AttemptPhase::kFailing) co_return OkStatus();
  Status logged = co_await core_.log.Append(
      {format::AbortEntry{attempt->job, attempt->key, attempt->id, attempt->reason}});
  if (!logged.ok()) co_return logged;
  LogWarn("{} aborted: {}", NameOf(attempt->key), attempt->reason);
  End(attempt, AttemptPhase::kAborted, attempt->reason);
  co_return OkStatus();
}

void Attempts::End(const AttemptPtr& attempt, AttemptPhase phase, std::string reason) {
  attempt->phase = phase;
  attempt->reason = std::move(reason);
  if (attempt->timer != 0) core_.loop.CancelTimer(std::exchange(attempt->timer, 0));
  by_id_.erase(attempt->id);
  by_key_.erase({attempt->job, attempt->key});
  NodeEvent event;
  event.kind =
      phase == AttemptPhase::kCommitted ? NodeEvent::Kind::kCommitted : NodeEvent::Kind::kAborted;
  event.job = attempt->job;
  event.key = attempt->key;
  event.attempt = attempt->id;
  event.reason = attempt->reason;
  core_.events.Publish(event);
  core_.changed.Notify();
}

void Attempts::Watch(const AttemptPtr& attempt) {
  bool all_begun = WhoHasNotBegun(*attempt).empty();
  TimePoint when = attempt->last_progress + core_.options.attempt_timeout;
  if (!all_begun) when = std::min(when, attempt->begin_deadline);
  // A deadline that has passed is looked at in a later turn, never inside the caller.
  when = std::max(when, core_.Now());
  attempt->timer = core_.loop.AddTimer(when, [this, id = attempt->id] { OnTimer(id); });
}

void Attempts::OnTimer(const Id& id) {
  AttemptPtr attempt = ById(id);
  if (attempt == nullptr) return;
  attempt->timer = 0;
  if (attempt->phase == AttemptPhase::kFailing) return;
  // An attempt of an older epoch that settle has not judged yet has its own deadline there.
  const JobState* job = core_.state.FindJob(attempt->job);
  bool settling = job != nullptr && attempt->key.epoch < job->epoch();
  std::string late = WhoHasNotBegun(*attempt);
  TimePoint now = core_.Now();
  if (!settling && !late.empty() && now >= attempt->begin_deadline) {
    core_.Spawn([](Attempts& self, AttemptPtr lost, std::string reason)
                    -> Task<void> {
      Status aborted = co_await self.Abort(lost, reason);
      if (!aborted.ok()) LogWarn("{}", aborted.ToString());
    }(*this, attempt,
                    fmt::format("{} did not begin step {} within {:.0f} s (store.begin_window)",
                                late, attempt->key.step, SecondsOf(core_.options.begin_window))));
    return;
  }
  if (!settling && now >= attempt->last_progress + core_.options.attempt_timeout) {
    core_.Spawn(
        [](Attempts& self, AttemptPtr lost, std::string reason)
            -> Task<void> {
          Status aborted = co_await self.Abort(lost, reason);
          if (!aborted.ok()) LogWarn("{}", aborted.ToString());
        }(*this, attempt,
            fmt::format("no progress for {:.0f} s (store.attempt_timeout); missing ranks {}",
                        SecondsOf(core_.options.attempt_timeout), MissingRanks(*attempt))));
    return;
  }
  if (settling) {
    attempt->last_progress = now;
    attempt->begin_deadline = now + core_.options.begin_window;
  }
  Watch(attempt);
}

std::string Attempts::MissingRanks(const Attempt& attempt) const {
  std::set<uint32_t> present;
  if (const PreparedAttempt* prepared = core_.state.FindAttempt(attempt.id)) {
    for (const auto& [rank, shard] : prepared->shards) present.insert(rank);
  }
  return RankList(RanksWithout(attempt.world, present));
}

std::string Attempts::WhoHasNotBegun(const Attempt& attempt) const {
  std::set<uint32_t> present = attempt.begun;
  if (const PreparedAttempt* prepared = core_.state.FindAttempt(attempt.id)) {
    for (const auto& [rank, shard] : prepared->shards) present.insert(rank);
  }
  std::set<uint32_t> missing = RanksWithout(attempt.world, present);
  if (missing.empty()) return {};
  std::string text = "ranks " + RankList(missing);
  std::string where = step_of_ ? step_of_(attempt.job, *missing.begin()) : std::string();
  if (!where.empty()) text += " (" + where + ")";
  return text;
}

void Attempts::Close() {
  for (auto& [id, attempt] : by_id_) {
    if (attempt->timer != 0) core_.loop.CancelTimer(std::exchange(attempt->timer, 0));
  }
  by_id_.clear();
  by_key_.clear();
}

}  // namespace reprise::lifecycle
