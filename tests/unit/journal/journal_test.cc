// Behaviour of the journal in fair weather, and with failing writes.
#include "server/journal/journal.h"

#include <gtest/gtest.h>

#include "core/base/log.h"
#include "server/journal/ring.h"
#include "tests/unit/journal/journal_world.h"

namespace reprise::journal {
namespace {

class JournalTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(machine_.loop().RunTask(machine_.io.MakeDirectory("/a")).ok());
    ASSERT_TRUE(machine_.loop().RunTask(machine_.io.MakeDirectory("/b")).ok());
    ASSERT_TRUE(Create().ok());
  }
  Status Create() { return machine_.loop().RunTask(Journal::Create(machine_.io, TestOptions())); }
  // Opens, and keeps what was recovered.
  Journal& Open(Mark applied = {}) {
    Result<Journal::Recovered> opened = machine_.Open(applied);
    REPRISE_CHECK(opened.has_value(), opened.has_value() ? "" : opened.error().message());
    recovered_ = std::move(*opened);
    return *recovered_.journal;
  }
  void Close() { machine_.loop().RunTask(recovered_.journal->Close()); }
  // Starts an append without waiting for it.
  std::shared_ptr<std::optional<Result<Mark>>> Start(Journal& journal, const std::string& tag) {
    auto answer = std::make_shared<std::optional<Result<Mark>>>();
    machine_.loop().Spawn([](Journal& target, std::string name,
                             std::shared_ptr<std::optional<Result<Mark>>> slot) -> Task<void> {
      std::vector<format::Entry> entries{Tagged(name)};
      slot->emplace(co_await target.Append(std::move(entries)));
    }(journal, tag, answer));
    return answer;
  }

  Machine machine_;
  Journal::Recovered recovered_;
};

TEST_F(JournalTest, HandsOutAfterReopeningWhatWasAppended) {
  Journal& journal = Open();
  Result<Mark> first = machine_.Append(journal, "one");
  Result<Mark> second = machine_.Append(journal, "two");
  ASSERT_TRUE(first.has_value() && second.has_value());
  EXPECT_EQ(first->seq, 1u);
  EXPECT_EQ(second->seq, 2u);
  EXPECT_EQ(journal.last(), *second);
  EXPECT_EQ(journal.unindexed(), 2u);
  Close();

  Open();
  EXPECT_EQ(TagsOf(recovered_.replay), (std::vector<std::string>{"one", "two"}));
  EXPECT_TRUE(recovered_.repairs.empty());
  Close();
  Open(*first);
  EXPECT_EQ(TagsOf(recovered_.replay), std::vector<std::string>{"two"});
  Close();
  Open(*second);
  EXPECT_TRUE(recovered_.replay.empty());
}

TEST_F(JournalTest, GroupsAppendsThatArriveDuringAWrite) {
  Journal& journal = Open();
  auto first = Start(journal, "first");
  auto second = Start(journal, "second");
  auto third = Start(journal, "third");
  machine_.loop().RunUntil([&] { return third->has_value(); });
  EXPECT_EQ((**first)->seq, 1u);
  EXPECT_LE((**third)->seq, 2u);
  EXPECT_EQ((**second)->seq, (**third)->seq) << "both waited for the same write";
  Close();
  Open();
  EXPECT_EQ(TagsOf(recovered_.replay), (std::vector<std::string>{"first", "second", "third"}));
}

TEST_F(JournalTest, CallsOnDurableBeforeTheCallerResumes) {
  Journal& journal = Open();
  Mark reported;
  std::vector<format::Entry> entries{Tagged("x")};
  Result<Mark> mark =
      machine_.loop().RunTask(journal.Append(entries, [&](const Mark& at) { reported = at; }));
  ASSERT_TRUE(mark.has_value());
  EXPECT_EQ(reported, *mark);
}

TEST_F(JournalTest, RefusesEntriesThatDoNotFitOneSlotAndEmptyAppends) {
  Journal& journal = Open();
  std::vector<format::Entry> entries(200, Tagged(std::string(100, 'x')));
  EXPECT_EQ(machine_.loop().RunTask(journal.Append(entries)).error().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(machine_.loop().RunTask(journal.Append({})).error().code(), Code::kInvalidArgument);
  EXPECT_TRUE(machine_.Append(journal, "still works").has_value());
}

TEST_F(JournalTest, SplitsAppendsThatDoNotFitOneSlotTogether) {
  Journal& journal = Open();
  std::vector<std::shared_ptr<std::optional<Result<Mark>>>> answers;
  for (int i = 0; i < 80; ++i) {
    answers.push_back(Start(journal, fmt::format("{:0>120}", i)));
  }
  machine_.loop().RunUntil([&] { return answers.back()->has_value(); });
  EXPECT_GT(journal.last().seq, 2u);
  Close();
  Open();
  std::vector<std::string> tags = TagsOf(recovered_.replay);
  ASSERT_EQ(tags.size(), 80u);
  for (int i = 0; i < 80; ++i) EXPECT_EQ(tags[i], fmt::format("{:0>120}", i));
}

TEST_F(JournalTest, WaitsRatherThanOverwriteASlotTheIndexStillNeeds) {
  Journal& journal = Open();
  Mark first = *machine_.Append(journal, "0");
  for (uint32_t i = 1; i < kSlots; ++i) ASSERT_TRUE(machine_.Append(journal, "x").has_value());
  auto waiting = Start(journal, "one too many");
  machine_.world.RunFor(std::chrono::seconds(10));
  EXPECT_FALSE(waiting->has_value());
  EXPECT_EQ(journal.last().seq, kSlots);
  journal.SetIndexed(first);
  machine_.loop().RunUntil([&] { return waiting->has_value(); });
  EXPECT_EQ((**waiting)->seq, kSlots + 1);
  EXPECT_EQ(journal.unindexed(), kSlots);
}

TEST_F(JournalTest, ClosingAnswersAppendsThatWaitForRoom) {
  Journal& journal = Open();
  for (uint32_t i = 0; i < kSlots; ++i) ASSERT_TRUE(machine_.Append(journal, "x").has_value());
  auto waiting = Start(journal, "never written");
  machine_.world.RunFor(std::chrono::seconds(1));
  Close();
  ASSERT_TRUE(waiting->has_value());
  EXPECT_EQ((**waiting).error().code(), Code::kUnavailable);
  EXPECT_EQ(machine_.Append(journal, "late").error().code(), Code::kUnavailable);
  Open(recovered_.journal->last());
  EXPECT_TRUE(recovered_.replay.empty());
}

// As when the index fails: a store that waited for room then could not even be closed.
TEST_F(JournalTest, RefusingAnswersAppendsThatWaitForRoomAndLaterOnes) {
  Journal& journal = Open();
  for (uint32_t i = 0; i < kSlots; ++i) ASSERT_TRUE(machine_.Append(journal, "x").has_value());
  auto waiting = Start(journal, "never written");
  machine_.world.RunFor(std::chrono::seconds(1));
  journal.Refuse();
  machine_.world.RunFor(std::chrono::seconds(1));
  ASSERT_TRUE(waiting->has_value());
  EXPECT_EQ((*waiting)->error().code(), Code::kUnavailable);
  EXPECT_EQ(machine_.Append(journal, "late").error().code(), Code::kUnavailable);
  EXPECT_EQ(journal.last().seq, kSlots);
  Close();
}

TEST_F(JournalTest, ClosingWaitsForTheGroupInFlight) {
  Journal& journal = Open();
  auto answer = Start(journal, "in flight");
  machine_.loop().RunOnce(false);
  machine_.loop().RunOnce(false);
  Close();
  ASSERT_TRUE(answer->has_value());
  bool stored = (*answer)->has_value();
  Open();
  EXPECT_EQ(recovered_.replay.size(), stored ? 1u : 0u);
}

TEST_F(JournalTest, AFailedWriteIsOutcomeUnknownAndStopsTheJournal) {
  Journal& journal = Open();
  ASSERT_TRUE(machine_.Append(journal, "good").has_value());
  machine_.disk().ResetCounters();
  machine_.disk().faults.fail_write_at = 2;  // the second copy
  auto broken = Start(journal, "broken");
  auto behind = Start(journal, "behind");
  machine_.loop().RunUntil([&] { return behind->has_value(); });
  EXPECT_EQ((**broken).error().code(), Code::kOutcomeUnknown);
  EXPECT_TRUE(journal.failed());
  EXPECT_EQ(machine_.Append(journal, "late").error().code(), Code::kUnavailable);
  EXPECT_EQ(machine_.disk().counters().writes, 2u) << "nothing is retried";
}

TEST_F(JournalTest, CreateRefusesAJournalThatHoldsSomething) {
  Open();
  ASSERT_TRUE(machine_.Append(*recovered_.journal, "precious").has_value());
  Close();
  EXPECT_EQ(Create().code(), Code::kAlreadyExists);
  Options other = TestOptions();
  other.store.bytes.fill(1);
  EXPECT_EQ(machine_.loop().RunTask(Journal::Create(machine_.io, other)).code(),
            Code::kAlreadyExists)
      << "another store's journal is not overwritten either";
  Open();
  EXPECT_EQ(recovered_.replay.size(), 1u);
}

TEST_F(JournalTest, CreateOverwritesWhatAnInterruptedCreateLeft) {
  machine_.disk().Tamper("/b/JOURNAL.1", 100, Bytes(50, 0xee));
  ASSERT_TRUE(Create().ok());
  Open();
  EXPECT_TRUE(recovered_.replay.empty());
  EXPECT_TRUE(recovered_.repairs.empty());
}

TEST_F(JournalTest, ImpossibleOptionsAreRefused) {
  Options options = TestOptions();
  options.slot_count = 1;
  EXPECT_EQ(machine_.loop().RunTask(Journal::Create(machine_.io, options)).code(),
            Code::kInvalidArgument);
  options = TestOptions();
  options.path_b = options.path_a;
  EXPECT_EQ(machine_.loop().RunTask(Journal::Open(machine_.io, options, {})).error().code(),
            Code::kInvalidArgument);
}

TEST_F(JournalTest, ASecondOpenerIsRefusedWhileTheFirstServes) {
  Open();
  SimIo other(machine_.loop(), machine_.world, kHost);
  Result<Journal::Recovered> second =
      machine_.loop().RunTask(Journal::Open(other, TestOptions(), {}));
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), Code::kFailedPrecondition);
}

TEST_F(JournalTest, AMissingCopyIsMadeAnewFromTheOther) {
  Open();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(machine_.Append(*recovered_.journal, "x").has_value());
  Close();
  machine_.disk().Destroy("/a/JOURNAL.0");
  Open();
  EXPECT_EQ(recovered_.replay.size(), 5u);
  ASSERT_FALSE(recovered_.repairs.empty());
  EXPECT_NE(recovered_.repairs.front().find("JOURNAL.0"), std::string::npos);
  Close();
  EXPECT_EQ(machine_.disk().Contents("/a/JOURNAL.0"), machine_.disk().Contents("/b/JOURNAL.1"));
}

TEST_F(JournalTest, ACopyThatWasCutShortIsCompletedFromTheOther) {
  Open();
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(machine_.Append(*recovered_.journal, "x").has_value());
  Close();
  FileId file = *machine_.loop().RunTask(machine_.io.Open("/b/JOURNAL.1", {}));
  ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Truncate(file, 2 * 4096)).ok());
  ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Close(file)).ok());
  Open();
  EXPECT_EQ(recovered_.replay.size(), 6u);
  Close();
  EXPECT_EQ(machine_.disk().Contents("/a/JOURNAL.0"), machine_.disk().Contents("/b/JOURNAL.1"));
}

TEST_F(JournalTest, NoJournalAtAllIsNotFound) {
  machine_.disk().Destroy("/a/JOURNAL.0");
  machine_.disk().Destroy("/b/JOURNAL.1");
  EXPECT_EQ(machine_.Open({}).error().code(), Code::kNotFound);
}

TEST_F(JournalTest, AnIndexAheadOfBothCopiesIsALyingDevice) {
  Open();
  ASSERT_TRUE(machine_.Append(*recovered_.journal, "x").has_value());
  Close();
  Mark ahead{7, DigestOf(ViewOf("whatever"))};
  Result<Journal::Recovered> opened = machine_.Open(ahead);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kDataLoss);
  EXPECT_NE(opened.error().message().find("ALARM"), std::string::npos) << opened.error();
}

TEST_F(JournalTest, AnIndexOfAnotherHistoryIsRefused) {
  Open();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(machine_.Append(*recovered_.journal, "x").has_value());
  Close();
  for (uint64_t seq : {1, 2, 3}) {
    Result<Journal::Recovered> opened = machine_.Open({seq, DigestOf(ViewOf("other"))});
    ASSERT_FALSE(opened.has_value()) << seq;
    EXPECT_EQ(opened.error().code(), Code::kDataLoss);
  }
}

TEST_F(JournalTest, AnIndexOlderThanTheRingReachesIsRefused) {
  Journal& journal = Open();
  std::vector<Mark> marks;
  for (int i = 0; i < 20; ++i) {
    marks.push_back(*machine_.Append(journal, "x"));
    journal.SetIndexed(marks.back());
  }
  Close();
  Open(marks[11]);  // group 12: the ring holds 13 to 20
  EXPECT_EQ(recovered_.replay.size(), 8u);
  Close();
  for (const Mark& old : {Mark{}, marks[0], marks[10]}) {
    Result<Journal::Recovered> opened = machine_.Open(old);
    ASSERT_FALSE(opened.has_value()) << old.seq;
    EXPECT_EQ(opened.error().code(), Code::kDataLoss);
    EXPECT_NE(opened.error().message().find("older than the journal reaches"), std::string::npos);
  }
}

TEST_F(JournalTest, AJournalOfAnotherStoreIsRefusedRatherThanTakenForEmpty) {
  Open();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(machine_.Append(*recovered_.journal, "x").has_value());
  Close();
  Options other = TestOptions();
  other.store.bytes.fill(1);
  Result<Journal::Recovered> opened =
      machine_.loop().RunTask(Journal::Open(machine_.io, other, {}));
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kDataLoss);
}

TEST_F(JournalTest, AppendsGoOnAfterRecoveryAcrossManyLaps) {
  Mark applied;
  std::vector<std::string> expected;
  for (int life = 0; life < 10; ++life) {
    Journal& journal = Open(applied);
    for (int i = 0; i < 5; ++i) {
      std::string tag = fmt::format("{}-{}", life, i);
      Result<Mark> mark = machine_.Append(journal, tag);
      ASSERT_TRUE(mark.has_value());
      applied = *mark;
      if (i < 3) journal.SetIndexed(*mark);
    }
    applied = {};
    Close();
    applied = journal.last();
  }
  EXPECT_EQ(applied.seq, 50u);
}

}  // namespace
}  // namespace reprise::journal
