// DataReader: reads a checkpoint's bytes from a store's data plane, blocking and verified.
//
// Speaks docs/wire.md as a store client. Manifests, layouts and chunks are compared with the digests
// their parents hold before they are handed out; DATA_LOSS names rank and chunk. The first failure of
// the connection ends the reader.
//
// Thread rule: one thread. Every wait has the timeout given to Open.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "reprise/status.h"

namespace reprise::cli {

class DataReader {
 public:
  // Connects to `address` ("host:port" or "unix:/path") and opens one checkpoint.
  static Result<std::unique_ptr<DataReader>> Open(const std::string& address, const Id& job,
                                                  CheckpointKey key,
                                                  std::chrono::milliseconds timeout);
  virtual ~DataReader() = default;

  virtual const format::CheckpointManifest& manifest() const = 0;
  virtual Result<format::Layout> ReadLayout(const Digest& layout) = 0;
  virtual Result<format::ShardManifest> ReadShardManifest(uint32_t rank) = 0;
  // Calls `chunk(index, bytes, status)` for every chunk of a shard, in order. `status` is DATA_LOSS
  // when the bytes do not match; a failure that `chunk` returns ends the read.
  virtual Status ReadShard(
      const format::ShardManifest& shard,
      const std::function<Status(uint64_t index, ByteView bytes, const Status& status)>& chunk) = 0;
};

}  // namespace reprise::cli
