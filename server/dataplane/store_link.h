// StoreLink: how a node daemon reaches a store's bytes, wherever the store runs.
//
// TcpStoreLink speaks frames over TCP (docs/wire.md). LocalStoreLink serves a daemon that holds both
// roles: it hops to the store's loop and copies each chunk into a private buffer of the store before
// hashing and writing it, so that a trainer that still writes its slab can never change what the
// digest vouches for (docs/adr). Both keep one contract, under one conformance suite.
//
// Memory is bounded by credits: Send suspends while the store has granted none.
//
// Thread rule: the node's loop.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/async/task.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "core/wire/messages.h"
#include "reprise/status.h"

namespace reprise::dataplane {

// One shard on its way to a store. Destroying it (or Abandon) without Seal gives the space back.
class ShardUpload {
 public:
  virtual ~ShardUpload() = default;
  // The store holds this very shard already: send nothing, count it as sealed.
  virtual bool already_sealed() const = 0;
  // Sends chunk `index` (plain bytes; `chunk` stays valid until Seal or Abandon returns). Chunks may be
  // sent in any order, one call at a time. Returns when the next one may come, not when this one is
  // stored: that a chunk was refused is told by a later Send, at the latest by Seal.
  virtual Task<Status> Send(uint64_t index, ByteView chunk, Digest digest) = 0;
  // All chunks are sent: returns when the store has sealed the shard (PREPARED is journalled).
  // DATA_LOSS: digests differ. FENCED, ABORTED: the attempt is over. DEADLINE_EXCEEDED names phase.
  virtual Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) = 0;
  // Ends the upload; must be awaited before destruction when Seal was not called.
  virtual Task<void> Abandon() = 0;
};

// One checkpoint open for reading; keeps its extents alive at the store.
class CheckpointSource {
 public:
  virtual ~CheckpointSource() = default;
  virtual const format::CheckpointManifest& manifest() const = 0;
  virtual Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) = 0;
  virtual Task<Result<Bytes>> Layout(Digest layout) = 0;
  // Reads chunks [first, first + buffers.size()) of a shard, chunk i into buffers[i] (4 KiB-aligned,
  // padded length). Unverified: compare with the shard manifest's digests.
  virtual Task<Status> ReadChunks(const format::ShardManifest& shard, uint64_t first,
                                  std::vector<MutableByteView> buffers) = 0;
  virtual Task<void> Close() = 0;
};

class StoreLink {
 public:
  virtual ~StoreLink() = default;
  virtual Task<Result<std::unique_ptr<ShardUpload>>> OpenUpload(wire::PutOpen request) = 0;
  virtual Task<Result<std::unique_ptr<CheckpointSource>>> OpenRead(Id job, CheckpointKey key) = 0;
  virtual uint32_t chunk_bytes() const = 0;  // 0 until first connected
  virtual wire::Source source() const = 0;   // what restores call bytes from here
  virtual Task<void> Close() = 0;
};

}  // namespace reprise::dataplane
