// NodeFixture: a real node on a real I/O engine and a real shared-memory directory, between a fake
// coordinator and a fake store. The test body runs as one coroutine on the same loop.
//
// Thread rule: the test's thread.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "core/base/log.h"
#include "server/node/node.h"
#include "tests/unit/node/fakes.h"
#include "tests/unit/node/local_client.h"

namespace reprise::node {

// A directory of its own in shared memory (or where TMPDIR says), removed at the end.
class TempDirectory {
 public:
  TempDirectory() {
    std::string base = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "";
    if (base.empty()) base = std::filesystem::temp_directory_path().string();
    std::string pattern = base + "/reprise-node-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TempDirectory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class NodeFixture : public ::testing::Test {
 protected:
  static constexpr uint64_t kMiB = limits::kMiB;

  NodeFixture() {
    auto made = CreateIo(loop_, {});
    if (!made.has_value()) std::abort();
    io_ = std::move(*made);
    options_.socket_path = temp_.path() + "/node.sock";
    options_.slab_directory = temp_.path() + "/slab";
    options_.slab_bytes_max = 16 * kMiB;
    options_.poll_slice = std::chrono::milliseconds(50);
  }
  ~NodeFixture() override {
    if (node_ != nullptr) loop_.RunTask(Stop());
    EXPECT_THAT(store_.violations, ::testing::IsEmpty());
    EXPECT_EQ(store_.reads_open, 0);
    EXPECT_EQ(store_.uploads_open(), 0u);
    loop_.SetReactor(nullptr);
  }

  Task<void> Start() {
    auto started = co_await Node::Start(*io_, rng_, options_, coordinator_, store_);
    EXPECT_TRUE(started.has_value()) << StatusOf(started);
    if (started.has_value()) node_ = std::move(*started);
  }
  // `drain`: how long sealed shards may still be uploaded.
  Task<void> Stop(Nanos drain = Nanos{0}) {
    co_await node_->Close(loop_.Now() + drain);
    node_ = nullptr;
  }
  // Runs the test body after a start of the node.
  void Run(std::function<Task<void>()> body) {
    loop_.RunTask([](NodeFixture* self, std::function<Task<void>()> work) -> Task<void> {
      co_await self->Start();
      if (self->node_ != nullptr) co_await work();
    }(this, std::move(body)));
  }
  // Lets the loop work until `condition` holds; fails the test after 20 s.
  Task<bool> Until(std::function<bool()> condition) {
    TimePoint deadline = loop_.Now() + std::chrono::seconds(20);
    while (!condition() && loop_.Now() < deadline) {
      co_await loop_.Sleep(std::chrono::milliseconds(1));
    }
    EXPECT_TRUE(condition()) << "waited 20 s in vain";
    co_return condition();
  }
  // A registered and attached rank.
  Task<std::unique_ptr<LocalClient>> Trainer(uint32_t rank = 0, uint32_t world = 1,
                                             uint64_t slot_bytes = kMiB) {
    auto client = std::make_unique<LocalClient>(*io_, rank, world);
    Status connected = co_await client->Connect(options_.socket_path);
    EXPECT_TRUE(connected.ok()) << connected;
    auto registered = co_await client->Register();
    EXPECT_TRUE(registered.has_value()) << StatusOf(registered);
    Status attached = co_await client->Attach(slot_bytes);
    EXPECT_TRUE(attached.ok()) << attached;
    co_return client;
  }
  // Saves a step and makes it a checkpoint of a world of one.
  Task<void> SaveAndCommit(LocalClient& client, uint64_t step, const format::Layout& layout) {
    auto grant = co_await client.Save(step, layout);
    EXPECT_TRUE(grant.has_value()) << StatusOf(grant);
    if (!grant.has_value()) co_return;
    CheckpointKey key{coordinator_.epoch, step};
    co_await Until([&] { return store_.Find(coordinator_.attempt_of(key), 0) != nullptr; });
    store_.Publish(coordinator_.job, key, coordinator_.attempt_of(key), 1);
    coordinator_.PushFor(lifecycle::NodeEvent::Kind::kCommitted, key);
    auto state = co_await client.AwaitPhase(grant->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.phase, wire::SavePhase::kCommitted) << state.message;
  }

  TempDirectory temp_;
  SystemClock clock_;
  Loop loop_{clock_};
  std::unique_ptr<Io> io_;
  Rng rng_{42};
  FakeCoordinator coordinator_{loop_};
  FakeStore store_{loop_};
  NodeOptions options_;
  std::unique_ptr<Node> node_;
};

}  // namespace reprise::node
