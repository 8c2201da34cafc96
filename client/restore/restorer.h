// Restorer: carries out a restore plan. Every chunk is verified against its shard's manifest, then
// scattered into the targets while it is hot in the cache.
//
//   1 shards whose sealed slot this process may map (kSlotOf) are read straight from it
//   2 everything else is fetched into the ring, a bounded number of chunks ahead (kFetch, kChunkAt),
//     verified there, scattered, and its buffer given back (kRingFree)
//   3 a chunk that fails its digest is reported (kCorrupt) and comes again from another copy; after
//     kCorruptMax failures the restore ends with DATA_LOSS
// Chunks that arrived stay done, so that Run may be called again after UNAVAILABLE.
//
// Thread rule: one owner; works on threads of its own while Run is under way. Blocking rule: Run blocks
// until done, the deadline, or kSilenceMax without a chunk.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "client/device/copy_engine.h"
#include "client/device/worker_pool.h"
#include "client/restore/planner.h"
#include "client/restore/ring.h"
#include "client/session/session.h"
#include "core/format/manifest.h"
#include "reprise/client.h"

namespace reprise::client {

class Restorer {
 public:
  static constexpr Nanos kSilenceMax = std::chrono::seconds(60);
  static constexpr uint32_t kCorruptMax = 3;
  static constexpr uint32_t kFetchChunks = 8;

  // Where the checkpoint is open.
  struct Connection {
    uint64_t generation = 0;
    uint64_t stream = 0;
    bool map_slots = true;  // false: this process saves meanwhile and may overwrite its own slots
  };
  // `manifests` holds one entry per shard of the plan; targets are the wanted pieces' memory. All
  // outlive the restorer.
  Restorer(Session& session, CopyEngine& engine, RestoreRing& ring, const RestorePlan& plan,
           std::span<const format::ShardManifest> manifests, std::span<const PieceView> targets);

  // DATA_LOSS, DEADLINE_EXCEEDED, UNAVAILABLE (the connection broke), and the daemon's own words.
  Status Run(const Connection& connection, Deadline deadline);
  const ReadStats& stats() const { return stats_; }

 private:
  // A needed chunk of a shard of the plan.
  struct Item {
    uint32_t shard = 0;  // index into the plan
    uint64_t chunk = 0;
    size_t first_use = 0;
    size_t use_count = 0;
    uint32_t failures = 0;
    bool damaged_in_slot = false;  // and not reported yet
    bool done = false;
  };
  struct FetchRun {
    size_t first_item = 0;
    uint32_t count = 0;
  };

  Status RunSlots(const Connection& connection, Deadline deadline);
  void ReadSlotItem(Item& item, ByteView shard_bytes);
  Status RunRing(const Connection& connection, Deadline deadline);
  std::vector<FetchRun> PlanFetches() const;
  void RingWorker();
  Status TopUpLocked();
  Status OnChunk(const Reply& reply);
  Status ReportCorrupt(Item& item, uint32_t ring_index, wire::Source source);
  bool Verify(const Item& item, ByteView chunk) const;
  void Scatter(const Item& item, ByteView chunk);
  void Count(wire::Source source, uint64_t bytes);
  Item* FindItem(uint32_t rank, uint64_t chunk);
  uint64_t LengthOf(const Item& item) const;
  void End(const Status& status);

  Session& session_;
  CopyEngine& engine_;
  RestoreRing& ring_;
  const RestorePlan& plan_;
  const std::span<const format::ShardManifest> manifests_;
  const std::span<const PieceView> targets_;
  WorkerPool pool_;
  std::vector<Item> items_;  // by shard of the plan, then chunk

  // One ring phase; guarded by mutex_ where workers change it.
  Connection connection_;
  RestoreRing::View view_;
  Deadline deadline_ = Deadline::Never();
  std::shared_ptr<Inbox> inbox_;
  std::mutex mutex_;
  std::vector<FetchRun> fetches_;
  size_t next_fetch_ = 0;
  uint64_t in_flight_ = 0;  // chunks asked for and not scattered yet
  uint64_t left_ = 0;       // chunks not done
  std::vector<uint64_t> requests_;
  bool ended_ = false;
  Status status_;
  ReadStats stats_;
};

}  // namespace reprise::client
