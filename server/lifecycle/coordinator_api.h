// CoordinatorApi: what node daemons and operators ask of the coordinator of a store.
//
// Implemented by Coordinator (in the store's process) and by rpc::CoordinatorStub (over gRPC), so
// that a daemon holding both roles, a remote node and the simulator run the same code. Semantics
// are those of docs/architecture.md, "Run start" and "Who saves when".
//
// Every mutating call is idempotent: a replay (same job, epoch, attempt, rank, process) gives the
// same answer. Every call has a deadline chosen by the caller; the error of a wait that ran out
// names what was missing. Codes beyond those listed at a call: UNAVAILABLE (store away: retry),
// CANCELLED.
//
// Thread rule: the caller's loop; implementations hop to their own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/async/task.h"
#include "core/base/clock.h"
#include "core/format/journal.h"
#include "core/format/manifest.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::lifecycle {

using format::SkippedCheckpoint;

// One training process as it introduces itself. `process` is random and new in every process.
struct RankIdentity {
  std::string tenant;
  std::string job;
  uint32_t rank = 0;
  uint32_t world = 0;
  Id process;
  std::string launcher;  // equal for all ranks of one launch (torchrun run id, Slurm job id, ...)
  std::string host;
  int64_t pid = 0;
};

struct RegisterRequest {
  RankIdentity who;
  Id node;                // the node daemon the rank is attached to
  bool takeover = false;  // fence a run of this job that is alive under another launcher
  // 0: a process joins a new run. Else it is in this epoch already and lost its node daemon: it gets
  // the same answer again, also from a coordinator that has forgotten it, or FENCED.
  uint64_t epoch = 0;
};
// What every rank of an epoch gets, word for word the same: the pinned resume point.
struct RegisterAnswer {
  Id job;
  uint64_t epoch = 0;
  std::optional<CheckpointKey> resume;     // none: the job never committed anything restorable
  std::vector<SkippedCheckpoint> skipped;  // newer checkpoints that could not be used, and why
};

struct BeginRequest {
  Id job;
  uint64_t epoch = 0;
  uint64_t step = 0;
  uint32_t rank = 0;
  Id process;
  std::string metadata;  // JSON object; rank 0's is kept
  Keep keep;             // likewise; lost when the store restarts before the commit
};
struct BeginAnswer {
  Id attempt;
};

struct SkipRequest {
  Id job;
  uint64_t epoch = 0;
  uint64_t step = 0;
  uint32_t rank = 0;
  std::string reason;
};

// A shard that lies sealed in a node's slab.
struct InventoryItem {
  format::ShardIdentity shard;
  Digest root;
  uint64_t length = 0;
  bool operator==(const InventoryItem&) const = default;
};
struct InventoryReport {
  Id node;
  Id incarnation;       // new at each start of the daemon
  std::string address;  // for people: host and pid of the daemon
  // Everything sealed and not yet reused: replaces the last report.
  std::vector<InventoryItem> items;
  uint64_t settle_token = 0;  // the token of the kSettle event this report answers, or 0
};

// A rank's process ended or detached (pidfd); its epoch stays, its registration does not.
struct RankGone {
  Id job;
  uint64_t epoch = 0;
  uint32_t rank = 0;
  Id process;
  std::string reason;
};

struct NodeEvent {
  enum class Kind : uint8_t {
    kCommitted = 1,  // `key`/`attempt` is a checkpoint now
    kAborted = 2,    // the attempt failed for all; `reason` says why and names the rank
    kSettle = 3,     // answer at once with a fresh InventoryReport carrying `token`
    kFenced = 4,     // epochs of `job` up to key.epoch are over: stop their trainers' saves
    // All ranks of the attempt have sealed at `local`; or settle has adopted it: upload it (again),
    // even if it was answered FENCED before.
    kLocalSealed = 5,
  };
  Kind kind = Kind::kCommitted;
  Id job;
  CheckpointKey key;
  Id attempt;
  std::string reason;
  uint64_t token = 0;
  bool operator==(const NodeEvent&) const = default;
};
struct PollRequest {
  Id node;
  Id incarnation;
  uint64_t after = 0;  // cursor of the last event seen
};
struct PollAnswer {
  std::vector<NodeEvent> events;
  uint64_t cursor = 0;
  bool lost = false;  // events after `after` are gone (coordinator restart): send a full inventory
};

enum class CheckpointState : uint8_t {
  kSaving = 1,
  kCommitted = 2,
  kDamaged = 3,
  kPoisoned = 4,
  kSuperseded = 5,
  kRecovered = 6,
};
std::string_view CheckpointStateName(CheckpointState state);

struct CheckpointInfo {
  CheckpointKey key;
  Id attempt;
  CheckpointState state = CheckpointState::kCommitted;
  Durability level = Durability::kServer;
  uint32_t world = 0;
  uint64_t length = 0;
  int64_t wall_micros = 0;
  bool pinned = false;
  bool adopted = false;
  Digest root;
  std::string note;  // why it is damaged, poisoned or pinned; ranks still missing while saving
};
struct RankInfo {
  uint32_t rank = 0;
  std::string host;
  int64_t pid = 0;
  bool alive = false;
  uint64_t last_step = 0;  // highest step it began
};
struct JobInfo {
  std::string tenant;
  std::string name;
  Id job;
  uint64_t epoch = 0;
  uint32_t world = 0;
  bool alive = false;
  std::optional<CheckpointKey> latest;
  std::optional<CheckpointKey> resume;  // of the current epoch
  uint64_t checkpoint_count = 0;
  uint64_t stored_bytes = 0;
  std::vector<RankInfo> ranks;
};

// Selects a checkpoint of a job: exactly one form, or latest when all are empty.
struct Selector {
  std::optional<uint64_t> step;  // along the lineage, or with `epoch` exactly
  std::optional<uint64_t> epoch;
};

class CoordinatorApi {
 public:
  virtual ~CoordinatorApi() = default;

  // Registers a rank and waits until its epoch is open and settled. ALREADY_EXISTS: the job is
  // alive under another launcher (names host, pid, step). DEADLINE_EXCEEDED names the missing
  // ranks. FENCED: a newer run registered meanwhile. INVALID_ARGUMENT: bad names, rank >= world.
  virtual Task<Result<RegisterAnswer>> Register(RegisterRequest request, TimePoint deadline) = 0;

  // Announces that a rank saves `step`; the first caller mints the attempt. FENCED: older epoch.
  // ABORTED: the attempt has failed already (reason inside). ALREADY_EXISTS: step is committed in
  // this epoch. FAILED_PRECONDITION: another step is being saved by other ranks (ranks disagree).
  virtual Task<Result<BeginAnswer>> Begin(BeginRequest request) = 0;
  // A rank cannot take part: aborts the attempt for all ranks. OK also when it failed before.
  virtual Task<Status> Skip(SkipRequest request) = 0;

  virtual Task<Status> ReportInventory(InventoryReport report) = 0;
  virtual Task<Status> ReportRankGone(RankGone gone) = 0;
  // Waits for events after `after`, at most until `deadline`; then an empty answer. Being called is
  // also the node's heartbeat.
  virtual Task<Result<PollAnswer>> PollEvents(PollRequest request, TimePoint deadline) = 0;

  // --- for operators and readers; none of these registers or fences anyone
  // Jobs of `tenant`; of all tenants when it is empty.
  virtual Task<Result<std::vector<JobInfo>>> ListJobs(std::string tenant) = 0;
  virtual Task<Result<JobInfo>> GetJob(std::string tenant, std::string job) = 0;
  // Newest first. `all` includes saving, superseded and failed-to-verify ones.
  virtual Task<Result<std::vector<CheckpointInfo>>> ListCheckpoints(std::string tenant,
                                                                    std::string job, bool all) = 0;
  // NOT_FOUND names what exists. DATA_LOSS when the selected one is damaged.
  virtual Task<Result<CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                               Selector selector) = 0;
  // FAILED_PRECONDITION: pinned, last good one, or being read.
  virtual Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) = 0;
  virtual Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                           std::string reason) = 0;
  // Records that stored bytes of a checkpoint failed verification (or that it is poisoned).
  virtual Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key,
                               format::Mark mark, std::string reason) = 0;
};

}  // namespace reprise::lifecycle
