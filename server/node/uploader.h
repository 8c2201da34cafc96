// Uploader: moves shards from the slab to the store, oldest attempt first, a few at a time.
//
// An upload may begin while the trainer still copies: it follows Save::hashed_order and waits for
// more. A store that is away or slow only delays it: the upload is begun anew with the same
// attempt, with growing pauses, until nothing has moved for `upload_retry_max`. ABORTED and
// RESOURCE_EXHAUSTED end it at once, FENCED too unless the shard is sealed here: the next run's settle
// may adopt it, so that it waits to be asked again, or told that it is over. When the store finds other bytes than were hashed, the slot is
// verified: if the slab is at fault it is quarantined, else the upload is repeated.
//
// Thread rule: the node's loop. Every coroutine is held by the context's gate.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "server/node/context.h"
#include "server/node/save.h"

namespace reprise::node {

class Uploader {
 public:
  // Called when an upload has ended for good without success; ends the save for all ranks.
  using OnFailure = std::function<void(const std::shared_ptr<Save>&, Status)>;
  Uploader(NodeContext& context, Slab& slab, OnFailure on_failure);

  // Takes a save whose attempt is known; it ends with save->uploaded, or with a call of OnFailure,
  // or without either when the save is over or the node closes.
  void Enqueue(std::shared_ptr<Save> save);
  // Shards queued or under way.
  size_t pending() const { return waiting_.size() + active_; }
  // Waits until nothing is pending (true) or `deadline` (false).
  Task<bool> WaitIdle(TimePoint deadline);
  // What one upload moved lately, bytes a second; 0 before the first bytes.
  double drain_rate() const { return drain_rate_; }

 private:
  void Pump();
  static Task<void> Run(Uploader* uploader, std::shared_ptr<Save> save, Gate::Hold hold);
  Task<void> UploadWithRetries(std::shared_ptr<Save> save);
  Task<Status> UploadOnce(std::shared_ptr<Save> save);
  Task<Status> SendAll(std::shared_ptr<Save> save, dataplane::ShardUpload& upload);
  // Compares the slot with its own digests; false quarantines it.
  Task<bool> VerifySlot(std::shared_ptr<Save> save);
  void CountSent(Save& save, uint64_t bytes);

  NodeContext& context_;
  Slab& slab_;
  OnFailure on_failure_;
  std::vector<std::shared_ptr<Save>> waiting_;
  size_t active_ = 0;
  Notifier changed_;
  double drain_rate_ = 0;
  TimePoint rate_since_;
  uint64_t rate_bytes_ = 0;
};

}  // namespace reprise::node
