#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "server/node/slab.h"
#include "tests/unit/node/node_fixture.h"

namespace reprise::node {
namespace {

class RestartTest : public NodeFixture {
 protected:
  size_t FilesEndingIn(const std::string& suffix) {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(options_.slab_directory)) {
      if (entry.path().string().ends_with(suffix)) ++count;
    }
    return count;
  }
  void FlipByteOfSlots(std::streamoff offset) {
    for (const auto& entry : std::filesystem::directory_iterator(options_.slab_directory)) {
      if (!entry.path().string().ends_with(".slot")) continue;
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(offset);
      char byte = static_cast<char>(file.get());
      file.seekp(offset);
      file.put(static_cast<char>(byte ^ 1));
    }
  }
  // Step 40 sealed locally but not uploaded, step 50 half copied; then the daemon ends.
  Task<void> SealOneAndStop() {
    store_.SetAway(true);
    auto client = co_await Trainer();
    auto sealed = co_await client->Save(40, layout_);
    co_await client->AwaitPhase(sealed->save, wire::SavePhase::kLocalSealed);
    auto filling = co_await client->Begin(50, layout_);
    co_await client->Copy(*filling, 50, layout_, 0, 3);
    node_id_ = node_->id();
    co_await Stop();
    store_.SetAway(false);
  }

  format::Layout layout_ = TestLayout(8);
  Id node_id_;
};

TEST_F(RestartTest, ASealedSnapshotIsAdoptedReportedAndUploadedAndAHalfFilledOneIsDropped) {
  Run([this]() -> Task<void> {
    co_await SealOneAndStop();
    EXPECT_EQ(store_.sealed_count(), 0u);
    size_t reports_before = coordinator_.reports.size();
    co_await Start();
    EXPECT_EQ(node_->id(), node_id_);
    Id attempt = coordinator_.attempt_of({1, 40});
    co_await Until([&] { return store_.Find(attempt, 0) != nullptr; });
    co_await Until([&] { return coordinator_.reports.size() > reports_before; });
    const lifecycle::InventoryReport& report = coordinator_.reports.back();
    EXPECT_EQ(report.items.size(), 1u);
    EXPECT_EQ(report.items[0].shard.key, (CheckpointKey{1, 40}));
    EXPECT_EQ(report.items[0].root, store_.Find(attempt, 0)->manifest.root);
    EXPECT_NE(report.incarnation, coordinator_.reports[reports_before - 1].incarnation);
    co_await Until([&] { return FilesEndingIn(".slot") == 1; });
  });
}

TEST_F(RestartTest, ARankThatRegistersAgainHearsHowItsSealedSnapshotStandsAndEnds) {
  Run([this]() -> Task<void> {
    co_await SealOneAndStop();
    store_.SetAway(true);
    co_await Start();
    // Attach is refused until the predecessor's slot is free, so only Connect and Register.
    LocalClient client(*io_, 0, 1);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    EXPECT_TRUE((co_await client.Register()).has_value());
    auto news = co_await client.Await(wire::Opcode::kSaveState);
    auto state = news.As<wire::SaveState>();
    EXPECT_EQ(state.step, 40u);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed);
    coordinator_.PushFor(lifecycle::NodeEvent::Kind::kAborted, {1, 40}, "rank 1 left");
    state = co_await client.AwaitPhase(state.save, wire::SavePhase::kFailed);
    EXPECT_EQ(state.phase, wire::SavePhase::kFailed);
    EXPECT_EQ(state.message, "rank 1 left");
    store_.SetAway(false);
  });
}

TEST_F(RestartTest, AnAbortWhileNobodyListenedIsToldAtTheNextRegistration) {
  Run([this]() -> Task<void> {
    co_await SealOneAndStop();
    store_.SetAway(true);
    co_await Start();
    coordinator_.PushFor(lifecycle::NodeEvent::Kind::kAborted, {1, 40}, "rank 1 left");
    co_await Until([&] { return FilesEndingIn(".slot") == 0; });
    LocalClient client(*io_, 0, 1);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    EXPECT_TRUE((co_await client.Register()).has_value());
    auto state = (co_await client.Await(wire::Opcode::kSaveState)).As<wire::SaveState>();
    EXPECT_EQ(state.step, 40u);
    EXPECT_EQ(state.phase, wire::SavePhase::kFailed);
    EXPECT_EQ(state.message, "rank 1 left");
    store_.SetAway(false);
  });
}

TEST_F(RestartTest, ASlotWithADamagedHeaderIsIgnoredAndRemoved) {
  Run([this]() -> Task<void> {
    co_await SealOneAndStop();
    FlipByteOfSlots(100);
    co_await Start();
    co_await Until([&] { return FilesEndingIn(".slot") == 0 && FilesEndingIn(".meta") == 0; });
    EXPECT_EQ(store_.sealed_count(), 0u);
    EXPECT_EQ(node_->stats().slab_used_bytes, 0u);
  });
}

TEST_F(RestartTest, PayloadThatRottedMeanwhileIsNeverUploadedAsGood) {
  Run([this]() -> Task<void> {
    co_await SealOneAndStop();
    FlipByteOfSlots(static_cast<std::streamoff>(kSlotDataOffset) + 5000);
    co_await Start();
    co_await Until([&] { return coordinator_.skips.size() == 2; });
    EXPECT_EQ(store_.sealed_count(), 0u);
    EXPECT_THAT(coordinator_.skips.back().reason, ::testing::HasSubstr("changed in the slab"));
  });
}

TEST_F(RestartTest, ACommittedSnapshotIsNotUploadedAgainAndGivesWayToNewSlots) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer(0, 1, 7 * kMiB);
    co_await SaveAndCommit(*client, 40, layout_);
    co_await Stop();
    uint64_t opens = store_.opens;
    co_await Start();
    EXPECT_EQ(node_->stats().uploads_pending, 0u);
    EXPECT_GT(node_->stats().slab_used_bytes, 7 * kMiB);
    auto next = co_await Trainer(0, 1, 7 * kMiB);
    EXPECT_EQ(store_.opens, opens);
    EXPECT_LT(node_->stats().slab_used_bytes, 15 * kMiB);
  });
}

TEST_F(RestartTest, ASecondDaemonOnTheSameSlabIsRefused) {
  Run([this]() -> Task<void> {
    NodeOptions options = options_;
    options.socket_path += "2";
    auto second = co_await Node::Start(*io_, rng_, options, coordinator_, store_);
    EXPECT_FALSE(second.has_value());
    if (!second.has_value()) {
      EXPECT_EQ(second.error().code(), Code::kFailedPrecondition) << second.error();
    }
  });
}

TEST_F(RestartTest, ClosingWaitsForSealedShardsToDrain) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    store_.Hold(true);
    auto grant = co_await client->Save(40, layout_);
    co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    loop_.AddTimer(loop_.Now() + std::chrono::milliseconds(50), [this] { store_.Hold(false); });
    co_await Stop(std::chrono::seconds(10));
    EXPECT_EQ(store_.sealed_count(), 1u);
  });
}

TEST_F(RestartTest, AnEmbeddedNodeIsIdleOnlyAfterItsLastClientAndItsLastUpload) {
  options_.idle_exit = std::chrono::milliseconds(20);
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    store_.Hold(true);
    auto grant = co_await client->Save(40, layout_);
    co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    client->Close();
    co_await Until([&] { return node_->stats().clients == 0; });
    co_await loop_.Sleep(std::chrono::milliseconds(30));
    EXPECT_FALSE(node_->idle());
    store_.Hold(false);
    co_await Until([&] { return node_->idle(); });
  });
}

}  // namespace
}  // namespace reprise::node
