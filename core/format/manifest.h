// Manifests: what a shard and a checkpoint consist of, byte for byte. Parents hold the digests of
// their children: checkpoint manifest -> shard roots -> chunk digests -> bytes.
//
// A shard's *root* is XXH3-128 over (attempt, rank, layout digest, length, chunk size, chunk digests,
// piece digests): it is the same wherever the shard's copies lie. The *manifest* adds where this copy
// lies. Encodings, offsets and golden bytes: docs/format.md, "Manifests".
//
// Thread rule: pure values and functions; no I/O.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/base/limits.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::format {

// A contiguous part of one segment file: [offset, offset + length), multiples of 4 KiB.
struct Run {
  uint32_t segment = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  auto operator<=>(const Run&) const = default;
};

// Which shard of which attempt. Attempts are unique for all time.
struct ShardIdentity {
  Id job;
  CheckpointKey key;
  Id attempt;
  uint32_t rank = 0;
  uint32_t world = 0;
  bool operator==(const ShardIdentity&) const = default;
};

struct ShardManifest {
  ShardIdentity identity;
  Digest layout;        // digest of the encoded Layout
  uint64_t length = 0;  // bytes of the shard
  uint32_t chunk_bytes = 0;
  std::vector<Digest> chunk_digests;  // ceil(length / chunk_bytes); the last chunk may be short
  std::vector<Digest> piece_digests;  // one per piece of the layout; zero where not computed
  Digest root;
  std::vector<Run> runs;  // where the bytes lie, in order; total >= length; none: not in segments

  bool operator==(const ShardManifest&) const = default;
};

Digest ShardRoot(const ShardManifest& manifest);
uint64_t ChunkCount(uint64_t length, uint32_t chunk_bytes);
// Bytes of chunk `index` ([0, chunk_bytes], short at the end).
uint64_t ChunkLength(uint64_t length, uint32_t chunk_bytes, uint64_t index);

// DATA_LOSS names what does not fit: rank and world, chunk size, counts, runs, the root.
Status Validate(const ShardManifest& manifest);
// CHECKs Validate(manifest): set `root` first.
Bytes EncodeShardManifest(const ShardManifest& manifest);
// Decodes and checks structure and root; DATA_LOSS says what does not fit.
Result<ShardManifest> DecodeShardManifest(ByteView bytes);

// A stored object: where it lies, its exact length and digest (the parent's knowledge of the child).
struct ObjectRef {
  Run run;
  uint64_t length = 0;
  Digest digest;
  bool operator==(const ObjectRef&) const = default;
};

struct CheckpointShard {
  uint32_t rank = 0;
  Digest root;
  uint64_t length = 0;
  Digest layout;
  ObjectRef manifest;
  bool operator==(const CheckpointShard&) const = default;
};

// Bytes of the user's metadata in one checkpoint.
inline constexpr size_t kMetadataBytesMax = 64 * limits::kKiB;

struct CheckpointManifest {
  Id job;
  CheckpointKey key;
  Id attempt;
  uint32_t world = 0;
  int64_t wall_micros = 0;              // when the save began, for people
  std::string metadata;                 // JSON object given by the user, at most 64 KiB
  std::vector<CheckpointShard> shards;  // sorted by rank, ranks 0..world-1
  std::vector<std::pair<Digest, ObjectRef>> layouts;  // sorted by digest, one per distinct layout

  bool operator==(const CheckpointManifest&) const = default;
};

// XXH3-128 over identity, metadata and shard roots (not over locations and wall time).
Digest CheckpointRoot(const CheckpointManifest& manifest);
// DATA_LOSS names what does not fit: ranks that are not 0..world-1, layouts that are not exactly
// those of the shards.
Status Validate(const CheckpointManifest& manifest);
// CHECKs Validate(manifest).
Bytes EncodeCheckpointManifest(const CheckpointManifest& manifest);
// Decodes and checks structure and root; DATA_LOSS says what does not fit.
Result<CheckpointManifest> DecodeCheckpointManifest(ByteView bytes);

}  // namespace reprise::format
