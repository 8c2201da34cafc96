#include "server/lifecycle/store_state.h"

#include <gtest/gtest.h>

#include "core/base/random.h"

namespace reprise::lifecycle {
namespace {

using format::AbortEntry;
using format::CommitEntry;
using format::DeleteEntry;
using format::EpochEntry;
using format::JobEntry;
using format::LayoutEntry;
using format::Mark;
using format::MarkEntry;
using format::PinEntry;
using format::PreparedEntry;
using format::ResumeEntry;
using format::Run;

const Id kJob = Rng(1).NewId();

// A state under test; every entry that must be possible goes through Do.
struct Fixture {
  StoreState state;
  uint64_t next_offset = 0;
  std::map<std::string, std::string> rows;

  StoreState::Change Do(const format::Entry& entry) {
    Result<StoreState::Change> change = state.Apply(entry);
    EXPECT_TRUE(change.has_value()) << StatusOf(change);
    if (!change.has_value()) return {};
    for (const catalog::RowChange& row : change->rows) {
      if (row.value.has_value()) {
        rows[row.key] = *row.value;
      } else {
        rows.erase(row.key);
      }
    }
    return *change;
  }
  bool Refuses(const format::Entry& entry) {
    auto before = state.Rows();
    bool refused = !state.Apply(entry).has_value();
    EXPECT_EQ(state.Rows(), before) << "a refused entry changed the state";
    return refused;
  }
  Run NextRun() {
    next_offset += 4096;
    return {0, next_offset, 4096};
  }
  static Id AttemptOf(CheckpointKey key) { return Rng(key.epoch * 1000 + key.step + 5).NewId(); }
  static Digest LayoutOf(uint32_t rank) { return DigestOf(Bytes{static_cast<uint8_t>(rank)}); }

  PreparedEntry Prepared(CheckpointKey key, uint32_t rank, uint32_t world = 2) {
    if (state.FindLayout(LayoutOf(rank)) == nullptr) {
      Do(LayoutEntry{LayoutOf(rank), {NextRun(), 10, Digest{}}});
    }
    PreparedEntry entry;
    entry.identity = {kJob, key, AttemptOf(key), rank, world};
    entry.length = 100;
    entry.layout = LayoutOf(rank);
    entry.manifest = {NextRun(), 50, Digest{}};
    entry.runs = {NextRun()};
    return entry;
  }
  CommitEntry Commit(CheckpointKey key, uint32_t world = 2) {
    CommitEntry entry;
    entry.job = kJob;
    entry.key = key;
    entry.attempt = AttemptOf(key);
    entry.world = world;
    entry.length = 100 * world;
    entry.manifest = {NextRun(), 60, Digest{}};
    return entry;
  }
  void Start() {
    Do(JobEntry{kJob, "team", "gpt"});
    Do(EpochEntry{kJob, 1, 2, "a"});
    Do(ResumeEntry{kJob, 1, std::nullopt, {}});
  }
  void NewEpoch(uint64_t epoch, std::optional<CheckpointKey> parent) {
    Do(EpochEntry{kJob, epoch, 2, "a"});
    Do(ResumeEntry{kJob, epoch, parent, {}});
  }
  void Save(CheckpointKey key) {
    Do(Prepared(key, 0));
    Do(Prepared(key, 1));
    Do(Commit(key));
  }
  const JobState& job() { return *state.FindJob(kJob); }
  std::optional<CheckpointKey> Latest() {
    const CheckpointRow* row = state.Latest(job());
    return row == nullptr ? std::nullopt : std::optional(row->commit.key);
  }
};

TEST(StoreState, LatestIsTheGreatestIntactCheckpoint) {
  Fixture f;
  f.Start();
  EXPECT_EQ(f.Latest(), std::nullopt);
  f.Save({1, 10});
  f.Save({1, 20});
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 20}));
  f.Do(MarkEntry{kJob, {1, 20}, Mark::kDamaged, "rot"});
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 10}));
  f.Do(MarkEntry{kJob, {1, 20}, Mark::kRecovered, "scan"});
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 10}));
}

TEST(StoreState, WhatLiesBeyondTheParentIsSuperseded) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  f.Save({1, 20});
  f.NewEpoch(2, CheckpointKey{1, 10});
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 10}));
  EXPECT_FALSE(f.state.OnLineage(f.job(), {1, 20}));
  EXPECT_EQ(f.state.AtStep(f.job(), 20), nullptr);
  EXPECT_NE(f.state.FindCheckpoint(kJob, {1, 20}), nullptr) << "still addressable exactly";
  f.Save({2, 20});
  EXPECT_EQ(f.state.AtStep(f.job(), 20)->commit.key, (CheckpointKey{2, 20}));
  EXPECT_EQ(f.state.AtStep(f.job(), 10)->commit.key, (CheckpointKey{1, 10}));
}

TEST(StoreState, AnEpochWithoutResumeDescendsFromAllBeforeIt) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  f.Do(EpochEntry{kJob, 2, 2, "a"});
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 10}));
  f.Do(EpochEntry{kJob, 3, 2, "a"});
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 10}));
}

TEST(StoreState, RefusesACommitBelowTheFenceUnlessAdopted) {
  Fixture f;
  f.Start();
  f.Do(f.Prepared({1, 10}, 0));
  f.Do(f.Prepared({1, 10}, 1));
  f.Do(EpochEntry{kJob, 2, 2, "a"});
  CommitEntry commit = f.Commit({1, 10});
  EXPECT_TRUE(f.Refuses(commit));
  commit.adopted = true;
  f.Do(commit);
  EXPECT_EQ(f.Latest(), (CheckpointKey{1, 10}));
}

TEST(StoreState, ResumeEndsEveryOtherAttemptOfOlderEpochs) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  PreparedEntry shard = f.Prepared({1, 20}, 0);
  f.Do(shard);
  f.Do(EpochEntry{kJob, 2, 2, "a"});
  StoreState::Change change = f.Do(ResumeEntry{kJob, 2, CheckpointKey{1, 10}, {}});
  EXPECT_EQ(change.freed.size(), 2u) << "payload and manifest; the layout has another user";
  EXPECT_EQ(f.state.FindShard(Fixture::AttemptOf({1, 20}), 0), nullptr);
  EXPECT_TRUE(f.Refuses(shard));
  CommitEntry late = f.Commit({1, 20});
  late.adopted = true;
  EXPECT_TRUE(f.Refuses(late));
}

TEST(StoreState, ALayoutLivesAsLongAsAShardRefersToIt) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  f.Save({1, 20});
  EXPECT_EQ(f.Do(DeleteEntry{kJob, {1, 10}}).freed.size(), 5u);
  EXPECT_NE(f.state.FindLayout(Fixture::LayoutOf(0)), nullptr);
  EXPECT_EQ(f.Do(DeleteEntry{kJob, {1, 20}}).freed.size(), 7u) << "both layouts go too";
  EXPECT_EQ(f.state.FindLayout(Fixture::LayoutOf(0)), nullptr);
  EXPECT_TRUE(f.state.LiveRuns().empty());
}

TEST(StoreState, ASecondCopyOfALayoutIsFreeAtOnce) {
  Fixture f;
  f.Start();
  f.Do(f.Prepared({1, 10}, 0));
  format::Run second = f.NextRun();
  StoreState::Change change = f.Do(LayoutEntry{Fixture::LayoutOf(0), {second, 10, Digest{}}});
  EXPECT_EQ(change.freed, std::vector<format::Run>{second});
}

TEST(StoreState, RefusesAnExtentWithTwoOwners) {
  Fixture f;
  f.Start();
  PreparedEntry first = f.Prepared({1, 10}, 0);
  f.Do(first);
  PreparedEntry second = f.Prepared({1, 10}, 1);
  second.runs = {{0, first.runs[0].offset - 4096, 8192}};
  EXPECT_TRUE(f.Refuses(second));
  second.runs = first.runs;
  EXPECT_TRUE(f.Refuses(second));
}

TEST(StoreState, RefusesWhatCannotHaveHappened) {
  Fixture f;
  f.Start();
  EXPECT_TRUE(f.Refuses(JobEntry{kJob, "team", "other"}));
  EXPECT_TRUE(f.Refuses(JobEntry{Rng(9).NewId(), "team", "gpt"}));
  EXPECT_TRUE(f.Refuses(EpochEntry{kJob, 1, 2, "a"}));
  EXPECT_TRUE(f.Refuses(ResumeEntry{kJob, 1, std::nullopt, {}}));
  EXPECT_TRUE(f.Refuses(f.Commit({1, 10}))) << "no shards";
  f.Do(f.Prepared({1, 10}, 0));
  EXPECT_TRUE(f.Refuses(f.Commit({1, 10}))) << "one of two shards";
  f.Do(f.Prepared({1, 10}, 1));
  f.Do(f.Commit({1, 10}));
  EXPECT_TRUE(f.Refuses(f.Commit({1, 10}))) << "twice";
  EXPECT_TRUE(f.Refuses(AbortEntry{kJob, {1, 10}, Fixture::AttemptOf({1, 10}), "late"}));
  f.Do(PinEntry{kJob, {1, 10}, true, "paper"});
  EXPECT_TRUE(f.Refuses(DeleteEntry{kJob, {1, 10}}));
  EXPECT_TRUE(f.Refuses(DeleteEntry{kJob, {1, 11}}));
}

TEST(StoreState, AFailedStepStaysFailedAndADeletedOneDeleted) {
  Fixture f;
  f.Start();
  PreparedEntry shard = f.Prepared({1, 10}, 0);
  f.Do(shard);
  f.Do(AbortEntry{kJob, {1, 10}, Fixture::AttemptOf({1, 10}), "rank 1 died"});
  EXPECT_TRUE(f.Refuses(shard));
  f.Save({1, 20});
  f.Save({1, 30});
  f.Do(DeleteEntry{kJob, {1, 20}});
  EXPECT_FALSE(f.job().over.at({1, 10}).committed);
  EXPECT_TRUE(f.job().over.at({1, 20}).committed);
  EXPECT_TRUE(f.Refuses(f.Prepared({1, 20}, 0)));
}

TEST(StoreState, RowsOfTheFirstVersionAreUnderstood) {
  for (const char* reason : {"deleted", "rank 1 died"}) {
    OverRow row{.end = {kJob, {1, 10}, Fixture::AttemptOf({1, 10}), reason}};
    row.committed = std::string_view(reason) == "deleted";
    ByteWriter first;
    first.U8(1);
    first.Blob(format::EncodeEntry(row.end));
    std::string key = KeyOf(row);
    auto decoded = DecodeRow(ViewOf(key), first.view());
    ASSERT_TRUE(decoded.has_value()) << StatusOf(decoded);
    EXPECT_EQ(std::get<OverRow>(*decoded), row);
    // One of a newer build is left alone, not taken for damage.
    Bytes newer = Bytes(first.view().begin(), first.view().end());
    newer[0] = 9;
    EXPECT_EQ(StatusOf(DecodeRow(ViewOf(key), newer)).code(), Code::kUnimplemented);
  }
}

TEST(StoreState, RemembersABoundedNumberOfFailures) {
  Fixture f;
  f.Start();
  for (uint64_t step = 1; step <= kAbortsRememberedMax + 10; ++step) {
    f.Do(AbortEntry{kJob, {1, step}, Fixture::AttemptOf({1, step}), "x"});
  }
  EXPECT_EQ(f.job().over.size(), kAbortsRememberedMax);
  EXPECT_TRUE(f.job().over.contains({1, kAbortsRememberedMax + 10}));
  f.NewEpoch(2, std::nullopt);
  EXPECT_TRUE(f.job().over.empty()) << "an older epoch is fenced anyway";
}

TEST(StoreState, RowsRebuildTheSameState) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  f.Save({1, 20});
  f.Do(PinEntry{kJob, {1, 10}, true, "paper"});
  f.Do(MarkEntry{kJob, {1, 20}, Mark::kPoisoned, "nan"});
  f.Do(AbortEntry{kJob, {1, 30}, Fixture::AttemptOf({1, 30}), "x"});
  f.NewEpoch(2, CheckpointKey{1, 10});
  f.Do(f.Prepared({2, 5}, 1));
  EXPECT_EQ(f.rows, f.state.Rows());
  StoreState rebuilt;
  for (const auto& [key, value] : f.rows) {
    Result<Row> row = DecodeRow(ViewOf(key), ViewOf(value));
    ASSERT_TRUE(row.has_value()) << StatusOf(row);
    ASSERT_EQ(rebuilt.LoadRow(*row), OkStatus());
  }
  ASSERT_EQ(rebuilt.FinishLoad(), OkStatus());
  EXPECT_EQ(rebuilt.Rows(), f.state.Rows());
  EXPECT_EQ(rebuilt.LiveRuns(), f.state.LiveRuns());
}

TEST(StoreState, ARebuildNoticesAMissingShardRow) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  StoreState rebuilt;
  bool dropped = false;
  for (const auto& [key, value] : f.rows) {
    if (key[0] == 's' && !dropped) {
      dropped = true;
      continue;
    }
    ASSERT_EQ(rebuilt.LoadRow(*DecodeRow(ViewOf(key), ViewOf(value))), OkStatus());
  }
  EXPECT_EQ(rebuilt.FinishLoad().code(), Code::kDataLoss);
}

TEST(StoreState, ADamagedRowIsNoticed) {
  Fixture f;
  f.Start();
  f.Save({1, 10});
  for (const auto& [key, value] : f.rows) {
    std::string cut = value.substr(0, value.size() - 1);
    EXPECT_FALSE(DecodeRow(ViewOf(key), ViewOf(cut)).has_value());
    std::string other = key;
    other.back() ^= 1;
    EXPECT_FALSE(DecodeRow(ViewOf(other), ViewOf(value)).has_value());
  }
}

}  // namespace
}  // namespace reprise::lifecycle
