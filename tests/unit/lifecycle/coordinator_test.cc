// Epochs and attempts through the store's API: who is let in, who is fenced, when a save is given
// up.
#include "server/lifecycle/retention.h"
#include "tests/unit/lifecycle/harness.h"

namespace reprise::lifecycle {
namespace {

struct Cluster {
  StoreHost host;
  TestRun run;
  explicit Cluster(uint32_t world, StoreOptions options = TinyOptions()) {
    run.world = world;
    EXPECT_EQ(host.Open(options), OkStatus());
  }
  // A node daemon's poll for `rank`, so that the rank counts as alive.
  void Poll(uint32_t rank) {
    auto answer =
        host.Run(host.store().PollEvents({IdOf(900000 + rank), IdOf(5), 0}, host.In(1us)));
    EXPECT_TRUE(answer.has_value());
  }
  Result<RegisterAnswer> Register(RegisterRequest request, Nanos patience = 1s) {
    return host.Run(host.store().Register(std::move(request), host.In(patience)));
  }
  Result<BeginAnswer> Begin(uint32_t rank, uint64_t step) {
    return host.Run(host.store().Begin(run.BeginOf(rank, step)));
  }
};

TEST(Epochs, AnIncompleteLaunchNamesTheMissingRanks) {
  Cluster c(4);
  auto answer = c.Register(c.run.RequestOf(1));
  ASSERT_FALSE(answer.has_value());
  EXPECT_EQ(answer.error().code(), Code::kDeadlineExceeded);
  EXPECT_NE(answer.error().message().find("missing: ranks 0, 2-3"), std::string::npos)
      << answer.error();
  c.host.Close();
}

TEST(Epochs, ALateOrRepeatedCallGetsTheSameAnswer) {
  Cluster c(2);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  auto again = c.Register(c.run.RequestOf(1));
  ASSERT_TRUE(again.has_value()) << StatusOf(again);
  EXPECT_EQ(again->epoch, 1u);
  c.host.Close();
}

TEST(Epochs, AnOlderProcessIsFencedEverywhere) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  auto begun = c.Begin(0, 10);
  ASSERT_TRUE(begun.has_value());
  TestRun next = c.run;
  next.launch = 2;
  ASSERT_EQ(next.Start(c.host), OkStatus());
  EXPECT_EQ(next.answer.epoch, 2u);
  EXPECT_EQ(c.Register(c.run.RequestOf(0)).error().code(), Code::kFenced);
  EXPECT_EQ(c.Begin(0, 11).error().code(), Code::kFenced);
  Status put = c.host.Run(Upload(c.host.store(), c.run.Identity(0, 10, begun->attempt),
                                 MakeContent(0, 1, 1, kTestChunk)));
  EXPECT_EQ(put.code(), Code::kFenced) << put;
  c.host.Close();
}

TEST(Epochs, ALiveJobIsNotTakenOverByAccident) {
  Cluster c(1);
  c.Poll(0);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  TestRun other = c.run;
  other.launch = 2;
  auto refused = c.Register(other.RequestOf(0));
  ASSERT_EQ(refused.error().code(), Code::kAlreadyExists);
  EXPECT_NE(refused.error().message().find("pid 100 on host host0"), std::string::npos);
  RegisterRequest takeover = other.RequestOf(0);
  takeover.takeover = true;
  auto taken = c.Register(takeover, 60s);
  ASSERT_TRUE(taken.has_value()) << StatusOf(taken);
  EXPECT_EQ(taken->epoch, 2u);
  c.host.Close();
}

TEST(Epochs, AJobWhoseNodesAreSilentMayBeStartedAnew) {
  Cluster c(1);
  c.Poll(0);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  c.host.RunFor(3s);
  c.run.launch = 2;
  EXPECT_EQ(c.run.Start(c.host), OkStatus());
  c.host.Close();
}

TEST(Epochs, ADeadProcessDoesNotKeepItsJob) {
  Cluster c(1);
  c.Poll(0);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  RankGone gone{c.run.answer.job, 1, 0, IdOf(1000), "exit status 1"};
  ASSERT_EQ(c.host.Run(c.host.store().ReportRankGone(gone)), OkStatus());
  c.run.launch = 2;
  EXPECT_EQ(c.run.Start(c.host), OkStatus());
  c.host.Close();
}

TEST(Epochs, RanksOfOneLaunchMustNameOneWorld) {
  Cluster c(2);
  c.Poll(0);
  std::optional<Result<RegisterAnswer>> first;
  c.host.loop().Spawn([](Cluster& c, std::optional<Result<RegisterAnswer>>& out) -> Task<void> {
    out = co_await c.host.store().Register(c.run.RequestOf(0), c.host.In(60s));
  }(c, first));
  c.host.RunFor(1ms);
  TestRun other = c.run;
  other.world = 3;
  auto refused = c.Register(other.RequestOf(1));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
  EXPECT_NE(refused.error().message().find("start all ranks with one world size"),
            std::string::npos)
      << refused.error();
  // The launch that it tried to join goes on.
  ASSERT_TRUE(c.Register(c.run.RequestOf(1), 60s).has_value());
  c.host.loop().RunUntil([&] { return first.has_value(); });
  ASSERT_TRUE(first->has_value()) << StatusOf(*first);
  EXPECT_EQ((*first)->epoch, 1u);
  c.host.Close();
}

TEST(Epochs, BadNamesAndRanksAreRefused) {
  Cluster c(2);
  RegisterRequest request = c.run.RequestOf(0);
  request.who.job = "../etc";
  EXPECT_EQ(c.Register(request).error().code(), Code::kInvalidArgument);
  request = c.run.RequestOf(0);
  request.who.rank = 2;
  EXPECT_EQ(c.Register(request).error().code(), Code::kInvalidArgument);
  c.host.Close();
}

TEST(Attempts, TwoBeginsOfOneRankAreOneAttempt) {
  Cluster c(2);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  auto first = c.Begin(0, 10);
  auto second = c.Begin(0, 10);
  auto other = c.Begin(1, 10);
  ASSERT_TRUE(first.has_value() && second.has_value() && other.has_value());
  EXPECT_EQ(first->attempt, second->attempt);
  EXPECT_EQ(first->attempt, other->attempt);
  c.host.Close();
}

TEST(Attempts, TheBeginWindowNamesWhoIsMissingAndWhereItIs) {
  Cluster c(3);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  ASSERT_TRUE(c.Begin(0, 10).has_value());
  ASSERT_TRUE(c.Begin(1, 20).has_value());
  c.host.RunFor(61s);
  auto refused = c.Begin(0, 10);
  ASSERT_EQ(refused.error().code(), Code::kAborted);
  EXPECT_NE(refused.error().message().find("ranks 1-2"), std::string::npos) << refused.error();
  EXPECT_NE(refused.error().message().find("step 20"), std::string::npos) << refused.error();
  c.host.Close();
}

TEST(Attempts, ASaveWithoutProgressIsGivenUp) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  ASSERT_TRUE(c.Begin(0, 10).has_value());
  c.host.RunFor(31min);
  EXPECT_EQ(c.Begin(0, 10).error().code(), Code::kAborted);
  c.host.Close();
}

TEST(Attempts, RanksThatDisagreeOnTheStepAreToldAtTheLimit) {
  Cluster c(2);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  for (uint64_t step = 1; step <= 4; ++step) ASSERT_TRUE(c.Begin(0, step).has_value());
  auto refused = c.Begin(0, 5);
  EXPECT_EQ(refused.error().code(), Code::kFailedPrecondition);
  c.host.Close();
}

TEST(Attempts, OneRankThatSkipsAbortsTheSaveForAll) {
  Cluster c(2);
  c.Poll(0);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  auto begun = c.Begin(0, 10);
  ASSERT_TRUE(begun.has_value());
  SkipRequest skip{c.run.answer.job, 1, 10, 1, "no slot"};
  ASSERT_EQ(c.host.Run(c.host.store().Skip(skip)), OkStatus());
  ASSERT_EQ(c.host.Run(c.host.store().Skip(skip)), OkStatus()) << "a replay";
  auto events = c.host.Run(c.host.store().PollEvents({IdOf(900000), IdOf(5), 0}, c.host.In(1s)));
  ASSERT_TRUE(events.has_value());
  ASSERT_EQ(events->events.size(), 1u);
  EXPECT_EQ(events->events[0].kind, NodeEvent::Kind::kAborted);
  EXPECT_NE(events->events[0].reason.find("rank 1"), std::string::npos);
  EXPECT_NE(events->events[0].reason.find("no slot"), std::string::npos);
  Status put = c.host.Run(Upload(c.host.store(), c.run.Identity(0, 10, begun->attempt),
                                 MakeContent(0, 2, 1, kTestChunk)));
  EXPECT_EQ(put.code(), Code::kAborted);
  c.host.Close();
}

TEST(Attempts, ACommittedStepIsNotSavedAgain) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  ASSERT_EQ(c.run.Save(c.host, 10, 1), OkStatus());
  EXPECT_EQ(c.Begin(0, 10).error().code(), Code::kAlreadyExists);
  c.host.Close();
}

TEST(Attempts, AFailedStepStaysFailedOverARestart) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  ASSERT_EQ(c.host.Run(c.host.store().Skip({c.run.answer.job, 1, 10, 0, "x"})), OkStatus());
  ASSERT_EQ(c.host.Restart(), OkStatus());
  EXPECT_EQ(c.Begin(0, 10).error().code(), Code::kAborted);
  EXPECT_TRUE(c.Begin(0, 11).has_value());
  c.host.Close();
}

TEST(Attempts, AFullStoreAbortsTheSaveAndKeepsCommitting) {
  StoreOptions options = TinyOptions();
  options.geometry.segment_count = 1;
  Cluster c(1, options);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  ASSERT_EQ(c.run.Save(c.host, 10, 1, 4 * kTestChunk), OkStatus());
  Status full = c.run.Save(c.host, 20, 2, 16 * kTestChunk);
  EXPECT_EQ(full.code(), Code::kResourceExhausted) << full;
  EXPECT_EQ(c.Begin(0, 20).error().code(), Code::kAborted);
  EXPECT_EQ(c.run.Save(c.host, 30, 3, kTestChunk), OkStatus());
  c.host.Close();
}

TEST(Commit, PiecesThatLeaveAHoleAbortTheSave) {
  Cluster c(2);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  auto begun = c.Begin(0, 10);
  for (uint32_t rank = 0; rank < 2; ++rank) {
    // Both ranks claim to be rank 0 of a world of 3.
    ASSERT_EQ(c.host.Run(Upload(c.host.store(), c.run.Identity(rank, 10, begun->attempt),
                                MakeContent(rank, 3, 1, kTestChunk))),
              OkStatus());
  }
  c.host.RunFor(1s);
  auto refused = c.Begin(0, 10);
  EXPECT_EQ(refused.error().code(), Code::kAborted);
  EXPECT_NE(refused.error().message().find("weight"), std::string::npos) << refused.error();
  c.host.Close();
}

TEST(Delete, ThePinnedTheLastGoodAndTheReadAreKept) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  ASSERT_EQ(c.run.Save(c.host, 10, 1), OkStatus());
  auto drop = [&](uint64_t step) {
    return c.host.Run(c.host.store().Delete("team", "gpt", {1, step})).code();
  };
  EXPECT_EQ(drop(10), Code::kFailedPrecondition) << "the last good one";
  ASSERT_EQ(c.run.Save(c.host, 20, 2), OkStatus());
  ASSERT_EQ(c.host.Run(c.host.store().Pin("team", "gpt", {1, 10}, true, "paper")), OkStatus());
  EXPECT_EQ(drop(10), Code::kFailedPrecondition) << "pinned";
  ASSERT_EQ(c.host.Run(c.host.store().Pin("team", "gpt", {1, 10}, false, "")), OkStatus());
  {
    auto session = c.host.Run(c.host.store().OpenRead(c.run.answer.job, {1, 10}));
    ASSERT_TRUE(session.has_value());
    EXPECT_EQ(drop(10), Code::kFailedPrecondition) << "being read";
  }
  EXPECT_EQ(drop(10), Code::kOk);
  EXPECT_EQ(drop(10), Code::kNotFound);
  EXPECT_EQ(drop(99), Code::kNotFound);
  c.host.Close();
}

std::vector<uint64_t> StepsOf(Cluster& c) {
  std::vector<uint64_t> steps;
  for (const auto& [key, row] : c.host.store().state().FindJob(c.run.answer.job)->checkpoints) {
    steps.push_back(key.step);
  }
  return steps;
}

TEST(Retention, TheNewestAndThePeriodicStayWhenANewerOneCommits) {
  Cluster c(2);
  c.run.keep = {.last = 2, .every = 30};
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  for (uint64_t step = 10; step <= 70; step += 10) {
    ASSERT_EQ(c.run.Save(c.host, step, step, kTestChunk), OkStatus());
    c.host.RunFor(1s);
  }
  EXPECT_EQ(StepsOf(c), (std::vector<uint64_t>{30, 60, 70}));
  EXPECT_EQ(CheckBytes(c.host, c.run.answer.job, {1, 30}, 2, 30, kTestChunk), OkStatus());
  // A deletion is as durable as a commit.
  ASSERT_EQ(c.host.Restart(), OkStatus());
  EXPECT_EQ(StepsOf(c), (std::vector<uint64_t>{30, 60, 70}));
  c.host.Close();
}

TEST(Retention, WhatIsPinnedReadOrResumedFromStaysAndGoesOnlyWhenItIsNot) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  for (uint64_t step : {10, 20, 30, 40}) {
    ASSERT_EQ(c.run.Save(c.host, step, step, kTestChunk), OkStatus());
  }
  ASSERT_EQ(c.host.Run(c.host.store().Pin("team", "gpt", {1, 10}, true, "paper")), OkStatus());
  c.run.keep = {.last = 1};
  {
    auto reader = c.host.Run(c.host.store().OpenRead(c.run.answer.job, {1, 20}));
    ASSERT_TRUE(reader.has_value());
    ASSERT_EQ(c.run.Save(c.host, 50, 5, kTestChunk), OkStatus());
    c.host.RunFor(1s);
    EXPECT_EQ(StepsOf(c), (std::vector<uint64_t>{10, 20, 50}));
  }
  TestRun second{.launch = 2, .keep = {.last = 1}};
  ASSERT_EQ(second.Start(c.host), OkStatus());
  EXPECT_EQ(second.answer.resume, (CheckpointKey{1, 50}));
  ASSERT_EQ(second.Save(c.host, 60, 6, kTestChunk), OkStatus());
  c.host.RunFor(1s);
  EXPECT_EQ(StepsOf(c), (std::vector<uint64_t>{10, 60}));
  c.host.Close();
}

TEST(Retention, WhatHasJustCommittedIsNotDeletedByItsOwnCommit) {
  Cluster c(1);
  c.run.keep = {.last = 1};
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  // A training loop that went back in its steps.
  for (uint64_t step : {100, 200, 150}) {
    ASSERT_EQ(c.run.Save(c.host, step, step, kTestChunk), OkStatus());
    c.host.RunFor(1s);
  }
  EXPECT_EQ(StepsOf(c), (std::vector<uint64_t>{150, 200}));
  ASSERT_EQ(c.run.Save(c.host, 160, 1, kTestChunk), OkStatus());
  c.host.RunFor(1s);
  EXPECT_EQ(StepsOf(c), (std::vector<uint64_t>{160, 200}));
  c.host.Close();
}

TEST(Retention, DamagedAndSupersededOnesDoNotCountAsTheNewest) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  for (uint64_t step : {10, 20, 30, 40}) {
    ASSERT_EQ(c.run.Save(c.host, step, step, kTestChunk), OkStatus());
  }
  const StoreState& state = c.host.store().state();
  const JobState& job = *state.FindJob(c.run.answer.job);
  auto damage = [&](uint64_t step) {
    return c.host.Run(
        c.host.store().SetMark("team", "gpt", {1, step}, format::Mark::kDamaged, "rotten"));
  };
  EXPECT_EQ(Expired(state, job, {.last = 2}), (std::vector<CheckpointKey>{{1, 10}, {1, 20}}));
  ASSERT_EQ(damage(40), OkStatus());
  EXPECT_EQ(Expired(state, job, {.last = 2}), (std::vector<CheckpointKey>{{1, 10}}));
  // A newer run that resumed from 30 supersedes nothing but 40, which is damaged.
  TestRun second{.launch = 2};
  ASSERT_EQ(second.Start(c.host), OkStatus());
  EXPECT_EQ(second.answer.resume, (CheckpointKey{1, 30}));
  EXPECT_EQ(Expired(state, job, {.last = 2}), (std::vector<CheckpointKey>{{1, 10}}));
  ASSERT_EQ(second.Save(c.host, 40, 7, kTestChunk), OkStatus());
  EXPECT_EQ(Expired(state, job, {.last = 1}),
            (std::vector<CheckpointKey>{{1, 10}, {1, 20}, {1, 30}, {1, 40}}));
  EXPECT_TRUE(Expired(state, job, {.last = 9}).empty());
  EXPECT_TRUE(Expired(state, job, {}).empty());
  c.host.Close();
}

TEST(Store, ASecondDaemonOnTheDirectoryIsRefused) {
  Cluster c(1);
  SimIo other(c.host.loop(), c.host.world(), "store");
  Rng rng(3);
  auto second = c.host.Run(Store::Open(other, rng, TinyOptions(), nullptr));
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), Code::kFailedPrecondition) << second.error();
  c.host.Close();
}

TEST(Store, TheJournalWrapsManyTimesAndNothingIsLost) {
  Cluster c(1);
  ASSERT_EQ(c.run.Start(c.host), OkStatus());
  for (uint64_t step = 1; step <= 60; ++step) {
    ASSERT_EQ(c.run.Save(c.host, step, step), OkStatus());
    if (step < 3) continue;
    ASSERT_EQ(c.host.Run(c.host.store().Delete("team", "gpt", {1, step - 2})), OkStatus());
  }
  ASSERT_EQ(c.host.Restart(), OkStatus());
  EXPECT_EQ(CheckBytes(c.host, c.run.answer.job, {1, 60}, 1, 60), OkStatus());
  EXPECT_EQ(CheckBytes(c.host, c.run.answer.job, {1, 59}, 1, 59), OkStatus());
  EXPECT_LE(c.host.store().recovery().replayed_groups, 16u);
  c.host.Close();
}

}  // namespace
}  // namespace reprise::lifecycle
