#include "tests/crash/store/content.h"

#include <cstring>

#include "core/base/aligned_buffer.h"
#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/format/layout.h"

namespace reprise::crash {
namespace {

// A row of a tensor that all ranks share.
format::Layout LayoutOf(uint32_t rank, uint32_t world, uint64_t length, uint32_t chunk_bytes) {
  format::Layout layout;
  format::Piece piece;
  piece.name = "weight";
  piece.dtype = Dtype::kU8;
  piece.global_shape = {world, length};
  piece.boxes = {Box{{rank, 0}, {1, length}}};
  piece.scope = Scope::kGlobal;
  layout.pieces = {piece};
  format::AssignPositions(layout, chunk_bytes);
  return layout;
}

Task<Status> CompareShard(lifecycle::ReadSession& session, uint32_t rank, uint64_t length) {
  Result<format::ShardManifest> shard = co_await session.ShardManifest(rank);
  if (!shard.has_value()) co_return shard.error();
  Result<Bytes> layout = co_await session.Layout(shard->layout);
  if (!layout.has_value()) co_return layout.error();
  Bytes expected = ShardBytes(session.manifest().key, rank, length);
  if (shard->length != expected.size()) co_return Status(Code::kInternal, "wrong length");
  AlignedBuffer buffer(shard->chunk_bytes);
  for (size_t i = 0; i < shard->chunk_digests.size(); ++i) {
    uint64_t size = format::ChunkLength(shard->length, shard->chunk_bytes, i);
    REPRISE_CO_RETURN_IF_ERROR(co_await session.ReadChunk(*shard, i, buffer.span()));
    ByteView chunk = buffer.view().first(size);
    if (DigestOf(chunk) != shard->chunk_digests[i]) {
      co_return FailStatus(Code::kDataLoss, "rank {} chunk {} fails its digest", rank, i);
    }
    if (std::memcmp(chunk.data(), expected.data() + i * shard->chunk_bytes, size) != 0) {
      co_return FailStatus(Code::kInternal, "rank {} chunk {} is not what was saved", rank, i);
    }
  }
  co_return OkStatus();
}

}  // namespace

Bytes ShardBytes(const CheckpointKey& key, uint32_t rank, uint64_t length) {
  Rng rng((key.epoch * 1'000'003 + key.step) * 64 + rank);
  Bytes bytes(length);
  for (size_t at = 0; at < length; at += sizeof(uint64_t)) {
    uint64_t value = rng.Next();
    std::memcpy(bytes.data() + at, &value, std::min<size_t>(sizeof(value), length - at));
  }
  return bytes;
}

Task<Status> UploadShard(lifecycle::ShardStore& store, format::ShardIdentity identity,
                         uint64_t length) {
  uint32_t chunk_bytes = store.chunk_bytes();
  format::Layout layout = LayoutOf(identity.rank, identity.world, length, chunk_bytes);
  Bytes encoded = format::EncodeLayout(layout);
  Bytes bytes = ShardBytes(identity.key, identity.rank, length);
  format::ShardManifest manifest;
  manifest.identity = identity;
  manifest.layout = DigestOf(encoded);
  manifest.length = length;
  manifest.chunk_bytes = chunk_bytes;
  for (uint64_t at = 0; at < length; at += chunk_bytes) {
    size_t size = std::min<uint64_t>(chunk_bytes, length - at);
    manifest.chunk_digests.push_back(DigestOf(ByteView(bytes).subspan(at, size)));
  }
  manifest.piece_digests.resize(1);
  manifest.root = format::ShardRoot(manifest);
  auto session =
      co_await store.OpenPut({identity, length, chunk_bytes, manifest.layout}, manifest.root);
  if (!session.has_value()) {
    bool sealed = session.error().code() == Code::kAlreadyExists;
    co_return sealed ? OkStatus() : session.error();
  }
  AlignedBuffer buffer(chunk_bytes);
  for (size_t i = 0; i < manifest.chunk_digests.size(); ++i) {
    uint64_t size = format::ChunkLength(length, chunk_bytes, i);
    std::memset(buffer.data(), 0, buffer.size());
    std::memcpy(buffer.data(), bytes.data() + i * chunk_bytes, size);
    REPRISE_CO_RETURN_IF_ERROR(co_await (*session)->WriteChunk(
        i, buffer.view().first(AlignUp(size, limits::kIoAlignment)), manifest.chunk_digests[i]));
  }
  Bytes layout_if_needed = (*session)->needs_layout() ? encoded : Bytes();
  co_return co_await (*session)->Seal(manifest.piece_digests, std::move(layout_if_needed),
                                      manifest.root);
}

Task<Status> CompareCheckpoint(lifecycle::ReadSession& session, uint64_t length) {
  if (session.manifest().world == 0) co_return Status(Code::kInternal, "a world of no ranks");
  for (uint32_t rank = 0; rank < session.manifest().world; ++rank) {
    REPRISE_CO_RETURN_IF_ERROR(co_await CompareShard(session, rank, length));
  }
  co_return OkStatus();
}

}  // namespace reprise::crash
