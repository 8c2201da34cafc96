// One contract, every StoreLink (server/dataplane/store_link.h).
#include "server/dataplane/store_link.h"

#include <gtest/gtest.h>

#include <optional>

#include "tests/conformance/store_link_world.h"
#include "tests/unit/dataplane/sample_shard.h"

namespace reprise::dataplane {
namespace {

// More chunks than any link has on the way at once.
const SampleOptions kLong{.length = 40 * 8192};

class StoreLinkTest : public testing::TestWithParam<const char*> {
 protected:
  void Make(WorldOptions options = {}) { world_ = MakeLinkWorld(GetParam(), options); }
  void SetUp() override { Make(); }
  void TearDown() override {
    if (world_ == nullptr) return;
    world_->Close();
    world_->UntilStore([](FakeShardStore& store) { return store.sessions == 0; });
    world_->OnStore([](FakeShardStore& store) {
      for (const std::string& violation : store.violations()) ADD_FAILURE() << violation;
    });
    world_.reset();
  }

  StoreLink& link() { return world_->link(); }
  Status Put(const SampleShard& shard) { return world_->Run(PutShard(link(), shard)); }
  std::unique_ptr<ShardUpload> Open(const SampleShard& shard) {
    auto upload = world_->node_loop().RunTask(link().OpenUpload(shard.Open()));
    EXPECT_TRUE(upload.has_value()) << upload.error();
    return upload.has_value() ? *std::move(upload) : nullptr;
  }
  Result<std::unique_ptr<CheckpointSource>> OpenRead(const SampleShard& shard) {
    return world_->node_loop().RunTask(
        link().OpenRead(shard.manifest.identity.job, shard.manifest.identity.key));
  }
  Status Send(ShardUpload& upload, const SampleShard& shard, uint64_t index) {
    return world_->Run(upload.Send(index, shard.Chunk(index), shard.manifest.chunk_digests[index]));
  }
  Status Seal(ShardUpload& upload, const SampleShard& shard) {
    return world_->Run(
        upload.Seal(shard.manifest.piece_digests, shard.layout, shard.manifest.root));
  }
  void Abandon(ShardUpload& upload) { world_->node_loop().RunTask(upload.Abandon()); }
  size_t SealedCount() {
    size_t count = 0;
    world_->OnStore([&](FakeShardStore& store) { count = store.sealed_count(); });
    return count;
  }
  // Starts a task without waiting; the slot is filled when it ends.
  void Start(Task<Status> task, std::optional<Status>& slot) {
    world_->node_loop().Spawn([](Task<Status> inner, std::optional<Status>& end) -> Task<void> {
      end = co_await std::move(inner);
    }(std::move(task), slot));
  }

  std::unique_ptr<LinkWorld> world_;
};

TEST_P(StoreLinkTest, AShardIsPutSealedAndReadBackByteForByte) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  EXPECT_EQ(link().chunk_bytes(), 8192u);
  EXPECT_EQ(link().source(), wire::Source::kNvme);
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  EXPECT_EQ((*source)->manifest().shards.at(0).root, shard.manifest.root);
  EXPECT_EQ(world_->Run(CheckReadBack(**source, shard)), OkStatus());
  world_->node_loop().RunTask((*source)->Close());
}

TEST_P(StoreLinkTest, ShardsOfEveryOddLengthSurvive) {
  for (uint64_t length : {0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 16384}) {
    SampleOptions options;
    options.seed = 50 + length;
    options.length = length;
    SampleShard shard = MakeShard(options);
    ASSERT_EQ(Put(shard), OkStatus()) << length;
    auto source = OpenRead(shard);
    ASSERT_TRUE(source.has_value()) << source.error();
    EXPECT_EQ(world_->Run(CheckReadBack(**source, shard)), OkStatus()) << length;
    world_->node_loop().RunTask((*source)->Close());
  }
}

TEST_P(StoreLinkTest, ChunksOfOneMebibyteSurvive) {
  TearDown();
  WorldOptions world;
  world.chunk_bytes = 1 << 20;
  Make(world);
  SampleOptions options;
  options.chunk_bytes = 1 << 20;
  options.length = (9 << 20) + 12345;
  SampleShard shard = MakeShard(options);
  ASSERT_EQ(Put(shard), OkStatus());
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  EXPECT_EQ(world_->Run(CheckReadBack(**source, shard)), OkStatus());
}

TEST_P(StoreLinkTest, APartOfAShardIsReadIntoTheCallersBuffersAndPadded) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  ReadBuffers buffers(8192, 2);
  ASSERT_EQ(world_->Run((*source)->ReadChunks(shard.manifest, 9, buffers.views())), OkStatus());
  EXPECT_TRUE(std::ranges::equal(buffers.views()[0], shard.Chunk(9)));
  EXPECT_TRUE(std::ranges::equal(buffers.views()[1].first(100), shard.Chunk(10)));
  EXPECT_TRUE(std::ranges::all_of(buffers.views()[1].subspan(100), [](auto b) { return b == 0; }));
}

TEST_P(StoreLinkTest, AWrongDigestIsDataLossAndTheLinkStaysUsable) {
  SampleShard shard = MakeShard();
  auto upload = Open(shard);
  ASSERT_EQ(Send(*upload, shard, 0), OkStatus());
  Status status = world_->Run(upload->Send(1, shard.Chunk(1), shard.manifest.chunk_digests[2]));
  // Over TCP it is the seal, or an earlier send, that hears of it.
  if (status.ok()) status = Seal(*upload, shard);
  EXPECT_EQ(status.code(), Code::kDataLoss) << status;
  EXPECT_NE(status.message().find("chunk 1"), std::string::npos) << status;
  Abandon(*upload);
  EXPECT_EQ(SealedCount(), 0u);
  EXPECT_EQ(Put(shard), OkStatus());
}

TEST_P(StoreLinkTest, AFailedUploadTellsTheSenderBeforeTheSeal) {
  SampleShard shard = MakeShard(kLong);
  world_->OnStore([](FakeShardStore& store) { store.fail_write_index = 0; });
  auto upload = Open(shard);
  Status status;
  for (uint64_t i = 0; i < shard.chunk_count() && status.ok(); ++i)
    status = Send(*upload, shard, i);
  EXPECT_EQ(status.code(), Code::kUnavailable) << status;
  EXPECT_NE(status.message().find("the disk has failed"), std::string::npos) << status;
  Abandon(*upload);
  world_->OnStore([](FakeShardStore& store) {
    EXPECT_EQ(store.sessions, 0);
    store.fail_write_index = UINT64_MAX;
  });
  EXPECT_EQ(Put(shard), OkStatus());
}

TEST_P(StoreLinkTest, AWrongRootIsDataLoss) {
  SampleShard shard = MakeShard();
  shard.manifest.root = DigestOf(ViewOf("another"));
  EXPECT_EQ(Put(shard).code(), Code::kDataLoss);
  EXPECT_EQ(SealedCount(), 0u);
}

TEST_P(StoreLinkTest, TheStatusOfASealReachesTheSender) {
  SampleShard shard = MakeShard();
  world_->OnStore(
      [](FakeShardStore& store) { store.seal_status = Status(Code::kFenced, "epoch 1 is over"); });
  Status status = Put(shard);
  EXPECT_EQ(status.code(), Code::kFenced);
  EXPECT_NE(status.message().find("epoch 1 is over"), std::string::npos) << status;
}

TEST_P(StoreLinkTest, ASealBeforeEveryChunkArrivedIsRefused) {
  SampleShard shard = MakeShard();
  auto upload = Open(shard);
  ASSERT_EQ(Send(*upload, shard, 3), OkStatus());
  EXPECT_EQ(Seal(*upload, shard).code(), Code::kFailedPrecondition);
  EXPECT_EQ(SealedCount(), 0u);
}

TEST_P(StoreLinkTest, AnEndedUploadTakesNothingMore) {
  SampleShard shard = MakeShard();
  auto upload = Open(shard);
  Abandon(*upload);
  EXPECT_EQ(Send(*upload, shard, 0).code(), Code::kFailedPrecondition);
  EXPECT_EQ(Seal(*upload, shard).code(), Code::kFailedPrecondition);
}

TEST_P(StoreLinkTest, ChunksInFlightNeverExceedTheCredits) {
  SampleShard shard = MakeShard(kLong);
  world_->OnStore([](FakeShardStore& store) { store.hold_writes = true; });
  auto upload = Open(shard);
  std::optional<Status> sent;
  Start(SendAll(*upload, shard), sent);
  world_->UntilStore([](FakeShardStore& store) { return store.writes_in_flight == 4; });
  EXPECT_FALSE(sent.has_value());
  world_->OnStore([](FakeShardStore& store) { store.Release(); });
  world_->node_loop().RunUntil([&] { return sent.has_value(); });
  EXPECT_EQ(*sent, OkStatus());
  EXPECT_EQ(Seal(*upload, shard), OkStatus());
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.writes_in_flight_max, 4u); });
}

TEST_P(StoreLinkTest, AStoreWithoutProgressIsADeadlineThatNamesTheSetting) {
  if (!world_->simulated()) GTEST_SKIP() << "needs simulated time";
  SampleShard shard = MakeShard(kLong);
  world_->OnStore([](FakeShardStore& store) { store.hold_writes = true; });
  auto upload = Open(shard);
  Status status = world_->Run(SendAll(*upload, shard));
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  EXPECT_NE(status.message().find("node.store_timeout"), std::string::npos) << status;
  world_->OnStore([](FakeShardStore& store) { store.Release(); });
  Abandon(*upload);
}

TEST_P(StoreLinkTest, AShardThatIsSealedAlreadyNeedsNoSending) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  wire::PutOpen again = shard.Open();
  again.root_if_sealed = shard.manifest.root;
  auto upload = world_->node_loop().RunTask(link().OpenUpload(again));
  ASSERT_TRUE(upload.has_value()) << upload.error();
  EXPECT_TRUE((*upload)->already_sealed());
  upload->reset();
  EXPECT_EQ(SealedCount(), 1u);
}

TEST_P(StoreLinkTest, TheReasonWhyAnUploadCannotOpenReachesTheSender) {
  SampleShard shard = MakeShard();
  world_->OnStore([](FakeShardStore& store) {
    store.open_status = Status(Code::kResourceExhausted, "the disk is full");
  });
  EXPECT_EQ(Put(shard).code(), Code::kResourceExhausted);
  EXPECT_EQ(OpenRead(shard).error().code(), Code::kResourceExhausted);
  world_->OnStore([](FakeShardStore& store) { store.open_status = OkStatus(); });
  EXPECT_EQ(Put(shard), OkStatus());
}

TEST_P(StoreLinkTest, AnotherChunkSizeThanTheStoresIsRefused) {
  SampleOptions options;
  options.chunk_bytes = 4096;
  EXPECT_EQ(Put(MakeShard(options)).code(), Code::kInvalidArgument);
}

TEST_P(StoreLinkTest, AnAbandonedUploadFreesItsSessionAndMayBeRepeated) {
  SampleShard shard = MakeShard();
  auto upload = Open(shard);
  ASSERT_EQ(Send(*upload, shard, 2), OkStatus());
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.sessions, 1); });
  Abandon(*upload);
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.sessions, 0); });
  EXPECT_EQ(Put(shard), OkStatus());
}

TEST_P(StoreLinkTest, ADroppedUploadFreesItsSession) {
  SampleShard shard = MakeShard();
  auto upload = Open(shard);
  ASSERT_EQ(Send(*upload, shard, 2), OkStatus());
  upload.reset();
  world_->UntilStore([](FakeShardStore& store) { return store.sessions == 0; });
}

TEST_P(StoreLinkTest, ADroppedUploadWithWritesInFlightFreesItsSessionAfterThem) {
  SampleShard shard = MakeShard();
  world_->OnStore([](FakeShardStore& store) { store.hold_writes = true; });
  auto upload = Open(shard);
  ASSERT_EQ(Send(*upload, shard, 2), OkStatus());
  world_->UntilStore([](FakeShardStore& store) { return store.writes_in_flight == 1; });
  upload.reset();
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.sessions, 1); });
  world_->OnStore([](FakeShardStore& store) { store.Release(); });
  world_->UntilStore([](FakeShardStore& store) { return store.sessions == 0; });
}

TEST_P(StoreLinkTest, ALayoutLargerThanAFrameTravelsOnceAndComesBack) {
  world_->OnStore([](FakeShardStore& store) { store.needs_layout = true; });
  SampleOptions options;
  options.layout_bytes = 9 * limits::kMiB + 5;
  SampleShard shard = MakeShard(options);
  ASSERT_EQ(Put(shard), OkStatus());
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  auto layout = world_->node_loop().RunTask((*source)->Layout(shard.manifest.layout));
  ASSERT_TRUE(layout.has_value()) << layout.error();
  EXPECT_EQ(*layout, shard.layout);
}

TEST_P(StoreLinkTest, ManyUploadsAndReadsAtOnceDoNotDisturbEachOther) {
  constexpr uint32_t kRanks = 12;
  std::vector<SampleShard> shards;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    SampleOptions options;
    options.rank = rank;
    options.world = kRanks;
    options.length = 20000 + 7777 * rank;
    shards.push_back(MakeShard(options));
  }
  std::vector<std::optional<Status>> ends(kRanks);
  auto finished = [&] { return std::ranges::all_of(ends, [](auto& e) { return e.has_value(); }); };
  for (uint32_t rank = 0; rank < kRanks; ++rank) Start(PutShard(link(), shards[rank]), ends[rank]);
  world_->node_loop().RunUntil(finished);
  for (const auto& end : ends) EXPECT_EQ(*end, OkStatus());
  auto source = OpenRead(shards[0]);
  ASSERT_TRUE(source.has_value()) << source.error();
  EXPECT_EQ((*source)->manifest().world, kRanks);
  ends.assign(kRanks, {});
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    Start(CheckReadBack(**source, shards[rank]), ends[rank]);
  }
  world_->node_loop().RunUntil(finished);
  for (const auto& end : ends) EXPECT_EQ(*end, OkStatus());
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.writes_in_flight, 0u); });
}

TEST_P(StoreLinkTest, ReadsOfOneCallArePipelinedAndBounded) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  world_->OnStore([](FakeShardStore& store) { store.hold_reads = true; });
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  std::optional<Status> end;
  Start(CheckReadBack(**source, shard), end);
  world_->UntilStore([](FakeShardStore& store) { return store.reads_in_flight == 3; });
  world_->OnStore([](FakeShardStore& store) { store.Release(); });
  world_->node_loop().RunUntil([&] { return end.has_value(); });
  EXPECT_EQ(*end, OkStatus());
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.reads_in_flight_max, 3u); });
}

TEST_P(StoreLinkTest, AReadThatFailsHalfwayReportsWhyAndTheSourceStaysUsable) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  world_->OnStore([](FakeShardStore& store) { store.fail_read_index = 5; });
  Status status = world_->Run(CheckReadBack(**source, shard));
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_NE(status.message().find("unreadable block"), std::string::npos) << status;
  world_->OnStore([](FakeShardStore& store) { store.fail_read_index = UINT64_MAX; });
  EXPECT_EQ(world_->Run(CheckReadBack(**source, shard)), OkStatus());
}

TEST_P(StoreLinkTest, WhatIsNotThereIsNotFound) {
  SampleShard shard = MakeShard();
  EXPECT_EQ(OpenRead(shard).error().code(), Code::kNotFound);
  ASSERT_EQ(Put(shard), OkStatus());
  auto source = OpenRead(shard);
  ASSERT_TRUE(source.has_value()) << source.error();
  Loop& loop = world_->node_loop();
  EXPECT_EQ(loop.RunTask((*source)->ShardManifest(9)).error().code(), Code::kNotFound);
  EXPECT_EQ(loop.RunTask((*source)->Layout(Digest{})).error().code(), Code::kNotFound);
  ReadBuffers buffers(8192, 2);
  Status outside = world_->Run((*source)->ReadChunks(shard.manifest, 10, buffers.views()));
  EXPECT_EQ(outside.code(), Code::kOutOfRange);
}

TEST_P(StoreLinkTest, AClosedOrDroppedSourceLetsGoOfTheCheckpoint) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  auto closed = OpenRead(shard);
  auto dropped = OpenRead(shard);
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.sessions, 2); });
  world_->node_loop().RunTask((*closed)->Close());
  world_->OnStore([](FakeShardStore& store) { EXPECT_EQ(store.sessions, 1); });
  dropped->reset();
  world_->UntilStore([](FakeShardStore& store) { return store.sessions == 0; });
  EXPECT_EQ(world_->Run(CheckReadBack(**closed, shard)).code(), Code::kFailedPrecondition);
}

TEST_P(StoreLinkTest, AfterCloseNothingOpensAndWhatWasOpenFails) {
  SampleShard shard = MakeShard();
  ASSERT_EQ(Put(shard), OkStatus());
  SampleOptions other;
  other.seed = 2;
  SampleShard next = MakeShard(other);
  auto upload = Open(next);
  auto source = OpenRead(shard);
  world_->node_loop().RunTask(link().Close());
  EXPECT_EQ(Put(next).code(), Code::kCancelled);
  EXPECT_EQ(OpenRead(shard).error().code(), Code::kCancelled);
  Status sent = Send(*upload, next, 0);
  // In one process it is the seal, or a later send, that hears of it.
  if (sent.ok()) sent = Seal(*upload, next);
  EXPECT_EQ(sent.code(), Code::kCancelled);
  EXPECT_EQ(world_->Run(CheckReadBack(**source, shard)).code(), Code::kCancelled);
}

INSTANTIATE_TEST_SUITE_P(Links, StoreLinkTest,
                         testing::Values("TcpSimulated", "TcpLoopback", "LocalOneLoop",
                                         "LocalTwoThreads"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace reprise::dataplane
