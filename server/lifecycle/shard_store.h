// ShardStore: the data plane's door to the lifecycle: put a shard, seal it, read it back.
//
// A PutSession is one shard of one attempt being received: it owns the reservation, collects the
// digests the *receiver* computed, and answers Seal only when the shard is PREPARED in the journal.
// A session that goes away unsealed gives its space back; the attempt itself stays open (the node
// may upload again) until the coordinator aborts it.
//
// A ReadSession is one checkpoint being read: while it lives the checkpoint's extents are not
// freed.
//
// Thread rule: the store's loop.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/async/task.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "reprise/status.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise::lifecycle {

struct PutRequest {
  format::ShardIdentity shard;
  uint64_t length = 0;
  uint32_t chunk_bytes = 0;  // must be the store's
  Digest layout;
};

class PutSession {
 public:
  virtual ~PutSession() = default;
  // The store has no such layout yet: Seal needs its encoding.
  virtual bool needs_layout() const = 0;
  // Writes chunk `index`. `data` is the plain chunk padded with zeros to 4 KiB, 4 KiB-aligned, in
  // memory only the receiver writes; `digest` is what the receiver computed over the plain bytes.
  // Chunks may come in any order and concurrently, each once. UNAVAILABLE, RESOURCE_EXHAUSTED:
  // the session has failed.
  virtual Task<Status> WriteChunk(uint64_t index, ByteView data, Digest digest) = 0;
  // Steps S1..S5 of the commit protocol. `root` is what the sender computed; a different one here
  // is DATA_LOSS. OK means PREPARED is journalled. FENCED/ABORTED: the attempt is over.
  virtual Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) = 0;
};

class ReadSession {
 public:
  virtual ~ReadSession() = default;
  virtual const format::CheckpointManifest& manifest() const = 0;
  // Reads and verifies a shard's manifest. DATA_LOSS names rank and object.
  virtual Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) = 0;
  // Reads and verifies an encoded layout.
  virtual Task<Result<Bytes>> Layout(Digest layout) = 0;
  // Reads chunk `index` of a shard into an aligned buffer of at least its padded length. Bytes are
  // NOT verified: the reader compares with the manifest's digest where they arrive.
  virtual Task<Status> ReadChunk(const format::ShardManifest& shard, uint64_t index,
                                 MutableByteView buffer) = 0;
};

class ShardStore {
 public:
  virtual ~ShardStore() = default;
  // Begins receiving a shard: attempt must be open (or adopted), the rank unsealed, space available
  // for the whole of it (RESOURCE_EXHAUSTED otherwise, and the attempt is aborted for all).
  // ALREADY_EXISTS: this shard is PREPARED already with `root_if_sealed` equal to the stored root:
  // nothing to send.
  virtual Task<Result<std::unique_ptr<PutSession>>> OpenPut(PutRequest request,
                                                            Digest root_if_sealed) = 0;
  // NOT_FOUND, DATA_LOSS (manifest unreadable; recorded as damage).
  virtual Task<Result<std::unique_ptr<ReadSession>>> OpenRead(Id job, CheckpointKey key) = 0;
  virtual uint32_t chunk_bytes() const = 0;
};

}  // namespace reprise::lifecycle
