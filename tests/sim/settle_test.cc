// Settle: what a run that died leaves to the next one.
//
// Nodes are played by the test: each holds what its rank sealed in RAM, answers kSettle, and
// uploads when it hears kLocalSealed. Ranks die like by SIGKILL: they just never speak again.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "core/base/log.h"
#include "tests/unit/lifecycle/harness.h"

namespace reprise::lifecycle {
namespace {

constexpr uint64_t kLength = kTestChunk;

// A node daemon with one rank's slab.
struct TestNode {
  uint32_t rank = 0;
  bool alive = true;
  bool answers_settle = true;
  bool uploads = true;
  Nanos upload_delay{0};
  std::vector<std::pair<format::ShardIdentity, uint64_t>> sealed;  // with the seed of the bytes

  Id id() const { return IdOf(900000 + rank); }
  InventoryReport Report(uint64_t token) const {
    InventoryReport report;
    report.node = id();
    report.incarnation = IdOf(40 + rank);
    report.settle_token = token;
    for (const auto& [identity, seed] : sealed) {
      ShardContent content = MakeContent(rank, identity.world, seed, kLength);
      report.items.push_back({identity, ManifestOf(identity, content).root, kLength});
    }
    return report;
  }
};

class SettleWorld {
 public:
  explicit SettleWorld(uint32_t world) : nodes_(world) {
    run_.world = world;
    for (uint32_t rank = 0; rank < world; ++rank) nodes_[rank].rank = rank;
    options_ = TinyOptions();
    Open();
    EXPECT_EQ(run_.Start(host_), OkStatus());
  }
  ~SettleWorld() { host_.Kill(); }

  void Open() {
    EXPECT_EQ(host_.Open(options_), OkStatus());
    StartNodes();
  }
  void StartNodes() {
    ++life_;
    for (TestNode& node : nodes_) {
      if (node.alive) host_.loop().Spawn(Serve(node, life_));
    }
    host_.RunFor(1us);
  }
  // The coordinator's host loses power and comes back.
  void RestartStore() {
    host_.Kill();
    host_.disk().Crash(LoseUnflushed);
    host_.index().Crash(0);
    Open();
  }

  // All ranks begin `step`; those in `local` seal in their node's RAM, those in `stored` here too.
  void Seal(uint64_t step, uint64_t seed, std::set<uint32_t> local, std::set<uint32_t> stored) {
    Id attempt;
    for (uint32_t rank = 0; rank < run_.world; ++rank) {
      auto begun = host_.Run(host_.store().Begin(run_.BeginOf(rank, step)));
      ASSERT_TRUE(begun.has_value()) << StatusOf(begun);
      attempt = begun->attempt;
    }
    for (uint32_t rank : local) {
      nodes_[rank].sealed.push_back({run_.Identity(rank, step, attempt), seed});
    }
    for (uint32_t rank : stored) {
      ASSERT_EQ(host_.Run(Upload(host_.store(), run_.Identity(rank, step, attempt),
                                 MakeContent(rank, run_.world, seed, kLength))),
                OkStatus());
    }
  }
  // A new launch; ranks call in `order`, `gap` apart. Their answers, all the same or a failure.
  std::vector<Result<RegisterAnswer>> NextRun(std::vector<uint32_t> order, Nanos gap) {
    TestRun next = run_;
    next.launch = ++launch_;
    std::vector<std::optional<Result<RegisterAnswer>>> answers(next.world);
    for (uint32_t rank : order) {
      RegisterRequest request = next.RequestOf(rank);
      request.takeover = true;
      host_.loop().Spawn([](SettleWorld& self, RegisterRequest request,
                            std::optional<Result<RegisterAnswer>>& out) -> Task<void> {
        out = co_await self.host_.store().Register(request, self.host_.In(300s));
      }(*this, request, answers[rank]));
      if (gap > Nanos(0)) host_.RunFor(gap);
    }
    host_.loop().RunUntil([&] {
      return std::all_of(answers.begin(), answers.end(),
                         [](const auto& a) { return a.has_value(); });
    });
    std::vector<Result<RegisterAnswer>> result;
    for (auto& answer : answers) result.push_back(*answer);
    if (result[0].has_value()) {
      next.answer = *result[0];
      run_ = next;
    }
    return result;
  }
  std::optional<CheckpointKey> ResumeOfNextRun() {
    std::vector<uint32_t> order(run_.world);
    for (uint32_t rank = 0; rank < run_.world; ++rank) order[rank] = rank;
    auto answers = NextRun(order, Nanos(0));
    for (const auto& answer : answers) {
      EXPECT_TRUE(answer.has_value()) << StatusOf(answer);
      if (!answer.has_value()) return std::nullopt;
      EXPECT_EQ(answer->resume, answers[0]->resume) << "ranks got different answers";
    }
    return answers[0]->resume;
  }
  Status Check(CheckpointKey key, uint64_t seed) {
    return CheckBytes(host_, run_.answer.job, key, run_.world, seed, kLength);
  }

  StoreHost host_{3};
  StoreOptions options_;
  TestRun run_;
  std::vector<TestNode> nodes_;

 private:
  Task<void> Serve(TestNode& node, uint64_t life) {
    PollRequest poll{node.id(), IdOf(40 + node.rank), 0};
    (void)(co_await host_.store().ReportInventory(node.Report(0))).ok();
    while (node.alive && life == life_) {
      auto answer = co_await host_.store().PollEvents(poll, host_.In(500ms));
      if (!answer.has_value()) co_return;
      poll.after = answer->cursor;
      for (const NodeEvent& event : answer->events) {
        if (!node.alive || life != life_) co_return;
        if (event.kind == NodeEvent::Kind::kSettle && node.answers_settle) {
          (void)(co_await host_.store().ReportInventory(node.Report(event.token))).ok();
        }
        if (event.kind == NodeEvent::Kind::kLocalSealed && node.uploads) {
          host_.loop().Spawn(UploadSealed(node, event.attempt));
        }
      }
    }
  }
  Task<void> UploadSealed(TestNode& node, Id attempt) {
    if (node.upload_delay > Nanos(0)) co_await host_.loop().Sleep(node.upload_delay);
    auto sealed = node.sealed;
    for (const auto& [identity, seed] : sealed) {
      if (identity.attempt != attempt) continue;
      (void)(co_await Upload(host_.store(), identity,
                             MakeContent(node.rank, identity.world, seed, kLength)))
          .ok();
    }
  }
  uint64_t launch_ = 1;
  uint64_t life_ = 0;
};

class Settle : public ::testing::Test {
 protected:
  void SetUp() override { SetLogLevel(LogLevel::kError); }
};

TEST_F(Settle, AdoptsWhatEveryRankHadSealedInRamBeforeAllDied) {
  SettleWorld w(2);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0, 1}, {});
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 20}));
  EXPECT_EQ(w.Check({1, 20}, 2), OkStatus());
  auto info = w.host_.Run(w.host_.store().Resolve("team", "gpt", {}));
  ASSERT_TRUE(info.has_value());
  EXPECT_TRUE(info->adopted);
}

TEST_F(Settle, AdoptsWhenSomeShardsLieInRamAndSomeInTheStore) {
  SettleWorld w(3);
  w.Seal(20, 2, {1, 2}, {0});
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 20}));
  EXPECT_EQ(w.Check({1, 20}, 2), OkStatus());
}

TEST_F(Settle, OneUnsealedRankMeansTheOlderCheckpointAndSaysSo) {
  SettleWorld w(2);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0}, {});
  auto answers = w.NextRun({0, 1}, Nanos(0));
  ASSERT_TRUE(answers[0].has_value() && answers[1].has_value());
  EXPECT_EQ(answers[0]->resume, (CheckpointKey{1, 10}));
  ASSERT_EQ(answers[0]->skipped.size(), 1u);
  EXPECT_EQ(answers[0]->skipped[0].key, (CheckpointKey{1, 20}));
  EXPECT_EQ(answers[0]->skipped, answers[1]->skipped);
}

TEST_F(Settle, ALostNodeTakesItsSnapshotAlongUnlessItIsStored) {
  for (bool stored : {false, true}) {
    SettleWorld w(2);
    ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
    w.Seal(20, 2, {0, 1}, stored ? std::set<uint32_t>{1} : std::set<uint32_t>{});
    w.nodes_[1].alive = false;
    w.host_.RunFor(5s);
    CheckpointKey expected{1, stored ? 20u : 10u};
    EXPECT_EQ(w.ResumeOfNextRun(), expected);
  }
}

TEST_F(Settle, ANodeThatDoesNotAnswerInTimeCountsAsLost) {
  SettleWorld w(2);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0, 1}, {});
  w.nodes_[1].answers_settle = false;
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 10}));
}

TEST_F(Settle, ANodeThatNeverUploadsCostsTheTimeoutNotTheRun) {
  SettleWorld w(2);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0, 1}, {});
  w.nodes_[1].uploads = false;
  TimePoint start = w.host_.loop().Now();
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 10}));
  EXPECT_LE(SecondsOf(w.host_.loop().Now() - start), 35.0);
}

TEST_F(Settle, TwoNodesWithDifferentBytesForOneRankAreNotBelieved) {
  SettleWorld w(2);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0, 1}, {});
  auto foreign = w.nodes_[1].sealed.back();
  foreign.second = 99;
  foreign.first.rank = 0;
  w.nodes_[0].sealed.back().first.rank = 0;
  InventoryReport report = w.nodes_[1].Report(0);
  w.nodes_[1].sealed.push_back(foreign);  // claims rank 0 with other bytes
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 10}));
}

TEST_F(Settle, EveryRankGetsTheSameAnswerInEveryOrderAndWithDelays) {
  uint64_t orders = 0;
  for (Nanos gap : {Nanos(0), Nanos(1ms), Nanos(700ms), Nanos(3s)}) {
    std::vector<uint32_t> order = {0, 1, 2};
    do {
      SettleWorld w(3);
      ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
      w.Seal(20, 2, {0, 1, 2}, {});
      w.nodes_[2].upload_delay = 200ms;
      auto answers = w.NextRun(order, gap);
      for (const auto& answer : answers) {
        ASSERT_TRUE(answer.has_value()) << StatusOf(answer);
        EXPECT_EQ(answer->epoch, 2u);
        EXPECT_EQ(answer->resume, (CheckpointKey{1, 20}));
      }
      // A call that is repeated long after gets the same.
      w.host_.RunFor(1s);
      auto late = w.host_.Run(w.host_.store().Register(w.run_.RequestOf(order[0]), w.host_.In(1s)));
      ASSERT_TRUE(late.has_value()) << StatusOf(late);
      EXPECT_EQ(late->resume, (CheckpointKey{1, 20}));
      ++orders;
    } while (std::next_permutation(order.begin(), order.end()));
  }
  std::printf("orders: %llu\n", static_cast<unsigned long long>(orders));
}

TEST_F(Settle, ARestartedCoordinatorWaitsForInventoriesAndAdopts) {
  SettleWorld w(2);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0, 1}, {0});
  w.RestartStore();
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 20}));
  EXPECT_EQ(w.Check({1, 20}, 2), OkStatus());
}

TEST_F(Settle, ACoordinatorThatDiesAtAnyMomentOfASettleLosesNothing) {
  uint64_t moments = 0;
  for (Nanos moment = 0ms; moment < 3s; moment += 23ms) {
    SettleWorld w(2);
    ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
    w.Seal(20, 2, {0, 1}, {1});
    w.nodes_[0].upload_delay = 300ms;
    w.RestartStore();
    TestRun doomed = w.run_;
    doomed.launch = 70;
    std::vector<std::optional<Result<RegisterAnswer>>> answers(2);
    for (uint32_t rank = 0; rank < 2; ++rank) {
      w.host_.loop().Spawn([](SettleWorld& w, RegisterRequest request,
                              std::optional<Result<RegisterAnswer>>& out) -> Task<void> {
        out = co_await w.host_.store().Register(request, w.host_.In(60s));
      }(w, doomed.RequestOf(rank), answers[rank]));
    }
    w.host_.RunFor(moment);
    w.RestartStore();
    EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{1, 20})) << "died after " << moment.count();
    EXPECT_EQ(w.Check({1, 20}, 2), OkStatus());
    ++moments;
  }
  std::printf("moments: %llu\n", static_cast<unsigned long long>(moments));
}

TEST_F(Settle, ADamagedNewestIsSkippedWithItsReason) {
  SettleWorld w(1);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  ASSERT_EQ(w.run_.Save(w.host_, 20, 2, kLength), OkStatus());
  const StoreState& state = w.host_.store().state();
  const CheckpointRow* row = state.FindCheckpoint(w.run_.answer.job, {1, 20});
  const format::PreparedEntry* shard = state.FindShard(row->commit.attempt, 0);
  w.host_.disk().FlipBit("/store/seg/0000000" + std::to_string(shard->manifest.run.segment),
                         shard->manifest.run.offset + 30, 2);
  auto answers = w.NextRun({0}, Nanos(0));
  ASSERT_TRUE(answers[0].has_value()) << StatusOf(answers[0]);
  EXPECT_EQ(answers[0]->resume, (CheckpointKey{1, 10}));
  ASSERT_EQ(answers[0]->skipped.size(), 1u);
  EXPECT_NE(answers[0]->skipped[0].reason.find("rank 0"), std::string::npos);
  auto exact = w.host_.Run(w.host_.store().Resolve("team", "gpt", {20, 1}));
  EXPECT_EQ(exact.error().code(), Code::kDataLoss);
}

TEST_F(Settle, AReadThatFailsOnceDoesNotCostTheNewest) {
  SettleWorld w(1);
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  ASSERT_EQ(w.run_.Save(w.host_, 20, 2, kLength), OkStatus());
  for (uint64_t failing = 1; failing <= 2; ++failing) {
    w.host_.disk().ResetCounters();
    w.host_.disk().faults.fail_read_at = failing;
    auto answers = w.NextRun({0}, Nanos(0));
    ASSERT_TRUE(answers[0].has_value()) << StatusOf(answers[0]);
    EXPECT_EQ(answers[0]->resume, (CheckpointKey{1, 20}));
    EXPECT_TRUE(answers[0]->skipped.empty());
    EXPECT_GE(w.host_.disk().counters().reads, failing) << "nothing was read, nothing failed";
  }
}

TEST_F(Settle, WithoutSettleASealedSnapshotIsLost) {
  SettleWorld w(2);
  w.options_.mutations.resume_without_settle = true;
  w.RestartStore();
  w.run_.launch = 90;
  ASSERT_EQ(w.run_.Start(w.host_), OkStatus());
  uint64_t epoch = w.run_.answer.epoch;
  ASSERT_EQ(w.run_.Save(w.host_, 10, 1, kLength), OkStatus());
  w.Seal(20, 2, {0, 1}, {});
  EXPECT_EQ(w.ResumeOfNextRun(), (CheckpointKey{epoch, 10})) << "the removed step went unnoticed";
}

}  // namespace
}  // namespace reprise::lifecycle
