// LocalStoreLink: a StoreLink to the store of the same process, whose loop may be another thread's.
//
// Send copies the chunk into a buffer that only the store's loop writes, hashes the copy, compares
// it with the sender's digest, and starts the write; it returns when the bytes are copied. Up to
// write_depth chunks are in flight for each upload, so that the disk stays busy; a further Send
// waits. Sessions live and die on the store's loop. Reads go straight into the caller's buffers.
// Why a copy, in one process: docs/adr (a trainer may still write its slab).
//
// Thread rule: the node's loop; the store's loop must keep running until Close has returned.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "core/io/buffer_pool.h"
#include "server/dataplane/store_link.h"
#include "server/lifecycle/shard_store.h"

namespace reprise::dataplane {

struct LocalStoreLinkOptions {
  uint32_t write_depth = limits::kCreditsDefault;     // chunks in flight of one upload
  uint32_t read_depth = 8;                            // chunks being read for one ReadChunks
  Nanos progress_timeout = std::chrono::seconds(60);  // for a buffer
};

class LocalStoreLink final : public StoreLink {
 public:
  // `buffers` belongs to the store's loop and holds chunks of the store's size; several links may
  // share it. `store`, `buffers` and both loops outlive the link and everything it opened.
  LocalStoreLink(Loop& node_loop, Loop& store_loop, lifecycle::ShardStore& store,
                 BufferPool& buffers, LocalStoreLinkOptions options);
  ~LocalStoreLink() override;

  Task<Result<std::unique_ptr<ShardUpload>>> OpenUpload(wire::PutOpen request) override;
  Task<Result<std::unique_ptr<CheckpointSource>>> OpenRead(Id job, CheckpointKey key) override;
  uint32_t chunk_bytes() const override { return chunk_bytes_; }
  wire::Source source() const override { return wire::Source::kNvme; }
  // Refuses new calls and returns when no operation of this link is left on the store's loop.
  // Uploads and sources that are still open afterwards fail with CANCELLED.
  Task<void> Close() override;

 private:
  struct Shared;
  class StorePut;
  class Crossing;
  class Upload;
  class StoreRead;
  class Checkpoint;
  std::shared_ptr<Shared> shared_;
  const uint32_t chunk_bytes_;
};

}  // namespace reprise::dataplane
