#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "server/node/slab.h"
#include "tests/unit/node/node_fixture.h"

namespace reprise::node {
namespace {

using ::testing::HasSubstr;

class RestoreTest : public NodeFixture {
 protected:
  // A checkpoint of step 40 by a process that has ended since.
  Task<void> MakeCheckpoint() {
    auto client = co_await Trainer();
    co_await SaveAndCommit(*client, 40, layout_);
    coordinator_.resume = CheckpointKey{1, 40};
    client->Close();
    co_await Until([&] { return node_->stats().clients == 0; });
  }
  // The slab forgets everything: restores must go to the store.
  Task<void> LoseSlab() {
    co_await Stop();
    std::filesystem::remove_all(options_.slab_directory);
    co_await Start();
  }
  Task<std::unique_ptr<LocalClient>> Reader() {
    auto client = std::make_unique<LocalClient>(*io_, 0, 1);
    EXPECT_TRUE((co_await client->Connect(options_.socket_path)).ok());
    EXPECT_TRUE((co_await client->Register()).has_value());
    co_return client;
  }
  ByteView Expected(uint64_t chunk) {
    uint64_t begin = chunk * 4096;
    return ByteView(shard_).subspan(begin, std::min<uint64_t>(4096, shard_.size() - begin));
  }
  bool IsIntact(LocalClient& client, const wire::ChunkAt& at) {
    ByteView got =
        client.ring.bytes().subspan(at.ring_index * client.ring_info.stride_bytes, at.length);
    return std::ranges::equal(got, Expected(at.index));
  }

  format::Layout layout_ = TestLayout(16);
  Bytes shard_ = TestShard(layout_.shard_bytes, 40, 0);
};

TEST_F(RestoreTest, AnUnspecifiedStepOpensTheCheckpointPinnedAtRegistration) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    auto client = co_await Reader();
    auto opened = co_await client->Open(5);
    EXPECT_TRUE(opened.has_value()) << StatusOf(opened);
    if (!opened.has_value()) co_return;
    EXPECT_EQ(opened->key, (CheckpointKey{1, 40}));
    auto manifest = format::DecodeCheckpointManifest(opened->checkpoint_manifest);
    EXPECT_TRUE(manifest.has_value()) << StatusOf(manifest);
    auto twice = co_await client->Open(5);
    EXPECT_EQ(StatusOf(twice).code(), Code::kInvalidArgument);
  });
}

TEST_F(RestoreTest, ChunksComeFromTheSlabWhileItHoldsTheShardElseFromTheStore) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    for (wire::Source source : {wire::Source::kLocalSlab, wire::Source::kNvme}) {
      if (source == wire::Source::kNvme) co_await LoseSlab();
      auto client = co_await Reader();
      auto opened = co_await client->Open(5);
      EXPECT_TRUE(opened.has_value()) << StatusOf(opened);
      EXPECT_TRUE((co_await client->AttachRing(64)).ok());
      co_await client->Send(wire::ReadShard{0}, 20, 5);
      auto blob = co_await client->Await(wire::Opcode::kShardManifest);
      auto shard = format::DecodeShardManifest(blob.As<wire::BlobBody>().data);
      EXPECT_TRUE(shard.has_value()) << StatusOf(shard);
      co_await client->Send(wire::ReadLayout{shard->layout}, 21, 5);
      auto layout = co_await client->Await(wire::Opcode::kLayout);
      EXPECT_EQ(layout.As<wire::BlobBody>().data, format::EncodeLayout(layout_));
      co_await client->Send(wire::Fetch{0, 0, 16}, 22, 5);
      for (uint64_t chunk = 0; chunk < 16; ++chunk) {
        auto message = co_await client->Await(wire::Opcode::kChunkAt);
        EXPECT_TRUE(message.error().ok()) << message.error();
        if (!message.error().ok()) co_return;
        EXPECT_EQ(message.header.request, 22u);
        auto at = message.As<wire::ChunkAt>();
        EXPECT_EQ(at.source, source);
        EXPECT_EQ(at.index, chunk);
        EXPECT_TRUE(IsIntact(*client, at)) << chunk;
      }
      client->Close();
    }
    EXPECT_EQ(store_.chunk_reads, 16u);
  });
}

TEST_F(RestoreTest, FetchesWaitWhenTheRingIsFullAndGoOnWhenBuffersComeBack) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    co_await LoseSlab();
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    EXPECT_TRUE((co_await client->AttachRing(3)).ok());
    co_await client->Send(wire::Fetch{0, 0, 8}, 22, 5);
    co_await client->Send(wire::Fetch{0, 8, 8}, 23, 5);
    std::set<uint64_t> seen;
    while (seen.size() < 16) {
      auto message = co_await client->Await(wire::Opcode::kChunkAt);
      EXPECT_TRUE(message.error().ok()) << message.error();
      if (!message.error().ok()) co_return;
      auto at = message.As<wire::ChunkAt>();
      EXPECT_LT(at.ring_index, 3u);
      EXPECT_TRUE(IsIntact(*client, at)) << at.index;
      EXPECT_TRUE(seen.insert(at.index).second);
      EXPECT_LE(store_.chunk_reads, seen.size() + 2) << "more chunks than buffers were read";
      co_await client->Send(wire::RingFree{{at.ring_index}});
    }
  });
}

TEST_F(RestoreTest, ADamagedLocalCopyIsQuarantinedAndTheChunkComesFromTheStore) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    EXPECT_TRUE((co_await client->AttachRing(4)).ok());
    co_await client->Send(wire::Fetch{0, 3, 1}, 22, 5);
    auto at = (co_await client->Await(wire::Opcode::kChunkAt)).As<wire::ChunkAt>();
    EXPECT_EQ(at.source, wire::Source::kLocalSlab);
    wire::Corrupt corrupt{0, 3, at.ring_index, at.source};
    co_await client->Send(corrupt, 24, 5);
    auto again = co_await client->Await(wire::Opcode::kChunkAt);
    EXPECT_EQ(again.header.request, 24u);
    at = again.As<wire::ChunkAt>();
    EXPECT_EQ(at.ring_index, corrupt.ring_index);
    EXPECT_EQ(at.source, wire::Source::kNvme);
    EXPECT_TRUE(IsIntact(*client, at));
    EXPECT_EQ(node_->stats().chunks_corrupt, 1u);
    co_await Until([&] { return coordinator_.reports.back().items.empty(); });
    EXPECT_TRUE(coordinator_.marks.empty());
  });
}

TEST_F(RestoreTest, ARingTakesTheRoomThatIsLeftAndNotMoreThanIsWanted) {
  Run([this]() -> Task<void> {
    uint64_t left = 50 * uint64_t{store_.chunk_bytes()};
    uint64_t slot_bytes = (options_.slab_bytes_max - left) / 2 - SlotCost(0);
    auto client = co_await Trainer(0, 1, slot_bytes);
    EXPECT_TRUE((co_await client->AttachRing(128)).ok());
    EXPECT_EQ(client->ring_info.chunks, 50u);
  });
}

TEST_F(RestoreTest, ARingThatIsTooSmallForTheStoresChunksIsRefused) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    EXPECT_TRUE((co_await client->AttachRing(4)).ok());
    // As when the ring was made while the store was away.
    store_.set_chunk_bytes(2 * store_.chunk_bytes());
    co_await client->Send(wire::Fetch{0, 3, 1}, 22, 5);
    Status refused = (co_await client->Await(wire::Opcode::kChunkAt)).error();
    EXPECT_EQ(refused.code(), Code::kFailedPrecondition) << refused;
    EXPECT_NE(refused.message().find("restore ring"), std::string::npos) << refused;
  });
}

TEST_F(RestoreTest, AChunkDamagedAtTheStoreMarksTheCheckpointAndIsDataLoss) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    co_await LoseSlab();
    store_.damaged_chunk = 7;
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    EXPECT_TRUE((co_await client->AttachRing(4)).ok());
    co_await client->Send(wire::Fetch{0, 7, 1}, 22, 5);
    auto at = (co_await client->Await(wire::Opcode::kChunkAt)).As<wire::ChunkAt>();
    EXPECT_FALSE(IsIntact(*client, at));
    co_await client->Send(wire::Corrupt{0, 7, at.ring_index, at.source}, 24, 5);
    auto answer = co_await client->Await(wire::Opcode::kChunkAt);
    EXPECT_EQ(answer.error().code(), Code::kDataLoss);
    EXPECT_THAT(answer.error().message(), HasSubstr("rank 0, chunk 7 of checkpoint team/llm@40"));
    EXPECT_EQ(coordinator_.marks.size(), 1u);
    // The others are still served.
    co_await client->Send(wire::Fetch{0, 8, 1}, 25, 5);
    at = (co_await client->Await(wire::Opcode::kChunkAt)).As<wire::ChunkAt>();
    EXPECT_TRUE(IsIntact(*client, at));
  });
}

TEST_F(RestoreTest, APredecessorsSlotIsGivenReadOnlyAndALivingNeighboursIsNot) {
  Run([this]() -> Task<void> {
    auto neighbour = co_await Trainer();
    co_await SaveAndCommit(*neighbour, 40, layout_);
    coordinator_.resume = CheckpointKey{1, 40};
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    co_await client->Send(wire::SlotOf{0}, 30, 5);
    auto answer = co_await client->Await(wire::Opcode::kSlot);
    EXPECT_EQ(answer.error().code(), Code::kNotFound);

    neighbour->Close();
    co_await Until([&] { return node_->stats().clients == 1; });
    co_await client->Send(wire::SlotOf{0}, 31, 5);
    answer = co_await client->Await(wire::Opcode::kSlot);
    EXPECT_TRUE(answer.error().ok()) << answer.error();
    auto info = answer.As<wire::SlotInfo>();
    EXPECT_TRUE(info.read_only);
    OwnedFd copy(::dup(answer.fd.get()));
    EXPECT_FALSE(SharedMemory(std::move(copy), true).mapped()) << "it can be mapped writable";
    SharedMemory memory(std::move(answer.fd), false);
    EXPECT_TRUE(
        std::ranges::equal(memory.bytes().subspan(info.data_offset, shard_.size()), shard_));
  });
}

TEST_F(RestoreTest, ClosingACheckpointEndsFetchesThatWaitForBuffers) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    EXPECT_TRUE((co_await client->AttachRing(2)).ok());
    co_await client->Send(wire::Fetch{0, 0, 8}, 22, 5);
    co_await client->Await(wire::Opcode::kChunkAt);
    co_await client->Await(wire::Opcode::kChunkAt);
    co_await client->SendBytes(wire::Session::PackBody(wire::Opcode::kReadClose, {}, 40, 5));
    auto error = co_await client->Await(wire::Opcode::kDone);
    EXPECT_EQ(error.error().code(), Code::kCancelled);
    EXPECT_EQ(error.header.request, 22u);
    EXPECT_EQ((co_await client->Await(wire::Opcode::kDone)).header.request, 40u);
    co_await client->Send(wire::Fetch{0, 0, 1}, 41, 5);
    EXPECT_EQ((co_await client->Await(wire::Opcode::kChunkAt)).error().code(),
              Code::kFailedPrecondition);
  });
}

TEST_F(RestoreTest, FetchesOutsideTheShardOrWithoutARingAreRefused) {
  Run([this]() -> Task<void> {
    co_await MakeCheckpoint();
    auto client = co_await Reader();
    EXPECT_TRUE((co_await client->Open(5)).has_value());
    auto code_of = [&](wire::Fetch fetch) -> Task<Code> {
      co_await client->Send(fetch, 22, 5);
      co_return (co_await client->Await(wire::Opcode::kChunkAt)).error().code();
    };
    EXPECT_EQ(co_await code_of({0, 0, 1}), Code::kFailedPrecondition);
    EXPECT_TRUE((co_await client->AttachRing(2)).ok());
    EXPECT_EQ(co_await code_of({1, 0, 1}), Code::kInvalidArgument);
    EXPECT_EQ(co_await code_of({0, 16, 1}), Code::kInvalidArgument);
    EXPECT_EQ(co_await code_of({0, UINT64_MAX, 2}), Code::kInvalidArgument);
  });
}

}  // namespace
}  // namespace reprise::node
