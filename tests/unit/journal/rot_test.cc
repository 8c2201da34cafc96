// Rotten, misplaced and foreign slots: repaired from the other copy, or DATA_LOSS; never silence.
#include <gtest/gtest.h>

#include "core/base/log.h"
#include "server/journal/recovery.h"
#include "tests/unit/journal/journal_world.h"

namespace reprise::journal {
namespace {

const char* const kPaths[] = {"/a/JOURNAL.0", "/b/JOURNAL.1"};

// A finished run whose live window is as long as possible.
struct Finished {
  JournalRun run = RunReference({.keep_moments = false});
  SimDisk disk = run.disk;
  Mark applied;
  uint64_t last = run.history.size();

  Finished() {
    disk.Crash(LoseUnflushed);
    applied = run.history[last - kSlots].mark;  // group last - 7: the oldest in the ring
  }
};

std::array<RingImage, 2> ImagesOf(const SimDisk& disk) {
  std::array<RingImage, 2> images;
  for (size_t copy : {0, 1}) {
    images[copy].name = kPaths[copy];
    images[copy].bytes = AlignedBuffer::CopyOf(*disk.Contents(kPaths[copy]));
    images[copy].unreadable.assign(kSlots, false);
  }
  return images;
}

TEST(JournalRot, AnyFlippedBitInEitherCopyOfAnySlotIsRepaired) {
  Finished finished;
  std::array<RingImage, 2> images = ImagesOf(finished.disk);
  Options options = TestOptions();
  Result<RecoveryPlan> clean = PlanRecovery(images, options, finished.applied);
  ASSERT_TRUE(clean.has_value()) << clean.error();
  ASSERT_EQ(clean->replay.size(), kSlots - 1);
  constexpr uint64_t kBits = limits::kJournalSlotBytes * 8;
  uint64_t flips = 0;
  for (size_t copy : {0, 1}) {
    for (uint32_t position = 0; position < kSlots; ++position) {
      // One slot: every bit of the part in use. The others, and the padding: samples.
      uint64_t step = position == 3 ? 1 : 13;
      for (uint64_t bit = 0; bit < kBits; bit += bit < 2000 ? step : 97) {
        uint8_t& byte = images[copy].bytes.data()[position * limits::kJournalSlotBytes + bit / 8];
        byte ^= static_cast<uint8_t>(1u << (bit % 8));
        Result<RecoveryPlan> plan = PlanRecovery(images, options, finished.applied);
        ASSERT_TRUE(plan.has_value()) << plan.error();
        ASSERT_EQ(plan->last, clean->last);
        ASSERT_EQ(plan->replay.size(), clean->replay.size());
        ASSERT_EQ(plan->notes.size(), 1u);
        ASSERT_EQ(plan->rewrites.front().copy, copy) << "the damaged copy is written first";
        ASSERT_EQ(plan->rewrites.front().position, position);
        byte ^= static_cast<uint8_t>(1u << (bit % 8));
        ++flips;
      }
    }
  }
  EXPECT_GT(flips, 10'000u);
}

TEST(JournalRot, ARottenSlotIsRewrittenOnTheDiskAndReported) {
  Finished finished;
  for (const char* path : kPaths) {
    for (uint64_t seq = finished.applied.seq; seq <= finished.last; ++seq) {
      SimDisk disk = finished.disk;
      disk.FlipBit(path, OffsetOf(seq) + 77, 5);
      Machine machine(disk);
      Result<Journal::Recovered> opened = machine.Open(finished.applied);
      ASSERT_TRUE(opened.has_value()) << opened.error();
      EXPECT_EQ(opened->replay.size(), kSlots - 1);
      ASSERT_EQ(opened->repairs.size(), 1u);
      EXPECT_NE(opened->repairs[0].find(path), std::string::npos);
      EXPECT_EQ(machine.disk().Contents(kPaths[0]), machine.disk().Contents(kPaths[1]));
      EXPECT_EQ(machine.disk().Contents(path), finished.disk.Contents(path));
    }
  }
}

TEST(JournalRot, AnUnreadableSlotIsRewritten) {
  Finished finished;
  std::array<RingImage, 2> images = ImagesOf(finished.disk);
  images[1].unreadable[3] = true;
  Result<RecoveryPlan> plan = PlanRecovery(images, TestOptions(), finished.applied);
  ASSERT_TRUE(plan.has_value()) << plan.error();
  EXPECT_EQ(plan->rewrites.front().copy, 1u);
  EXPECT_EQ(plan->rewrites.front().position, 3u);
}

TEST(JournalRot, ReadErrorsAreSortedOutSlotBySlot) {
  Finished finished;
  for (uint64_t n = 1; n <= 4; ++n) {
    Machine machine(finished.disk);
    machine.disk().ResetCounters();
    machine.disk().faults.fail_read_at = n;
    Result<Journal::Recovered> opened = machine.Open(finished.applied);
    ASSERT_TRUE(opened.has_value()) << opened.error();
    EXPECT_EQ(opened->replay.size(), kSlots - 1);
  }
}

TEST(JournalRot, DamageInTheMiddleOfBothCopiesIsDataLossAndNeverTruncation) {
  Finished finished;
  for (uint64_t seq = finished.applied.seq + 1; seq < finished.last; ++seq) {
    SimDisk disk = finished.disk;
    for (const char* path : kPaths) disk.FlipBit(path, OffsetOf(seq) + 100, 1);
    Machine machine(disk);
    Result<Journal::Recovered> opened = machine.Open(finished.applied);
    ASSERT_FALSE(opened.has_value()) << "group " << seq;
    EXPECT_EQ(opened.error().code(), Code::kDataLoss);
    EXPECT_NE(opened.error().message().find(fmt::format("group {}", seq)), std::string::npos)
        << opened.error();
    EXPECT_EQ(machine.disk().counters().writes, disk.counters().writes) << "nothing was touched";
  }
}

TEST(JournalRot, DamageInBothCopiesOfWhatTheIndexHasIsReportedAndHarmless) {
  Finished finished;
  SimDisk disk = finished.disk;
  uint64_t last = finished.run.history.back().mark.seq;
  Mark applied = finished.run.history[last - 3].mark;  // group last - 2
  for (const char* path : kPaths) disk.FlipBit(path, OffsetOf(last - 5) + 100, 1);
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(applied);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(opened->replay.size(), 2u);
  ASSERT_EQ(opened->repairs.size(), 1u);
}

TEST(JournalRot, ATailTornInBothCopiesIsTheUnacknowledgedGroupAndIsReported) {
  Finished finished;
  SimDisk disk = finished.disk;
  for (const char* path : kPaths) disk.FlipBit(path, OffsetOf(finished.last + 1) + 100, 1);
  // The position of the next group held group last - 7, which the index has applied.
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(finished.applied);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(opened->replay.size(), kSlots - 1);
  ASSERT_EQ(opened->repairs.size(), 1u);
  EXPECT_NE(opened->repairs[0].find("torn in both"), std::string::npos);
}

TEST(JournalRot, ASlotWrittenToTheWrongPlaceIsRepaired) {
  Finished finished;
  SimDisk disk = finished.disk;
  Bytes whole = *disk.Contents(kPaths[0]);
  ByteView stray = ByteView(whole).subspan(OffsetOf(finished.last), limits::kJournalSlotBytes);
  disk.Tamper(kPaths[0], OffsetOf(finished.last - 3), stray);
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(finished.applied);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(opened->replay.size(), kSlots - 1);
  EXPECT_EQ(opened->repairs.size(), 1u);
}

TEST(JournalRot, AStaleCopyCatchesUpWithTheOther) {
  // The second copy missed the last groups (its volume was away): it holds the previous lap there.
  Finished finished;
  JournalRun shorter = RunReference({.appends_per_client = 9, .keep_moments = false});
  ASSERT_LT(shorter.history.size(), finished.last);
  SimDisk disk = finished.disk;
  disk.Tamper(kPaths[1], 0, *shorter.disk.Contents(kPaths[1]));
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(finished.applied);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(opened->replay.size(), kSlots - 1);
  EXPECT_EQ(machine.disk().Contents(kPaths[0]), machine.disk().Contents(kPaths[1]));
}

// Two histories that part after the run: each continues `disk` with its own groups.
SimDisk Continue(const SimDisk& disk, const Mark& applied, const std::string& prefix, int groups,
                 std::vector<Mark>* marks = nullptr) {
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(applied);
  REPRISE_CHECK(opened.has_value());
  opened->journal->SetIndexed(opened->journal->last());
  for (int i = 0; i < groups; ++i) {
    Result<Mark> mark = machine.Append(*opened->journal, fmt::format("{}-{}", prefix, i));
    REPRISE_CHECK(mark.has_value());
    if (marks != nullptr) marks->push_back(*mark);
  }
  SimDisk result = machine.disk();
  result.Crash(LoseUnflushed);
  return result;
}

class ForkTest : public testing::Test {
 protected:
  // Copies the slot of group last + `index` + 1 of `other` into `path` of `disk`.
  void Graft(SimDisk& disk, const char* path, const SimDisk& other, int index) {
    uint64_t offset = OffsetOf(finished_.last + 1 + static_cast<uint64_t>(index));
    Bytes whole = *other.Contents(path);
    disk.Tamper(path, offset, ByteView(whole).subspan(offset, limits::kJournalSlotBytes));
  }
  Finished finished_;
  Mark applied_ = finished_.run.history.back().mark;
  SimDisk left_ = Continue(finished_.disk, applied_, "left", 3);
  SimDisk right_ = Continue(finished_.disk, applied_, "right", 3);
};

TEST_F(ForkTest, AnUnacknowledgedGroupThatWentToTheWrongPlaceIsDamageThereAndNothingElse) {
  SimDisk disk = finished_.disk;
  Bytes whole = *left_.Contents(kPaths[0]);
  ByteView stray = ByteView(whole).subspan(OffsetOf(finished_.last + 1), limits::kJournalSlotBytes);
  disk.Tamper(kPaths[0], OffsetOf(finished_.last - 3), stray);
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(finished_.applied);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(opened->replay.size(), kSlots - 1);
  EXPECT_EQ(opened->repairs.size(), 1u);
}

TEST_F(ForkTest, OfTwoDifferentSlotsTheOneThatIsContinuedIsRight) {
  SimDisk disk = left_;
  Graft(disk, kPaths[0], right_, 1);
  Machine machine(disk);
  // The stray slot does not even follow group last + 1 of this history: it is overwritten.
  Result<Journal::Recovered> opened = machine.Open(applied_);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(TagsOf(opened->replay), (std::vector<std::string>{"left-0", "left-1", "left-2"}));
  SimDisk first = left_;
  Graft(first, kPaths[0], right_, 0);  // both follow `applied`
  Machine again(first);
  opened = again.Open(applied_);
  ASSERT_TRUE(opened.has_value()) << opened.error();
  EXPECT_EQ(TagsOf(opened->replay), (std::vector<std::string>{"left-0", "left-1", "left-2"}));
}

TEST_F(ForkTest, TwoDifferentLastSlotsAreAnUndecidableDataLoss) {
  SimDisk left = Continue(finished_.disk, applied_, "left", 1);
  SimDisk right = Continue(finished_.disk, applied_, "right", 1);
  Graft(left, kPaths[1], right, 0);
  Machine machine(left);
  Result<Journal::Recovered> opened = machine.Open(applied_);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kDataLoss);
}

TEST_F(ForkTest, ASlotOfAnotherHistoryInBothCopiesIsDataLoss) {
  SimDisk disk = left_;
  for (const char* path : kPaths) Graft(disk, path, right_, 1);
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(applied_);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code(), Code::kDataLoss);

  // Without the chain check the mixture would be served.
  Machine mutated(disk);
  EXPECT_TRUE(mutated.Open(applied_, {.skip_chain_check = true}).has_value());
}

// --- each barrier is needed

TEST(JournalMutation, TruncatingAtDamageIsCaught) {
  Finished finished;
  SimDisk disk = finished.disk;
  for (const char* path : kPaths) disk.FlipBit(path, OffsetOf(finished.last - 2) + 100, 1);
  Machine machine(disk);
  Result<Journal::Recovered> opened = machine.Open(finished.applied, {.truncate_at_rot = true});
  ASSERT_TRUE(opened.has_value());
  std::vector<Mark> known;
  for (const Group& group : finished.run.history) known.push_back(group.mark);
  EXPECT_FALSE(Judge(finished.run, finished.applied, known, opened->replay).ok);
}

TEST(JournalMutation, WritingOneCopyOnlyIsCaughtByRotInIt) {
  JournalRun run = RunReference({.mutations = {.skip_second_copy = true}, .keep_moments = false});
  SimDisk disk = run.disk;
  disk.Crash(LoseUnflushed);
  size_t count = run.history.size();
  disk.FlipBit(kPaths[0], OffsetOf(count - 1) + 100, 1);
  Machine machine(disk);
  EXPECT_FALSE(machine.Open(run.history[count - 4].mark).has_value());
}

}  // namespace
}  // namespace reprise::journal
