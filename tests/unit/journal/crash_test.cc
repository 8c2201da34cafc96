// Power cuts and process deaths at every event of a run, with every outcome; failing writes; and the
// proof that each barrier is needed: without it, the enumeration finds a broken promise.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/log.h"
#include "tests/unit/journal/journal_world.h"

namespace reprise::journal {
namespace {

TEST(JournalCrash, NoPowerCutLosesReordersOrInventsAnAcknowledgedGroup) {
  JournalRun run = RunReference({});
  ASSERT_GE(run.history.size(), 12u) << "the run must lap the ring";
  ASSERT_TRUE(run.failures.empty());
  Tally tally = EnumeratePowerCuts(run, {});
  EXPECT_EQ(tally.violations, 0u) << tally.first;
  EXPECT_GT(tally.states, 1000u);
  RecordProperty("crash_states", static_cast<int>(tally.states));
}

TEST(JournalCrash, NoPowerCutTogetherWithARottenSlotLosesAnAcknowledgedGroup) {
  JournalRun run = RunReference({});
  Tally tally = EnumeratePowerCutsWithRot(run);
  EXPECT_EQ(tally.violations, 0u) << tally.first;
  EXPECT_GT(tally.states, 1000u);
}

TEST(JournalCrash, NoProcessDeathFollowedByAPowerCutTakesBackWhatWasServed) {
  JournalRun run = RunReference({});
  Tally tally = EnumerateProcessDeaths(run, {});
  EXPECT_EQ(tally.violations, 0u) << tally.first;
  EXPECT_GT(tally.states, 300u);
}

TEST(JournalCrash, AppendsGoOnAfterARecoveredCrash) {
  JournalRun run = RunReference({});
  for (const Moment& moment : run.moments) {
    SimDisk disk = moment.disk;
    disk.Crash(RandomOutcome(moment.known.size()));
    Machine machine(disk);
    Result<Journal::Recovered> opened = machine.Open(moment.indexed);
    ASSERT_TRUE(opened.has_value()) << opened.error();
    Journal& journal = *opened->journal;
    journal.SetIndexed(journal.last());
    std::vector<std::string> expected = TagsOf(opened->replay);
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(machine.Append(journal, fmt::format("new-{}", i)).has_value());
      expected.push_back(fmt::format("new-{}", i));
    }
    Machine again(machine.disk());
    again.disk().Crash(LoseUnflushed);
    Result<Journal::Recovered> reopened = again.Open(moment.indexed);
    if (journal.last().seq > moment.indexed.seq + kSlots) {
      ASSERT_FALSE(reopened.has_value());
      continue;
    }
    ASSERT_TRUE(reopened.has_value()) << reopened.error();
    EXPECT_EQ(TagsOf(reopened->replay), expected);
  }
}

TEST(JournalCrash, EveryFailingWriteIsAnsweredHonestlyAndRecovered) {
  JournalRun whole = RunReference({.keep_moments = false});
  uint64_t writes = 2 * whole.history.size();
  for (uint64_t n = 1; n <= writes; ++n) {
    JournalRun run = RunReference({.fail_write_at = n, .keep_moments = false});
    ASSERT_FALSE(run.failures.empty()) << n;
    bool unknown_seen = false;
    for (const Status& failure : run.failures) {
      bool unknown = failure.code() == Code::kOutcomeUnknown;
      unknown_seen |= unknown;
      EXPECT_TRUE(unknown || failure.code() == Code::kUnavailable) << failure;
    }
    EXPECT_TRUE(unknown_seen);
    for (const SimChooser& chooser : {SimChooser(LoseUnflushed), SimChooser(KeepUnflushed)}) {
      SimDisk disk = run.disk;
      disk.Crash(chooser);
      Machine machine(disk);
      Result<Journal::Recovered> opened = machine.Open(run.indexed);
      ASSERT_TRUE(opened.has_value()) << opened.error();
      uint64_t end = opened->replay.empty() ? run.indexed.seq : opened->replay.back().mark.seq;
      EXPECT_GE(end, run.history.empty() ? 0 : run.history.back().mark.seq);
      EXPECT_LE(end, run.history.size() + 1);
    }
  }
}

TEST(JournalCrash, AFailingWriteOfARepairRefusesToServe) {
  JournalRun run = RunReference({.keep_moments = false});
  SimDisk disk = run.disk;
  disk.Crash(LoseUnflushed);
  disk.FlipBit("/a/JOURNAL.0", OffsetOf(run.history.back().mark.seq) + 200, 3);
  for (uint64_t n = 1; n <= 2; ++n) {
    Machine machine(disk);
    machine.disk().ResetCounters();
    machine.disk().faults.fail_write_at = n;
    Result<Journal::Recovered> opened = machine.Open(run.indexed);
    ASSERT_FALSE(opened.has_value()) << n;
    EXPECT_EQ(opened.error().code(), Code::kUnavailable);
    machine.disk().faults.fail_write_at = 0;
    EXPECT_TRUE(machine.Open(run.indexed).has_value()) << "the next start succeeds";
  }
}

// --- each barrier is needed

TEST(JournalMutation, AcknowledgingBeforeTheWriteIsCaught) {
  Mutations mutations{.ack_before_durable = true};
  JournalRun run = RunReference({.mutations = mutations});
  EXPECT_GT(EnumeratePowerCuts(run, mutations).violations, 0u);
}

TEST(JournalMutation, WritingWithoutDsyncIsCaught) {
  Mutations mutations{.no_dsync = true};
  JournalRun run = RunReference({.mutations = mutations});
  EXPECT_GT(EnumerateProcessDeaths(run, mutations).violations, 0u);
}

TEST(JournalMutation, ServingWithoutRepairIsCaught) {
  JournalRun run = RunReference({});
  EXPECT_GT(EnumerateProcessDeaths(run, {.skip_repair = true}).violations, 0u);
}

}  // namespace
}  // namespace reprise::journal
