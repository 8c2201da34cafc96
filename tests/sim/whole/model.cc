#include "tests/sim/whole/model.h"

#include <algorithm>

#include "core/base/log.h"
#include "core/base/random.h"

namespace reprise::sim {

std::string NameOf(const std::string& job, CheckpointKey key) {
  return fmt::format("{}@{}~{}", job, key.step, key.epoch);
}

format::Layout LayoutOf(const ContentShape& shape, uint32_t rank, uint32_t world) {
  auto piece = [](std::string name, std::vector<uint64_t> whole, Box box, Scope scope) {
    format::Piece made;
    made.name = std::move(name);
    made.dtype = Dtype::kU8;
    made.global_shape = std::move(whole);
    made.boxes = {std::move(box)};
    made.scope = scope;
    return made;
  };
  format::Layout layout;
  layout.pieces.push_back(piece("weight", {world, shape.row_bytes},
                                Box{{rank, 0}, {1, shape.row_bytes}}, Scope::kGlobal));
  layout.pieces.push_back(
      piece("shared", {shape.shared_bytes}, Box{{0}, {shape.shared_bytes}}, Scope::kReplicated));
  layout.pieces.push_back(
      piece("own", {shape.own_bytes}, Box{{0}, {shape.own_bytes}}, Scope::kRank));
  format::AssignPositions(layout, kChunkBytes);
  return layout;
}

Bytes ShardOf(const format::Layout& layout, uint64_t launch, uint64_t step, uint32_t rank) {
  Bytes shard(layout.shard_bytes, 0);
  for (const format::Piece& piece : layout.pieces) {
    uint64_t who = piece.scope == Scope::kReplicated ? 77 : rank;
    Rng rng(((launch * 4096 + step) * 64 + who) * 8 + piece.name.size());
    uint64_t bytes = format::BytesOf(piece);
    for (uint64_t at = 0; at < bytes; at += 8) {
      uint64_t word = rng.Next();
      std::memcpy(shard.data() + piece.position + at, &word, std::min<uint64_t>(8, bytes - at));
    }
  }
  return shard;
}

void Model::Violate(std::string what) {
  if (violations.size() < 16) violations.push_back(std::move(what));
}

// --- ranks

Model::Save* Model::SaveOf(const Launch& launch, uint64_t epoch, uint64_t step,
                           std::string_view what) {
  launches_.try_emplace(launch.number, launch);
  Job& job = jobs_[launch.job];
  auto [save, fresh] = job.saves.try_emplace(CheckpointKey{epoch, step});
  if (fresh) save->second.launch = launch.number;
  if (save->second.launch != launch.number) {
    Violate(fmt::format("{}: launches {} and {} share one epoch ({})",
                        NameOf(launch.job, {epoch, step}), save->second.launch, launch.number,
                        what));
    return nullptr;
  }
  return &save->second;
}

void Model::Registered(const Launch& launch, uint32_t rank, const lifecycle::RegisterAnswer& answer,
                       bool again) {
  launches_.try_emplace(launch.number, launch);
  Job& job = jobs_[launch.job];
  if (launch.keep.last != 0) job.keeps_all = false;
  Epoch& epoch = job.epochs[answer.epoch];
  if (epoch.answered && epoch.launch != launch.number) {
    Violate(fmt::format("epoch {} of {} was granted to launches {} and {}", answer.epoch,
                        launch.job, epoch.launch, launch.number));
    return;
  }
  if (epoch.answered && epoch.resume != answer.resume) {
    Violate(fmt::format("epoch {} of {}: rank {} is told to resume from {}, another rank from {}",
                        answer.epoch, launch.job, rank,
                        answer.resume ? NameOf(launch.job, *answer.resume) : "nothing",
                        epoch.resume ? NameOf(launch.job, *epoch.resume) : "nothing"));
    return;
  }
  bool first = !epoch.answered;
  epoch = {launch.number, answer.resume, true};
  if (!first || again) return;
  if (job.resume_at_least.has_value() &&
      (!answer.resume.has_value() || *answer.resume < *job.resume_at_least)) {
    Violate(
        fmt::format("{} was sealed by every rank when its run was killed, and epoch {} resumes "
                    "from {}",
                    NameOf(launch.job, *job.resume_at_least), answer.epoch,
                    answer.resume ? NameOf(launch.job, *answer.resume) : "nothing"));
  }
  job.resume_at_least.reset();
  if (answer.resume.has_value() && !job.saves.empty() &&
      *answer.resume < job.saves.rbegin()->first) {
    SOMETIMES(counts_, Path::kResumedOlder);
  }
}

void Model::Began(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank) {
  if (Save* save = SaveOf(launch, epoch, step, "begin")) save->begun.insert(rank);
}

void Model::SealRequested(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank) {
  if (Save* save = SaveOf(launch, epoch, step, "seal")) save->seal_requested.insert(rank);
}

void Model::LocalSealed(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank) {
  Save* save = SaveOf(launch, epoch, step, "sealed");
  if (save == nullptr) return;
  save->local_sealed.insert(rank);
  if (!save->seal_requested.contains(rank)) {
    Violate(fmt::format("rank {} hears that {} is sealed, which it never asked for", rank,
                        NameOf(launch.job, {epoch, step})));
  }
}

void Model::Committed(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank) {
  Save* save = SaveOf(launch, epoch, step, "committed");
  if (save == nullptr) return;
  SOMETIMES(counts_, Path::kCommitted);
  CheckpointKey key{epoch, step};
  if (save->failed && !save->committed) {
    Violate(fmt::format("rank {} hears that {} is committed after a rank heard that it failed",
                        rank, NameOf(launch.job, key)));
  }
  save->committed = true;
  if (save->seal_requested.size() != launch.world) {
    Violate(fmt::format("{} is committed, sealed by {} of {} ranks", NameOf(launch.job, key),
                        save->seal_requested.size(), launch.world));
  }
  // Whether the store agrees is seen at the next inspection: it must show it, or have deleted it.
  jobs_[launch.job].seen.try_emplace(key);
}

void Model::Failed(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank,
                   const Status& why) {
  Save* save = SaveOf(launch, epoch, step, "failed");
  if (save == nullptr) return;
  // A failure of this rank's node alone (its slot, its upload) may cross the commit's news; what the
  // coordinator said (ABORTED) may not.
  // Nor may it say so, but of a checkpoint that was deleted since.
  bool deleted = why.message().find("deleted") != std::string::npos;
  if (deleted) return;
  if (save->committed && why.code() == Code::kAborted) {
    Violate(
        fmt::format("rank {} hears that {} was aborted ({}) after another heard that it is "
                    "committed",
                    rank, NameOf(launch.job, {epoch, step}), why.message()));
  }
  if (why.code() == Code::kAborted) {
    save->failed = true;
    SOMETIMES(counts_, Path::kStepAborted);
  }
}

std::optional<CheckpointKey> Model::SealedByAll(const Launch& launch) const {
  auto job = jobs_.find(launch.job);
  if (job == jobs_.end()) return std::nullopt;
  std::optional<CheckpointKey> newest;
  for (const auto& [key, save] : job->second.saves) {
    if (save.launch != launch.number || save.failed) continue;
    if (save.local_sealed.size() == launch.world) newest = key;
  }
  return newest;
}

void Model::Restored(const std::string& job_name, CheckpointKey key, uint32_t rank,
                     const Bytes& bytes, const format::Layout& layout, std::string_view how) {
  Job& job = jobs_[job_name];
  auto save = job.saves.find(key);
  if (save == job.saves.end()) {
    Violate(fmt::format("{} was restored and never saved", NameOf(job_name, key)));
    return;
  }
  const Launch& launch = launches_.at(save->second.launch);
  if (rank >= launch.world || save->second.seal_requested.size() != launch.world) {
    Violate(fmt::format("{} was restored, sealed by {} of {} ranks", NameOf(job_name, key),
                        save->second.seal_requested.size(), launch.world));
    return;
  }
  format::Layout expected = LayoutOf(launch.shape, rank, launch.world);
  if (layout != expected || bytes != ShardOf(expected, launch.number, key.step, rank)) {
    Violate(fmt::format("rank {} of {} was restored ({}) with other bytes than were saved", rank,
                        NameOf(job_name, key), how));
  }
}

// --- operators

void Model::DeleteAsked(const std::string& job, CheckpointKey key) {
  jobs_[job].delete_asked.insert(key);
}

void Model::DeleteDone(const std::string& job_name, CheckpointKey key, const Status& status) {
  Job& job = jobs_[job_name];
  if (!status.ok()) return;
  SOMETIMES(counts_, Path::kDeleted);
  job.delete_acked.insert(key);
  auto pinned = job.pinned.find(key);
  if (pinned != job.pinned.end() && pinned->second && !job.unpin_asked.contains(key)) {
    Violate(fmt::format("{} is pinned and was deleted", NameOf(job_name, key)));
  }
}

void Model::PinAsked(const std::string& job, CheckpointKey key, bool pinned) {
  if (!pinned) jobs_[job].unpin_asked.insert(key);
}

void Model::PinDone(const std::string& job_name, CheckpointKey key, bool pinned,
                    const Status& status) {
  if (!status.ok()) return;
  Job& job = jobs_[job_name];
  job.pinned[key] = pinned;
}

// --- the store

void Model::Inspect(const lifecycle::StoreState& state) {
  for (const auto& [id, shown] : state.jobs()) InspectJob(jobs_[shown.entry.name], state, shown);
  InspectExtents(state);
}

void Model::InspectJob(Job& job, const lifecycle::StoreState& state,
                       const lifecycle::JobState& shown) {
  for (const auto& [key, row] : shown.checkpoints) {
    auto seen = job.seen.find(key);
    bool fresh = seen == job.seen.end() || seen->second.attempt.IsZero();
    if (fresh) InspectNew(job, shown, row);
    job.seen[key].attempt = row.commit.attempt;
    if (job.delete_acked.contains(key)) {
      Violate(fmt::format("{} is there although its delete was acknowledged",
                          NameOf(shown.entry.name, key)));
    }
  }
  job.granted = std::max(job.granted, shown.epoch());
  InspectGone(job, shown);
  const lifecycle::CheckpointRow* latest = state.Latest(shown);
  // A later epoch may be granted already, and not have settled.
  uint64_t resumed = job.resumed_epoch;
  for (const auto& [number, epoch] : shown.epochs) {
    if (epoch.resume.has_value()) resumed = std::max(resumed, number);
  }
  bool went_back =
      job.latest.has_value() && (latest == nullptr || latest->commit.key < *job.latest);
  if (went_back && resumed == job.resumed_epoch && shown.checkpoints.contains(*job.latest) &&
      shown.checkpoints.at(*job.latest).mark == format::Mark::kIntact) {
    Violate(fmt::format("latest of {} went back from {}", shown.entry.name,
                        NameOf(shown.entry.name, *job.latest)));
  }
  if (job.latest.has_value() && latest == nullptr && !may_lose) {
    Violate(fmt::format("{} had a checkpoint to resume from, {}, and has none now",
                        shown.entry.name, NameOf(shown.entry.name, *job.latest)));
  }
  job.latest = latest == nullptr ? std::nullopt : std::optional(latest->commit.key);
  job.resumed_epoch = std::max(job.resumed_epoch, resumed);
}

void Model::InspectNew(Job& job, const lifecycle::JobState& shown,
                       const lifecycle::CheckpointRow& row) {
  const CheckpointKey& key = row.commit.key;
  std::string name = NameOf(shown.entry.name, key);
  auto save = job.saves.find(key);
  if (save == job.saves.end()) {
    Violate(fmt::format("{} is visible and nobody saved it", name));
    return;
  }
  const Launch& launch = launches_.at(save->second.launch);
  if (row.commit.world != launch.world || save->second.seal_requested.size() != launch.world) {
    Violate(fmt::format("{} is visible (world {}), sealed by {} of {} ranks", name,
                        row.commit.world, save->second.seal_requested.size(), launch.world));
  }
  if (key.epoch < job.resumed_epoch) {
    Violate(fmt::format("{} was committed below the fence: epoch {} had resumed", name,
                        job.resumed_epoch));
  }
  if (row.commit.adopted) SOMETIMES(counts_, Path::kAdopted);
  if (ended_.contains(launch.number)) SOMETIMES(counts_, Path::kCommitUnseenByDeadRun);
  if (shown.over.contains(key)) {
    Violate(fmt::format("{} is both committed and aborted", name));
  }
}

void Model::InspectGone(Job& job, const lifecycle::JobState& shown) {
  for (auto seen = job.seen.begin(); seen != job.seen.end();) {
    const CheckpointKey key = seen->first;
    if (shown.checkpoints.contains(key)) {
      ++seen;
      continue;
    }
    std::string name = NameOf(shown.entry.name, key);
    auto pinned = job.pinned.find(key);
    if (pinned != job.pinned.end() && pinned->second && !job.unpin_asked.contains(key)) {
      Violate(fmt::format("{} is pinned and gone", name));
    } else if (!job.delete_asked.contains(key) && job.keeps_all) {
      Violate(fmt::format("{} was committed and is gone, and nobody deleted it", name));
    } else if (!job.delete_asked.contains(key)) {
      SOMETIMES(counts_, Path::kRetentionDeleted);
    }
    seen = job.seen.erase(seen);
    job.delete_acked.insert(key);  // it must not come back either
  }
}

void Model::InspectExtents(const lifecycle::StoreState& state) {
  std::vector<format::Run> runs = state.LiveRuns();
  std::sort(runs.begin(), runs.end());
  for (size_t i = 1; i < runs.size(); ++i) {
    const format::Run& before = runs[i - 1];
    if (before.segment != runs[i].segment || before.offset + before.length <= runs[i].offset) {
      continue;
    }
    Violate(fmt::format("segment {} offset {} has two owners", runs[i].segment, runs[i].offset));
    return;
  }
}

std::vector<CheckpointKey> Model::Visible(const std::string& job) const {
  std::vector<CheckpointKey> keys;
  auto found = jobs_.find(job);
  if (found == jobs_.end()) return keys;
  for (const auto& [key, seen] : found->second.seen) keys.push_back(key);
  return keys;
}

bool Model::IsVisible(const std::string& job, CheckpointKey key) const {
  auto found = jobs_.find(job);
  return found != jobs_.end() && found->second.seen.contains(key);
}

bool Model::IsNewest(const std::string& job, uint64_t epoch) const {
  auto found = jobs_.find(job);
  return found != jobs_.end() && epoch >= found->second.granted;
}

const Launch* Model::LaunchOf(const std::string& job, CheckpointKey key) const {
  auto found = jobs_.find(job);
  if (found == jobs_.end()) return nullptr;
  auto save = found->second.saves.find(key);
  return save == found->second.saves.end() ? nullptr : &launches_.at(save->second.launch);
}

}  // namespace reprise::sim
