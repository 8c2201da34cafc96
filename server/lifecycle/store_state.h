// StoreState: what the journal of a store says, as one pure value.
//
// Apply() turns one journal entry into changes of the state, of catalog rows and of free space.
// Everything a store may decide is decided against this state; nothing changes it but a durable
// entry. The extent ledger lives here: extents are PREPARED with a shard, COMMITTED with its
// checkpoint, and leave only through ABORT, RESUME (attempts of older epochs) or DELETE.
//
// Lineage: an epoch's RESUME names its parent checkpoint. What older epochs committed beyond the
// parent is *superseded*: still addressable as (epoch, step), never `latest`.
//
// Thread rule: a value without locks, I/O or clock; its owner is the store's loop.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/format/journal.h"
#include "reprise/status.h"
#include "server/catalog/catalog.h"
#include "server/lifecycle/rows.h"

namespace reprise::lifecycle {

// Failed and deleted attempts remembered per job, so that neither comes back from a node's slab.
inline constexpr size_t kAbortsRememberedMax = 256;

struct IdHash {
  size_t operator()(const Id& id) const {
    size_t value;
    std::memcpy(&value, id.bytes.data(), sizeof(value));
    return value;
  }
};

// The shards of one attempt that are PREPARED (or, once `committed`, part of a checkpoint).
struct PreparedAttempt {
  Id job;
  CheckpointKey key;
  uint32_t world = 0;
  bool committed = false;
  std::map<uint32_t, format::PreparedEntry> shards;
};

struct JobState {
  format::JobEntry entry;
  std::map<uint64_t, EpochRow> epochs;
  std::map<CheckpointKey, CheckpointRow> checkpoints;
  std::map<CheckpointKey, OverRow> over;  // aborted or deleted

  // The current epoch: the fence. 0 before the first grant.
  uint64_t epoch() const { return epochs.empty() ? 0 : epochs.rbegin()->first; }
  // The current epoch has its RESUME record.
  bool resumed() const { return !epochs.empty() && epochs.rbegin()->second.resume.has_value(); }
};

class StoreState {
 public:
  // What applying an entry changes outside: catalog rows, and extents that are free now.
  struct Change {
    std::vector<catalog::RowChange> rows;
    std::vector<format::Run> freed;
  };

  // Applies one entry. INTERNAL: the entry is impossible in this state, which is left unchanged (at
  // recovery the caller turns that into DATA_LOSS: journal and index contradict each other).
  Result<Change> Apply(const format::Entry& entry);

  // Rebuild: takes one catalog row; rows come in any order. Then FinishLoad checks the whole.
  Status LoadRow(const Row& row);
  // DATA_LOSS: rows that contradict each other (a checkpoint without its shards, a shard without
  // its layout, an extent with two owners), named.
  Status FinishLoad();

  const JobState* FindJob(const Id& job) const;
  const JobState* FindJob(const std::string& tenant, const std::string& name) const;
  const std::map<Id, JobState>& jobs() const { return jobs_; }
  const CheckpointRow* FindCheckpoint(const Id& job, const CheckpointKey& key) const;
  const PreparedAttempt* FindAttempt(const Id& attempt) const;
  const format::PreparedEntry* FindShard(const Id& attempt, uint32_t rank) const;
  const format::LayoutEntry* FindLayout(const Digest& layout) const;
  const std::unordered_map<Id, PreparedAttempt, IdHash>& attempts() const { return attempts_; }

  // Checkpoints that the current run descends from, newest first, whatever their mark.
  std::vector<const CheckpointRow*> Lineage(const JobState& job) const;
  bool OnLineage(const JobState& job, const CheckpointKey& key) const;
  // The newest intact one along the lineage; nullptr when there is none.
  const CheckpointRow* Latest(const JobState& job) const;
  // The newest along the lineage with this step.
  const CheckpointRow* AtStep(const JobState& job, uint64_t step) const;

  // Every extent that is alive, for Tier::Adopt.
  std::vector<format::Run> LiveRuns() const;
  // Bytes of extents a checkpoint occupies (shared layouts not counted).
  uint64_t StoredBytes(const CheckpointRow& checkpoint) const;
  // The same rows whatever the order of events: for comparison in tests.
  std::map<std::string, std::string> Rows() const;

 private:
  struct LayoutState {
    format::LayoutEntry entry;
    uint64_t references = 0;
  };

  Result<Change> On(const format::JobEntry& entry);
  Result<Change> On(const format::EpochEntry& entry);
  Result<Change> On(const format::ResumeEntry& entry);
  Result<Change> On(const format::LayoutEntry& entry);
  Result<Change> On(const format::PreparedEntry& entry);
  Result<Change> On(const format::CommitEntry& entry);
  Result<Change> On(const format::PromoteEntry& entry);
  Result<Change> On(const format::AbortEntry& entry);
  Result<Change> On(const format::DeleteEntry& entry);
  Result<Change> On(const format::PinEntry& entry);
  Result<Change> On(const format::MarkEntry& entry);

  Status CheckPrepared(const format::PreparedEntry& entry) const;
  Status CheckCommit(const JobState& job, const format::CommitEntry& entry) const;
  JobState* MutableJob(const Id& job);
  CheckpointRow* MutableCheckpoint(const Id& job, const CheckpointKey& key);
  // Removes an attempt with its shards; their extents and layouts nobody else needs become free.
  void DropAttempt(const Id& attempt, Change& change);
  void DropLayoutReference(const Digest& layout, Change& change);
  // Remembers that an attempt is over for good, while anybody could still bring it back.
  void Remember(JobState& job, OverRow over, Change& change);
  // Removes remembered ends until at most `keep` are left and none is of an epoch below
  // `epoch`.
  void ForgetOver(JobState& job, uint64_t epoch, size_t keep, Change& change);

  Status TakeExtents(const std::vector<format::Run>& runs);
  void ReleaseExtents(const std::vector<format::Run>& runs);

  std::map<Id, JobState> jobs_;
  std::map<std::pair<std::string, std::string>, Id> names_;
  std::unordered_map<Id, PreparedAttempt, IdHash> attempts_;
  std::unordered_map<Digest, LayoutState, DigestHash> layouts_;
  std::map<std::pair<uint32_t, uint64_t>, uint64_t> extents_;  // (segment, offset) -> length
};

}  // namespace reprise::lifecycle
