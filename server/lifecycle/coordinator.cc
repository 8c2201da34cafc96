#include "server/lifecycle/coordinator.h"

#include <algorithm>
#include <utility>

#include "core/base/text.h"

namespace reprise::lifecycle {
namespace {

constexpr size_t kMetadataBytesMax = 64 * limits::kKiB;
constexpr size_t kNamesShown = 8;

CheckpointState StateOf(const CheckpointRow& row, bool on_lineage) {
  switch (row.mark) {
    case format::Mark::kDamaged: return CheckpointState::kDamaged;
    case format::Mark::kPoisoned: return CheckpointState::kPoisoned;
    case format::Mark::kRecovered: return CheckpointState::kRecovered;
    case format::Mark::kIntact: break;
  }
  return on_lineage ? CheckpointState::kCommitted : CheckpointState::kSuperseded;
}

std::string KeysOf(const JobState& job) {
  std::string text;
  size_t shown = 0;
  for (auto it = job.checkpoints.rbegin(); it != job.checkpoints.rend(); ++it) {
    if (++shown > kNamesShown) return text + ", ...";
    text += fmt::format("{}{}~{}", text.empty() ? "" : ", ", it->first.step, it->first.epoch);
  }
  return text.empty() ? "none" : text;
}

}  // namespace

std::string_view CheckpointStateName(CheckpointState state) {
  switch (state) {
    case CheckpointState::kSaving: return "saving";
    case CheckpointState::kCommitted: return "committed";
    case CheckpointState::kDamaged: return "damaged";
    case CheckpointState::kPoisoned: return "poisoned";
    case CheckpointState::kSuperseded: return "superseded";
    case CheckpointState::kRecovered: return "recovered";
  }
  return "unknown";
}

Coordinator::Coordinator(Core& core)
    : core_(core),
      layouts_(core),
      attempts_(core),
      committer_(core, attempts_, layouts_),
      reads_(core, committer_),
      inventories_(core, attempts_),
      settler_(core, {attempts_, committer_, inventories_, reads_}),
      epochs_(core, settler_),
      puts_(core, attempts_, layouts_, committer_) {
  attempts_.SetStepLookup(
      [this](const Id& job, uint32_t rank) { return epochs_.WhereIs(job, rank); });
}

void Coordinator::ReviveAttempts() {
  std::vector<format::ShardIdentity> shards;
  for (const auto& [id, prepared] : core_.state.attempts()) {
    if (!prepared.committed) shards.push_back(prepared.shards.begin()->second.identity);
  }
  for (const format::ShardIdentity& shard : shards) {
    AttemptPtr attempt = attempts_.Revive(shard);
    if (attempt != nullptr) committer_.TryCommit(attempt);
  }
}

void Coordinator::Close() {
  core_.closing = true;
  epochs_.Close();
  core_.events.Close();
  core_.changed.Notify();
}

// --- ranks and nodes

Task<Result<RegisterAnswer>> Coordinator::Register(RegisterRequest request, TimePoint deadline) {
  return epochs_.Register(std::move(request), deadline);
}

Task<Result<BeginAnswer>> Coordinator::Begin(BeginRequest request) {
  if (request.metadata.size() > kMetadataBytesMax) {
    co_return Fail(Code::kInvalidArgument, "metadata of {} bytes; at most {} are stored",
                   request.metadata.size(), kMetadataBytesMax);
  }
  REPRISE_CO_ASSIGN(uint32_t world, epochs_.CheckRank(request));
  REPRISE_CO_ASSIGN(AttemptPtr attempt, attempts_.Begin(request, world));
  co_return BeginAnswer{attempt->id};
}

Task<Status> Coordinator::Skip(SkipRequest request) {
  BeginRequest begin{request.job, request.epoch, request.step, request.rank, Id{}, "", {}};
  REPRISE_CO_ASSIGN_STATUS(uint32_t world, epochs_.CheckRank(begin));
  Result<AttemptPtr> attempt = attempts_.Begin(begin, world);
  if (!attempt.has_value()) {
    bool over = attempt.error().code() == Code::kAborted;
    co_return over ? OkStatus() : attempt.error();
  }
  co_return co_await attempts_.Abort(
      *attempt, fmt::format("rank {} cannot take part: {}", request.rank, request.reason));
}

Task<Status> Coordinator::ReportInventory(InventoryReport report) {
  co_return inventories_.Report(std::move(report));
}

Task<Status> Coordinator::ReportRankGone(RankGone gone) {
  epochs_.RankGone(gone);
  co_return OkStatus();
}

Task<Result<PollAnswer>> Coordinator::PollEvents(PollRequest request, TimePoint deadline) {
  return core_.events.Poll(std::move(request), deadline);
}

// --- shards

Task<Result<std::unique_ptr<PutSession>>> Coordinator::OpenPut(PutRequest request,
                                                               Digest root_if_sealed) {
  return puts_.Open(std::move(request), root_if_sealed);
}

Task<Result<std::unique_ptr<ReadSession>>> Coordinator::OpenRead(Id job, CheckpointKey key) {
  return reads_.Open(job, key);
}

// --- operators and readers

Result<const JobState*> Coordinator::JobNamed(const std::string& tenant,
                                              const std::string& name) const {
  const JobState* job = core_.state.FindJob(tenant, name);
  if (job != nullptr) return job;
  return Fail(Code::kNotFound, "tenant {} has no job {}", tenant, name);
}

JobInfo Coordinator::InfoOf(const JobState& job) const {
  JobInfo info;
  info.tenant = job.entry.tenant;
  info.name = job.entry.name;
  info.job = job.entry.job;
  info.epoch = job.epoch();
  info.alive = epochs_.IsAlive(info.job);
  if (info.epoch != 0) {
    const EpochRow& epoch = job.epochs.rbegin()->second;
    info.world = epoch.grant.world;
    if (epoch.resume.has_value()) info.resume = epoch.resume->parent;
  }
  if (const CheckpointRow* latest = core_.state.Latest(job)) info.latest = latest->commit.key;
  info.checkpoint_count = job.checkpoints.size();
  for (const auto& [key, row] : job.checkpoints) info.stored_bytes += core_.state.StoredBytes(row);
  info.ranks = epochs_.Ranks(info.job);
  return info;
}

CheckpointInfo Coordinator::InfoOf(const JobState& job, const CheckpointRow& row) const {
  CheckpointInfo info;
  info.key = row.commit.key;
  info.attempt = row.commit.attempt;
  info.state = StateOf(row, core_.state.OnLineage(job, row.commit.key));
  info.level = row.commit.level;
  info.world = row.commit.world;
  info.length = row.commit.length;
  info.wall_micros = row.commit.wall_micros;
  info.pinned = row.pinned;
  info.adopted = row.commit.adopted;
  info.root = row.commit.root;
  info.note = row.mark_reason.empty() ? row.pin_reason : row.mark_reason;
  return info;
}

CheckpointInfo Coordinator::InfoOf(const Attempt& attempt) const {
  CheckpointInfo info;
  info.key = attempt.key;
  info.attempt = attempt.id;
  info.state = CheckpointState::kSaving;
  info.world = attempt.world;
  info.wall_micros = attempt.wall_micros;
  info.adopted = attempt.adopted;
  std::string missing = attempts_.MissingRanks(attempt);
  info.note = missing.empty() ? "committing" : "missing ranks " + missing;
  return info;
}

Task<Result<std::vector<JobInfo>>> Coordinator::ListJobs(std::string tenant) {
  std::vector<JobInfo> infos;
  for (const auto& [id, job] : core_.state.jobs()) {
    if (tenant.empty() || job.entry.tenant == tenant) infos.push_back(InfoOf(job));
  }
  std::sort(infos.begin(), infos.end(),
            [](const JobInfo& left, const JobInfo& right) { return left.name < right.name; });
  co_return infos;
}

Task<Result<JobInfo>> Coordinator::GetJob(std::string tenant, std::string name) {
  REPRISE_CO_ASSIGN(const JobState* job, JobNamed(tenant, name));
  co_return InfoOf(*job);
}

Task<Result<std::vector<CheckpointInfo>>> Coordinator::ListCheckpoints(std::string tenant,
                                                                       std::string name, bool all) {
  REPRISE_CO_ASSIGN(const JobState* job, JobNamed(tenant, name));
  std::vector<CheckpointInfo> infos;
  std::set<CheckpointKey> lineage;
  for (const CheckpointRow* row : core_.state.Lineage(*job)) lineage.insert(row->commit.key);
  for (const auto& [key, row] : job->checkpoints) {
    bool good = row.mark == format::Mark::kIntact && lineage.contains(key);
    if (all || good) infos.push_back(InfoOf(*job, row));
  }
  if (all) {
    for (const AttemptPtr& attempt : attempts_.OfJob(job->entry.job)) {
      infos.push_back(InfoOf(*attempt));
    }
  }
  std::sort(
      infos.begin(), infos.end(),
      [](const CheckpointInfo& left, const CheckpointInfo& right) { return left.key > right.key; });
  co_return infos;
}

Task<Result<CheckpointInfo>> Coordinator::Resolve(std::string tenant, std::string name,
                                                  Selector selector) {
  REPRISE_CO_ASSIGN(const JobState* job, JobNamed(tenant, name));
  if (selector.epoch.has_value() && !selector.step.has_value()) {
    co_return Fail(Code::kInvalidArgument, "an epoch selects a checkpoint only with a step");
  }
  const CheckpointRow* row = nullptr;
  if (selector.epoch.has_value()) {
    row = core_.state.FindCheckpoint(job->entry.job, {*selector.epoch, *selector.step});
  } else if (selector.step.has_value()) {
    row = core_.state.AtStep(*job, *selector.step);
  } else {
    row = core_.state.Latest(*job);
  }
  if (row == nullptr) {
    co_return Fail(Code::kNotFound, "job {} has no such checkpoint; there are (step~epoch): {}",
                   name, KeysOf(*job));
  }
  if (row->mark == format::Mark::kDamaged) {
    co_return Fail(Code::kDataLoss, "{} is damaged: {}", NameOf(row->commit.key), row->mark_reason);
  }
  co_return InfoOf(*job, *row);
}

Task<Status> Coordinator::Delete(std::string tenant, std::string name, CheckpointKey key) {
  REPRISE_CO_ASSIGN_STATUS(const JobState* job, JobNamed(tenant, name));
  co_return co_await committer_.Delete(job->entry.job, key);
}

Task<Status> Coordinator::Pin(std::string tenant, std::string name, CheckpointKey key, bool pinned,
                              std::string reason) {
  REPRISE_CO_ASSIGN_STATUS(const JobState* job, JobNamed(tenant, name));
  Id id = job->entry.job;
  AsyncMutex::Hold lock = co_await core_.JobLock(id).Lock();
  const CheckpointRow* row = core_.state.FindCheckpoint(id, key);
  if (row == nullptr) co_return FailStatus(Code::kNotFound, "{} is not committed", NameOf(key));
  reason.resize(CutText(reason, format::kReasonBytesMax).size());
  if (row->pinned == pinned && row->pin_reason == (pinned ? reason : "")) co_return OkStatus();
  co_return co_await core_.log.Append({format::PinEntry{id, key, pinned, std::move(reason)}});
}

Task<Status> Coordinator::SetMark(std::string tenant, std::string name, CheckpointKey key,
                                  format::Mark mark, std::string reason) {
  REPRISE_CO_ASSIGN_STATUS(const JobState* job, JobNamed(tenant, name));
  co_return co_await committer_.SetMark(job->entry.job, key, mark, std::move(reason));
}

}  // namespace reprise::lifecycle
