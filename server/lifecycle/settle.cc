// Settle of epoch e, after its EPOCH is durable (trainers of older epochs are fenced from then on):
//
//   T1  after a restart: wait out inventory_grace, so that nodes can report what they hold
//   T2  kSettle(token) to every node; wait until each live one has answered, at most node_timeout
//   T3  adopt every attempt of an older epoch, newer than `latest`, for which each rank is PREPARED
//       here or sealed by a node that answered, with one root a rank; tell the nodes (kLocalSealed)
//   T4  adopted attempts accept OpenPut, Seal and COMMIT past the fence; wait until they have
//       ended, at most settle_timeout, up to three times that while bytes arrive
//   T5  under the job's lock: the newest checkpoint of the lineage that is intact and whose manifests
//       verify; with the ledger lock too: RESUME journalled; every other attempt of older epochs is
//       over
//
// A crash anywhere before T5 leaves an epoch without RESUME: nobody was given an answer; the ranks
// register again and the next epoch settles what is left. A crash after T5: the answer is recorded.
#include "server/lifecycle/settle.h"

#include <algorithm>
#include <utility>

#include "core/base/text.h"

namespace reprise::lifecycle {
namespace {

constexpr size_t kSkipReasonBytesMax = 160;
constexpr int kSettleExtensions = 3;
// A read that fails once must not cost the newest checkpoint: the steps since an older one are lost.
constexpr int kVerifyTries = 4;
constexpr Nanos kVerifyPause = std::chrono::milliseconds(50);  // doubles

void AddSkipped(format::ResumeEntry& resume, const CheckpointKey& key, std::string reason) {
  if (resume.skipped.size() >= kSkippedMax) return;
  reason.resize(CutText(reason, kSkipReasonBytesMax).size());
  resume.skipped.push_back({key, std::move(reason)});
}

std::string_view MarkName(format::Mark mark) {
  switch (mark) {
    case format::Mark::kIntact: return "intact";
    case format::Mark::kDamaged: return "damaged";
    case format::Mark::kPoisoned: return "poisoned";
    case format::Mark::kRecovered: return "recovered without proof of its commit";
  }
  return "unknown";
}

}  // namespace

Task<Result<format::ResumeEntry>> Settler::Settle(Id job, uint64_t epoch) {
  bool first = core_.state.FindJob(job)->epochs.size() == 1;
  if (!first && !core_.mutations.resume_without_settle) {
    uint64_t token = parts_.inventories.NextToken();
    REPRISE_CO_TRY(co_await CollectInventories(token));
    co_await WaitForCommits(Adopt(job, epoch, token));
  }
  if (core_.ending()) co_return Error(Code::kUnavailable, "the store is going down: try again");
  co_return co_await Resume(job, epoch);
}

// --- T1, T2

Task<Status> Settler::CollectInventories(uint64_t token) {
  TimePoint grace = started_ + core_.options.inventory_grace;
  if (core_.Now() < grace) {
    co_await core_.changed.WaitFor([this] { return core_.ending(); }, grace);
  }
  NodeEvent event;
  event.kind = NodeEvent::Kind::kSettle;
  event.token = token;
  core_.events.Publish(event);
  std::vector<Id> live = core_.events.LiveNodes();
  co_await core_.changed.WaitFor(
      [this, live, token] {
        return core_.ending() || std::all_of(live.begin(), live.end(), [&](const Id& node) {
                 return parts_.inventories.Answered(node, token);
               });
      },
      core_.Now() + core_.options.node_timeout);
  if (core_.ending()) co_return Status(Code::kUnavailable, "the store is going down: try again");
  co_return OkStatus();
}

// --- T3

std::vector<AttemptPtr> Settler::Adopt(const Id& job_id, uint64_t epoch, uint64_t token) {
  std::vector<AttemptPtr> adopted;
  const JobState& job = *core_.state.FindJob(job_id);
  const CheckpointRow* latest = core_.state.Latest(job);
  for (const AttemptPtr& attempt : parts_.attempts.OfJob(job_id)) {
    if (attempt->key.epoch >= epoch || !attempt->accepts()) continue;
    if (latest != nullptr && attempt->key <= latest->commit.key) continue;
    Inventories::Sealed sealed = parts_.inventories.SealedRanks(*attempt, token);
    if (sealed.conflict || sealed.ranks.size() != attempt->world) continue;
    attempt->adopted = true;
    adopted.push_back(attempt);
    LogInfo("{} was sealed by all {} ranks before they were gone: adopted", NameOf(attempt->key),
            attempt->world);
    NodeEvent event;
    event.kind = NodeEvent::Kind::kLocalSealed;
    event.job = attempt->job;
    event.key = attempt->key;
    event.attempt = attempt->id;
    core_.events.Publish(event);
  }
  for (const AttemptPtr& attempt : adopted) parts_.committer.TryCommit(attempt);
  return adopted;
}

// --- T4

Task<void> Settler::WaitForCommits(std::vector<AttemptPtr> adopted) {
  auto all_ended = [this, &adopted] {
    return core_.ending() ||
           std::all_of(adopted.begin(), adopted.end(),
                       [](const AttemptPtr& attempt) { return attempt->ended(); });
  };
  for (int extension = 0; extension < kSettleExtensions; ++extension) {
    TimePoint window_start = core_.Now();
    if (co_await core_.changed.WaitFor(all_ended, window_start + core_.options.settle_timeout)) {
      co_return;
    }
    bool progress = std::any_of(adopted.begin(), adopted.end(), [&](const AttemptPtr& attempt) {
      return !attempt->ended() && attempt->last_progress > window_start;
    });
    if (!progress) co_return;
  }
}

// --- T5

Task<Result<format::ResumeEntry>> Settler::Resume(Id job, uint64_t epoch) {
  AsyncMutex::Hold lock = co_await core_.JobLock(job).Lock();
  format::ResumeEntry resume;
  resume.job = job;
  resume.epoch = epoch;
  // Under the job's lock alone: other jobs go on saving while this one's manifests are read.
  REPRISE_CO_TRY(co_await ChooseParent(job, resume));
  SharedLock::Hold ledger = co_await core_.ledger.Exclude();
  std::vector<SkippedCheckpoint> older = std::exchange(resume.skipped, {});
  SkipUnfinished(job, epoch, resume);
  for (SkippedCheckpoint& skipped : older) AddSkipped(resume, skipped.key, skipped.reason);
  REPRISE_CO_TRY(co_await core_.log.Append({resume}));
  for (const AttemptPtr& attempt : parts_.attempts.OfJob(job)) {
    if (attempt->key.epoch >= epoch || attempt->ended()) continue;
    parts_.attempts.End(attempt, AttemptPhase::kAborted,
                        fmt::format("epoch {} resumed without it", epoch));
  }
  co_return resume;
}

void Settler::SkipUnfinished(const Id& job, uint64_t epoch, format::ResumeEntry& resume) const {
  const CheckpointRow* latest = core_.state.Latest(*core_.state.FindJob(job));
  for (const AttemptPtr& attempt : parts_.attempts.OfJob(job)) {
    bool newer = latest == nullptr || attempt->key > latest->commit.key;
    if (attempt->key.epoch >= epoch || attempt->ended() || !newer) continue;
    AddSkipped(resume, attempt->key,
               fmt::format("not saved in time: nothing reached this store from ranks {}",
                           parts_.attempts.MissingRanks(*attempt)));
  }
}

Task<Status> Settler::ChooseParent(Id job, format::ResumeEntry& resume) {
  // Copied, because verifying waits and marking changes the rows.
  std::vector<CheckpointRow> candidates;
  for (const CheckpointRow* row : core_.state.Lineage(*core_.state.FindJob(job))) {
    candidates.push_back(*row);
  }
  bool passing = false;      // a failure that a later try may not meet
  int tries = kVerifyTries;  // for all of them: a disk that reads nothing is told soon
  for (const CheckpointRow& row : candidates) {
    if (core_.mutations.resume_ignores_damage) {
      resume.parent = row.commit.key;
      co_return OkStatus();
    }
    if (row.mark != format::Mark::kIntact) {
      AddSkipped(resume, row.commit.key,
                 fmt::format("{}: {}", MarkName(row.mark), row.mark_reason));
      continue;
    }
    Status verified = co_await VerifyPatiently(row, tries);
    if (verified.ok()) {
      resume.parent = row.commit.key;
      co_return OkStatus();
    }
    if (core_.ending()) co_return Status(Code::kUnavailable, "the store is going down");
    LogError("{} cannot be resumed from: {}", NameOf(row.commit.key), verified.ToString());
    AddSkipped(resume, row.commit.key, verified.message());
    if (verified.code() != Code::kDataLoss) {
      passing = true;
      continue;
    }
    REPRISE_CO_RETURN_IF_ERROR(co_await core_.log.Append({format::MarkEntry{
        job, row.commit.key, format::Mark::kDamaged, verified.message().substr(0, 1024)}}));
  }
  // "None" is for jobs that never committed: anything else must not start from scratch unasked.
  if (candidates.empty()) co_return OkStatus();
  co_return FailStatus(passing ? Code::kUnavailable : Code::kDataLoss,
                       "the job has {} checkpoints and none can be restored now; the newest: {}",
                       candidates.size(), resume.skipped.front().reason);
}

Task<Status> Settler::VerifyPatiently(CheckpointRow row, int& tries) {
  Nanos pause = kVerifyPause;
  for (;; pause *= 2) {
    Status verified = co_await parts_.reads.Verify(row);
    bool final = verified.ok() || verified.code() == Code::kDataLoss;
    if (final || tries <= 1 || core_.ending()) co_return verified;
    --tries;
    LogWarn("{}: {}; read again, at most {} times more", NameOf(row.commit.key),
            verified.ToString(), tries);
    co_await core_.changed.WaitFor([this] { return core_.ending(); }, core_.Now() + pause);
  }
}

}  // namespace reprise::lifecycle
