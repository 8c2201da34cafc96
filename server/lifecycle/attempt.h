// Attempts: saves in progress, in RAM. One attempt per (job, epoch, step), minted by the first rank
// that begins the step; failure is terminal and told to every node at once.
//
//   open -> committing -> committed        a fence met while committing leads back to open
//   open | committing -> failing -> aborted
//
// `failing` is set at once and refuses everything; `aborted` follows when ABORT is journalled. An
// attempt that ended leaves the table: what remains of it is in the StoreState. After a restart the
// table is rebuilt from PREPARED shards and from the nodes' inventories (Revive).
//
// Deadlines: every rank must have begun within `begin_window`; then there must be progress (bytes,
// or a seal) at least every `attempt_timeout`. A rank that runs ahead to other steps does not help:
// the error names who is missing and which step each of them is at.
//
// Thread rule: the store's loop.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "server/lifecycle/core.h"

namespace reprise::lifecycle {

enum class AttemptPhase : uint8_t { kOpen, kCommitting, kFailing, kCommitted, kAborted };

// Open attempts of one job that inventories alone may bring back.
inline constexpr size_t kRevivedMax = 16;

struct Attempt {
  Id id;
  Id job;
  CheckpointKey key;
  uint32_t world = 0;
  AttemptPhase phase = AttemptPhase::kOpen;
  bool adopted = false;  // by settle: goes on past its epoch's fence
  std::string reason;    // why it failed
  std::string metadata;  // rank 0's
  Keep keep;             // likewise
  int64_t wall_micros = 0;
  std::set<uint32_t> begun;
  std::set<uint32_t> sealing;  // ranks whose PREPARED is being journalled
  bool local_sealed_told = false;
  TimePoint begin_deadline;
  TimePoint last_progress;
  Loop::TimerId timer = 0;
  // By rank, while the attempt lives; after a restart read from shard manifests instead.
  std::map<uint32_t, std::vector<Digest>> piece_digests;
  // Entries held back under the mutation skip_prepared.
  std::vector<format::Entry> held_back;

  bool ended() const {
    return phase == AttemptPhase::kCommitted || phase == AttemptPhase::kAborted;
  }
  bool accepts() const {
    return phase == AttemptPhase::kOpen || phase == AttemptPhase::kCommitting;
  }
};
using AttemptPtr = std::shared_ptr<Attempt>;

class Attempts {
 public:
  explicit Attempts(Core& core) : core_(core) {}
  ~Attempts() { Close(); }

  // Joins or mints the attempt of a step. Codes: CoordinatorApi::Begin (the epoch's own checks are
  // the caller's: EpochManager::CheckRank).
  Result<AttemptPtr> Begin(const BeginRequest& request, uint32_t world);
  // The live attempt this shard belongs to; revives one the coordinator forgot in a restart.
  // FENCED: an older epoch. ABORTED: it failed, with the reason. ALREADY_EXISTS: it is committed.
  Result<AttemptPtr> Find(const format::ShardIdentity& shard);
  // For inventories: like Find, but also of older epochs that have not been settled yet.
  AttemptPtr Revive(const format::ShardIdentity& shard);
  AttemptPtr ById(const Id& attempt) const;
  AttemptPtr ByKey(const Id& job, const CheckpointKey& key) const;
  std::vector<AttemptPtr> OfJob(const Id& job) const;

  // Fails the attempt for all ranks: ABORT journalled, every node told. No effect when it has ended
  // otherwise; waits for an abort in progress.
  Task<Status> Abort(AttemptPtr attempt, std::string reason);
  // The attempt is over without an ABORT of its own (committed, or ended by RESUME): tells nodes.
  void End(const AttemptPtr& attempt, AttemptPhase phase, std::string reason);
  // Notes bytes received or a seal.
  void NoteProgress(const AttemptPtr& attempt) { attempt->last_progress = core_.Now(); }
  // Ranks not PREPARED yet, as text ("1, 4-7").
  std::string MissingRanks(const Attempt& attempt) const;
  // Where a rank was seen last; for messages.
  void SetStepLookup(std::function<std::string(const Id& job, uint32_t rank)> lookup) {
    step_of_ = std::move(lookup);
  }
  // OK unless the shard's attempt cannot come back: ALREADY_EXISTS when it was committed, also if the
  // checkpoint has been deleted since; else ABORTED.
  Status WhyOver(const JobState& job, const format::ShardIdentity& shard) const;
  // Forgets everything; timers are cancelled.
  void Close();

 private:
  AttemptPtr Make(const Id& id, const Id& job, const CheckpointKey& key, uint32_t world);
  Result<AttemptPtr> MintFor(const BeginRequest& request, uint32_t world);
  void Watch(const AttemptPtr& attempt);
  void OnTimer(const Id& id);
  std::string WhoHasNotBegun(const Attempt& attempt) const;

  Core& core_;
  std::function<std::string(const Id&, uint32_t)> step_of_;
  std::map<Id, AttemptPtr> by_id_;
  std::map<std::pair<Id, CheckpointKey>, AttemptPtr> by_key_;
};

// "1, 4-7 and 12 more": ranks for people, bounded.
std::string RankList(const std::set<uint32_t>& ranks);

}  // namespace reprise::lifecycle
