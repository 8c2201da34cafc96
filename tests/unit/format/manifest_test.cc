#include "core/format/manifest.h"

#include <gtest/gtest.h>

#include "core/base/limits.h"
#include "tests/unit/format/allocation_count.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

// What a decoder may allocate for an input: the values are larger than their encodings, and an error
// has a message.
size_t AllocationBound(size_t input_bytes) { return 16 * input_bytes + 4096; }

TEST(ChunkCount, RoundsUpAndTheLastChunkIsShort) {
  EXPECT_EQ(ChunkCount(0, 4096), 0u);
  EXPECT_EQ(ChunkCount(1, 4096), 1u);
  EXPECT_EQ(ChunkCount(8192, 4096), 2u);
  EXPECT_EQ(ChunkCount(8193, 4096), 3u);
  EXPECT_EQ(ChunkLength(8193, 4096, 1), 4096u);
  EXPECT_EQ(ChunkLength(8193, 4096, 2), 1u);
}

TEST(ShardManifest, ComesBackAsItWas) {
  Rng rng(1);
  for (int round = 0; round < 300; ++round) {
    ShardManifest manifest = RandomShardManifest(rng);
    Result<ShardManifest> decoded = DecodeShardManifest(EncodeShardManifest(manifest));
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    ASSERT_EQ(*decoded, manifest);
  }
}

TEST(ShardManifest, TruncationAtEveryLengthIsRefusedWithoutLargeAllocations) {
  Rng rng(2);
  Bytes encoded = EncodeShardManifest(RandomShardManifest(rng));
  for (size_t size = 0; size < encoded.size(); ++size) {
    AllocationCount allocations;
    ASSERT_FALSE(DecodeShardManifest(ByteView(encoded).first(size)).has_value());
    ASSERT_LE(allocations.bytes(), AllocationBound(size)) << size;
  }
  encoded.push_back(0);
  EXPECT_FALSE(DecodeShardManifest(encoded).has_value()) << "trailing byte";
}

TEST(ShardManifest, ClaimedCountsOfBillionsAllocateNothing) {
  Rng rng(3);
  Bytes encoded = EncodeShardManifest(RandomShardManifest(rng));
  for (size_t offset = 0; offset + 4 <= encoded.size(); ++offset) {
    Bytes changed = encoded;
    std::fill_n(changed.begin() + static_cast<ptrdiff_t>(offset), 4, 0xff);
    AllocationCount allocations;
    (void)DecodeShardManifest(changed).has_value();
    ASSERT_LE(allocations.bytes(), AllocationBound(changed.size())) << offset;
  }
}

TEST(ShardManifest, WhateverDecodesEncodesToTheSameBytes) {
  Rng rng(4);
  int decoded_count = 0;
  for (int round = 0; round < 5000; ++round) {
    Bytes encoded = EncodeShardManifest(RandomShardManifest(rng));
    encoded[rng.Below(encoded.size())] ^= 1 << rng.Below(8);
    Result<ShardManifest> decoded = DecodeShardManifest(encoded);
    if (!decoded.has_value()) continue;
    ++decoded_count;
    ASSERT_EQ(EncodeShardManifest(*decoded), encoded);
  }
  EXPECT_GT(decoded_count, 0) << "locations are not covered by the root";
}

TEST(ShardManifest, TheRootCoversContentsAndNotPlaces) {
  Rng rng(5);
  const ShardManifest manifest = RandomShardManifest(rng);
  auto root_with = [&](auto change) {
    ShardManifest changed = manifest;
    change(changed);
    return ShardRoot(changed);
  };
  EXPECT_EQ(root_with([](auto& m) { m.runs.clear(); }), manifest.root);
  EXPECT_EQ(root_with([](auto& m) { m.identity.key.step ^= 1; }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.identity.attempt.bytes[3] ^= 1; }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.identity.rank ^= 1; }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.layout.bytes[0] ^= 1; }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.length ^= 1; }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.chunk_bytes *= 2; }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.chunk_digests.pop_back(); }), manifest.root);
  EXPECT_NE(root_with([](auto& m) { m.piece_digests.emplace_back(); }), manifest.root);
  // The same digests, split differently between chunks and pieces.
  EXPECT_NE(root_with([](auto& m) {
              m.piece_digests.insert(m.piece_digests.begin(), m.chunk_digests.back());
              m.chunk_digests.pop_back();
            }),
            manifest.root);
}

TEST(ShardManifest, ValidateNamesWhatDoesNotFit) {
  Rng rng(6);
  ShardManifest valid;
  valid.identity.world = 1;
  valid.chunk_bytes = 4096;
  valid.length = 5000;
  valid.chunk_digests.resize(2);
  valid.runs = {{.length = 8192}};
  auto refused_with = [&](auto change, std::string_view words) {
    ShardManifest changed = valid;
    change(changed);
    changed.root = ShardRoot(changed);
    Status status = Validate(changed);
    return status.code() == Code::kDataLoss && status.message().contains(words);
  };
  valid.root = ShardRoot(valid);
  EXPECT_TRUE(Validate(valid).ok()) << Validate(valid);
  EXPECT_TRUE(refused_with([](auto& m) { m.identity.rank = 1; }, "world"));
  EXPECT_TRUE(refused_with([](auto& m) { m.identity.world = limits::kWorldMax + 1; }, "world"));
  EXPECT_TRUE(refused_with([](auto& m) { m.chunk_bytes = 0; }, "chunk size"));
  EXPECT_TRUE(refused_with([](auto& m) { m.chunk_bytes = 5000; }, "chunk size"));
  EXPECT_TRUE(refused_with([](auto& m) { m.chunk_digests.pop_back(); }, "chunk digests"));
  EXPECT_TRUE(refused_with([](auto& m) { m.length = 4096; }, "chunk digests"));
  EXPECT_TRUE(refused_with([](auto& m) { m.length = UINT64_MAX; }, "too long"));
  EXPECT_TRUE(refused_with([](auto& m) { m.runs[0].length = 4096; }, "shorter"));
  EXPECT_TRUE(refused_with([](auto& m) { m.runs[0].offset = 1; }, "4 KiB"));
  EXPECT_TRUE(refused_with([](auto& m) { m.runs[0].offset = UINT64_MAX - 4095; }, "2^64"));
  EXPECT_TRUE(refused_with([](auto& m) { m.runs.resize(129); }, "runs"));
  valid.root.bytes[7] ^= 1;
  EXPECT_TRUE(Validate(valid).message().contains("root"));
}

TEST(CheckpointManifest, ComesBackAsItWas) {
  Rng rng(7);
  for (uint32_t world : {1u, 2u, 3u, 8u, 100u, 1000u}) {
    CheckpointManifest manifest = RandomCheckpointManifest(rng, world);
    Result<CheckpointManifest> decoded =
        DecodeCheckpointManifest(EncodeCheckpointManifest(manifest));
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    ASSERT_EQ(*decoded, manifest);
  }
}

TEST(CheckpointManifest, TruncationAtEveryLengthIsRefusedWithoutLargeAllocations) {
  Rng rng(8);
  Bytes encoded = EncodeCheckpointManifest(RandomCheckpointManifest(rng, 7));
  for (size_t size = 0; size < encoded.size(); ++size) {
    AllocationCount allocations;
    ASSERT_FALSE(DecodeCheckpointManifest(ByteView(encoded).first(size)).has_value());
    ASSERT_LE(allocations.bytes(), AllocationBound(size)) << size;
  }
  encoded.push_back(0);
  EXPECT_FALSE(DecodeCheckpointManifest(encoded).has_value()) << "trailing byte";
}

TEST(CheckpointManifest, WhateverDecodesEncodesToTheSameBytes) {
  Rng rng(9);
  for (int round = 0; round < 5000; ++round) {
    Bytes encoded = EncodeCheckpointManifest(RandomCheckpointManifest(rng, 3));
    encoded[rng.Below(encoded.size())] ^= 1 << rng.Below(8);
    Result<CheckpointManifest> decoded = DecodeCheckpointManifest(encoded);
    if (decoded.has_value()) ASSERT_EQ(EncodeCheckpointManifest(*decoded), encoded);
  }
}

TEST(CheckpointManifest, ValidateNamesWhatDoesNotFit) {
  Rng rng(10);
  const CheckpointManifest valid = RandomCheckpointManifest(rng, 5);
  ASSERT_TRUE(Validate(valid).ok());
  auto refused_with = [&](auto change, std::string_view words) {
    CheckpointManifest changed = valid;
    change(changed);
    Status status = Validate(changed);
    return status.code() == Code::kDataLoss && status.message().contains(words);
  };
  EXPECT_TRUE(refused_with([](auto& m) { m.shards.pop_back(); }, "one shard for each rank"));
  EXPECT_TRUE(refused_with([](auto& m) { m.world = 0, m.shards.clear(); }, "one shard"));
  EXPECT_TRUE(refused_with([](auto& m) { std::swap(m.shards[0], m.shards[1]); }, "order"));
  EXPECT_TRUE(refused_with([](auto& m) { m.layouts.pop_back(); }, "layouts"));
  EXPECT_TRUE(refused_with([](auto& m) { m.layouts.push_back(m.layouts[0]); }, "layouts"));
  EXPECT_TRUE(refused_with([](auto& m) { m.metadata.resize(kMetadataBytesMax + 1); }, "64 KiB"));
}

TEST(CheckpointManifest, TheRootCoversContentsAndNotPlaces) {
  Rng rng(11);
  const CheckpointManifest manifest = RandomCheckpointManifest(rng, 4);
  auto root_with = [&](auto change) {
    CheckpointManifest changed = manifest;
    change(changed);
    return CheckpointRoot(changed);
  };
  Digest root = CheckpointRoot(manifest);
  EXPECT_EQ(root_with([](auto& m) { m.shards[1].manifest.run.offset += 4096; }), root);
  EXPECT_EQ(root_with([](auto& m) { m.layouts[0].second.run.segment ^= 1; }), root);
  EXPECT_NE(root_with([](auto& m) { m.key.step ^= 1; }), root);
  EXPECT_NE(root_with([](auto& m) { m.attempt.bytes[0] ^= 1; }), root);
  EXPECT_NE(root_with([](auto& m) { m.metadata += " "; }), root);
  EXPECT_NE(root_with([](auto& m) { m.shards[3].root.bytes[15] ^= 1; }), root);
}

TEST(Manifests, OfANewerVersionOrWithUnknownFeaturesAreUnimplemented) {
  Rng rng(12);
  for (size_t offset : {size_t{8}, size_t{16}}) {
    Bytes shard = EncodeShardManifest(RandomShardManifest(rng));
    Bytes checkpoint = EncodeCheckpointManifest(RandomCheckpointManifest(rng, 2));
    shard[offset] += 2;
    checkpoint[offset] += 2;
    EXPECT_EQ(DecodeShardManifest(shard).error().code(), Code::kUnimplemented);
    EXPECT_EQ(DecodeCheckpointManifest(checkpoint).error().code(), Code::kUnimplemented);
  }
  Bytes shard = EncodeShardManifest(RandomShardManifest(rng));
  EXPECT_EQ(DecodeCheckpointManifest(shard).error().code(), Code::kDataLoss);
}

}  // namespace
}  // namespace reprise::format
