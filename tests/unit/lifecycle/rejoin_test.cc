// Training processes that outlive their daemons: taken back into the epoch they are in.
#include "tests/unit/lifecycle/harness.h"

namespace reprise::lifecycle {
namespace {

struct Restarted {
  StoreHost host;
  TestRun run;
  // A run of two ranks with one checkpoint, whose store has died and is up again.
  Restarted() {
    run.world = 2;
    EXPECT_EQ(host.Open(), OkStatus());
    EXPECT_EQ(run.Start(host), OkStatus());
    EXPECT_EQ(run.Save(host, 10, 1), OkStatus());
    EXPECT_EQ(host.Restart(), OkStatus());
  }
  ~Restarted() { host.Close(); }
  Result<RegisterAnswer> Rejoin(const TestRun& who, uint32_t rank) {
    RegisterRequest request = who.RequestOf(rank);
    request.epoch = who.answer.epoch;
    return host.Run(host.store().Register(request, host.In(1s)));
  }
};

TEST(Rejoin, ARankGetsItsOldAnswerFromAStoreThatHasForgottenIt) {
  Restarted c;
  for (uint32_t rank : {0, 1}) {
    auto answer = c.Rejoin(c.run, rank);
    ASSERT_TRUE(answer.has_value()) << StatusOf(answer);
    EXPECT_EQ(answer->epoch, 1u);
    EXPECT_EQ(answer->resume, c.run.answer.resume);
  }
  EXPECT_EQ(c.run.Save(c.host, 20, 2), OkStatus());
}

TEST(Rejoin, ARankWaitsForNoneOfThoseWhoseNodeLivedOn) {
  Restarted c;
  auto answer = c.Rejoin(c.run, 1);
  ASSERT_TRUE(answer.has_value()) << StatusOf(answer);
  EXPECT_EQ(c.run.Save(c.host, 20, 2), OkStatus());
}

TEST(Rejoin, ANewerRunFencesThoseWhoWouldComeBack) {
  Restarted c;
  TestRun next = c.run;
  next.launch = 2;
  ASSERT_EQ(next.Start(c.host), OkStatus());
  EXPECT_EQ(next.answer.epoch, 2u);
  EXPECT_EQ(c.Rejoin(c.run, 0).error().code(), Code::kFenced);
}

TEST(Rejoin, ARankIsOneProcess) {
  Restarted c;
  ASSERT_TRUE(c.Rejoin(c.run, 0).has_value());
  TestRun other = c.run;
  other.launch = 7;
  EXPECT_EQ(c.Rejoin(other, 0).error().code(), Code::kFenced);
}

TEST(Rejoin, AnEpochThatWasNeverGrantedIsFenced) {
  Restarted c;
  TestRun other = c.run;
  other.answer.epoch = 5;
  EXPECT_EQ(c.Rejoin(other, 0).error().code(), Code::kFenced);
}

TEST(Rejoin, RanksThatNameNoEpochBeginANewRun) {
  Restarted c;
  ASSERT_TRUE(c.Rejoin(c.run, 0).has_value());
  for (uint32_t rank : {0, 1}) {
    lifecycle::RankGone gone{c.run.answer.job, 1, rank, IdOf(1000 + rank), "killed"};
    ASSERT_EQ(c.host.Run(c.host.store().ReportRankGone(gone)), OkStatus());
  }
  TestRun next = c.run;
  next.launch = 3;
  ASSERT_EQ(next.Start(c.host), OkStatus());
  EXPECT_EQ(next.answer.epoch, 2u);
  EXPECT_EQ(next.answer.resume, (CheckpointKey{1, 10}));
}

}  // namespace
}  // namespace reprise::lifecycle
