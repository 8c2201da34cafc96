// Shard and checkpoint manifests; the first byte picks. What decodes encodes to the same bytes, and a
// flipped bit in what the root covers is refused.
#include "core/format/manifest.h"

#include <cstring>

#include "core/format/fields.h"
#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

// Where the fields lie (docs/format.md, "Manifests").
constexpr size_t kHeadBytes = 24;
constexpr size_t kShardRootOffset = 104;
constexpr size_t kShardDigestsOffset = 120;
constexpr size_t kCheckpointRootOffset = kHeadBytes + 16 + 16 + 16;

template <typename Manifest, typename Decode, typename Encode>
void RunOne(ByteView bytes, size_t root_offset, Decode decode, Encode encode) {
  fuzz::AllocationCount allocated;
  Result<Manifest> manifest = decode(bytes);
  REPRISE_CHECK(allocated.bytes() <= 16 * bytes.size() + 16 * 1024);
  if (!manifest.has_value()) {
    fuzz::CheckDecodeRefusal(manifest.error());
    return;
  }
  REPRISE_CHECK(Validate(*manifest).ok());
  REPRISE_CHECK(std::ranges::equal(encode(*manifest), bytes));
  Bytes damaged(bytes.begin(), bytes.end());
  damaged[root_offset] ^= 1;
  REPRISE_CHECK(!decode(damaged).has_value());
}

void CheckChunks(ByteView bytes) {
  Result<ShardManifest> manifest = DecodeShardManifest(bytes);
  if (!manifest.has_value()) return;
  uint64_t total = 0;
  for (uint64_t i = 0; i < manifest->chunk_digests.size(); ++i) {
    total += ChunkLength(manifest->length, manifest->chunk_bytes, i);
  }
  REPRISE_CHECK(total == manifest->length);
}

void RunInput(ByteView input) {
  if (input.empty()) return;
  ByteView bytes = input.subspan(1);
  if (input[0] % 2 == 0) {
    RunOne<ShardManifest>(bytes, kShardRootOffset, DecodeShardManifest, EncodeShardManifest);
    CheckChunks(bytes);
  } else {
    RunOne<CheckpointManifest>(bytes, kCheckpointRootOffset, DecodeCheckpointManifest,
                               EncodeCheckpointManifest);
  }
}

std::vector<Digest> Digests(ByteReader& reader) {
  std::vector<Digest> digests(reader.Count(sizeof(Digest)));
  for (Digest& digest : digests) digest = GetDigest(reader);
  return digests;
}

Digest RootOfShard(ByteView bytes) {
  ByteReader reader(bytes);
  ShardManifest manifest;
  reader.Data(12);
  manifest.chunk_bytes = reader.U32();
  reader.Data(8);
  manifest.identity = GetShardIdentity(reader);
  manifest.layout = GetDigest(reader);
  manifest.length = reader.U64();
  reader.Data(16);
  REPRISE_CHECK(!reader.ok() || reader.position() == kShardDigestsOffset);
  manifest.chunk_digests = Digests(reader);
  manifest.piece_digests = Digests(reader);
  return ShardRoot(manifest);
}

Digest RootOfCheckpoint(ByteView bytes) {
  ByteReader reader(bytes);
  CheckpointManifest manifest;
  reader.Data(12);
  manifest.world = reader.U32();
  reader.Data(8);
  manifest.job = GetId(reader);
  manifest.key = GetKey(reader);
  manifest.attempt = GetId(reader);
  reader.Data(16 + 8);
  manifest.metadata = reader.String(kMetadataBytesMax);
  manifest.shards.resize(reader.Count(88));
  for (CheckpointShard& shard : manifest.shards) {
    shard.rank = reader.U32();
    shard.root = GetDigest(reader);
    shard.length = reader.U64();
    shard.layout = GetDigest(reader);
    GetObjectRef(reader);
  }
  return CheckpointRoot(manifest);
}

void Repair(Bytes& input) {
  if (input.size() < 1 + kShardDigestsOffset) return;
  ByteView bytes = ByteView(input).subspan(1);
  bool shard = input[0] % 2 == 0;
  Digest root = shard ? RootOfShard(bytes) : RootOfCheckpoint(bytes);
  size_t offset = 1 + (shard ? kShardRootOffset : kCheckpointRootOffset);
  std::memcpy(input.data() + offset, root.bytes.data(), root.bytes.size());
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(10);
  auto add = [&](uint8_t kind, Bytes bytes) {
    bytes.insert(bytes.begin(), kind);
    seeds.push_back(std::move(bytes));
  };
  add(0, fuzz::Golden("shard_manifest"));
  add(1, fuzz::Golden("checkpoint_manifest"));
  for (int i = 0; i < 8; ++i) add(0, EncodeShardManifest(RandomShardManifest(rng)));
  for (uint32_t world : {1, 2, 3, 5}) {
    add(1, EncodeCheckpointManifest(RandomCheckpointManifest(rng, world)));
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::format

REPRISE_FUZZ_TARGET(manifests) = {.name = "manifests",
                                  .run = reprise::format::RunInput,
                                  .seeds = reprise::format::Seeds,
                                  .repair = reprise::format::Repair,
                                  .input_bytes_max = 2048};
