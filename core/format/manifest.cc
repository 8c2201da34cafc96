#include "core/format/manifest.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/format/fields.h"

namespace reprise::format {
namespace {

constexpr uint64_t kShardMagic = MagicOf("RPRJSHM1");
constexpr uint64_t kCheckpointMagic = MagicOf("RPRJCKM1");
// Roots are over tagged encodings, so that no other encoding can have the same bytes.
constexpr uint64_t kShardRootTag = MagicOf("RPRJSHR1");
constexpr uint64_t kCheckpointRootTag = MagicOf("RPRJCKR1");

constexpr size_t kCheckpointShardBytes = 4 + 16 + 8 + 16 + kObjectRefBytes;
constexpr size_t kLayoutRefBytes = 16 + kObjectRefBytes;

Status Malformed(std::string_view what, std::string_view why) {
  return FailStatus(Code::kDataLoss, "{} is malformed: {}", what, why);
}

void PutDigests(ByteWriter& writer, const std::vector<Digest>& digests) {
  writer.U32(static_cast<uint32_t>(digests.size()));
  for (const Digest& digest : digests) Put(writer, digest);
}

std::vector<Digest> GetDigests(ByteReader& reader, size_t count_max) {
  uint32_t count = reader.Count(sizeof(Digest));
  if (count > count_max) reader.Fail();
  std::vector<Digest> digests;
  if (!reader.ok()) return digests;
  digests.reserve(count);
  for (uint32_t i = 0; i < count; ++i) digests.push_back(GetDigest(reader));
  return digests;
}

Status CheckRuns(const ShardManifest& manifest) {
  constexpr std::string_view kWhat = "shard manifest";
  if (manifest.runs.size() > limits::kRunsPerShardMax) return Malformed(kWhat, "too many runs");
  uint64_t total = 0;
  for (const Run& run : manifest.runs) {
    uint64_t end = 0;
    if (!IsAligned(run.offset, limits::kIoAlignment) ||
        !IsAligned(run.length, limits::kIoAlignment) ||
        __builtin_add_overflow(run.offset, run.length, &end) ||
        __builtin_add_overflow(total, run.length, &total)) {
      return Malformed(kWhat, "a run is not a multiple of 4 KiB or passes 2^64");
    }
  }
  if (!manifest.runs.empty() && total < manifest.length) {
    return Malformed(kWhat, "its runs are shorter than the shard");
  }
  return OkStatus();
}

}  // namespace

Digest ShardRoot(const ShardManifest& manifest) {
  ByteWriter writer;
  writer.U64(kShardRootTag);
  Put(writer, manifest.identity.attempt);
  writer.U32(manifest.identity.rank);
  Put(writer, manifest.layout);
  writer.U64(manifest.length);
  writer.U32(manifest.chunk_bytes);
  PutDigests(writer, manifest.chunk_digests);
  PutDigests(writer, manifest.piece_digests);
  return DigestOf(writer.view());
}

uint64_t ChunkCount(uint64_t length, uint32_t chunk_bytes) {
  REPRISE_CHECK(chunk_bytes != 0);
  return CeilDiv(length, chunk_bytes);
}

uint64_t ChunkLength(uint64_t length, uint32_t chunk_bytes, uint64_t index) {
  REPRISE_CHECK(index < ChunkCount(length, chunk_bytes));
  return std::min<uint64_t>(chunk_bytes, length - index * chunk_bytes);
}

Status Validate(const ShardManifest& manifest) {
  constexpr std::string_view kWhat = "shard manifest";
  if (manifest.identity.world == 0 || manifest.identity.world > limits::kWorldMax ||
      manifest.identity.rank >= manifest.identity.world) {
    return Malformed(kWhat, "its rank is not within its world");
  }
  if (manifest.chunk_bytes < limits::kChunkBytesMin ||
      manifest.chunk_bytes > limits::kChunkBytesMax ||
      !IsAligned(manifest.chunk_bytes, limits::kChunkBytesMin)) {
    return Malformed(kWhat, "its chunk size is out of range");
  }
  if (manifest.length > limits::kShardBytesMax) return Malformed(kWhat, "the shard is too long");
  if (manifest.chunk_digests.size() > limits::kChunksPerShardMax ||
      manifest.chunk_digests.size() != ChunkCount(manifest.length, manifest.chunk_bytes)) {
    return Malformed(kWhat, "the number of chunk digests does not fit the length");
  }
  if (manifest.piece_digests.size() > limits::kPiecesPerLayoutMax) {
    return Malformed(kWhat, "too many piece digests");
  }
  REPRISE_RETURN_IF_ERROR(CheckRuns(manifest));
  if (manifest.root != ShardRoot(manifest)) {
    return Malformed(kWhat, "its root does not match its contents");
  }
  return OkStatus();
}

Bytes EncodeShardManifest(const ShardManifest& manifest) {
  Status valid = Validate(manifest);
  REPRISE_CHECK(valid.ok(), valid.message());
  ByteWriter writer;
  PutHead(writer, kShardMagic, manifest.chunk_bytes);
  Put(writer, manifest.identity);
  Put(writer, manifest.layout);
  writer.U64(manifest.length);
  Put(writer, manifest.root);
  PutDigests(writer, manifest.chunk_digests);
  PutDigests(writer, manifest.piece_digests);
  writer.U32(static_cast<uint32_t>(manifest.runs.size()));
  for (const Run& run : manifest.runs) Put(writer, run);
  return writer.Take();
}

Result<ShardManifest> DecodeShardManifest(ByteView bytes) {
  ByteReader reader(bytes);
  ShardManifest manifest;
  REPRISE_ASSIGN(manifest.chunk_bytes, GetHead(reader, kShardMagic, "shard manifest"));
  manifest.identity = GetShardIdentity(reader);
  manifest.layout = GetDigest(reader);
  manifest.length = reader.U64();
  manifest.root = GetDigest(reader);
  manifest.chunk_digests = GetDigests(reader, limits::kChunksPerShardMax);
  manifest.piece_digests = GetDigests(reader, limits::kPiecesPerLayoutMax);
  uint32_t run_count = reader.Count(kRunBytes);
  if (run_count > limits::kRunsPerShardMax) reader.Fail();
  for (uint32_t i = 0; i < run_count && reader.ok(); ++i) manifest.runs.push_back(GetRun(reader));
  if (!reader.AtEnd()) return Error(Malformed("shard manifest", "it is cut short or too long"));
  REPRISE_TRY(Validate(manifest));
  return manifest;
}

Digest CheckpointRoot(const CheckpointManifest& manifest) {
  ByteWriter writer;
  writer.U64(kCheckpointRootTag);
  Put(writer, manifest.job);
  Put(writer, manifest.key);
  Put(writer, manifest.attempt);
  writer.U32(manifest.world);
  writer.String(manifest.metadata);
  for (const CheckpointShard& shard : manifest.shards) {
    writer.U32(shard.rank);
    Put(writer, shard.root);
    writer.U64(shard.length);
    Put(writer, shard.layout);
  }
  return DigestOf(writer.view());
}

Status Validate(const CheckpointManifest& manifest) {
  constexpr std::string_view kWhat = "checkpoint manifest";
  if (manifest.world == 0 || manifest.world > limits::kWorldMax ||
      manifest.shards.size() != manifest.world) {
    return Malformed(kWhat, "it does not hold one shard for each rank of its world");
  }
  if (manifest.metadata.size() > kMetadataBytesMax) {
    return Malformed(kWhat, "its metadata passes 64 KiB");
  }
  std::vector<Digest> used;
  for (uint32_t rank = 0; rank < manifest.world; ++rank) {
    if (manifest.shards[rank].rank != rank) return Malformed(kWhat, "its ranks are out of order");
    used.push_back(manifest.shards[rank].layout);
  }
  std::ranges::sort(used);
  auto duplicates = std::ranges::unique(used);
  used.erase(duplicates.begin(), duplicates.end());
  auto listed = [](const auto& layout) -> const Digest& { return layout.first; };
  if (!std::ranges::equal(manifest.layouts, used, {}, listed)) {
    return Malformed(kWhat, "its layouts are not those of its shards, sorted, each once");
  }
  return OkStatus();
}

Bytes EncodeCheckpointManifest(const CheckpointManifest& manifest) {
  Status valid = Validate(manifest);
  REPRISE_CHECK(valid.ok(), valid.message());
  ByteWriter writer;
  PutHead(writer, kCheckpointMagic, manifest.world);
  Put(writer, manifest.job);
  Put(writer, manifest.key);
  Put(writer, manifest.attempt);
  Put(writer, CheckpointRoot(manifest));
  writer.I64(manifest.wall_micros);
  writer.String(manifest.metadata);
  writer.U32(static_cast<uint32_t>(manifest.shards.size()));
  for (const CheckpointShard& shard : manifest.shards) {
    writer.U32(shard.rank);
    Put(writer, shard.root);
    writer.U64(shard.length);
    Put(writer, shard.layout);
    Put(writer, shard.manifest);
  }
  writer.U32(static_cast<uint32_t>(manifest.layouts.size()));
  for (const auto& [digest, object] : manifest.layouts) {
    Put(writer, digest);
    Put(writer, object);
  }
  return writer.Take();
}

Result<CheckpointManifest> DecodeCheckpointManifest(ByteView bytes) {
  ByteReader reader(bytes);
  CheckpointManifest manifest;
  REPRISE_ASSIGN(manifest.world, GetHead(reader, kCheckpointMagic, "checkpoint manifest"));
  manifest.job = GetId(reader);
  manifest.key = GetKey(reader);
  manifest.attempt = GetId(reader);
  Digest root = GetDigest(reader);
  manifest.wall_micros = reader.I64();
  manifest.metadata = reader.String(kMetadataBytesMax);
  uint32_t shard_count = reader.Count(kCheckpointShardBytes);
  manifest.shards.resize(shard_count);
  for (CheckpointShard& shard : manifest.shards) {
    shard.rank = reader.U32();
    shard.root = GetDigest(reader);
    shard.length = reader.U64();
    shard.layout = GetDigest(reader);
    shard.manifest = GetObjectRef(reader);
  }
  uint32_t layout_count = reader.Count(kLayoutRefBytes);
  manifest.layouts.resize(layout_count);
  for (auto& [digest, object] : manifest.layouts) {
    digest = GetDigest(reader);
    object = GetObjectRef(reader);
  }
  if (!reader.AtEnd()) {
    return Error(Malformed("checkpoint manifest", "it is cut short or too long"));
  }
  REPRISE_TRY(Validate(manifest));
  if (root != CheckpointRoot(manifest)) {
    return Error(Malformed("checkpoint manifest", "its root does not match its contents"));
  }
  return manifest;
}

}  // namespace reprise::format
