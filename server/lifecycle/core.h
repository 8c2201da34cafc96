// Core: what every part of a store's lifecycle shares, and nothing more.
//
// State, log and tier; the locks that order decisions; the events that tell nodes; the gate that
// shutdown closes. Parts take a Core& and keep their own tables. Lock order: job, then ledger.
//
//   job lock      held over check + journal by EPOCH, RESUME, COMMIT, ABORT, DELETE, PIN, MARK
//   ledger lock   shared by PREPARED, exclusive for what frees extents (ABORT, RESUME, DELETE): a
//                 shard is never recorded while the layout it refers to, or its attempt, goes away
//
// Thread rule: the store's loop. Owner: the store.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/async/sync.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "server/lifecycle/events.h"
#include "server/lifecycle/locks.h"
#include "server/lifecycle/store.h"
#include "server/lifecycle/store_log.h"
#include "server/lifecycle/store_state.h"
#include "server/tier/tier.h"

namespace reprise::lifecycle {

struct Core {
  Loop& loop;
  Rng& rng;
  const CoordinatorOptions& options;
  const Mutations& mutations;
  const Geometry& geometry;
  StoreState& state;
  StoreLog& log;
  tier::Tier& tier;
  EventBus& events;
  Gate& gate;
  Id store;  // for certificates

  SharedLock ledger{loop};
  // Wakes whoever waits for something to happen in the lifecycle of any job (settle).
  Notifier changed{loop};
  bool closing = false;

  // Waits must end: shutdown, or a failure that only a restart clears.
  bool ending() const { return closing || log.failed(); }
  TimePoint Now() const { return loop.Now(); }
  int64_t WallMicros() const { return loop.clock().WallMicros(); }

  AsyncMutex& JobLock(const Id& job) {
    std::unique_ptr<AsyncMutex>& lock = job_locks[job];
    if (lock == nullptr) lock = std::make_unique<AsyncMutex>(loop);
    return *lock;
  }
  // Runs `task` in the background; shutdown waits for it. Dropped when the gate is closed.
  void Spawn(Task<void> task) {
    Gate::Hold hold = gate.Enter();
    if (hold) loop.Spawn(RunHeld(std::move(hold), std::move(task)));
  }
  // The lowest epoch whose trainers may still change things.
  uint64_t FenceOf(const JobState& job) const {
    if (mutations.skip_epoch_check) return 0;
    if (mutations.fence_at_first_save && !first_saves.contains({job.entry.job, job.epoch()})) {
      return job.epoch() == 0 ? 0 : job.epoch() - 1;
    }
    return job.epoch();
  }

  std::unordered_map<Id, std::unique_ptr<AsyncMutex>, IdHash> job_locks{};
  // Used under the mutation fence_at_first_save only.
  std::set<std::pair<Id, uint64_t>> first_saves{};

 private:
  static Task<void> RunHeld(Gate::Hold hold, Task<void> task) {
    co_await std::move(task);
    hold = {};
  }
};

// "JOB_NAME step 12 of epoch 3": how messages name a checkpoint.
inline std::string NameOf(const CheckpointKey& key) {
  return fmt::format("step {} of epoch {}", key.step, key.epoch);
}

}  // namespace reprise::lifecycle
