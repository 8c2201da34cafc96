// COMMIT, in the order in which things become durable; what a crash after each step leaves is said
// behind the arrow:
//
//   C1  every rank of the world is PREPARED, pieces cover every tensor
//         -> nothing: the attempt stays open
//   C2  checkpoint manifest written, reaped, flushed
//         -> bytes nobody refers to: free space
//   C3  under the job's lock: epoch current or attempt adopted, key free, attempt not failing;
//       COMMIT journalled. The linearisation point.
//         -> the checkpoint exists
//   C4  state applied (StoreLog); the index follows
//   C5  visible: `latest`, listings, OpenRead
//   C6  acknowledged: kCommitted to every node
//   C7  certificate written beside the manifest, flushed
//         -> without it: rewritten at recovery
//   C8  older checkpoints that the job does not keep are deleted (retention.h)
//         -> the next commit deletes them
//
// The epoch is checked at C3, inside the lock that EPOCH is journalled under: a check any earlier
// lets a commit slip past a fence raised in between.
//
// DELETE:
//   D1  refuse if pinned, last good one of its level, or leased by a reader
//   D2  certificate erased and flushed
//         -> the checkpoint is still there: certificate rewritten at recovery
//   D3  under job lock and ledger lock: D1 again, DELETE journalled
//         -> gone for good
//   D4  extents free (StoreLog, when the group is durable), acknowledged
//
// The certificate goes first, so that no scan of segments can ever take freed extents for a
// committed checkpoint.
#include "server/lifecycle/commit.h"

#include <algorithm>
#include <utility>

#include "core/base/aligned_buffer.h"
#include "core/base/text.h"
#include "server/lifecycle/objects.h"
#include "server/lifecycle/retention.h"

namespace reprise::lifecycle {
namespace {

constexpr uint64_t kCertificateBytes = limits::kIoAlignment;

format::Run CertificateRun(const format::CommitEntry& commit) {
  const format::Run& run = commit.manifest.run;
  return {run.segment, run.offset + run.length - kCertificateBytes, kCertificateBytes};
}

bool AnyDigest(const std::vector<Digest>& digests) {
  return std::any_of(digests.begin(), digests.end(), [](const Digest& d) { return !d.IsZero(); });
}

}  // namespace

bool Committer::AllPrepared(const Attempt& attempt) const {
  const PreparedAttempt* prepared = core_.state.FindAttempt(attempt.id);
  size_t count = prepared == nullptr ? 0 : prepared->shards.size();
  if (core_.mutations.commit_without_all_sealed) return count > 0;
  for (const format::Entry& entry : attempt.held_back) {
    count += std::holds_alternative<format::PreparedEntry>(entry);
  }
  return count == attempt.world;
}

void Committer::TryCommit(const AttemptPtr& attempt) {
  if (attempt->phase != AttemptPhase::kOpen || !AllPrepared(*attempt)) return;
  const JobState* job = core_.state.FindJob(attempt->job);
  // Of an older epoch: settle decides, and comes back here if it adopts.
  if (job == nullptr || (attempt->key.epoch < core_.FenceOf(*job) && !attempt->adopted)) return;
  attempt->phase = AttemptPhase::kCommitting;
  core_.Spawn(Commit(attempt));
}

Task<void> Committer::Commit(AttemptPtr attempt) {
  for (const format::Entry& entry : std::exchange(attempt->held_back, {})) {
    Status held = co_await core_.log.Append({entry});
    if (!held.ok()) co_return;
  }
  Status whole = co_await CheckWhole(attempt);
  if (!whole.ok()) {
    Status aborted = co_await attempts_.Abort(attempt, whole.message());
    if (!aborted.ok()) LogWarn("{}", aborted.ToString());
    co_return;
  }
  Result<format::CommitEntry> commit = co_await WriteManifest(attempt);
  Status recorded =
      commit.has_value() ? co_await RecordCommit(attempt, *commit) : Status(commit.error());
  if (recorded.ok()) {
    co_await Certify(*commit);
    co_await DeleteExpired(attempt->job, attempt->key, attempt->keep);
    co_return;
  }
  if (recorded.code() == Code::kFenced) {
    // The next epoch was granted meanwhile: settle adopts or RESUME ends this attempt.
    if (attempt->phase == AttemptPhase::kCommitting) attempt->phase = AttemptPhase::kOpen;
    if (attempt->adopted) TryCommit(attempt);
    core_.changed.Notify();
    co_return;
  }
  if (core_.log.failed()) co_return;
  Status aborted = co_await attempts_.Abort(attempt, recorded.message());
  if (!aborted.ok()) LogWarn("{}", aborted.ToString());
}

// --- C1

Task<Status> Committer::CheckWhole(AttemptPtr attempt) {
  const PreparedAttempt* prepared = core_.state.FindAttempt(attempt->id);
  if (prepared == nullptr) co_return Status(Code::kAborted, "its shards were given up");
  std::vector<format::PreparedEntry> shards;
  std::vector<Digest> layouts;
  bool digests = false;
  for (const auto& [rank, shard] : prepared->shards) {
    shards.push_back(shard);
    layouts.push_back(shard.layout);
    auto known = attempt->piece_digests.find(rank);
    digests = digests || known == attempt->piece_digests.end() || AnyDigest(known->second);
  }
  // Because with digests the verdict depends on the bytes too, not on the layouts alone.
  if (!digests && layouts_.KnownCovered(layouts)) co_return OkStatus();
  REPRISE_CO_RETURN_IF_ERROR(co_await CheckPieces(attempt, std::move(shards)));
  if (!digests) layouts_.NoteCovered(layouts);
  co_return OkStatus();
}

Task<Status> Committer::CheckPieces(AttemptPtr attempt, std::vector<format::PreparedEntry> shards) {
  std::vector<LayoutPtr> layouts;
  std::vector<std::vector<Digest>> digests;
  for (const format::PreparedEntry& shard : shards) {
    REPRISE_CO_ASSIGN_STATUS(LayoutPtr layout, co_await layouts_.Get(shard.layout));
    REPRISE_CO_ASSIGN_STATUS(std::vector<Digest> pieces, co_await PieceDigests(attempt, shard));
    layouts.push_back(std::move(layout));
    digests.push_back(std::move(pieces));
  }
  std::vector<format::RankLayout> ranks;
  for (size_t i = 0; i < shards.size(); ++i) {
    ranks.push_back({shards[i].identity.rank, layouts[i].get(), &digests[i]});
  }
  if (core_.mutations.commit_without_all_sealed) co_return OkStatus();
  co_return format::CheckCoverage(ranks);
}

Task<Result<std::vector<Digest>>> Committer::PieceDigests(AttemptPtr attempt,
                                                          format::PreparedEntry shard) {
  auto known = attempt->piece_digests.find(shard.identity.rank);
  if (known != attempt->piece_digests.end()) co_return known->second;
  REPRISE_CO_ASSIGN(Bytes encoded,
                    co_await ReadObject(core_.tier, shard.manifest,
                                        fmt::format("manifest of rank {}", shard.identity.rank)));
  REPRISE_CO_ASSIGN(format::ShardManifest manifest, format::DecodeShardManifest(encoded));
  co_return std::move(manifest.piece_digests);
}

// --- C2

format::CheckpointManifest Committer::ManifestOf(const Attempt& attempt) const {
  format::CheckpointManifest manifest;
  manifest.job = attempt.job;
  manifest.key = attempt.key;
  manifest.attempt = attempt.id;
  manifest.world = attempt.world;
  manifest.wall_micros = attempt.wall_micros;
  manifest.metadata = attempt.metadata;
  std::map<Digest, format::ObjectRef> layouts;
  const PreparedAttempt* prepared = core_.state.FindAttempt(attempt.id);
  REPRISE_CHECK(prepared != nullptr && !prepared->shards.empty());
  for (const auto& [rank, shard] : prepared->shards) {
    manifest.shards.push_back({rank, shard.root, shard.length, shard.layout, shard.manifest});
    layouts[shard.layout] = core_.state.FindLayout(shard.layout)->object;
  }
  // Only reached under the mutation commit_without_all_sealed: pretends to have the missing ranks.
  while (manifest.shards.size() < attempt.world) {
    manifest.shards.push_back(manifest.shards.front());
  }
  for (uint32_t rank = 0; rank < attempt.world; ++rank) manifest.shards[rank].rank = rank;
  manifest.layouts.assign(layouts.begin(), layouts.end());
  return manifest;
}

Task<Result<format::CommitEntry>> Committer::WriteManifest(AttemptPtr attempt) {
  const PreparedAttempt* prepared = core_.state.FindAttempt(attempt->id);
  if (prepared == nullptr || attempt->phase != AttemptPhase::kCommitting) {
    co_return Error(Code::kAborted, "the attempt ended before its commit");
  }
  format::CheckpointManifest manifest = ManifestOf(*attempt);
  format::CommitEntry commit;
  commit.job = attempt->job;
  commit.key = attempt->key;
  commit.attempt = attempt->id;
  commit.world = attempt->world;
  commit.root = format::CheckpointRoot(manifest);
  for (const auto& [rank, shard] : prepared->shards) commit.length += shard.length;
  commit.wall_micros = attempt->wall_micros;
  REPRISE_CO_ASSIGN(commit.manifest,
                    co_await WriteObject(core_.tier, format::EncodeCheckpointManifest(manifest),
                                         kCertificateBytes));
  Status flushed;
  if (!core_.mutations.skip_manifest_flush) {
    flushed = co_await core_.tier.Flush({commit.manifest.run});
  }
  if (!flushed.ok()) {
    core_.tier.Free({commit.manifest.run});
    co_return Error(flushed.Annotate("checkpoint manifest"));
  }
  co_return commit;
}

// --- C3 to C6

Status Committer::CheckFence(const Attempt& attempt) const {
  const JobState* job = core_.state.FindJob(attempt.job);
  if (job == nullptr) return Status(Code::kNotFound, "no such job");
  if (attempt.key.epoch < core_.FenceOf(*job) && !attempt.adopted) {
    return FailStatus(Code::kFenced, "epoch {} is over", attempt.key.epoch);
  }
  return OkStatus();
}

Task<Status> Committer::RecordCommit(AttemptPtr attempt, format::CommitEntry commit) {
  Status early;
  if (core_.mutations.epoch_check_outside_lock) early = CheckFence(*attempt);
  AsyncMutex::Hold lock = co_await core_.JobLock(attempt->job).Lock();
  Status fence = core_.mutations.epoch_check_outside_lock ? early : CheckFence(*attempt);
  if (fence.ok() && attempt->phase != AttemptPhase::kCommitting) {
    fence = Status(Code::kAborted, attempt->reason);
  }
  if (fence.ok() && core_.state.FindCheckpoint(attempt->job, attempt->key) != nullptr) {
    fence = Status(Code::kAlreadyExists, "the step was committed by another attempt");
  }
  if (!fence.ok()) {
    core_.tier.Free({commit.manifest.run});
    co_return fence;
  }
  const JobState* job = core_.state.FindJob(attempt->job);
  commit.adopted = attempt->adopted && attempt->key.epoch < job->epoch();
  if (core_.mutations.ack_before_commit_durable) {
    attempts_.End(attempt, AttemptPhase::kCommitted, "");
  }
  certifying_.insert({commit.job, commit.key});
  Status logged = co_await core_.log.Append({commit});
  if (!logged.ok()) co_return logged;  // the outcome is recovery's to find: nothing is given back
  if (!attempt->ended()) attempts_.End(attempt, AttemptPhase::kCommitted, "");
  co_return OkStatus();
}

// --- C7

Task<void> Committer::Certify(format::CommitEntry commit) {
  Status written = co_await WriteCertificate(commit);
  if (!written.ok()) {
    LogWarn("{}: certificate not written ({}); the journal and the index still prove the commit",
            NameOf(commit.key), written.ToString());
  }
  certifying_.erase({commit.job, commit.key});
  core_.changed.Notify();
}

// --- C8

Task<void> Committer::DeleteExpired(Id job, CheckpointKey committed, Keep keep) {
  std::vector<CheckpointKey> expired;
  if (const JobState* state = core_.state.FindJob(job))
    expired = Expired(core_.state, *state, keep);
  for (const CheckpointKey& key : expired) {
    if (core_.ending()) co_return;
    if (key == committed) {
      // A run that has gone back in its steps, or a slow save that a newer one overtook.
      LogWarn("{} is older than the newest {} that the job keeps: it stays until the next save",
              NameOf(key), keep.last);
      continue;
    }
    Status deleted = co_await Delete(job, key);
    if (deleted.ok()) {
      LogInfo("{} is deleted: the job keeps its newest {}", NameOf(key), keep.last);
    } else if (deleted.code() != Code::kNotFound) {
      LogInfo("{} stays for now: {}", NameOf(key), deleted.message());
    }
  }
}

Task<Status> Committer::WriteCertificate(format::CommitEntry commit) {
  AlignedBuffer block = AlignedBuffer::CopyOf(format::EncodeCertificate(core_.store, commit));
  format::Run place = CertificateRun(commit);
  REPRISE_CO_RETURN_IF_ERROR(co_await core_.tier.Write({place}, 0, block.view()));
  co_return co_await core_.tier.Flush({place});
}

Task<Result<format::CommitEntry>> Committer::ReadCertificate(format::CommitEntry commit) {
  AlignedBuffer block(kCertificateBytes);
  REPRISE_CO_TRY(co_await core_.tier.Read({CertificateRun(commit)}, 0, block.span()));
  co_return format::DecodeCertificate(block.view(), core_.store);
}

Task<Status> Committer::EraseCertificate(format::CommitEntry commit) {
  co_return co_await core_.tier.Erase(CertificateRun(commit));
}

// --- DELETE and MARK

void Committer::DropLease(const Id& job, const CheckpointKey& key) {
  auto lease = leases_.find({job, key});
  REPRISE_CHECK(lease != leases_.end());
  if (--lease->second == 0) leases_.erase(lease);
}

Status Committer::CheckDeletable(const Id& job_id, const CheckpointKey& key) const {
  const CheckpointRow* row = core_.state.FindCheckpoint(job_id, key);
  if (row == nullptr) return FailStatus(Code::kNotFound, "{} is not committed", NameOf(key));
  if (row->pinned && !core_.mutations.delete_ignores_pin) {
    return FailStatus(Code::kFailedPrecondition, "{} is pinned ({}): unpin it first", NameOf(key),
                      row->pin_reason);
  }
  if (leases_.contains({job_id, key})) {
    return FailStatus(Code::kFailedPrecondition, "{} is being read: try again later", NameOf(key));
  }
  const JobState& job = *core_.state.FindJob(job_id);
  if (job.epoch() != 0) {
    const auto& resume = job.epochs.rbegin()->second.resume;
    bool own = job.checkpoints.lower_bound({job.epoch(), 0}) != job.checkpoints.end();
    if (resume.has_value() && resume->parent == key && !own) {
      return FailStatus(Code::kFailedPrecondition,
                        "{} is what the current run resumes from: wait for its first checkpoint",
                        NameOf(key));
    }
  }
  // Last good one: intact, on the lineage, and no other intact one of its level or above.
  if (row->mark != format::Mark::kIntact || !core_.state.OnLineage(job, key)) return OkStatus();
  if (core_.mutations.delete_ignores_last_good) return OkStatus();
  for (const CheckpointRow* other : core_.state.Lineage(job)) {
    bool good = other->mark == format::Mark::kIntact && other->commit.key != key;
    if (good && other->commit.level >= row->commit.level) return OkStatus();
  }
  return FailStatus(Code::kFailedPrecondition,
                    "{} is the last good checkpoint of its job: save another one first",
                    NameOf(key));
}

Task<Status> Committer::Delete(Id job, CheckpointKey key) {
  AsyncMutex::Hold lock = co_await core_.JobLock(job).Lock();
  // Because a certificate in flight must not land in extents that have a new owner.
  co_await core_.changed.WaitFor(
      [this, job, key] { return core_.ending() || !certifying_.contains({job, key}); });
  if (core_.ending()) co_return Status(Code::kUnavailable, "the store is shutting down");
  REPRISE_CO_RETURN_IF_ERROR(CheckDeletable(job, key));
  format::CommitEntry commit = core_.state.FindCheckpoint(job, key)->commit;
  if (core_.mutations.free_before_delete_durable) {
    for (const auto& [rank, shard] : core_.state.FindAttempt(commit.attempt)->shards) {
      core_.log.FreeEarly(shard.runs);
    }
  }
  REPRISE_CO_RETURN_IF_ERROR(co_await EraseCertificate(commit));
  SharedLock::Hold ledger = co_await core_.ledger.Exclude();
  Status deletable = CheckDeletable(job, key);
  if (!deletable.ok()) {
    Status restored = co_await WriteCertificate(commit);
    if (!restored.ok()) LogWarn("certificate: {}", restored.ToString());
    co_return deletable;
  }
  if (core_.mutations.ack_delete_early) {
    core_.Spawn([](Core& core, format::DeleteEntry entry) -> Task<void> {
      Status late = co_await core.log.Append({entry});
      if (!late.ok()) LogWarn("{}", late.ToString());
    }(core_, {job, key}));
    co_return OkStatus();
  }
  // From the check above to here nothing waited: no reader has begun in between.
  deleting_.insert({job, key});
  Status logged = co_await core_.log.Append({format::DeleteEntry{job, key}});
  deleting_.erase({job, key});
  co_return logged;
}

Task<Status> Committer::SetMark(Id job, CheckpointKey key, format::Mark mark, std::string reason) {
  AsyncMutex::Hold lock = co_await core_.JobLock(job).Lock();
  const CheckpointRow* row = core_.state.FindCheckpoint(job, key);
  if (row == nullptr) co_return FailStatus(Code::kNotFound, "{} is not committed", NameOf(key));
  reason.resize(CutText(reason, format::kReasonBytesMax).size());
  if (row->mark == mark && row->mark_reason == reason) co_return OkStatus();
  co_return co_await core_.log.Append({format::MarkEntry{job, key, mark, std::move(reason)}});
}

}  // namespace reprise::lifecycle
