#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/unit/client/client_fixture.h"

namespace reprise::client::test {
namespace {

using SaveTest = ClientTest;

TEST_F(SaveTest, ASavedStateIsInTheSlotByteForByteAndCommits) {
  OpenAndRegister();
  State state(1, {100'000, 33, 0, 5000, 64});
  auto ticket = client_->Snapshot(7, state.Pieces(), {.metadata = R"({"loss":1})"});
  ASSERT_TRUE(ticket.has_value()) << ticket.error();
  ASSERT_TRUE(ticket->WaitCopied(10).ok());
  ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok());
  SaveProgress progress = ticket->progress();
  EXPECT_EQ(progress.phase, 4);
  EXPECT_GE(progress.committed_ms, progress.local_ms);
  EXPECT_GE(progress.copied_ms, progress.start_ms);
  State restored(2, {100'000, 33, 0, 5000, 64});
  auto result = client_->Restore({.step = 7, .epoch = 5, .pieces = restored.Pieces()});
  ASSERT_TRUE(result.has_value()) << result.error();
  EXPECT_TRUE(restored.Equals(state));
}

TEST_F(SaveTest, GapsBetweenPiecesAreZeroAlsoWhenTheLayoutChanges) {
  OpenAndRegister();
  for (uint64_t step = 1; step <= 6; ++step) {
    State state(step, {5000 + (step / 3) * 777, 33, 9000, 1});
    auto ticket = client_->Snapshot(step, state.Pieces());
    ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok());
    Bytes shard = daemon_.sealed_bytes();
    uint64_t zeros = 0;
    uint64_t dirty = 0;
    for (size_t i = 0; i + 64 <= shard.size(); i += 64) {
      dirty += std::all_of(shard.begin() + i, shard.begin() + i + 64,
                           [](uint8_t byte) { return byte == 0xEE; });
      zeros += std::all_of(shard.begin() + i, shard.begin() + i + 64,
                           [](uint8_t byte) { return byte == 0; });
    }
    EXPECT_EQ(dirty, 0u) << "step " << step;
    EXPECT_GT(zeros, 0u);
  }
}

TEST_F(SaveTest, VolatilePiecesMayChangeAsSoonAsTheCallReturns) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.silent_begin = true; });
  State blocker(3, {64});
  auto first = client_->Snapshot(1, blocker.Pieces());
  State state(1, {50'000, 700});
  State original(1, {50'000, 700});
  auto ticket = client_->Snapshot(2, state.Pieces(/*is_volatile=*/true));
  ASSERT_TRUE(ticket.has_value());
  state.Clear();
  ASSERT_TRUE(daemon_.AwaitBegins(1));
  first->Abort("the test lets the second one through");
  daemon_.Stop();
  daemon_.Set([](auto& b) { b.silent_begin = false; });
  daemon_.Start();
  ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok()) << ticket->progress().status;
  State restored(9, {50'000, 700});
  ASSERT_TRUE(client_->Restore({.step = 2, .epoch = 5, .pieces = restored.Pieces()}).has_value());
  EXPECT_TRUE(restored.Equals(original));
}

TEST_F(SaveTest, AnUnchangedLayoutIsSentOnce) {
  OpenAndRegister();
  State state(1, {9000});
  for (uint64_t step = 1; step <= 4; ++step) {
    auto ticket = client_->Snapshot(step, state.Pieces());
    ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok());
  }
  EXPECT_EQ(daemon_.layouts_received(), 1u);
  EXPECT_EQ(daemon_.attaches().size(), 1u);
}

TEST_F(SaveTest, ALayoutThatTheDaemonForgotIsSentAgain) {
  OpenAndRegister();
  State state(1, {9000});
  auto first = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(first->Wait(Durability::kServer, 10).ok());
  daemon_.Set([](auto& b) { b.forget_layouts = true; });
  auto second = client_->Snapshot(2, state.Pieces());
  ASSERT_TRUE(second->Wait(Durability::kServer, 10).ok()) << second->progress().status;
  EXPECT_EQ(daemon_.layouts_received(), 2u);
}

TEST_F(SaveTest, ARefusalOfTheDaemonFailsTheStepWithItsWordsAndIsNotSentBack) {
  OpenAndRegister();
  daemon_.Set(
      [](auto& b) { b.refuse_begin = Status(Code::kResourceExhausted, "no slot is free"); });
  State state(1, {9000});
  auto ticket = client_->Snapshot(3, state.Pieces());
  Status status = ticket->WaitCopied(10);
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_NE(status.message().find("no slot is free"), std::string::npos);
  // The next step works.
  daemon_.Set([](auto& b) { b.refuse_begin.reset(); });
  auto next = client_->Snapshot(4, state.Pieces());
  EXPECT_TRUE(next->Wait(Durability::kServer, 10).ok());
  EXPECT_TRUE(daemon_.skips().empty());
}

TEST_F(SaveTest, ABudgetThatRefusesSlotsFailsTheStepForAllRanks) {
  OpenAndRegister();
  daemon_.Set([](auto& b) {
    b.refuse_attach = Status(Code::kResourceExhausted, "2 slots of 2.00 MiB pass the budget");
  });
  State state(1, {9000});
  auto ticket = client_->Snapshot(3, state.Pieces());
  Status status = ticket->WaitCopied(10);
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_NE(status.message().find("pass the budget"), std::string::npos);
  ASSERT_TRUE(daemon_.AwaitSkips(1));
  EXPECT_EQ(daemon_.skips()[0].step, 3u);
}

TEST_F(SaveTest, MoreSavesThanSlotsAreSkippedAtOnceAndJobWide) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.hold_commit = true; });
  State state(1, {9000});
  std::vector<Ticket> tickets;
  for (uint64_t step = 1; step <= 2; ++step) {
    tickets.push_back(*client_->Snapshot(step, state.Pieces()));
    ASSERT_TRUE(tickets.back().WaitCopied(10).ok());
  }
  auto third = client_->Snapshot(3, state.Pieces());
  ASSERT_FALSE(third.has_value());
  EXPECT_EQ(third.error().code(), Code::kResourceExhausted);
  ASSERT_TRUE(daemon_.AwaitSkips(1));
  EXPECT_EQ(daemon_.skips()[0].step, 3u);
}

TEST_F(SaveTest, AFailureElsewhereReachesTheTicket) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.hold_commit = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(ticket->Wait(Durability::kLocal, 10).ok());
  daemon_.Report(wire::SavePhase::kFailed, Status(Code::kAborted, "rank 3 died"));
  Status status = ticket->Wait(Durability::kServer, 10);
  EXPECT_EQ(status.code(), Code::kAborted);
  EXPECT_NE(status.message().find("rank 3 died"), std::string::npos);
  EXPECT_TRUE(daemon_.skips().empty());
}

TEST_F(SaveTest, AnAbortIsSentWithItsReason) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.silent_begin = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(daemon_.AwaitBegins(1));
  ticket->Abort("layer.0 was changed before it was copied");
  EXPECT_EQ(ticket->WaitCopied(10).code(), Code::kAborted);
  ASSERT_TRUE(daemon_.AwaitSkips(1));
  EXPECT_NE(daemon_.skips()[0].reason.find("layer.0 was changed"), std::string::npos);
}

TEST_F(SaveTest, ASilentDaemonStallsTrainingNoLongerThanTheBudget) {
  stall_budget_s_ = 0.2;
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.silent_begin = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  auto started = std::chrono::steady_clock::now();
  Status status = ticket->WaitCopied(-1);
  double waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
  EXPECT_LT(waited, 3);
  ASSERT_TRUE(daemon_.AwaitSkips(1));
  EXPECT_EQ(daemon_.skips()[0].step, 1u);
}

TEST_F(SaveTest, TheCallersDeadlineEndsTheSave) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.silent_begin = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  EXPECT_EQ(ticket->WaitCopied(0.05).code(), Code::kDeadlineExceeded);
  EXPECT_EQ(ticket->progress().phase, 5);
}

TEST_F(SaveTest, AfterADaemonsDeathTheNextStepSavesToTheNewOneWithoutHelp) {
  OpenAndRegister();
  State state(1, {9000});
  auto first = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(first->Wait(Durability::kServer, 10).ok());
  daemon_.Stop();
  daemon_.Start();
  ASSERT_TRUE(daemon_.AwaitConnections(2));
  auto second = client_->Snapshot(2, state.Pieces());
  ASSERT_TRUE(second.has_value()) << second.error();
  ASSERT_TRUE(second->Wait(Durability::kServer, 10).ok()) << second->progress().status;
  // The same process registered again, the slots were attached anew, the layout was sent anew.
  auto registrations = daemon_.registrations();
  ASSERT_EQ(registrations.size(), 2u);
  EXPECT_EQ(registrations[0].process, registrations[1].process);
  EXPECT_EQ(daemon_.attaches().size(), 2u);
  EXPECT_EQ(daemon_.layouts_received(), 2u);
}

TEST_F(SaveTest, ASaveThatMovedToANewDaemonLeavesItsSlotsToTheNextSave) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.silent_begin = b.attach_once = true; });
  State state(1, {9000});
  auto first = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(daemon_.AwaitBegins(1));
  daemon_.Stop();
  daemon_.Set([](auto& b) { b.silent_begin = false; });
  daemon_.Start();
  ASSERT_TRUE(first->Wait(Durability::kServer, 10).ok()) << first->progress().status;
  auto second = client_->Snapshot(2, state.Pieces());
  ASSERT_TRUE(second.has_value()) << second.error();
  EXPECT_TRUE(second->Wait(Durability::kServer, 10).ok()) << second->progress().status;
  EXPECT_EQ(daemon_.attaches().size(), 2u);  // one for each daemon
}

TEST_F(SaveTest, ASealedSaveIsFollowedThroughADaemonsDeath) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.hold_commit = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(daemon_.AwaitSeals(1));
  daemon_.Stop();
  daemon_.Start();
  // The new daemon finishes it (the fake has it as a checkpoint) but does not know whom to tell.
  EXPECT_TRUE(ticket->Wait(Durability::kServer, 10).ok()) << ticket->progress().status;
}

TEST_F(SaveTest, ASuccessorThatHoldsTheShardTellsHowTheSaveEnds) {
  stall_budget_s_ = 0.5;
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.ignore_seals = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(daemon_.AwaitSeals(1));
  ASSERT_TRUE(ticket->WaitCopied(10).ok());
  daemon_.Stop();
  daemon_.Set([](auto& b) { b.holds_step = 1; });
  daemon_.Start();
  // Much longer than a shard that nobody holds would be waited for.
  EXPECT_EQ(ticket->Wait(Durability::kServer, 1.5).code(), Code::kDeadlineExceeded);
  daemon_.Report(wire::SavePhase::kFailed, Status(Code::kAborted, "rank 1 left"));
  Status ended = ticket->Wait(Durability::kServer, 10);
  EXPECT_EQ(ended.code(), Code::kAborted);
  EXPECT_EQ(ended.message(), "rank 1 left");
  EXPECT_TRUE(daemon_.skips().empty());
}

TEST_F(SaveTest, HowAnEarlierSaveOfTheStepEndedIsNoNewsOfAnotherSave) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.silent_begin = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(daemon_.AwaitBegins(1));
  // Connected again before anything was granted: the daemon tells of a save of step 1 that committed.
  daemon_.Stop();
  daemon_.Set([](auto& b) {
    b.silent_begin = false;
    b.hold_commit = true;
    b.holds_step = 1;
    b.holds_phase = wire::SavePhase::kCommitted;
  });
  daemon_.Start();
  ASSERT_TRUE(ticket->WaitCopied(10).ok());
  ASSERT_TRUE(daemon_.AwaitSeals(1));
  EXPECT_EQ(ticket->Wait(Durability::kServer, 0.3).code(), Code::kDeadlineExceeded);
  daemon_.Commit();
  EXPECT_TRUE(ticket->Wait(Durability::kServer, 10).ok());
}

TEST_F(SaveTest, ASaveThatADyingDaemonDidNotSealIsGivenUpForAllRanks) {
  stall_budget_s_ = 0.5;
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.ignore_seals = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(daemon_.AwaitSeals(1));
  ASSERT_TRUE(ticket->WaitCopied(10).ok());
  daemon_.Stop();
  daemon_.Start();
  EXPECT_EQ(ticket->Wait(Durability::kServer, 10).code(), Code::kOutcomeUnknown);
  ASSERT_TRUE(daemon_.AwaitSkips(1));
  EXPECT_EQ(daemon_.skips()[0].step, 1u);
}

TEST_F(SaveTest, ADaemonThatStaysAwayIsAnErrorAtOnceAfterTheBudget) {
  stall_budget_s_ = 0.1;
  OpenAndRegister();
  daemon_.Stop();
  State state(1, {9000});
  Status last;
  auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (std::chrono::steady_clock::now() < give_up) {
    auto ticket = client_->Snapshot(1, state.Pieces());
    last = ticket.has_value() ? ticket->WaitCopied(-1) : ticket.error();
    if (!ticket.has_value()) break;
    EXPECT_FALSE(last.ok());
  }
  EXPECT_EQ(last.code(), Code::kUnavailable) << last;
}

TEST_F(SaveTest, ALargerStateGetsLargerSlotsOnTheSameConnection) {
  OpenAndRegister();
  State small(1, {9000});
  ASSERT_TRUE(client_->Snapshot(1, small.Pieces())->Wait(Durability::kServer, 10).ok());
  State large(2, {5 << 20});
  auto ticket = client_->Snapshot(2, large.Pieces());
  ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok()) << ticket->progress().status;
  ASSERT_EQ(daemon_.attaches().size(), 2u);
  EXPECT_GE(daemon_.attaches()[1].slot_bytes, 5u << 20);
}

TEST_F(SaveTest, ADaemonThatAttachesOnceGetsANewConnectionForLargerSlots) {
  daemon_.Set([](auto& b) { b.attach_once = true; });
  OpenAndRegister();
  State small(1, {9000});
  ASSERT_TRUE(client_->Snapshot(1, small.Pieces())->Wait(Durability::kServer, 10).ok());
  State large(2, {5 << 20});
  auto ticket = client_->Snapshot(2, large.Pieces());
  ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok()) << ticket->progress().status;
  EXPECT_EQ(daemon_.registrations().size(), 2u);
}

TEST_F(SaveTest, AFencedProcessIsToldAndSavesNoMore) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.refuse_begin = Status(Code::kFenced, "epoch 6 is running"); });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  EXPECT_EQ(ticket->WaitCopied(10).code(), Code::kFenced);
  auto next = client_->Snapshot(2, state.Pieces());
  Status status = next.has_value() ? next->WaitCopied(10) : next.error();
  EXPECT_EQ(status.code(), Code::kFenced);
}

TEST_F(SaveTest, CloseTellsTheFirstSaveThatDidNotReachItsDurability) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.hold_commit = true; });
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(ticket->WaitCopied(10).ok());
  EXPECT_EQ(client_->Close(0.05).code(), Code::kDeadlineExceeded);
  daemon_.Commit();
  EXPECT_TRUE(client_->Close(10).ok());
}

TEST_F(SaveTest, AFailedLastSaveThatNobodyLookedAtIsToldByClose) {
  OpenAndRegister();
  daemon_.Set([](auto& b) { b.refuse_begin = Status(Code::kAborted, "disk full"); });
  State state(1, {9000});
  {
    auto ticket = client_->Snapshot(1, state.Pieces());
  }
  Status status = client_->Close(10);
  EXPECT_EQ(status.code(), Code::kAborted);
  EXPECT_NE(status.message().find("disk full"), std::string::npos);
}

TEST_F(SaveTest, SavingNeedsARegistration) {
  Open();
  State state(1, {9000});
  EXPECT_EQ(client_->Snapshot(1, state.Pieces()).error().code(), Code::kFailedPrecondition);
}

TEST_F(SaveTest, ARefusedRegistrationKeepsTheDaemonsWords) {
  Open();
  daemon_.Set([](auto& b) {
    b.refuse_register = Status(Code::kAlreadyExists, "job is alive on node4 (pid 12), step 900");
  });
  auto run = client_->Register(10);
  EXPECT_EQ(run.error().code(), Code::kAlreadyExists);
  EXPECT_NE(run.error().message().find("node4"), std::string::npos);
}

TEST_F(SaveTest, OpeningWithoutADaemonSaysWhatToStart) {
  ClientOptions options = Options();
  options.socket = "/tmp/there-is-no-reprise-here.sock";
  options.connect_timeout_s = 0.05;
  auto client = Client::Open(options);
  ASSERT_FALSE(client.has_value());
  EXPECT_EQ(client.error().code(), Code::kUnavailable);
  EXPECT_NE(client.error().message().find("start reprised"), std::string::npos) << client.error();
}

TEST_F(SaveTest, AForkedChildIsTurnedAwayAndDoesNotHoldTheConnection) {
  OpenAndRegister();
  State state(1, {9000});
  auto ticket = client_->Snapshot(1, state.Pieces());
  ASSERT_TRUE(ticket->Wait(Durability::kServer, 10).ok());
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    bool right = client_->Snapshot(2, state.Pieces()).error().code() == Code::kFailedPrecondition &&
                 client_->Close(1).code() == Code::kFailedPrecondition &&
                 ticket->Wait(Durability::kServer, 1).code() == Code::kFailedPrecondition;
    client_.reset();
    ::_exit(right ? 0 : 1);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_TRUE(WIFEXITED(how) && WEXITSTATUS(how) == 0);
  // The parent goes on as if nothing had happened.
  auto next = client_->Snapshot(3, state.Pieces());
  EXPECT_TRUE(next->Wait(Durability::kServer, 10).ok());
}

}  // namespace
}  // namespace reprise::client::test
