// What a simulated disk forgets, keeps and invents: the promises crash tests are built on.
#include "core/io/sim_disk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>
#include <set>
#include <string>

#include "core/base/aligned_buffer.h"

namespace reprise {
namespace {

constexpr size_t kBlock = kSimCellBytes;
const OpenOptions kCreate{.create = true};

// Drives a disk without a clock: operations begin and finish when the test says so.
class SimDiskTest : public ::testing::Test {
 protected:
  SimDisk::InodeId MakeDurableFile(const std::string& path, uint8_t fill, size_t blocks = 1) {
    auto inode = static_cast<SimDisk::InodeId>(disk_.Open(path, kCreate));
    for (size_t i = 0; i < blocks; ++i) Write(inode, i, fill);
    Flush(inode);
    disk_.FinishSyncDirectory("/", disk_.BeginSyncDirectory("/"));
    EXPECT_TRUE(disk_.UnflushedCells().empty());
    return inode;
  }
  ByteView Fill(uint8_t value) {
    AlignedBuffer& buffer = buffers_.emplace_back(kBlock);
    std::memset(buffer.data(), value, kBlock);
    return buffer.view();
  }
  int64_t Write(SimDisk::InodeId inode, uint64_t block, uint8_t value,
                OpenOptions options = kCreate) {
    ByteView data = Fill(value);
    return disk_.FinishWrite(disk_.BeginWrite(inode, block * kBlock, data, options), data);
  }
  int64_t Flush(SimDisk::InodeId inode) { return disk_.FinishFlush(disk_.BeginFlush(inode)); }
  // The first byte of a block and whether the whole block is equal to it.
  uint8_t At(const SimDisk& disk, const std::string& path, uint64_t block) {
    Bytes content = disk.Contents(path).value();
    auto begin = content.begin() + static_cast<ptrdiff_t>(block * kBlock);
    EXPECT_TRUE(std::all_of(begin, begin + kBlock, [&](uint8_t byte) { return byte == *begin; }));
    return *begin;
  }
  // The value of block 0 after a power cut, over `seeds` random outcomes; torn blocks count as 255.
  std::set<int> ValuesAfterCrash(uint64_t block = 0, uint64_t seeds = 64) {
    std::set<int> values;
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      SimDisk fork = disk_;
      fork.Crash(RandomOutcome(seed));
      Bytes content = fork.Contents("/f").value_or(Bytes());
      if (content.size() < (block + 1) * kBlock) continue;
      auto begin = content.begin() + static_cast<ptrdiff_t>(block * kBlock);
      bool whole = std::all_of(begin, begin + kBlock, [&](uint8_t byte) { return byte == *begin; });
      values.insert(whole ? *begin : 255);
    }
    return values;
  }

  SimDisk disk_{7};
  std::list<AlignedBuffer> buffers_;
};

TEST_F(SimDiskTest, AnUnflushedWriteIsVisibleAndMayBeKeptLostOrTorn) {
  auto file = MakeDurableFile("/f", 1);
  EXPECT_EQ(Write(file, 0, 2), static_cast<int64_t>(kBlock));
  EXPECT_EQ(At(disk_, "/f", 0), 2);
  auto undecided = disk_.UnflushedCells();
  ASSERT_EQ(undecided.size(), 1u);
  EXPECT_EQ(undecided[0].path, "/f");
  EXPECT_EQ(undecided[0].cell, 0u);
  EXPECT_EQ(undecided[0].version_count(), 2u);
  EXPECT_EQ(ValuesAfterCrash(), (std::set<int>{1, 2, 255}));
}

TEST_F(SimDiskTest, AFlushMakesCompletedWritesDurable) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  EXPECT_EQ(Flush(file), 0);
  EXPECT_TRUE(disk_.UnflushedCells().empty());
  EXPECT_EQ(ValuesAfterCrash(), (std::set<int>{2}));
}

TEST_F(SimDiskTest, AFlushCoversOnlyWritesThatCompletedBeforeItsSubmission) {
  auto file = MakeDurableFile("/f", 1, 3);
  ByteView early = Fill(2);
  ByteView late = Fill(3);
  uint64_t in_flight = disk_.BeginWrite(file, 0, early, kCreate);
  uint64_t flush = disk_.BeginFlush(file);
  uint64_t after = disk_.BeginWrite(file, kBlock, late, kCreate);
  disk_.FinishWrite(in_flight, early);
  disk_.FinishWrite(after, late);
  EXPECT_EQ(disk_.FinishFlush(flush), 0);
  EXPECT_EQ(disk_.UnflushedCells().size(), 2u);
  EXPECT_TRUE(ValuesAfterCrash(0).contains(1));
  EXPECT_TRUE(ValuesAfterCrash(1).contains(1));
  EXPECT_EQ(Flush(file), 0);
  EXPECT_TRUE(disk_.UnflushedCells().empty());
}

TEST_F(SimDiskTest, AFlushOfOneFileSaysNothingAboutAnother) {
  auto file = MakeDurableFile("/f", 1);
  auto other = MakeDurableFile("/other", 1);
  Write(file, 0, 2);
  Flush(other);
  EXPECT_TRUE(ValuesAfterCrash().contains(1));
}

TEST_F(SimDiskTest, SeveralUnflushedWritesOfACellMayEndAsAnyOfThem) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  Write(file, 0, 3);
  EXPECT_EQ(disk_.UnflushedCells().at(0).version_count(), 3u);
  EXPECT_EQ(ValuesAfterCrash(), (std::set<int>{1, 2, 3, 255}));
}

TEST_F(SimDiskTest, AWriteInFlightAtTheCrashMayHaveHappened) {
  auto file = MakeDurableFile("/f", 1);
  disk_.BeginWrite(file, 0, Fill(2), kCreate);
  EXPECT_EQ(At(disk_, "/f", 0), 1);
  EXPECT_EQ(ValuesAfterCrash(), (std::set<int>{1, 2, 255}));
}

TEST_F(SimDiskTest, ASynchronousWriteIsDurableAtCompletionAndNotBefore) {
  OpenOptions dsync{.create = true, .dsync = true};
  auto file = MakeDurableFile("/f", 1);
  ByteView data = Fill(2);
  uint64_t token = disk_.BeginWrite(file, 0, data, dsync);
  EXPECT_TRUE(ValuesAfterCrash().contains(1));
  disk_.FinishWrite(token, data);
  EXPECT_EQ(ValuesAfterCrash(), (std::set<int>{2}));
}

TEST_F(SimDiskTest, ASynchronousWriteLeavesOtherWritesUndecided) {
  auto file = MakeDurableFile("/f", 1, 2);
  Write(file, 1, 2);
  Write(file, 0, 3, {.create = true, .dsync = true});
  EXPECT_EQ(ValuesAfterCrash(0), (std::set<int>{3}));
  EXPECT_TRUE(ValuesAfterCrash(1).contains(1));
}

TEST_F(SimDiskTest, TornCellsMixAtSectors) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  disk_.Crash([](const SimUndecided&) { return SimOutcome{1, 0, 4}; });
  Bytes content = disk_.Contents("/f").value();
  EXPECT_EQ(content[4 * kSimSectorBytes - 1], 2);
  EXPECT_EQ(content[4 * kSimSectorBytes], 1);
}

TEST_F(SimDiskTest, AFailedFlushIsFinalUntilTheCellIsOverwritten) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  disk_.ResetCounters();
  disk_.faults.fail_flush_at = 1;
  EXPECT_EQ(Flush(file), -EIO);
  EXPECT_EQ(At(disk_, "/f", 0), 2) << "the read side still shows the new content";
  EXPECT_EQ(Flush(file), 0) << "the second flush lies";
  EXPECT_TRUE(ValuesAfterCrash().contains(1)) << "and proves nothing";
  EXPECT_TRUE(ValuesAfterCrash().contains(2));
  Write(file, 0, 3);
  EXPECT_EQ(Flush(file), 0);
  EXPECT_EQ(ValuesAfterCrash(), (std::set<int>{3}));
}

TEST_F(SimDiskTest, AFailedWriteLeavesTheCellUndecidedThroughLaterFlushes) {
  auto file = MakeDurableFile("/f", 1);
  disk_.ResetCounters();
  disk_.faults.fail_write_at = 1;
  EXPECT_EQ(Write(file, 0, 2), -EIO);
  EXPECT_EQ(Flush(file), 0);
  EXPECT_TRUE(ValuesAfterCrash().contains(1));
  EXPECT_TRUE(ValuesAfterCrash().contains(2));
}

TEST_F(SimDiskTest, ALyingFlushReportsSuccessAndDoesNothing) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  disk_.faults.lying_flush = true;
  EXPECT_EQ(Flush(file), 0);
  EXPECT_TRUE(ValuesAfterCrash().contains(1));
}

TEST_F(SimDiskTest, ANewFileExistsOnlyAfterTheDirectoryWasSynced) {
  auto file = static_cast<SimDisk::InodeId>(disk_.Open("/f", kCreate));
  Write(file, 0, 2);
  Flush(file);
  SimDisk lost = disk_;
  lost.Crash(LoseUnflushed);
  EXPECT_FALSE(lost.Exists("/f"));
  SimDisk kept = disk_;
  kept.Crash(KeepUnflushed);
  EXPECT_EQ(At(kept, "/f", 0), 2);
  disk_.FinishSyncDirectory("/", disk_.BeginSyncDirectory("/"));
  disk_.Crash(LoseUnflushed);
  EXPECT_EQ(At(disk_, "/f", 0), 2);
}

TEST_F(SimDiskTest, ASyncedNameWithoutAFlushIsAnEmptyFile) {
  auto file = static_cast<SimDisk::InodeId>(disk_.Open("/f", kCreate));
  Write(file, 0, 2);
  disk_.FinishSyncDirectory("/", disk_.BeginSyncDirectory("/"));
  disk_.Crash(LoseUnflushed);
  EXPECT_EQ(disk_.Contents("/f"), Bytes());
}

TEST_F(SimDiskTest, ANameMadeWhileTheDirectoryIsBeingSyncedIsNotCovered) {
  uint64_t sync = disk_.BeginSyncDirectory("/");
  disk_.Open("/f", kCreate);
  disk_.FinishSyncDirectory("/", sync);
  disk_.Crash(LoseUnflushed);
  EXPECT_FALSE(disk_.Exists("/f"));
}

TEST_F(SimDiskTest, ARemovedFileMayComeBackUntilTheDirectoryIsSynced) {
  MakeDurableFile("/f", 1);
  EXPECT_EQ(disk_.Remove("/f"), 0);
  EXPECT_FALSE(disk_.Exists("/f"));
  SimDisk fork = disk_;
  fork.Crash(LoseUnflushed);
  EXPECT_EQ(At(fork, "/f", 0), 1);
  disk_.FinishSyncDirectory("/", disk_.BeginSyncDirectory("/"));
  disk_.Crash(LoseUnflushed);
  EXPECT_FALSE(disk_.Exists("/f"));
}

TEST_F(SimDiskTest, ALostDirectoryTakesItsFilesAlong) {
  EXPECT_EQ(disk_.MakeDirectory("/d"), 0);
  EXPECT_GT(disk_.Open("/d/f", kCreate), 0);
  disk_.FinishSyncDirectory("/d", disk_.BeginSyncDirectory("/d"));
  disk_.Crash(LoseUnflushed);
  EXPECT_FALSE(disk_.Exists("/d"));
  EXPECT_FALSE(disk_.Exists("/d/f"));
}

TEST_F(SimDiskTest, ATruncationIsUndecidedUntilAFlush) {
  auto file = MakeDurableFile("/f", 1, 2);
  EXPECT_EQ(disk_.Truncate(file, kBlock), 0);
  SimDisk fork = disk_;
  fork.Crash(LoseUnflushed);
  EXPECT_EQ(At(fork, "/f", 1), 1);
  Flush(file);
  disk_.Crash(LoseUnflushed);
  EXPECT_EQ(disk_.Contents("/f")->size(), kBlock);
}

TEST_F(SimDiskTest, ACopyLivesItsOwnLife) {
  auto file = MakeDurableFile("/f", 1);
  SimDisk fork = disk_;
  Write(file, 0, 2);
  EXPECT_EQ(At(fork, "/f", 0), 1);
  fork.Tamper("/f", 0, Fill(9));
  EXPECT_EQ(At(disk_, "/f", 0), 2);
}

TEST_F(SimDiskTest, EnumeratedOutcomesAreAllDistinct) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  Write(file, 0, 3);
  auto undecided = disk_.UnflushedCells();
  auto outcomes = OutcomesOf(undecided.at(0), true);
  EXPECT_EQ(outcomes.size(), 9u);  // three versions, and each of them torn over the two others
  std::set<Bytes> contents;
  for (const SimOutcome& outcome : outcomes) {
    SimDisk fork = disk_;
    fork.Crash([&](const SimUndecided&) { return outcome; });
    contents.insert(fork.Contents("/f").value());
  }
  EXPECT_EQ(contents.size(), 9u);
}

TEST_F(SimDiskTest, EventsAreToldAtSubmissionAndCompletion) {
  auto file = MakeDurableFile("/f", 1);
  std::vector<SimEventKind> seen;
  disk_.OnEvent([&](const SimEvent& event) {
    EXPECT_EQ(event.path, "/f");
    seen.push_back(event.kind);
    SimDisk fork = disk_;  // legal at any event
    fork.Crash(LoseUnflushed);
  });
  Write(file, 0, 2);
  Flush(file);
  EXPECT_EQ(seen, (std::vector{SimEventKind::kWriteSubmit, SimEventKind::kWriteDone,
                               SimEventKind::kFlushSubmit, SimEventKind::kFlushDone}));
}

TEST_F(SimDiskTest, AMisdirectedWriteReportsSuccessAndHitsAnotherBlock) {
  auto file = MakeDurableFile("/f", 1, 64);
  disk_.ResetCounters();
  disk_.faults.misdirect_at = 1;
  EXPECT_EQ(Write(file, 5, 2), static_cast<int64_t>(kBlock));
  Bytes content = disk_.Contents("/f").value();
  EXPECT_EQ(std::count(content.begin(), content.end(), 2), static_cast<ptrdiff_t>(kBlock));
  EXPECT_EQ(At(disk_, "/f", 5), 1);
}

TEST_F(SimDiskTest, AStaleReadShowsWhatWasThereBefore) {
  auto file = MakeDurableFile("/f", 1);
  Write(file, 0, 2);
  Flush(file);
  disk_.ResetCounters();
  disk_.faults.stale_read_at = 1;
  AlignedBuffer buffer(kBlock);
  EXPECT_EQ(disk_.Read(file, 0, buffer.span(), kCreate), static_cast<int64_t>(kBlock));
  EXPECT_EQ(buffer.data()[0], 1);
  EXPECT_EQ(disk_.Read(file, 0, buffer.span(), kCreate), static_cast<int64_t>(kBlock));
  EXPECT_EQ(buffer.data()[0], 2);
}

TEST_F(SimDiskTest, AFlippedBitStaysFlippedAfterACrash) {
  MakeDurableFile("/f", 1);
  disk_.FlipBit("/f", 100, 7);
  EXPECT_EQ(disk_.Contents("/f")->at(100), 0x81);
  disk_.Crash(LoseUnflushed);
  EXPECT_EQ(disk_.Contents("/f")->at(100), 0x81);
}

TEST_F(SimDiskTest, ShortWritesMoveWholeBlocksOfDirectFiles) {
  auto file = MakeDurableFile("/f", 1, 8);
  disk_.faults.short_ppm = 1'000'000;
  AlignedBuffer data(8 * kBlock);
  for (int i = 0; i < 50; ++i) {
    int64_t moved = disk_.FinishWrite(disk_.BeginWrite(file, 0, data.view(), kCreate), data.view());
    EXPECT_GT(moved, 0);
    EXPECT_LT(moved, static_cast<int64_t>(data.size()));
    EXPECT_EQ(moved % static_cast<int64_t>(kBlock), 0);
    int64_t got = disk_.Read(file, 0, data.span(), kCreate);
    EXPECT_GT(got, 0);
    EXPECT_EQ(got % static_cast<int64_t>(kBlock), 0);
  }
}

TEST_F(SimDiskTest, TheNthGrowthFailsForLackOfSpace) {
  auto file = MakeDurableFile("/f", 1);
  disk_.ResetCounters();
  disk_.faults.fail_growth_at = 2;
  EXPECT_GT(Write(file, 0, 2), 0) << "no growth: it is allocated";
  EXPECT_GT(Write(file, 1, 2), 0);
  EXPECT_EQ(Write(file, 2, 2), -ENOSPC);
  EXPECT_GT(Write(file, 3, 2), 0);
  disk_.faults.persistent = true;
  EXPECT_EQ(Write(file, 4, 2), -ENOSPC);
  EXPECT_EQ(Write(file, 5, 2), -ENOSPC);
}

TEST_F(SimDiskTest, AProcessDeathKeepsWhatCompleted) {
  auto file = MakeDurableFile("/f", 1, 2);
  Write(file, 0, 2);
  disk_.BeginWrite(file, kBlock, Fill(3), kCreate);
  disk_.SettleInFlight(LoseUnflushed);
  EXPECT_EQ(At(disk_, "/f", 0), 2);
  EXPECT_EQ(At(disk_, "/f", 1), 1);
  EXPECT_EQ(disk_.UnflushedCells().size(), 1u) << "still not on the medium";
}

TEST_F(SimDiskTest, ChangingTheBufferOfAWriteInFlightIsCaught) {
  auto file = MakeDurableFile("/f", 1);
  AlignedBuffer data(kBlock);
  uint64_t token = disk_.BeginWrite(file, 0, data.view(), kCreate);
  data.data()[17] = 1;
  EXPECT_DEATH(disk_.FinishWrite(token, data.view()), "changed while the write was in flight");
}

}  // namespace
}  // namespace reprise
