// Store: one store directory brought to life: superblock, journal, catalog, tier, coordinator.
//
// Open runs recovery (numbered narrative on top of recovery.cc) and then serves CoordinatorApi and
// ShardStore. The directory is locked; a second daemon is refused. Layout of a directory:
// SUPER, JOURNAL.0, JOURNAL.1, seg/, index/ (docs/format.md).
//
// Thread rule: everything on the loop of `io`. Close before destruction.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/io/io.h"
#include "server/catalog/catalog.h"
#include "server/journal/journal.h"
#include "server/lifecycle/coordinator_api.h"
#include "server/lifecycle/shard_store.h"
#include "server/lifecycle/store_state.h"
#include "server/tier/nvme_tier.h"
#include "server/tier/tier.h"

namespace reprise::lifecycle {

// Geometry is fixed when the directory is made (mkfs time); tests use tiny values.
struct Geometry {
  uint32_t chunk_bytes = limits::kChunkBytesDefault;
  uint64_t segment_bytes = 256 * limits::kMiB;
  uint32_t segment_count = 16;
  uint32_t journal_slots = 8192;
};

// Deadlines and windows of the coordinator; each is a key of the daemon's configuration.
struct CoordinatorOptions {
  Nanos begin_window = std::chrono::seconds(60);     // all ranks must have begun a step
  Nanos attempt_timeout = std::chrono::minutes(30);  // begin to commit, without progress
  Nanos settle_timeout = std::chrono::seconds(10);   // adoption of sealed attempts at run start
  Nanos node_timeout = std::chrono::seconds(2);      // without a poll a node counts as gone
  Nanos inventory_grace = std::chrono::seconds(2);   // after a restart, before the first resume
  uint32_t open_attempts_max = 4;                    // per job
};

// Test only: each flag removes one barrier or check, so that enumeration and simulation can show
// that it is needed. All false in production.
struct Mutations {
  bool skip_payload_flush = false;     // S3 omitted
  bool prepared_before_flush = false;  // S4 before S3
  bool skip_prepared = false;          // S4 omitted
  bool skip_manifest_flush = false;    // C2 without fdatasync
  bool commit_without_all_sealed = false;
  bool ack_before_commit_durable = false;
  bool epoch_check_outside_lock = false;  // C3's epoch check made before the lock only
  bool skip_epoch_check = false;
  bool free_before_delete_durable = false;
  bool ack_delete_early = false;
  bool skip_root_check = false;
  bool skip_manifest_verify = false;  // recovery trusts manifests unread
  bool shards_keyed_by_step = false;  // shards of two attempts of one step may mix
  bool fence_at_first_save = false;   // fence raised when the new epoch first saves, not at grant
  bool resume_without_settle = false;
  bool resume_ignores_damage = false;  // settle takes the newest checkpoint, marked or unreadable
  bool delete_ignores_pin = false;
  bool delete_ignores_last_good = false;
  bool forget_prepared = false;  // recovery takes the extents of PREPARED shards for free space
};

struct StoreOptions {
  std::string directory;
  std::string journal_mirror_directory;  // empty: the second copy lies in `directory` too
  bool create = true;                    // make the directory's content when it is empty
  Geometry geometry;                     // used when created
  CoordinatorOptions coordinator;
  bool prewrite_segments = true;
  Mutations mutations;
  journal::Mutations journal_mutations;  // test only, too
  tier::NvmeMutations tier_mutations;    // test only, too
};

// Makes the index for a directory; the composition root passes RocksDB, tests pass the model.
// `fresh` asks for an empty index in place of whatever is there (rebuild from the journal).
using CatalogFactory = std::function<Task<Result<std::unique_ptr<catalog::Catalog>>>(
    std::string directory, bool fresh)>;

struct RecoveryReport {
  uint64_t replayed_groups = 0;
  uint64_t checkpoints = 0;
  std::vector<std::string> repairs;  // what was repaired or found damaged, for the log and doctor
};

class Store : public CoordinatorApi, public ShardStore {
 public:
  static Task<Result<std::unique_ptr<Store>>> Open(Io& io, Rng& rng, StoreOptions options,
                                                   CatalogFactory make_catalog);
  // Refuses new calls, ends waits with UNAVAILABLE, flushes the index, closes everything. Put and
  // read sessions must be gone before the store is destroyed.
  virtual Task<void> Close() = 0;
  virtual const RecoveryReport& recovery() const = 0;
  virtual tier::TierUsage usage() const = 0;
  virtual const Geometry& geometry() const = 0;
  // The store's identity, made when its directory was.
  virtual const Id& id() const = 0;
  // What the journal says; for doctor and tests.
  virtual const StoreState& state() const = 0;
  // True after an error that only a restart can clear (journal write failed); the daemon exits.
  virtual bool failed() const = 0;
};

}  // namespace reprise::lifecycle
