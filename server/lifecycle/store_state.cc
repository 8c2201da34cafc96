#include "server/lifecycle/store_state.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::lifecycle {
namespace {

template <typename... Args>
std::unexpected<Status> Impossible(fmt::format_string<Args...> format, Args&&... args) {
  return Error(Code::kInternal,
               "impossible journal entry: " + fmt::format(format, std::forward<Args>(args)...));
}

std::string NameOf(const CheckpointKey& key) { return fmt::format("{}~{}", key.step, key.epoch); }

// Extents of a shard: payload, then its manifest.
std::vector<format::Run> RunsOf(const format::PreparedEntry& shard) {
  std::vector<format::Run> runs = shard.runs;
  runs.push_back(shard.manifest.run);
  return runs;
}

void Append(std::vector<format::Run>& to, const std::vector<format::Run>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

Result<StoreState::Change> StoreState::Apply(const format::Entry& entry) {
  return std::visit([this](const auto& alternative) { return On(alternative); }, entry);
}

Result<StoreState::Change> StoreState::On(const format::JobEntry& entry) {
  if (entry.job.IsZero() || !IsValidName(entry.tenant) || !IsValidName(entry.name)) {
    return Impossible("JOB with a bad name");
  }
  if (jobs_.contains(entry.job) || names_.contains({entry.tenant, entry.name})) {
    return Impossible("JOB {}/{} exists already", entry.tenant, entry.name);
  }
  jobs_[entry.job].entry = entry;
  names_[{entry.tenant, entry.name}] = entry.job;
  return Change{{PutRow(entry)}, {}};
}

Result<StoreState::Change> StoreState::On(const format::EpochEntry& entry) {
  JobState* job = MutableJob(entry.job);
  if (job == nullptr) return Impossible("EPOCH of an unknown job");
  if (entry.epoch <= job->epoch() || entry.world == 0) {
    return Impossible("EPOCH {} after epoch {}", entry.epoch, job->epoch());
  }
  EpochRow row{entry, std::nullopt};
  job->epochs[entry.epoch] = row;
  return Change{{PutRow(row)}, {}};
}

Result<StoreState::Change> StoreState::On(const format::ResumeEntry& entry) {
  JobState* job = MutableJob(entry.job);
  if (job == nullptr) return Impossible("RESUME of an unknown job");
  if (entry.epoch != job->epoch() || job->resumed()) {
    return Impossible("RESUME of epoch {} while epoch {} is current", entry.epoch, job->epoch());
  }
  if (entry.parent.has_value() &&
      (entry.parent->epoch >= entry.epoch || !job->checkpoints.contains(*entry.parent))) {
    return Impossible("RESUME from {}, which is no checkpoint", NameOf(*entry.parent));
  }
  Change change;
  EpochRow& row = job->epochs[entry.epoch];
  row.resume = entry;
  change.rows.push_back(PutRow(row));
  std::vector<Id> over;
  for (const auto& [id, attempt] : attempts_) {
    if (attempt.job == entry.job && !attempt.committed && attempt.key.epoch < entry.epoch) {
      over.push_back(id);
    }
  }
  // Because the map's order depends on hashing, and rows are compared between runs.
  std::sort(over.begin(), over.end());
  for (const Id& id : over) DropAttempt(id, change);
  ForgetOver(*job, entry.epoch, kAbortsRememberedMax, change);
  return change;
}

Result<StoreState::Change> StoreState::On(const format::LayoutEntry& entry) {
  Change change;
  if (layouts_.contains(entry.layout)) {
    // Two ranks stored the same new layout at once: the first stays, the second's space is free.
    change.freed.push_back(entry.object.run);
    return change;
  }
  if (Status taken = TakeExtents({entry.object.run}); !taken.ok()) return Error(std::move(taken));
  layouts_[entry.layout] = {entry, 0};
  change.rows.push_back(PutRow(entry));
  return change;
}

Status StoreState::CheckPrepared(const format::PreparedEntry& entry) const {
  const format::ShardIdentity& shard = entry.identity;
  const JobState* job = FindJob(shard.job);
  if (job == nullptr) return Impossible("PREPARED of an unknown job").error();
  if (shard.key.epoch == 0 || shard.key.epoch > job->epoch() || shard.rank >= shard.world) {
    return Impossible("PREPARED of rank {} at {}", shard.rank, NameOf(shard.key)).error();
  }
  if (shard.key.epoch < job->epoch() && job->resumed()) {
    return Impossible("PREPARED at {} after epoch {} resumed", NameOf(shard.key), job->epoch())
        .error();
  }
  auto over = job->over.find(shard.key);
  if (over != job->over.end() && over->second.end.attempt == shard.attempt) {
    return Impossible("PREPARED at {}, which is over", NameOf(shard.key)).error();
  }
  if (!layouts_.contains(entry.layout)) {
    return Impossible("PREPARED at {} without its layout", NameOf(shard.key)).error();
  }
  const PreparedAttempt* attempt = FindAttempt(shard.attempt);
  if (attempt == nullptr) return OkStatus();
  if (attempt->committed || attempt->job != shard.job || attempt->key != shard.key ||
      attempt->world != shard.world || attempt->shards.contains(shard.rank)) {
    return Impossible("PREPARED of rank {} at {} twice, or under another attempt", shard.rank,
                      NameOf(shard.key))
        .error();
  }
  return OkStatus();
}

Result<StoreState::Change> StoreState::On(const format::PreparedEntry& entry) {
  if (Status possible = CheckPrepared(entry); !possible.ok()) return Error(std::move(possible));
  if (Status taken = TakeExtents(RunsOf(entry)); !taken.ok()) return Error(std::move(taken));
  PreparedAttempt& attempt = attempts_[entry.identity.attempt];
  attempt.job = entry.identity.job;
  attempt.key = entry.identity.key;
  attempt.world = entry.identity.world;
  attempt.shards[entry.identity.rank] = entry;
  ++layouts_[entry.layout].references;
  return Change{{PutRow(entry)}, {}};
}

Status StoreState::CheckCommit(const JobState& job, const format::CommitEntry& entry) const {
  if (job.checkpoints.contains(entry.key)) {
    return Impossible("COMMIT of {} twice", NameOf(entry.key)).error();
  }
  bool current = entry.key.epoch == job.epoch();
  bool adopted = entry.adopted && entry.key.epoch < job.epoch() && !job.resumed();
  if (!current && !adopted) {
    return Impossible("COMMIT of {} below the fence of epoch {}", NameOf(entry.key), job.epoch())
        .error();
  }
  if (entry.level < Durability::kServer) return OkStatus();
  const PreparedAttempt* attempt = FindAttempt(entry.attempt);
  if (attempt == nullptr || attempt->job != entry.job || attempt->key != entry.key ||
      attempt->world != entry.world || attempt->shards.size() != entry.world) {
    return Impossible("COMMIT of {} without all its shards", NameOf(entry.key)).error();
  }
  uint64_t length = 0;
  for (const auto& [rank, shard] : attempt->shards) length += shard.length;
  if (length != entry.length) {
    return Impossible("COMMIT of {} with another length", NameOf(entry.key)).error();
  }
  return OkStatus();
}

Result<StoreState::Change> StoreState::On(const format::CommitEntry& entry) {
  JobState* job = MutableJob(entry.job);
  if (job == nullptr) return Impossible("COMMIT of an unknown job");
  if (Status possible = CheckCommit(*job, entry); !possible.ok()) return Error(std::move(possible));
  if (Status taken = TakeExtents({entry.manifest.run}); !taken.ok()) return Error(std::move(taken));
  auto attempt = attempts_.find(entry.attempt);
  if (attempt != attempts_.end()) attempt->second.committed = true;
  CheckpointRow row;
  row.commit = entry;
  job->checkpoints[entry.key] = row;
  return Change{{PutRow(row)}, {}};
}

Result<StoreState::Change> StoreState::On(const format::PromoteEntry& entry) {
  CheckpointRow* row = MutableCheckpoint(entry.job, entry.key);
  if (row == nullptr) return Impossible("PROMOTE of {}, not committed", NameOf(entry.key));
  if (entry.level <= row->commit.level) return Impossible("PROMOTE of {} down", NameOf(entry.key));
  row->commit.level = entry.level;
  return Change{{PutRow(*row)}, {}};
}

Result<StoreState::Change> StoreState::On(const format::AbortEntry& entry) {
  JobState* job = MutableJob(entry.job);
  if (job == nullptr) return Impossible("ABORT of an unknown job");
  auto attempt = attempts_.find(entry.attempt);
  if (attempt != attempts_.end() &&
      (attempt->second.committed || attempt->second.key != entry.key)) {
    return Impossible("ABORT of {}, which is committed", NameOf(entry.key));
  }
  if (auto committed = job->checkpoints.find(entry.key);
      committed != job->checkpoints.end() && committed->second.commit.attempt == entry.attempt) {
    return Impossible("ABORT of {}, which is committed", NameOf(entry.key));
  }
  Change change;
  DropAttempt(entry.attempt, change);
  Remember(*job, {.end = entry}, change);
  return change;
}

Result<StoreState::Change> StoreState::On(const format::DeleteEntry& entry) {
  CheckpointRow* row = MutableCheckpoint(entry.job, entry.key);
  if (row == nullptr) return Impossible("DELETE of {}, not committed", NameOf(entry.key));
  if (row->pinned) return Impossible("DELETE of {}, which is pinned", NameOf(entry.key));
  Change change;
  change.rows.push_back(RemoveRow(*row));
  ReleaseExtents({row->commit.manifest.run});
  change.freed.push_back(row->commit.manifest.run);
  Id attempt = row->commit.attempt;
  DropAttempt(attempt, change);
  JobState* job = MutableJob(entry.job);
  job->checkpoints.erase(entry.key);
  // Because nodes may still hold the shards, and must not bring the checkpoint back.
  Remember(*job, {.end = {entry.job, entry.key, attempt, "deleted"}, .committed = true}, change);
  return change;
}

Result<StoreState::Change> StoreState::On(const format::PinEntry& entry) {
  CheckpointRow* row = MutableCheckpoint(entry.job, entry.key);
  if (row == nullptr) return Impossible("PIN of {}, not committed", NameOf(entry.key));
  row->pinned = entry.pinned;
  row->pin_reason = entry.pinned ? entry.reason : std::string();
  return Change{{PutRow(*row)}, {}};
}

Result<StoreState::Change> StoreState::On(const format::MarkEntry& entry) {
  CheckpointRow* row = MutableCheckpoint(entry.job, entry.key);
  if (row == nullptr) return Impossible("MARK of {}, not committed", NameOf(entry.key));
  row->mark = entry.mark;
  row->mark_reason = entry.reason;
  return Change{{PutRow(*row)}, {}};
}

void StoreState::DropAttempt(const Id& id, Change& change) {
  auto found = attempts_.find(id);
  if (found == attempts_.end()) return;
  for (const auto& [rank, shard] : found->second.shards) {
    change.rows.push_back(RemoveRow(shard));
    std::vector<format::Run> runs = RunsOf(shard);
    ReleaseExtents(runs);
    Append(change.freed, runs);
    DropLayoutReference(shard.layout, change);
  }
  attempts_.erase(found);
}

void StoreState::DropLayoutReference(const Digest& layout, Change& change) {
  auto found = layouts_.find(layout);
  REPRISE_CHECK(found != layouts_.end() && found->second.references > 0);
  if (--found->second.references > 0) return;
  change.rows.push_back(RemoveRow(found->second.entry));
  ReleaseExtents({found->second.entry.object.run});
  change.freed.push_back(found->second.entry.object.run);
  layouts_.erase(found);
}

void StoreState::Remember(JobState& job, OverRow over, Change& change) {
  bool may_return = over.end.key.epoch == job.epoch() || !job.resumed();
  if (!may_return) return;
  change.rows.push_back(PutRow(over));
  job.over[over.end.key] = std::move(over);
  ForgetOver(job, 0, kAbortsRememberedMax, change);
}

void StoreState::ForgetOver(JobState& job, uint64_t epoch, size_t keep, Change& change) {
  while (!job.over.empty() && (job.over.size() > keep || job.over.begin()->first.epoch < epoch)) {
    change.rows.push_back(RemoveRow(job.over.begin()->second));
    job.over.erase(job.over.begin());
  }
}

Status StoreState::TakeExtents(const std::vector<format::Run>& runs) {
  for (size_t i = 0; i < runs.size(); ++i) {
    const format::Run& run = runs[i];
    if (run.length == 0) continue;
    auto next = extents_.lower_bound({run.segment, run.offset});
    bool hits_next = next != extents_.end() && next->first.first == run.segment &&
                     next->first.second < run.offset + run.length;
    bool hits_previous = false;
    if (next != extents_.begin()) {
      auto previous = std::prev(next);
      hits_previous = previous->first.first == run.segment &&
                      previous->first.second + previous->second > run.offset;
    }
    if (hits_next || hits_previous) {
      ReleaseExtents({runs.begin(), runs.begin() + static_cast<ptrdiff_t>(i)});
      return Impossible("segment {} bytes [{}, {}) have two owners", run.segment, run.offset,
                        run.offset + run.length)
          .error();
    }
    extents_[{run.segment, run.offset}] = run.length;
  }
  return OkStatus();
}

void StoreState::ReleaseExtents(const std::vector<format::Run>& runs) {
  for (const format::Run& run : runs) extents_.erase({run.segment, run.offset});
}

Status StoreState::LoadRow(const Row& row) {
  if (const auto* job = std::get_if<format::JobEntry>(&row)) {
    jobs_[job->job].entry = *job;
    names_[{job->tenant, job->name}] = job->job;
  } else if (const auto* epoch = std::get_if<EpochRow>(&row)) {
    jobs_[epoch->grant.job].epochs[epoch->grant.epoch] = *epoch;
  } else if (const auto* checkpoint = std::get_if<CheckpointRow>(&row)) {
    jobs_[checkpoint->commit.job].checkpoints[checkpoint->commit.key] = *checkpoint;
    return TakeExtents({checkpoint->commit.manifest.run});
  } else if (const auto* shard = std::get_if<format::PreparedEntry>(&row)) {
    PreparedAttempt& attempt = attempts_[shard->identity.attempt];
    attempt.job = shard->identity.job;
    attempt.key = shard->identity.key;
    attempt.world = shard->identity.world;
    attempt.shards[shard->identity.rank] = *shard;
    ++layouts_[shard->layout].references;
    return TakeExtents(RunsOf(*shard));
  } else if (const auto* layout = std::get_if<format::LayoutEntry>(&row)) {
    layouts_[layout->layout].entry = *layout;
    return TakeExtents({layout->object.run});
  } else if (const auto* over = std::get_if<OverRow>(&row)) {
    jobs_[over->end.job].over[over->end.key] = *over;
  }
  return OkStatus();
}

Status StoreState::FinishLoad() {
  auto damaged = [](std::string what) {
    return Status(Code::kDataLoss, "the index contradicts itself (" + what +
                                       "): remove the index directory to rebuild it");
  };
  for (const auto& [id, job] : jobs_) {
    if (job.entry.job.IsZero()) return damaged("rows of a job without its name");
    for (const auto& [key, row] : job.checkpoints) {
      auto attempt = attempts_.find(row.commit.attempt);
      size_t shards = attempt == attempts_.end() ? 0 : attempt->second.shards.size();
      if (row.commit.level >= Durability::kServer && shards != row.commit.world) {
        return damaged("checkpoint " + NameOf(key) + " lacks shards");
      }
      if (attempt != attempts_.end()) attempt->second.committed = true;
    }
  }
  for (const auto& [digest, layout] : layouts_) {
    if (layout.references == 0 || layout.entry.layout != digest) {
      return damaged("a layout without shards, or a shard without its layout");
    }
  }
  for (const auto& [id, attempt] : attempts_) {
    if (!jobs_.contains(attempt.job)) return damaged("a shard of an unknown job");
  }
  return OkStatus();
}

JobState* StoreState::MutableJob(const Id& job) {
  auto found = jobs_.find(job);
  return found == jobs_.end() ? nullptr : &found->second;
}

CheckpointRow* StoreState::MutableCheckpoint(const Id& job_id, const CheckpointKey& key) {
  JobState* job = MutableJob(job_id);
  if (job == nullptr) return nullptr;
  auto found = job->checkpoints.find(key);
  return found == job->checkpoints.end() ? nullptr : &found->second;
}

const JobState* StoreState::FindJob(const Id& job) const {
  return const_cast<StoreState*>(this)->MutableJob(job);
}

const JobState* StoreState::FindJob(const std::string& tenant, const std::string& name) const {
  auto found = names_.find({tenant, name});
  return found == names_.end() ? nullptr : FindJob(found->second);
}

const CheckpointRow* StoreState::FindCheckpoint(const Id& job, const CheckpointKey& key) const {
  return const_cast<StoreState*>(this)->MutableCheckpoint(job, key);
}

const PreparedAttempt* StoreState::FindAttempt(const Id& attempt) const {
  auto found = attempts_.find(attempt);
  return found == attempts_.end() ? nullptr : &found->second;
}

const format::PreparedEntry* StoreState::FindShard(const Id& id, uint32_t rank) const {
  const PreparedAttempt* attempt = FindAttempt(id);
  if (attempt == nullptr) return nullptr;
  auto found = attempt->shards.find(rank);
  return found == attempt->shards.end() ? nullptr : &found->second;
}

const format::LayoutEntry* StoreState::FindLayout(const Digest& layout) const {
  auto found = layouts_.find(layout);
  return found == layouts_.end() ? nullptr : &found->second.entry;
}

std::vector<const CheckpointRow*> StoreState::Lineage(const JobState& job) const {
  std::vector<const CheckpointRow*> lineage;
  uint64_t step_max = UINT64_MAX;
  auto epoch = job.epochs.rbegin();
  while (epoch != job.epochs.rend()) {
    auto end = job.checkpoints.upper_bound({epoch->first, step_max});
    while (end != job.checkpoints.begin() && std::prev(end)->first.epoch == epoch->first) {
      --end;
      lineage.push_back(&end->second);
    }
    step_max = UINT64_MAX;
    const std::optional<format::ResumeEntry>& resume = epoch->second.resume;
    ++epoch;  // an epoch that never settled descends from all that the one before it descends from
    if (!resume.has_value()) continue;
    if (!resume->parent.has_value()) break;
    step_max = resume->parent->step;
    while (epoch != job.epochs.rend() && epoch->first > resume->parent->epoch) ++epoch;
  }
  return lineage;
}

bool StoreState::OnLineage(const JobState& job, const CheckpointKey& key) const {
  for (const CheckpointRow* row : Lineage(job)) {
    if (row->commit.key == key) return true;
  }
  return false;
}

const CheckpointRow* StoreState::Latest(const JobState& job) const {
  for (const CheckpointRow* row : Lineage(job)) {
    if (row->mark == format::Mark::kIntact) return row;
  }
  return nullptr;
}

const CheckpointRow* StoreState::AtStep(const JobState& job, uint64_t step) const {
  for (const CheckpointRow* row : Lineage(job)) {
    if (row->commit.key.step == step) return row;
  }
  return nullptr;
}

std::vector<format::Run> StoreState::LiveRuns() const {
  std::vector<format::Run> runs;
  runs.reserve(extents_.size());
  for (const auto& [place, length] : extents_) runs.push_back({place.first, place.second, length});
  return runs;
}

uint64_t StoreState::StoredBytes(const CheckpointRow& checkpoint) const {
  uint64_t bytes = checkpoint.commit.manifest.run.length;
  const PreparedAttempt* attempt = FindAttempt(checkpoint.commit.attempt);
  if (attempt == nullptr) return bytes;
  for (const auto& [rank, shard] : attempt->shards) {
    for (const format::Run& run : RunsOf(shard)) bytes += run.length;
  }
  return bytes;
}

std::map<std::string, std::string> StoreState::Rows() const {
  std::map<std::string, std::string> rows;
  auto put = [&](const Row& row) { rows[KeyOf(row)] = EncodeRowValue(row); };
  for (const auto& [id, job] : jobs_) {
    put(job.entry);
    for (const auto& [epoch, row] : job.epochs) put(row);
    for (const auto& [key, row] : job.checkpoints) put(row);
    for (const auto& [key, row] : job.over) put(row);
  }
  for (const auto& [id, attempt] : attempts_) {
    for (const auto& [rank, shard] : attempt.shards) put(shard);
  }
  for (const auto& [digest, layout] : layouts_) put(layout.entry);
  return rows;
}

}  // namespace reprise::lifecycle
