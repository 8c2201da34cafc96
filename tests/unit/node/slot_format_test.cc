#include "server/node/slot_format.h"

#include <gtest/gtest.h>

#include "server/node/save.h"
#include "tests/unit/node/local_client.h"

namespace reprise::node {
namespace {

SlotHeader SampleHeader() {
  SlotHeader header;
  header.state = SlotState::kSealed;
  header.committed = true;
  header.index = 1;
  header.process = Id{{1}};
  header.capacity = 1 << 20;
  header.identity = {Id{{2}}, {3, 40}, Id{{4}}, 5, 8};
  header.length = 12345;
  header.chunk_bytes = 4096;
  header.layout = DigestOf(ViewOf("layout"));
  header.root = DigestOf(ViewOf("root"));
  header.meta_bytes = 678;
  header.meta_digest = DigestOf(ViewOf("meta"));
  return header;
}

TEST(SlotFormatTest, AHeaderComesBackAsItWasWritten) {
  Bytes block = EncodeSlotHeader(SampleHeader());
  ASSERT_EQ(block.size(), kSlotHeaderBytes);
  auto decoded = DecodeSlotHeader(block);
  ASSERT_TRUE(decoded.has_value()) << StatusOf(decoded);
  EXPECT_EQ(*decoded, SampleHeader());
}

TEST(SlotFormatTest, AnyFlippedBitOfAHeaderIsNoticed) {
  Bytes block = EncodeSlotHeader(SampleHeader());
  for (size_t i = 0; i < block.size(); ++i) {
    block[i] ^= 1 << (i % 8);
    EXPECT_FALSE(DecodeSlotHeader(block).has_value()) << "byte " << i;
    block[i] ^= 1 << (i % 8);
  }
}

TEST(SlotFormatTest, AnEmptyFileIsNoHeader) {
  EXPECT_EQ(StatusOf(DecodeSlotHeader(Bytes(kSlotHeaderBytes))).code(), Code::kDataLoss);
}

TEST(PieceHasherTest, ReplicatedPiecesHaveTheirOwnDigestHoweverTheChunksAreCut) {
  auto layout = std::make_shared<const format::Layout>(TestLayout(16));
  Bytes shard = TestShard(layout->shard_bytes, 1, 0);
  std::vector<Digest> expected(layout->pieces.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const format::Piece& piece = layout->pieces[i];
    if (piece.scope != Scope::kReplicated) continue;
    expected[i] = DigestOf(ByteView(shard).subspan(piece.position, BytesOf(piece)));
  }
  for (uint64_t step : {1ul, 100ul, 4096ul, 70000ul}) {
    PieceHasher hasher(layout);
    for (uint64_t at = 0; at < shard.size(); at += step) {
      hasher.Update(at, ByteView(shard).subspan(at, std::min<uint64_t>(step, shard.size() - at)));
    }
    EXPECT_EQ(hasher.Finish(), expected) << "in steps of " << step;
  }
}

TEST(PieceHasherTest, SmallAndEmptyPiecesInsideOneChunkKeepApart) {
  format::Layout layout;
  for (uint64_t bytes : {64, 0, 10, 0, 200, 1}) {
    format::Piece piece;
    piece.name = "t" + std::to_string(layout.pieces.size());
    piece.global_shape = {bytes};
    piece.boxes = {Box{{0}, {bytes}}};
    piece.scope = Scope::kReplicated;
    layout.pieces.push_back(piece);
  }
  format::AssignPositions(layout, 4096);
  Bytes shard = TestShard(layout.shard_bytes, 1, 0);
  auto shared = std::make_shared<const format::Layout>(layout);
  PieceHasher hasher(shared);
  hasher.Update(0, shard);
  std::vector<Digest> digests = hasher.Finish();
  for (size_t i = 0; i < digests.size(); ++i) {
    const format::Piece& piece = layout.pieces[i];
    EXPECT_EQ(digests[i], DigestOf(ByteView(shard).subspan(piece.position, BytesOf(piece))))
        << piece.name;
  }
}

}  // namespace
}  // namespace reprise::node
