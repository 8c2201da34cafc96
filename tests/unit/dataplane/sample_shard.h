// A shard with random bytes, its manifest as the sender knows it, and the usual ways to upload it.
//
// Thread rule: the loop of the link.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/random.h"
#include "server/dataplane/store_link.h"

namespace reprise::dataplane {

struct SampleShard {
  format::ShardManifest manifest;  // root included
  Bytes layout;
  Bytes data;

  ByteView Chunk(uint64_t index) const {
    uint64_t length = format::ChunkLength(manifest.length, manifest.chunk_bytes, index);
    return ByteView(data).subspan(index * manifest.chunk_bytes, length);
  }
  uint64_t chunk_count() const { return manifest.chunk_digests.size(); }
  wire::PutOpen Open() const {
    return {manifest.identity, manifest.length, manifest.chunk_bytes, manifest.layout, {}};
  }
};

struct SampleOptions {
  uint64_t seed = 1;
  uint32_t rank = 0;
  uint32_t world = 1;
  uint64_t length = 10 * 8192 + 100;
  uint32_t chunk_bytes = 8192;
  size_t layout_bytes = 300;
};

// Shards of one seed belong to one attempt; the bytes differ by rank.
inline SampleShard MakeShard(SampleOptions options = {}) {
  SampleShard shard;
  format::ShardManifest& manifest = shard.manifest;
  Rng identity(options.seed);
  manifest.identity = {
      identity.NewId(), {1, 100 + options.seed}, identity.NewId(), options.rank, options.world};
  Rng rng(options.seed * 1000 + options.rank);
  shard.layout.resize(options.layout_bytes);
  std::ranges::generate(shard.layout, [&] { return static_cast<uint8_t>(identity.Next()); });
  shard.data.resize(options.length);
  std::ranges::generate(shard.data, [&] { return static_cast<uint8_t>(rng.Next()); });
  manifest.layout = DigestOf(shard.layout);
  manifest.length = options.length;
  manifest.chunk_bytes = options.chunk_bytes;
  manifest.chunk_digests.resize(format::ChunkCount(options.length, options.chunk_bytes));
  for (uint64_t i = 0; i < shard.chunk_count(); ++i) {
    manifest.chunk_digests[i] = DigestOf(shard.Chunk(i));
  }
  manifest.piece_digests = {DigestOf(shard.data)};
  manifest.root = format::ShardRoot(manifest);
  return shard;
}

// Sends the chunks in an order of its own (odd ones first) and seals.
inline Task<Status> SendAll(ShardUpload& upload, const SampleShard& shard) {
  for (uint64_t start : {1, 0}) {
    for (uint64_t i = start; i < shard.chunk_count(); i += 2) {
      REPRISE_CO_RETURN_IF_ERROR(
          co_await upload.Send(i, shard.Chunk(i), shard.manifest.chunk_digests[i]));
    }
  }
  co_return OkStatus();
}

inline Task<Status> PutShard(StoreLink& link, const SampleShard& shard) {
  auto upload = co_await link.OpenUpload(shard.Open());
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(upload));
  Status status = co_await SendAll(**upload, shard);
  if (!status.ok()) {
    co_await (*upload)->Abandon();
    co_return status;
  }
  co_return co_await (*upload)->Seal(shard.manifest.piece_digests, shard.layout,
                                     shard.manifest.root);
}

// Aligned memory for chunks of one shard.
class ReadBuffers {
 public:
  ReadBuffers(uint32_t chunk_bytes, uint64_t count)
      : memory_(chunk_bytes * count + limits::kIoAlignment, 0xEE) {
    uint8_t* base = memory_.data();
    base += AlignUp(reinterpret_cast<uintptr_t>(base), limits::kIoAlignment) -
            reinterpret_cast<uintptr_t>(base);
    for (uint64_t i = 0; i < count; ++i) views_.emplace_back(base + i * chunk_bytes, chunk_bytes);
  }
  const std::vector<MutableByteView>& views() const { return views_; }
  ByteView bytes(uint64_t length) const { return {views_[0].data(), length}; }

 private:
  Bytes memory_;
  std::vector<MutableByteView> views_;
};

// Reads a whole shard; OK when every byte is that of `shard`.
inline Task<Status> CheckReadBack(CheckpointSource& source, const SampleShard& shard) {
  auto manifest = co_await source.ShardManifest(shard.manifest.identity.rank);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(manifest));
  if (manifest->root != shard.manifest.root) co_return Status(Code::kDataLoss, "another root");
  if (shard.data.empty()) co_return OkStatus();
  ReadBuffers buffers(shard.manifest.chunk_bytes, shard.chunk_count());
  REPRISE_CO_RETURN_IF_ERROR(co_await source.ReadChunks(*manifest, 0, buffers.views()));
  if (!std::ranges::equal(buffers.bytes(shard.data.size()), shard.data)) {
    co_return Status(Code::kDataLoss, "other bytes");
  }
  co_return OkStatus();
}

}  // namespace reprise::dataplane
