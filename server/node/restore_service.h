// RestoreService: gives one connected process the bytes of checkpoints, chunk by chunk.
//
// A process opens a checkpoint under a stream id of its choice, asks for manifests and layouts, and
// fetches chunks into a *ring*: shared memory of a fixed number of chunk buffers. Each buffer
// belongs to the process from kChunkAt until kRingFree names it; when all do, fetches wait. Chunks
// come from this node's slab when it holds the shard, else from the store. Nothing is verified
// here: the process compares digests where the bytes arrive and reports kCorrupt, upon which a slab
// copy is quarantined and the chunk comes again from the store, verified; if that fails too the
// checkpoint is marked damaged and the answer is DATA_LOSS. The buffer named in kCorrupt stays the
// process's throughout.
//
// A sealed slot that nobody writes any more (or the process's own) can be mapped directly: SlotOf.
//
// Thread rule: the node's loop. Close before destruction. A failed call leaves nothing behind.
#pragma once

#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/wire/messages.h"
#include "server/node/context.h"
#include "server/node/layout_cache.h"
#include "server/node/slab.h"

namespace reprise::node {

// The shared chunk buffers of one process. Shared with fetches under way.
class RestoreRing {
 public:
  RestoreRing(Loop& loop, Slab::Scratch scratch, uint32_t chunks, uint64_t stride_bytes);
  // Takes 1..`wanted` buffers, waiting for the first; none when `ended()` became true (see Wake).
  Task<std::vector<uint32_t>> Take(uint32_t wanted, std::function<bool()> ended);
  // Gives buffers back; those that are not taken are ignored.
  void Free(const std::vector<uint32_t>& indices);
  void Wake() { changed_.Notify(); }
  bool is_taken(uint32_t index) const { return index < taken_.size() && taken_[index]; }
  MutableByteView Buffer(uint32_t index) const;
  const SlabMapping& mapping() const { return scratch_.mapping; }
  uint64_t stride_bytes() const { return stride_bytes_; }
  wire::RingInfo info() const { return {static_cast<uint32_t>(taken_.size()), stride_bytes_}; }

 private:
  Slab::Scratch scratch_;
  uint64_t stride_bytes_;
  std::vector<bool> taken_;
  std::deque<uint32_t> free_;
  Notifier changed_;
};

class RestoreService {
 public:
  // What the registration of this process pinned, for ReadOpen without a step.
  struct Pinned {
    std::string tenant;
    std::string job_name;
    Id job;
    std::optional<CheckpointKey> resume;
  };
  // `send` queues frames, with a descriptor to pass along or none. `inventory_changed` is called
  // after a slot was quarantined.
  RestoreService(NodeContext& context, Slab& slab, std::function<void(Bytes, OwnedFd)> send,
                 std::function<void()> inventory_changed);

  // Each answers `request` through `send`, or fails with what kError is to carry.
  Task<Status> ReadOpen(wire::ReadOpen message, uint64_t request, uint64_t stream,
                        std::optional<Pinned> pinned);
  Task<Status> ReadShard(wire::ReadShard message, uint64_t request, uint64_t stream);
  Task<Status> ReadLayout(wire::ReadLayout message, uint64_t request, uint64_t stream,
                          LayoutCache& cache);
  Task<Status> ReadClose(uint64_t stream);
  Task<Status> RingAttach(wire::RingAttach message, uint64_t request);
  Task<Status> Fetch(wire::Fetch message, uint64_t request, uint64_t stream);
  Task<Status> Corrupt(wire::Corrupt message, uint64_t request, uint64_t stream);
  // `owner`: the grant of the asking process.
  Status SlotOf(wire::SlotOf message, uint64_t request, uint64_t stream, const Id& owner);
  void RingFree(const wire::RingFree& message);

  // Refuses new calls and makes those that wait for ring buffers end.
  void BeginClosing();
  // After BeginClosing and when no call is under way: gives checkpoints and ring back.
  Task<void> Close();

 private:
  using ShardPtr = std::shared_ptr<const format::ShardManifest>;
  struct OpenCheckpoint {
    std::string tenant;
    std::string job_name;
    CheckpointKey key;
    std::unique_ptr<dataplane::CheckpointSource> source;
    std::list<ShardPtr> shards;  // of the store, recently used first
    uint32_t uses = 0;
    bool closing = false;
    std::string name() const;
  };
  using OpenPtr = std::shared_ptr<OpenCheckpoint>;
  // Counts a call that uses the checkpoint, so that ReadClose waits for it.
  class Use;

  // That there is a ring, with room for the store's chunks.
  Status CheckRing() const;
  Result<OpenPtr> FindOpen(uint64_t stream) const;
  Result<const format::CheckpointShard*> ShardOf(const OpenCheckpoint& open, uint32_t rank) const;
  // The slot with this very shard, or null.
  std::shared_ptr<Slot> LocalCopy(const OpenCheckpoint& open, uint32_t rank) const;
  Task<Result<ShardPtr>> StoreShard(OpenPtr open, uint32_t rank);
  Task<Result<OpenPtr>> Resolve(wire::ReadOpen message, std::optional<Pinned> pinned, Id* job);
  struct FetchJob;
  Task<Status> FetchBatch(const FetchJob& job, uint64_t first, std::vector<uint32_t> buffers);
  // Chunks copied from the slab: 0 when there is no local copy (any more).
  Task<size_t> CopyFromSlab(const FetchJob& job, uint64_t first,
                            const std::vector<uint32_t>& buffers);
  Task<Status> ReadVerified(OpenPtr open, uint32_t rank, uint64_t index, MutableByteView buffer);
  void SendChunkAt(const FetchJob& job, uint64_t index, uint32_t buffer, uint32_t length,
                   wire::Source source);

  NodeContext& context_;
  Slab& slab_;
  std::function<void(Bytes, OwnedFd)> send_;
  std::function<void()> inventory_changed_;
  std::map<uint64_t, OpenPtr> open_;
  std::shared_ptr<RestoreRing> ring_;
  bool attaching_ring_ = false;
  bool closing_ = false;
  Semaphore fetches_;
  Notifier uses_changed_;
};

}  // namespace reprise::node
