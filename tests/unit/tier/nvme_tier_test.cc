// NvmeTier on the simulated disk: failing operations, group flush, prewriting, power cuts.
#include "server/tier/nvme_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/base/aligned_buffer.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "core/io/transfer.h"

namespace reprise::tier {
namespace {

using Extents = std::vector<format::Run>;

constexpr uint64_t kBlock = limits::kIoAlignment;
constexpr uint64_t kSegmentBytes = 16 * kBlock;
constexpr uint32_t kSegmentCount = 3;
const std::string kHost = "store";

AlignedBuffer Pattern(uint64_t size, uint64_t seed) {
  AlignedBuffer buffer(size);
  Rng rng(seed);
  for (size_t i = 0; i < buffer.size(); i += 8) {
    uint64_t word = rng.Next() | 1;
    std::memcpy(buffer.data() + i, &word, 8);
  }
  return buffer;
}

std::string SegmentPath(uint32_t segment) { return fmt::format("/data/seg/{:08}", segment); }

// One life of a machine with a tier on it.
struct Machine {
  explicit Machine(uint64_t seed = 1) : world(seed), io(world.loop(), world, kHost) {}
  explicit Machine(const SimDisk& disk) : Machine() { world.disk(kHost) = disk; }
  ~Machine() {
    io.CrashHost(SimCrash::kProcessDeath);
    world.loop().DestroyAll();
    tier.reset();
  }
  SimDisk& disk() { return world.disk(kHost); }
  Loop& loop() { return world.loop(); }
  void MakeParent() {
    REPRISE_CHECK(loop().RunTask(io.MakeDirectory("/data")).ok());
    REPRISE_CHECK(loop().RunTask(io.SyncDirectory("/")).ok());
  }
  Status Open(bool prewrite = false, NvmeMutations mutations = {}) {
    Result<std::unique_ptr<Tier>> opened = loop().RunTask(
        NvmeTier::Open(io, {"/data/seg", kSegmentBytes, kSegmentCount, prewrite, mutations}));
    if (!opened.has_value()) return opened.error();
    tier = std::move(*opened);
    return OkStatus();
  }
  void Close() {
    loop().RunTask(tier->Close());
    tier.reset();
  }
  Status Write(const Extents& runs, ByteView data) {
    return loop().RunTask(tier->Write(runs, 0, data));
  }
  Status Flush(const Extents& runs) { return loop().RunTask(tier->Flush(runs)); }
  Status Check(const Extents& runs, ByteView expected) {
    AlignedBuffer found(expected.size());
    Status read = loop().RunTask(tier->Read(runs, 0, found.span()));
    if (!read.ok()) return read;
    bool same = std::ranges::equal(found.view(), expected);
    return same ? OkStatus() : Status(Code::kDataLoss, "content differs");
  }

  SimWorld world;
  SimIo io;
  std::unique_ptr<Tier> tier;
};

class NvmeTierTest : public testing::Test {
 protected:
  void SetUp() override { machine_.MakeParent(); }
  void Open(bool prewrite = false, NvmeMutations mutations = {}) {
    Status opened = machine_.Open(prewrite, mutations);
    ASSERT_TRUE(opened.ok()) << opened;
  }
  // Starts a call without waiting for it.
  std::shared_ptr<std::optional<Status>> Start(Task<Status> task) {
    auto answer = std::make_shared<std::optional<Status>>();
    machine_.loop().Spawn(
        [](Task<Status> call, std::shared_ptr<std::optional<Status>> slot) -> Task<void> {
          slot->emplace(co_await std::move(call));
        }(std::move(task), answer));
    return answer;
  }
  void Await(const std::shared_ptr<std::optional<Status>>& answer) {
    machine_.loop().RunUntil([&] { return answer->has_value(); });
  }
  SimDisk& disk() { return machine_.disk(); }
  Tier& tier() { return *machine_.tier; }

  Machine machine_;
  AlignedBuffer data_ = Pattern(4 * kBlock, 77);
};

TEST_F(NvmeTierTest, RefusesImpossibleGeometry) {
  for (uint64_t bytes : {uint64_t{0}, uint64_t{100}}) {
    auto opened = machine_.loop().RunTask(
        NvmeTier::Open(machine_.io, {"/data/seg", bytes, kSegmentCount, false, {}}));
    EXPECT_EQ(opened.error().code(), Code::kInvalidArgument);
  }
}

TEST_F(NvmeTierTest, LeavesForeignFilesAlone) {
  Open();
  machine_.Close();
  for (const char* name : {"/data/seg/README", "/data/seg/00000099", "/data/seg/0000000x"}) {
    FileId file = *machine_.loop().RunTask(machine_.io.Open(name, {.create = true}));
    ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Close(file)).ok());
  }
  Open(/*prewrite=*/true);
  machine_.world.RunFor(std::chrono::seconds(1));
  EXPECT_EQ(disk().Contents("/data/seg/00000099")->size(), 0u);
}

TEST_F(NvmeTierTest, AFailedWriteMakesTheSegmentSuspectAndReservationsGoElsewhere) {
  Open();
  Extents runs = *tier().Reserve(data_.size());
  ASSERT_TRUE(machine_.Write(runs, data_.view()).ok());
  disk().ResetCounters();
  disk().faults.fail_write_at = 1;
  Extents broken = *tier().Reserve(data_.size());
  ASSERT_EQ(broken[0].segment, runs[0].segment);
  EXPECT_EQ(machine_.Write(broken, data_.view()).code(), Code::kUnavailable);
  EXPECT_EQ(machine_.Write(broken, data_.view()).code(), Code::kUnavailable);
  EXPECT_EQ(disk().counters().writes, 1u) << "nothing is retried";
  EXPECT_EQ(tier().usage().suspect_bytes, kSegmentBytes);
  Extents elsewhere = *tier().Reserve(data_.size());
  EXPECT_NE(elsewhere[0].segment, broken[0].segment);
  EXPECT_TRUE(machine_.Write(elsewhere, data_.view()).ok());
  EXPECT_TRUE(machine_.Check(runs, data_.view()).ok()) << "what was there stays readable";
  tier().Free(broken);
  EXPECT_NE((*tier().Reserve(data_.size()))[0].segment, broken[0].segment);
}

TEST_F(NvmeTierTest, AFailedFlushFailsTheWholeGroupAndEveryLaterFlushOfTheSegment) {
  Open();
  Extents first = *tier().Reserve(data_.size());
  Extents second = *tier().Reserve(data_.size());
  Extents third = *tier().Reserve(data_.size());
  for (const Extents& runs : {first, second, third}) {
    ASSERT_EQ(runs[0].segment, first[0].segment);
    ASSERT_TRUE(machine_.Write(runs, data_.view()).ok());
  }
  disk().ResetCounters();
  disk().faults.fail_flush_at = 1;
  auto one = Start(tier().Flush(first));
  auto two = Start(tier().Flush(second));
  Await(one);
  Await(two);
  EXPECT_EQ((*one)->code(), Code::kUnavailable);
  EXPECT_EQ((*two)->code(), Code::kUnavailable);
  EXPECT_EQ(machine_.Flush(third).code(), Code::kUnavailable) << "its success would prove nothing";
  EXPECT_EQ(disk().counters().flushes, 1u) << "nothing is retried";
  EXPECT_EQ(tier().usage().suspect_bytes, kSegmentBytes);
  EXPECT_NE((*tier().Reserve(kBlock))[0].segment, first[0].segment);
}

TEST_F(NvmeTierTest, OneFlushServesAllThatWaitForIt) {
  Open();
  std::vector<Extents> all;
  for (int i = 0; i < 12; ++i) {
    all.push_back(*tier().Reserve(kBlock));
    ASSERT_TRUE(machine_.Write(all.back(), data_.view().first(kBlock)).ok());
  }
  disk().ResetCounters();
  std::vector<std::shared_ptr<std::optional<Status>>> answers;
  for (const Extents& runs : all) answers.push_back(Start(tier().Flush(runs)));
  for (const auto& answer : answers) Await(answer);
  EXPECT_EQ(disk().counters().flushes, 1u);
}

TEST_F(NvmeTierTest, AFlushThatArrivesDuringAnotherWaitsForTheNext) {
  Open();
  Extents first = *tier().Reserve(kBlock);
  Extents second = *tier().Reserve(kBlock);
  ASSERT_TRUE(machine_.Write(first, data_.view().first(kBlock)).ok());
  ASSERT_TRUE(machine_.Write(second, data_.view().first(kBlock)).ok());
  disk().ResetCounters();
  auto one = Start(tier().Flush(first));
  machine_.loop().RunUntil([&] { return disk().counters().flushes == 1; });
  ASSERT_FALSE(one->has_value());
  auto two = Start(tier().Flush(second));
  auto three = Start(tier().Flush(second));
  Await(one);
  EXPECT_FALSE(two->has_value());
  Await(two);
  Await(three);
  EXPECT_EQ(disk().counters().flushes, 2u);
}

TEST_F(NvmeTierTest, AnErasureWorksInASegmentWhoseFlushFailed) {
  Open();
  Extents runs = *tier().Reserve(kBlock);
  ASSERT_TRUE(machine_.Write(runs, data_.view().first(kBlock)).ok());
  disk().ResetCounters();
  disk().faults.fail_flush_at = 1;
  EXPECT_EQ(machine_.Flush(runs).code(), Code::kUnavailable);
  EXPECT_EQ(machine_.loop().RunTask(tier().Erase(runs[0])), OkStatus());
  disk().Crash(LoseUnflushed);
  EXPECT_EQ(machine_.Check(runs, Bytes(kBlock)), OkStatus());
}

TEST_F(NvmeTierTest, WhatTheFlushOfAnErasureHearsIsHeardByWhoWroteBefore) {
  Open();
  Extents erased = *tier().Reserve(kBlock);
  Extents written = *tier().Reserve(kBlock);
  ASSERT_EQ(erased[0].segment, written[0].segment);
  ASSERT_TRUE(machine_.Write(erased, data_.view().first(kBlock)).ok());
  ASSERT_TRUE(machine_.Write(written, data_.view().first(kBlock)).ok());
  disk().ResetCounters();
  disk().faults.fail_flush_at = 1;
  auto erasure = Start(tier().Erase(erased[0]));
  machine_.loop().RunUntil([&] { return disk().counters().flushes == 1; });
  ASSERT_FALSE(erasure->has_value());
  auto flush = Start(tier().Flush(written));
  Await(erasure);
  Await(flush);
  EXPECT_FALSE((*erasure)->ok());
  EXPECT_EQ((*flush)->code(), Code::kUnavailable) << "its success would prove nothing";
  EXPECT_EQ(disk().counters().flushes, 1u);
}

TEST_F(NvmeTierTest, AFullDiskIsResourceExhaustedAndTheNextWriteMayFindRoom) {
  Open();
  disk().ResetCounters();
  disk().faults.fail_allocate_at = 1;
  Extents runs = *tier().Reserve(data_.size());
  EXPECT_EQ(machine_.Write(runs, data_.view()).code(), Code::kResourceExhausted);
  EXPECT_EQ(tier().usage().suspect_bytes, 0u) << "full is not broken";
  EXPECT_TRUE(machine_.Write(runs, data_.view()).ok());
  EXPECT_TRUE(machine_.Flush(runs).ok());
}

TEST_F(NvmeTierTest, AReadErrorIsUnavailableAndAShortFileIsDataLoss) {
  Open();
  Extents runs = *tier().Reserve(data_.size());
  ASSERT_TRUE(machine_.Write(runs, data_.view()).ok());
  disk().ResetCounters();
  disk().faults.fail_read_at = 1;
  EXPECT_EQ(machine_.Check(runs, data_.view()).code(), Code::kUnavailable);
  EXPECT_EQ(tier().usage().suspect_bytes, 0u);
  EXPECT_TRUE(machine_.Check(runs, data_.view()).ok());
  FileId file = *machine_.loop().RunTask(machine_.io.Open(SegmentPath(runs[0].segment), {}));
  ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Truncate(file, kBlock)).ok());
  EXPECT_EQ(machine_.Check(runs, data_.view()).code(), Code::kDataLoss);
  ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Close(file)).ok());
}

TEST_F(NvmeTierTest, AMissingOrShortSegmentIsRefusedAtAdoptionAndNotOverwritten) {
  Open();
  Extents runs = *tier().Reserve(data_.size());
  ASSERT_TRUE(machine_.Write(runs, data_.view()).ok());
  ASSERT_TRUE(machine_.Flush(runs).ok());
  FileId file = *machine_.loop().RunTask(machine_.io.Open(SegmentPath(runs[0].segment), {}));
  ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Truncate(file, kBlock)).ok());
  ASSERT_TRUE(machine_.loop().RunTask(machine_.io.Close(file)).ok());
  machine_.Close();
  Open(/*prewrite=*/true);
  EXPECT_EQ(tier().Adopt(runs).code(), Code::kDataLoss);
  machine_.world.RunFor(std::chrono::seconds(1));
  EXPECT_EQ(disk().Contents(SegmentPath(runs[0].segment))->size(), kBlock)
      << "what is left is kept for whoever tries to save it";
  machine_.Close();
  disk().Destroy(SegmentPath(runs[0].segment));
  Open();
  EXPECT_EQ(tier().Adopt(runs).code(), Code::kDataLoss);
}

TEST_F(NvmeTierTest, WritesSegmentsAheadWhileIdleAndPrefersThemAfterwards) {
  Open(/*prewrite=*/true);
  machine_.world.RunFor(std::chrono::seconds(1));
  for (uint32_t segment = 0; segment < kSegmentCount; ++segment) {
    EXPECT_EQ(disk().Contents(SegmentPath(segment))->size(), kSegmentBytes + kBlock) << segment;
  }
  machine_.Close();
  disk().Destroy(SegmentPath(0));
  disk().FlipBit(SegmentPath(1), kSegmentBytes + 3, 1);  // its marker: it counts as fresh
  Open();
  EXPECT_EQ((*tier().Reserve(kSegmentBytes))[0].segment, 2u) << "written comes first";
  EXPECT_EQ((*tier().Reserve(kSegmentBytes / 2))[0].segment, 1u) << "then what exists";
}

TEST_F(NvmeTierTest, PrewritingGivesWayToASegmentThatIsNeeded) {
  Open(/*prewrite=*/true);
  // Reserve at every stage of the background work, and look at the bytes after it has had its time.
  for (int turn = 0; turn < 40; ++turn) {
    Machine machine;
    machine.MakeParent();
    ASSERT_TRUE(machine.Open(/*prewrite=*/true).ok());
    for (int i = 0; i < turn; ++i) machine.loop().RunOnce(true);
    AlignedBuffer content = Pattern(kSegmentBytes * 2, 5);
    Extents runs = *machine.tier->Reserve(content.size());
    ASSERT_TRUE(machine.Write(runs, content.view()).ok());
    ASSERT_TRUE(machine.Flush(runs).ok());
    machine.world.RunFor(std::chrono::seconds(1));
    ASSERT_TRUE(machine.Check(runs, content.view()).ok()) << "turn " << turn;
    machine.disk().Crash(LoseUnflushed);
    Machine after(machine.disk());
    ASSERT_TRUE(after.Open(/*prewrite=*/true).ok());
    ASSERT_TRUE(after.tier->Adopt(runs).ok());
    ASSERT_TRUE(after.Check(runs, content.view()).ok()) << "turn " << turn;
  }
}

TEST_F(NvmeTierTest, AWriteDoesNotWaitForTheRestOfALargeSegmentToBePrewritten) {
  constexpr uint64_t kLarge = 32 * limits::kMiB;
  Result<std::unique_ptr<Tier>> opened = machine_.loop().RunTask(
      NvmeTier::Open(machine_.io, {"/data/seg", kLarge, 1, /*prewrite=*/true, {}}));
  ASSERT_TRUE(opened.has_value()) << opened.error();
  machine_.tier = std::move(*opened);
  machine_.loop().RunUntil([&] { return disk().counters().writes == 3; });
  Extents runs = *tier().Reserve(data_.size());
  ASSERT_TRUE(machine_.Write(runs, data_.view()).ok());
  EXPECT_LE(disk().counters().writes, 5u) << "at most the write in flight comes first";
  machine_.world.RunFor(std::chrono::seconds(1));
  EXPECT_TRUE(machine_.Check(runs, data_.view()).ok());
}

TEST_F(NvmeTierTest, SegmentsThatWereFoundAreNotZeroedBeforeRecoveryIsOver) {
  Open();
  Extents runs = *tier().Reserve(data_.size());
  ASSERT_TRUE(machine_.Write(runs, data_.view()).ok());
  ASSERT_TRUE(machine_.Flush(runs).ok());
  machine_.Close();
  Open(/*prewrite=*/true);
  machine_.world.RunFor(std::chrono::seconds(10));  // a slow recovery
  ASSERT_TRUE(tier().Adopt(runs).ok());
  (void)tier().Reserve(kBlock);
  machine_.world.RunFor(std::chrono::seconds(10));
  EXPECT_TRUE(machine_.Check(runs, data_.view()).ok());
}

TEST_F(NvmeTierTest, AFailureOfPrewritingCostsTheSegmentAndNothingElse) {
  for (uint64_t n = 1; n <= 6; ++n) {
    Machine machine;
    machine.MakeParent();
    machine.disk().ResetCounters();
    (n % 2 == 0 ? machine.disk().faults.fail_write_at : machine.disk().faults.fail_flush_at) =
        (n + 1) / 2;
    ASSERT_TRUE(machine.Open(/*prewrite=*/true).ok());
    machine.world.RunFor(std::chrono::seconds(1));
    EXPECT_EQ(machine.tier->usage().suspect_bytes, kSegmentBytes) << n;
    Extents runs = *machine.tier->Reserve(data_.size());
    ASSERT_TRUE(machine.Write(runs, data_.view()).ok());
    ASSERT_TRUE(machine.Flush(runs).ok());
  }
}

TEST_F(NvmeTierTest, CloseWaitsForWritesInProgress) {
  Open(/*prewrite=*/true);
  Extents runs = *tier().Reserve(data_.size());
  auto write = Start(tier().Write(runs, 0, data_.view()));
  machine_.loop().RunOnce(false);
  machine_.Close();
  EXPECT_TRUE(write->has_value());
}

// --- power cuts

struct Stored {
  Extents runs;
  uint64_t seed = 0;
  uint64_t size = 0;
};
struct Moment {
  SimDisk disk;
  std::vector<Stored> durable;  // what Flush had answered OK for
};
struct Recording {
  std::vector<Moment> moments;
  uint64_t failures = 0;  // of Write or Flush
};

struct Scenario {
  NvmeMutations mutations;
  bool prewrite = true;
  bool reorder = false;
  uint64_t fail_flush_at = 0;
  uint64_t fail_write_at = 0;
};

Task<void> StoreObjects(Machine& machine, std::vector<Stored>& durable, uint64_t client,
                        uint64_t& failures, int& left) {
  for (uint64_t i = 0; i < 3; ++i) {
    Stored object{{}, client * 100 + i, (1 + (client + i) % 5) * kBlock};
    Result<Extents> runs = machine.tier->Reserve(object.size);
    if (!runs.has_value()) break;
    object.runs = *runs;
    AlignedBuffer content = Pattern(object.size, object.seed);
    Status status = co_await machine.tier->Write(object.runs, 0, content.view());
    if (status.ok()) status = co_await machine.tier->Flush(object.runs);
    if (status.ok()) durable.push_back(object);
    if (!status.ok()) ++failures;
  }
  --left;
}

Recording Record(Scenario scenario, uint64_t seed) {
  Machine machine(seed);
  machine.MakeParent();
  machine.disk().faults.reorder = scenario.reorder;
  machine.disk().ResetCounters();
  machine.disk().faults.fail_flush_at = scenario.fail_flush_at;
  machine.disk().faults.fail_write_at = scenario.fail_write_at;
  Recording recording;
  std::vector<Stored> durable;
  machine.disk().OnEvent(
      [&](const SimEvent&) { recording.moments.push_back({machine.disk(), durable}); });
  Status opened = machine.Open(scenario.prewrite, scenario.mutations);
  REPRISE_CHECK(opened.ok(), opened.message());
  int left = 3;
  for (uint64_t client = 1; client <= 3; ++client) {
    machine.loop().Spawn(StoreObjects(machine, durable, client, recording.failures, left));
  }
  machine.loop().RunUntil([&] { return left == 0; });
  machine.disk().OnEvent({});
  recording.moments.push_back({machine.disk(), durable});
  return recording;
}

uint64_t Violations(const Recording& recording, uint64_t* states = nullptr) {
  uint64_t violations = 0;
  for (const Moment& moment : recording.moments) {
    for (uint64_t outcome = 0; outcome < 6; ++outcome) {
      SimChooser chooser = outcome == 0   ? SimChooser(LoseUnflushed)
                           : outcome == 1 ? SimChooser(KeepUnflushed)
                                          : RandomOutcome(outcome);
      SimDisk disk = moment.disk;
      disk.Crash(chooser);
      Machine machine(disk);
      if (states != nullptr) ++*states;
      if (!disk.Exists("/data/seg") && moment.durable.empty()) continue;
      Status opened = machine.Open(/*prewrite=*/true);
      bool intact = opened.ok();
      for (const Stored& object : moment.durable) {
        if (intact) intact = machine.tier->Adopt(object.runs).ok();
      }
      for (const Stored& object : moment.durable) {
        AlignedBuffer expected = Pattern(object.size, object.seed);
        if (intact) intact = machine.Check(object.runs, expected.view()).ok();
      }
      if (!intact) ++violations;
    }
  }
  return violations;
}

TEST(NvmeTierCrash, NoPowerCutTakesWhatAFlushAnsweredFor) {
  uint64_t states = 0;
  for (bool prewrite : {false, true}) {
    for (bool reorder : {false, true}) {
      Recording recording = Record({.prewrite = prewrite, .reorder = reorder}, 1);
      ASSERT_EQ(recording.moments.back().durable.size(), 9u);
      EXPECT_EQ(Violations(recording, &states), 0u);
    }
  }
  EXPECT_GT(states, 1000u);
}

TEST(NvmeTierCrash, WhateverFlushOrWriteFailsNothingAcknowledgedIsLost) {
  for (uint64_t n = 1; n <= 12; ++n) {
    for (bool flush : {true, false}) {
      Scenario scenario{.prewrite = false};
      (flush ? scenario.fail_flush_at : scenario.fail_write_at) = n;
      Recording recording = Record(scenario, n);
      EXPECT_EQ(Violations(recording), 0u) << (flush ? "flush " : "write ") << n;
    }
  }
}

// --- each barrier is needed

TEST(NvmeTierMutation, AnsweringWithoutAFlushIsCaught) {
  EXPECT_GT(Violations(Record({.mutations = {.skip_flush = true}}, 1)), 0u);
}

TEST(NvmeTierMutation, NotSyncingTheNameOfANewSegmentIsCaught) {
  Scenario scenario{.mutations = {.skip_creation_sync = true}, .prewrite = false};
  EXPECT_GT(Violations(Record(scenario, 1)), 0u);
}

TEST(NvmeTierMutation, BelievingAFlushAfterAFailedOneIsCaught) {
  uint64_t violations = 0;
  for (uint64_t n = 1; n <= 12; ++n) {
    Scenario scenario{.mutations = {.trust_second_flush = true}, .prewrite = false};
    scenario.fail_flush_at = n;
    violations += Violations(Record(scenario, n));
  }
  EXPECT_GT(violations, 0u);
}

}  // namespace
}  // namespace reprise::tier
