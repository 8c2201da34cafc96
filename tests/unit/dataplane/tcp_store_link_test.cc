// TcpStoreLink when the store is away, comes back, hangs or is cut off, in simulated time.
#include "server/dataplane/tcp_store_link.h"

#include <gtest/gtest.h>

#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "server/dataplane/store_server.h"
#include "tests/unit/dataplane/fake_shard_store.h"
#include "tests/unit/dataplane/sample_shard.h"

namespace reprise::dataplane {
namespace {

class TcpStoreLinkTest : public testing::Test {
 protected:
  TcpStoreLinkTest()
      : node_io_(world_.loop(), world_, "node"),
        store_io_(world_.loop(), world_, "store"),
        store_(world_.loop(), 8192) {
    TcpStoreLinkOptions options;
    options.address = "store:7000";
    link_ = std::make_unique<TcpStoreLink>(node_io_, options);
  }
  void TearDown() override {
    loop().RunTask(link_->Close());
    StopServer();
    for (const std::string& violation : store_.violations()) ADD_FAILURE() << violation;
    EXPECT_EQ(store_.sessions, 0);
    EXPECT_EQ(world_.net().OpenSockets("node"), 0u);
  }
  void StartServer() {
    StoreServerOptions options;
    options.address = "store:7000";
    server_ = std::make_unique<StoreServer>(store_io_, store_, options);
    Status status = loop().RunTask(server_->Start());
    ASSERT_TRUE(status.ok()) << status;
  }
  void StopServer() {
    if (server_ == nullptr) return;
    loop().RunTask(server_->Close());
    server_.reset();
  }
  Loop& loop() { return world_.loop(); }
  Status Put(const SampleShard& shard) { return loop().RunTask(PutShard(*link_, shard)); }
  std::unique_ptr<ShardUpload> Open() {
    auto upload = loop().RunTask(link_->OpenUpload(shard_.Open()));
    EXPECT_TRUE(upload.has_value()) << upload.error();
    return *std::move(upload);
  }
  double SecondsTaken(TimePoint since) { return SecondsOf(loop().Now() - since); }

  SimWorld world_{5};
  SimIo node_io_;
  SimIo store_io_;
  FakeShardStore store_;
  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<TcpStoreLink> link_;
  SampleShard shard_ = MakeShard();
};

TEST_F(TcpStoreLinkTest, AStoreThatIsAwayIsUnavailableWithinTheConnectTimeout) {
  TimePoint begun = loop().Now();
  Status status = Put(shard_);
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_NE(status.message().find("store:7000"), std::string::npos) << status;
  EXPECT_NE(status.message().find("node.connect_timeout"), std::string::npos) << status;
  EXPECT_LE(SecondsTaken(begun), 5.0);
  EXPECT_GE(SecondsTaken(begun), 3.0);
}

TEST_F(TcpStoreLinkTest, AStoreThatStartsMeanwhileIsUsed) {
  std::optional<Status> end;
  loop().Spawn([](Task<Status> put, std::optional<Status>& slot) -> Task<void> {
    slot = co_await std::move(put);
  }(PutShard(*link_, shard_), end));
  world_.RunFor(std::chrono::seconds(1));
  EXPECT_FALSE(end.has_value());
  StartServer();
  loop().RunUntil([&] { return end.has_value(); });
  EXPECT_EQ(*end, OkStatus());
}

TEST_F(TcpStoreLinkTest, AnAddressThatAnswersNothingIsUnavailable) {
  auto listener = loop().RunTask(store_io_.Listen("store:7000"));
  ASSERT_TRUE(listener.has_value());
  EXPECT_EQ(Put(shard_).code(), Code::kUnavailable);
  store_io_.CloseSocket(*listener);
}

TEST_F(TcpStoreLinkTest, UploadsOneAfterAnotherShareAConnection) {
  StartServer();
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SampleOptions options;
    options.seed = seed;
    EXPECT_EQ(Put(MakeShard(options)), OkStatus());
  }
  EXPECT_EQ(link_->connections_made(), 1u);
}

TEST_F(TcpStoreLinkTest, AfterTheStoreRestartedTheNextTrySucceeds) {
  StartServer();
  auto upload = Open();
  StopServer();
  StartServer();
  Status status = loop().RunTask(SendAll(*upload, shard_));
  if (status.ok()) status = loop().RunTask(upload->Seal({}, {}, shard_.manifest.root));
  EXPECT_EQ(status.code(), Code::kUnavailable) << status;
  loop().RunTask(upload->Abandon());
  EXPECT_EQ(Put(shard_), OkStatus());
  EXPECT_EQ(link_->connections_made(), 2u);
}

TEST_F(TcpStoreLinkTest, ACutNetworkIsADeadlineThatNamesPhaseAndSetting) {
  StartServer();
  auto upload = Open();
  world_.net().Isolate("store");
  Status status = loop().RunTask(SendAll(*upload, shard_));
  // Sixteen credits and the window take the whole shard: it is the seal that waits.
  if (status.ok()) status = loop().RunTask(upload->Seal({}, {}, shard_.manifest.root));
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded) << status;
  EXPECT_NE(status.message().find("sealing rank 0"), std::string::npos) << status;
  EXPECT_NE(status.message().find("node.seal_timeout"), std::string::npos) << status;
  world_.net().HealAll();
  EXPECT_EQ(Put(shard_), OkStatus());
}

TEST_F(TcpStoreLinkTest, AStoreThatHangsInASealIsADeadline) {
  StartServer();
  store_.hold_seals = true;
  TimePoint begun = loop().Now();
  Status status = Put(shard_);
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  EXPECT_NEAR(SecondsTaken(begun), 300, 10);
  store_.Release();
}

TEST_F(TcpStoreLinkTest, ARestoreThatIsCutOffDoesNotTouchTheBuffersAfterwards) {
  StartServer();
  ASSERT_EQ(Put(shard_), OkStatus());
  const format::ShardIdentity& identity = shard_.manifest.identity;
  auto source = loop().RunTask(link_->OpenRead(identity.job, identity.key));
  ASSERT_TRUE(source.has_value()) << source.error();
  store_.hold_reads = true;
  auto buffers = std::make_unique<ReadBuffers>(8192, shard_.chunk_count());
  Status status = loop().RunTask((*source)->ReadChunks(shard_.manifest, 0, buffers->views()));
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  EXPECT_NE(status.message().find("node.store_timeout"), std::string::npos) << status;
  Bytes before(buffers->bytes(80000).begin(), buffers->bytes(80000).end());
  store_.Release();
  world_.RunFor(std::chrono::seconds(10));
  EXPECT_TRUE(std::ranges::equal(before, buffers->bytes(80000)));
}

TEST_F(TcpStoreLinkTest, ARestoreThatIsCutOffInsideAChunkReturnsWhenNothingWritesToItAnymore) {
  StartServer();
  ASSERT_EQ(Put(shard_), OkStatus());
  const format::ShardIdentity& identity = shard_.manifest.identity;
  auto source = loop().RunTask(link_->OpenRead(identity.job, identity.key));
  ASSERT_TRUE(source.has_value()) << source.error();
  world_.net().faults.window_bytes = 1000;
  ReadBuffers buffers(8192, shard_.chunk_count());
  std::optional<Status> end;
  size_t in_flight = 99;
  loop().Spawn(
      [](Task<Status> read, SimIo& io, std::optional<Status>& slot, size_t& left) -> Task<void> {
        slot = co_await std::move(read);
        left = io.in_flight();
      }((*source)->ReadChunks(shard_.manifest, 0, buffers.views()), node_io_, end, in_flight));
  loop().RunUntil([&] { return server_->metrics().chunks_sent == 3; });
  world_.net().Partition("store", "node");
  loop().RunUntil([&] { return end.has_value(); });
  EXPECT_EQ(end->code(), Code::kDeadlineExceeded) << *end;
  EXPECT_EQ(in_flight, 1u) << "the reader of the idle upload connection, and nothing else";
  world_.net().HealAll();
}

TEST_F(TcpStoreLinkTest, BytesThatRottedArriveAsTheyAre) {
  StartServer();
  ASSERT_EQ(Put(shard_), OkStatus());
  const format::ShardIdentity& identity = shard_.manifest.identity;
  auto source = loop().RunTask(link_->OpenRead(identity.job, identity.key));
  ASSERT_TRUE(source.has_value()) << source.error();
  store_.corrupt_read_index = 3;
  ReadBuffers buffers(8192, 1);
  EXPECT_EQ(loop().RunTask((*source)->ReadChunks(shard_.manifest, 3, buffers.views())), OkStatus());
  EXPECT_NE(DigestOf(buffers.views()[0]), shard_.manifest.chunk_digests[3])
      << "judging them is the reader's";
}

}  // namespace
}  // namespace reprise::dataplane
