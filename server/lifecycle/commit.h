// Committer: COMMIT and DELETE of checkpoints (narrative on top of commit.cc).
//
// Thread rule: the store's loop.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/format/coverage.h"
#include "server/lifecycle/attempt.h"
#include "server/lifecycle/core.h"
#include "server/lifecycle/layouts.h"

namespace reprise::lifecycle {

class Committer {
 public:
  Committer(Core& core, Attempts& attempts, Layouts& layouts)
      : core_(core), attempts_(attempts), layouts_(layouts) {}

  // Starts the commit in the background when every rank of the attempt is PREPARED.
  void TryCommit(const AttemptPtr& attempt);
  bool AllPrepared(const Attempt& attempt) const;

  // FAILED_PRECONDITION: pinned, last good one of its level, or being read. NOT_FOUND.
  Task<Status> Delete(Id job, CheckpointKey key);
  // Marks under the job's lock. NOT_FOUND when it is gone.
  Task<Status> SetMark(Id job, CheckpointKey key, format::Mark mark, std::string reason);

  // Readers that keep a checkpoint from being deleted.
  void AddLease(const Id& job, const CheckpointKey& key) { ++leases_[{job, key}]; }
  void DropLease(const Id& job, const CheckpointKey& key);
  // A DELETE is on its way to the journal: no reader may begin.
  bool IsDeleting(const Id& job, const CheckpointKey& key) const {
    return deleting_.contains({job, key});
  }

  // Writes the certificate of a committed checkpoint beside its manifest; flushed on OK.
  Task<Status> WriteCertificate(format::CommitEntry commit);
  // DATA_LOSS: none there, or not of this store.
  Task<Result<format::CommitEntry>> ReadCertificate(format::CommitEntry commit);

 private:
  Task<void> Commit(AttemptPtr attempt);
  Task<Status> CheckWhole(AttemptPtr attempt);
  Task<Status> CheckPieces(AttemptPtr attempt, std::vector<format::PreparedEntry> shards);
  Task<Result<std::vector<Digest>>> PieceDigests(AttemptPtr attempt, format::PreparedEntry shard);
  format::CheckpointManifest ManifestOf(const Attempt& attempt) const;
  Task<Result<format::CommitEntry>> WriteManifest(AttemptPtr attempt);
  Status CheckFence(const Attempt& attempt) const;
  Task<Status> RecordCommit(AttemptPtr attempt, format::CommitEntry commit);
  Task<void> Certify(format::CommitEntry commit);
  Task<void> DeleteExpired(Id job, CheckpointKey committed, Keep keep);
  Task<Status> EraseCertificate(format::CommitEntry commit);
  Status CheckDeletable(const Id& job, const CheckpointKey& key) const;

  Core& core_;
  Attempts& attempts_;
  Layouts& layouts_;
  std::map<std::pair<Id, CheckpointKey>, uint64_t> leases_;
  std::set<std::pair<Id, CheckpointKey>> certifying_;
  std::set<std::pair<Id, CheckpointKey>> deleting_;
};

}  // namespace reprise::lifecycle
