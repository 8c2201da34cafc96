// Save: the state of one save, shared by the caller's ticket, the copy thread and the I/O thread.
//
// Life: queued -> (copy thread) begun -> reading -> copied -> sealed locally -> everywhere -> committed,
// or failed from any of them. `reading` is the only time in which the caller's memory is read, and
// Fail during it waits for nobody: the copy notices `cancelled` and ends the reading.
//
// Thread rule: any thread. Only the waits block.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "client/device/copy_engine.h"
#include "client/session/deadline.h"
#include "client/session/fork.h"
#include "client/session/inbox.h"
#include "client/snapshot/layout_cache.h"
#include "core/wire/messages.h"
#include "reprise/client.h"

namespace reprise::client {

// A reused private buffer for volatile pieces.
using Staging = std::vector<uint8_t>;

class Save {
 public:
  Save(uint64_t step, SaveOptions options, std::shared_ptr<const PreparedLayout> layout,
       Nanos stall_budget, SteadyPoint called, std::shared_ptr<std::atomic<uint64_t>> progress)
      : step(step),
        options(std::move(options)),
        layout(std::move(layout)),
        stall_budget_(stall_budget),
        called_(called),
        progress_(std::move(progress)) {}

  // Waits until the caller's memory is not read any more. Gives the save up when nothing moves for the
  // stall budget, or at the deadline.
  Status WaitCopied(Deadline deadline);
  Status Wait(Durability durability, Deadline deadline);
  // Ends the save with `status` unless it is over; the copy thread tells the daemon.
  void Fail(const Status& status);
  SaveProgress progress() const;
  Status status() const;
  bool over() const;
  bool committed() const;
  // True once a wait or Fail has told somebody how it ended.
  bool was_observed() const;

  // --- for the copy thread
  // The next answer to `inbox`, unless the save fails meanwhile (CANCELLED).
  Result<Reply> Await(const std::shared_ptr<Inbox>& inbox, Deadline deadline,
                      std::string_view what);
  // False: failed meanwhile; the memory must not be read.
  bool BeginReading();
  void EndReading();
  // All chunks are in the slot and the seal was sent.
  void SetCopied();
  // The daemon granted a slot of connection `generation` and calls this save `id`.
  void SetBegun(uint64_t generation, uint64_t id);
  void AddProgress() { progress_->fetch_add(1, std::memory_order_relaxed); }
  void SetStartMillis(double millis);
  const std::atomic<bool>& cancelled() const { return cancelled_; }
  // The daemon refused or ended it: all ranks know, no kSaveSkip is due.
  void FailByDaemon(const Status& status);
  bool told_by_daemon() const;

  // --- for the I/O thread
  // News of a save of this step; taken only if it is this one (by its id, or, from a later connection,
  // because this save has lost its own).
  void OnState(const wire::SaveState& state);
  // The checkpoint was seen to exist.
  void OnCommitted();
  // Connection `generation` is gone: a save whose bytes are not all in the slot is lost.
  void OnDisconnected(uint64_t generation, const Status& why);
  // How long ago the connection ended that told how it went on; nullopt unless it is copied, not
  // over, and no later connection has taken it over.
  std::optional<Nanos> orphaned_for() const;
  // True while it may hold a slot of connection `generation`.
  bool occupies_slot(uint64_t generation) const;

  const uint64_t fork_generation = ForkGeneration();
  const uint64_t step;
  const SaveOptions options;
  const std::shared_ptr<const PreparedLayout> layout;
  // Set before the save is queued, owned by the copy thread from then on.
  std::vector<CopyPart> parts;
  std::unique_ptr<CopyEvent> event;
  std::unique_ptr<Staging> staging;

 private:
  void FailLocked(const Status& status);
  void OnStateLocked(const wire::SaveState& state);
  bool ReachedLocked(Durability durability) const;

  const Nanos stall_budget_;
  const SteadyPoint called_;
  std::atomic<bool> cancelled_{false};
  // Rises with every sign of life; shared by all saves of a client, so that one that waits in the queue
  // sees the one before it move.
  const std::shared_ptr<std::atomic<uint64_t>> progress_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool reading_ = false;
  bool copied_ = false;
  bool observed_ = false;
  bool told_by_daemon_ = false;
  std::optional<SteadyPoint> orphaned_at_;
  std::shared_ptr<Inbox> awaited_;        // closed by a failure
  uint64_t generation_ = 0;               // of the connection that granted it
  uint64_t id_ = 0;                       // the daemon's name for it
  std::optional<wire::SaveState> early_;  // came before the grant
  bool rejoined_ = false;                 // a later connection told of it
  uint8_t phase_ = 0;
  Status status_;
  double start_ms_ = 0;
  double copied_ms_ = -1;
  double local_ms_ = -1;
  double committed_ms_ = -1;
};

}  // namespace reprise::client
