// Save: one rank's shard on its way from the trainer's hands to a checkpoint. State only;
// SaveService (save_service.h) drives it, the Uploader reads it, a Connection watches it through
// `observer`.
//
// Chunks become *ready* (the trainer has copied them) in any order, are then hashed, and appear in
// `hashed_order`, which only grows: the uploader follows it while later chunks are still being
// copied. Piece digests are computed along with the chunks, in shard order (PieceHasher).
//
// Thread rule: the node's loop.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "core/wire/messages.h"
#include "server/node/slab.h"

namespace reprise::node {

struct SaveSpec {
  format::ShardIdentity shard;  // `attempt` is zero until the coordinator has named it
  Id process;
  std::string who;  // "rank 2 on node7 (pid 4711)", for messages that all ranks read
  uint64_t length = 0;
  uint32_t chunk_bytes = 0;
  Digest layout_digest;
  std::shared_ptr<const Bytes> layout_bytes;
  std::shared_ptr<const format::Layout> layout;
  std::string metadata;
  Keep keep;
};

// Digests of the pieces whose bytes must agree between ranks (scope replicated), fed with the
// shard's bytes in order. Others stay zero.
class PieceHasher {
 public:
  explicit PieceHasher(std::shared_ptr<const format::Layout> layout);
  // `bytes` are those at `offset`; each call continues where the one before ended.
  void Update(uint64_t offset, ByteView bytes);
  // All of the shard was given.
  std::vector<Digest> Finish();

 private:
  void CloseFinishedPieces(uint64_t end);
  std::shared_ptr<const format::Layout> layout_;
  std::vector<Digest> digests_;
  size_t piece_ = 0;  // the first piece that is not finished
  DigestStream stream_;
};

class Save {
 public:
  Save(Loop& loop, uint64_t id, SaveSpec spec, std::shared_ptr<Slot> slot);
  // A sealed shard that was found in the slab: complete, waiting only for its upload.
  static std::shared_ptr<Save> OfSealedSlot(Loop& loop, uint64_t id, std::shared_ptr<Slot> slot);

  uint64_t chunk_count() const { return digests.size(); }
  // Plain bytes of a chunk in the slot.
  ByteView Chunk(uint64_t index) const;
  // Chunks [first, first + count) are in the slot. INVALID_ARGUMENT: outside the shard, or twice.
  Status AddReady(uint64_t first, uint64_t count);
  // Hashes the next ready chunk. Requires !to_hash.empty().
  void HashOne();
  // Takes one more chunk into the piece digests; false when the next one in order is not hashed
  // yet, or all are done.
  bool AdvancePieces();
  bool all_ready() const { return ready_count == chunk_count(); }
  bool all_hashed() const { return hashed_order.size() == chunk_count(); }
  bool has_attempt() const { return !spec.shard.attempt.IsZero(); }
  bool failed() const { return !failure.ok(); }
  // Its slot is still its own: one that a newer commit made obsolete may have been given to a later
  // save while this one waited for its end.
  bool has_slot() const { return slot->takes() == taken_; }
  // Nothing more will happen to it.
  bool over() const { return failed() || committed; }
  // The manifest. Requires that all is hashed, pieces included, and the attempt is known.
  format::ShardManifest MakeManifest();

  // How far it has come, as the trainer hears it.
  wire::SaveState State() const;
  // A new state: tells the observer, if there is one.
  void Emit(wire::SavePhase new_phase);

  const uint64_t id;
  SaveSpec spec;
  std::shared_ptr<Slot> slot;
  std::vector<Digest> digests;
  std::deque<uint64_t> to_hash;
  std::vector<uint64_t> hashed_order;
  uint64_t ready_count = 0;
  bool seal_requested = false;
  SlotUse sealing;  // from seal_requested to sealed: the slot stays although its process may go
  SlotUse queued;  // from its place in the uploader's queue to its turn: the bytes are still needed
  std::shared_ptr<const format::ShardManifest> manifest;  // set: sealed in the slab
  bool upload_asked = false;                              // again, by settle
  bool uploaded = false;                                  // sealed at the store
  bool committed = false;
  Status failure;
  uint64_t bytes_sent = 0;
  Notifier changed;                                        // after any change of the above
  wire::SavePhase phase = wire::SavePhase::kTransferring;  // the last that was emitted
  std::function<void(const wire::SaveState&)> observer;
  const void* watcher =
      nullptr;  // whom `observer` speaks for: a connection takes back only its own

 private:
  const uint64_t taken_;
  std::vector<bool> is_ready_;
  std::vector<bool> is_hashed_;
  uint64_t pieces_prefix_ = 0;  // chunks [0, this) went through pieces_
  PieceHasher pieces_;
};

}  // namespace reprise::node
