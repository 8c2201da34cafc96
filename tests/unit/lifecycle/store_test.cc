#include "server/lifecycle/store.h"

#include "tests/unit/lifecycle/harness.h"

namespace reprise::lifecycle {
namespace {

TEST(Store, SavesAndReadsBackOneRank) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  TestRun run;
  ASSERT_EQ(run.Start(host), OkStatus());
  EXPECT_EQ(run.answer.epoch, 1u);
  EXPECT_FALSE(run.answer.resume.has_value());
  ASSERT_EQ(run.Save(host, 10, 1), OkStatus());
  EXPECT_EQ(CheckBytes(host, run.answer.job, {1, 10}, 1, 1), OkStatus());
  auto resolved = host.Run(host.store().Resolve("team", "gpt", {}));
  ASSERT_TRUE(resolved.has_value());
  EXPECT_EQ(resolved->key, (CheckpointKey{1, 10}));
  host.Close();
}

TEST(Store, NodesHearOfACommit) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  PollRequest poll{IdOf(1), IdOf(2), 0};
  ASSERT_TRUE(host.Run(host.store().PollEvents(poll, host.In(1ms))).has_value());
  TestRun run;
  ASSERT_EQ(run.Start(host), OkStatus());
  ASSERT_EQ(run.Save(host, 10, 1), OkStatus());
  auto answer = host.Run(host.store().PollEvents(poll, host.In(1s)));
  ASSERT_TRUE(answer.has_value());
  ASSERT_EQ(answer->events.size(), 1u);
  EXPECT_EQ(answer->events[0].kind, NodeEvent::Kind::kCommitted);
  EXPECT_EQ(answer->events[0].key, (CheckpointKey{1, 10}));
  host.Close();
}

TEST(Store, ANodeThatWasAwayHearsOfTheCommitOfAStepThatHasBeenDeletedSince) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  TestRun run;
  ASSERT_EQ(run.Start(host), OkStatus());
  ASSERT_EQ(run.Save(host, 10, 1), OkStatus());
  ASSERT_EQ(run.Save(host, 20, 2), OkStatus());
  CheckpointKey key{1, 10};
  Id attempt = host.store().state().FindCheckpoint(run.answer.job, key)->commit.attempt;
  ASSERT_EQ(host.Run(host.store().Delete("team", "gpt", key)), OkStatus());
  ASSERT_EQ(host.Restart(), OkStatus());
  PollRequest poll{IdOf(1), IdOf(2), 0};
  ASSERT_TRUE(host.Run(host.store().PollEvents(poll, host.In(1ms))).has_value());
  // The daemon comes back with the shard that it had sealed before.
  InventoryReport report{.node = IdOf(1), .incarnation = IdOf(2)};
  format::ShardIdentity shard = run.Identity(0, 10, attempt);
  ShardContent content = MakeContent(0, 1, 1, 3 * kTestChunk);
  report.items.push_back({shard, ManifestOf(shard, content).root, 3 * kTestChunk});
  ASSERT_EQ(host.Run(host.store().ReportInventory(report)), OkStatus());
  auto answer = host.Run(host.store().PollEvents(poll, host.In(1s)));
  ASSERT_TRUE(answer.has_value());
  ASSERT_EQ(answer->events.size(), 1u);
  EXPECT_EQ(answer->events[0].kind, NodeEvent::Kind::kCommitted) << answer->events[0].reason;
  // An upload has nothing to do, and the checkpoint stays deleted.
  EXPECT_EQ(host.Run(Upload(host.store(), shard, content)), OkStatus());
  EXPECT_EQ(host.store().state().FindCheckpoint(run.answer.job, key), nullptr);
  host.Close();
}

TEST(Store, KeepsCommittedCheckpointsOverACleanRestart) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  TestRun run;
  run.world = 2;
  ASSERT_EQ(run.Start(host), OkStatus());
  ASSERT_EQ(run.Save(host, 10, 1), OkStatus());
  ASSERT_EQ(run.Save(host, 20, 2), OkStatus());
  host.Close();
  ASSERT_EQ(host.Open(), OkStatus());
  EXPECT_EQ(CheckBytes(host, run.answer.job, {1, 10}, 2, 1), OkStatus());
  EXPECT_EQ(CheckBytes(host, run.answer.job, {1, 20}, 2, 2), OkStatus());
  EXPECT_EQ(host.store().recovery().checkpoints, 2u);
  host.Close();
}

TEST(Store, KeepsCommittedCheckpointsOverAPowerCut) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  TestRun run;
  run.world = 2;
  ASSERT_EQ(run.Start(host), OkStatus());
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_EQ(run.Save(host, step, step), OkStatus());
  ASSERT_EQ(host.Restart(), OkStatus());
  for (uint64_t step = 1; step <= 3; ++step) {
    EXPECT_EQ(CheckBytes(host, run.answer.job, {1, step}, 2, step), OkStatus()) << step;
  }
  run.launch = 2;
  ASSERT_EQ(run.Start(host), OkStatus());
  EXPECT_EQ(run.answer.epoch, 2u);
  EXPECT_EQ(run.answer.resume, (CheckpointKey{1, 3}));
  host.Close();
}

// With io_uring the kernel may give up a killed process's locks after the process is gone.
TEST(Store, WaitsForTheLockThatAKilledPredecessorStillHolds) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  host.Close();
  constexpr uint64_t kPredecessor = 999999;
  int64_t inode = host.disk().Open("/store/SUPER", {});
  ASSERT_GE(inode, 0);
  ASSERT_TRUE(host.disk().Lock(inode, kPredecessor));
  host.loop().Spawn([](StoreHost& host, SimDisk::InodeId inode) -> Task<void> {
    co_await host.loop().Sleep(300ms);
    host.disk().Release(inode, kPredecessor);
  }(host, inode));
  ASSERT_EQ(host.Open(), OkStatus());
  host.Close();
}

TEST(Store, RefusesADirectoryThatAnotherDaemonServes) {
  StoreHost host;
  ASSERT_EQ(host.Open(), OkStatus());
  host.Close();
  int64_t inode = host.disk().Open("/store/SUPER", {});
  ASSERT_GE(inode, 0);
  ASSERT_TRUE(host.disk().Lock(inode, 999999));
  EXPECT_EQ(host.Open().code(), Code::kFailedPrecondition);
  host.disk().Release(inode, 999999);
}

}  // namespace
}  // namespace reprise::lifecycle
