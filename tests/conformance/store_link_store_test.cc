// The links in front of the real Store on a simulated disk: what a node sends is what survives a
// power cut, and what a reader gets.
#include <gtest/gtest.h>

#include <memory>

#include "core/io/buffer_pool.h"
#include "server/dataplane/local_store_link.h"
#include "server/dataplane/store_server.h"
#include "server/dataplane/tcp_store_link.h"
#include "tests/unit/dataplane/sample_shard.h"
#include "tests/unit/lifecycle/harness.h"

namespace reprise::dataplane {
namespace {

using lifecycle::StoreHost;
using lifecycle::TestRun;

constexpr uint64_t kLength = 9 * lifecycle::kTestChunk + 1000;

// A link to the store of a StoreHost. Close before the host dies.
class HostLink {
 public:
  HostLink(StoreHost& host, bool tcp)
      : loop_(host.loop()),
        node_io_(host.loop(), host.world(), "node"),
        store_io_(host.loop(), host.world(), "store") {
    if (tcp) {
      StoreServerOptions server;
      server.address = "store:7000";
      server_ = std::make_unique<StoreServer>(store_io_, host.store(), server);
      Status started = loop_.RunTask(server_->Start());
      REPRISE_CHECK(started.ok(), started.message());
      TcpStoreLinkOptions link;
      link.address = "store:7000";
      link_ = std::make_unique<TcpStoreLink>(node_io_, link);
    } else {
      buffers_ = BufferPool::Create(store_io_, {lifecycle::kTestChunk, 32}).value();
      link_ = std::make_unique<LocalStoreLink>(loop_, loop_, host.store(), *buffers_,
                                               LocalStoreLinkOptions{});
    }
  }
  void Close() {
    loop_.RunTask(link_->Close());
    if (server_ != nullptr) loop_.RunTask(server_->Close());
  }
  StoreLink& operator*() { return *link_; }
  StoreLink* operator->() { return link_.get(); }

 private:
  Loop& loop_;
  SimIo node_io_;
  SimIo store_io_;
  std::unique_ptr<BufferPool> buffers_;
  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<StoreLink> link_;
};

SampleShard ShardOf(const TestRun& run, uint32_t rank, uint64_t step, const Id& attempt) {
  lifecycle::ShardContent content = lifecycle::MakeContent(rank, run.world, step, kLength);
  return {lifecycle::ManifestOf(run.Identity(rank, step, attempt), content), content.encoded_layout,
          content.bytes};
}

class StoreLinkStoreTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    run_.world = 2;
    ASSERT_EQ(host_.Open(), OkStatus());
    ASSERT_EQ(run_.Start(host_), OkStatus());
  }
  Id Begin(uint64_t step) {
    Id attempt;
    for (uint32_t rank = 0; rank < run_.world; ++rank) {
      auto begun = host_.Run(host_.store().Begin(run_.BeginOf(rank, step)));
      EXPECT_TRUE(begun.has_value()) << begun.error();
      if (begun.has_value()) attempt = begun->attempt;
    }
    return attempt;
  }

  StoreHost host_;
  TestRun run_;
};

TEST_P(StoreLinkStoreTest, WhatWasSealedThroughALinkIsReadBackAfterAPowerCut) {
  auto link = std::make_unique<HostLink>(host_, GetParam());
  Id attempt = Begin(10);
  for (uint32_t rank = 0; rank < run_.world; ++rank) {
    ASSERT_EQ(host_.Run(PutShard(**link, ShardOf(run_, rank, 10, attempt))), OkStatus());
  }
  host_.RunFor(std::chrono::seconds(1));
  EXPECT_EQ(lifecycle::CheckBytes(host_, run_.answer.job, {1, 10}, 2, 10, kLength), OkStatus());
  link->Close();
  link.reset();
  ASSERT_EQ(host_.Restart(), OkStatus());

  link = std::make_unique<HostLink>(host_, GetParam());
  auto source = host_.Run((*link)->OpenRead(run_.answer.job, {1, 10}));
  ASSERT_TRUE(source.has_value()) << source.error();
  for (uint32_t rank = 0; rank < run_.world; ++rank) {
    SampleShard shard = ShardOf(run_, rank, 10, attempt);
    EXPECT_EQ(host_.Run(CheckReadBack(**source, shard)), OkStatus()) << rank;
    auto layout = host_.Run((*source)->Layout(shard.manifest.layout));
    ASSERT_TRUE(layout.has_value()) << layout.error();
    EXPECT_EQ(*layout, shard.layout);
  }
  host_.Run((*source)->Close());
  link->Close();
  link.reset();
  host_.Close();
}

TEST_P(StoreLinkStoreTest, ASealedShardIsNotSentAgainAndADamagedOneCanBe) {
  auto link = std::make_unique<HostLink>(host_, GetParam());
  Id attempt = Begin(10);
  SampleShard shard = ShardOf(run_, 0, 10, attempt);
  auto upload = host_.Run((*link)->OpenUpload(shard.Open()));
  ASSERT_TRUE(upload.has_value()) << upload.error();
  Status sent = host_.Run((*upload)->Send(0, shard.Chunk(0), shard.manifest.chunk_digests[1]));
  if (sent.ok()) sent = host_.Run((*upload)->Seal({}, {}, shard.manifest.root));
  EXPECT_EQ(sent.code(), Code::kDataLoss) << sent;
  host_.Run((*upload)->Abandon());
  ASSERT_EQ(host_.Run(PutShard(**link, shard)), OkStatus());
  wire::PutOpen again = shard.Open();
  again.root_if_sealed = shard.manifest.root;
  upload = host_.Run((*link)->OpenUpload(again));
  ASSERT_TRUE(upload.has_value()) << upload.error();
  EXPECT_TRUE((*upload)->already_sealed());
  upload->reset();
  link->Close();
  link.reset();
  host_.Close();
}

INSTANTIATE_TEST_SUITE_P(Links, StoreLinkStoreTest, testing::Values(true, false),
                         [](const auto& info) { return info.param ? "Tcp" : "Local"; });

}  // namespace
}  // namespace reprise::dataplane
