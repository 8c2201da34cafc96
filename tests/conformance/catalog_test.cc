// The contract of Catalog (server/catalog/catalog.h), kept by MemoryCatalog and RocksdbCatalog.
//
// A fixture knows how to open its catalog, and how to take the machine away under it: the memory
// model drops unflushed groups, RocksDB's directory is copied while it is open and unflushed.
#include "server/catalog/catalog.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "core/base/log.h"
#include "core/base/random.h"
#include "server/catalog/memory_catalog.h"
#ifdef REPRISE_WITH_ROCKSDB
#include "server/catalog/rocksdb_catalog.h"
#endif

namespace reprise::catalog {
namespace {

namespace fs = std::filesystem;
using Rows = std::map<std::string, std::string>;

class Fixture {
 public:
  virtual ~Fixture() = default;
  virtual Result<std::unique_ptr<Catalog>> Open() = 0;
  // Power cut while `catalog` is open; the next Open finds what survived.
  virtual void Crash(std::unique_ptr<Catalog> catalog) = 0;
  Loop& loop() { return loop_; }

 private:
  SystemClock clock_;
  Loop loop_{clock_};
};

class MemoryFixture final : public Fixture {
 public:
  Result<std::unique_ptr<Catalog>> Open() override { return MemoryCatalog::Open(loop(), disk_); }
  void Crash(std::unique_ptr<Catalog> catalog) override {
    catalog.reset();
    disk_.Crash(rng_.Below(disk_.unflushed_count() + 1));
  }

 private:
  MemoryCatalogDisk disk_;
  Rng rng_{7};
};

#ifdef REPRISE_WITH_ROCKSDB
class RocksdbFixture final : public Fixture {
 public:
  RocksdbFixture() {
    static int count = 0;
    root_ = fs::path("build") / fmt::format("catalog_test.{}.{}", getpid(), count++);
    fs::create_directories(root_);
  }
  ~RocksdbFixture() override { fs::remove_all(root_); }
  Result<std::unique_ptr<Catalog>> Open() override {
    return loop().RunTask(RocksdbCatalog::Open(loop(), path()));
  }
  void Crash(std::unique_ptr<Catalog> catalog) override {
    fs::path copy = root_ / "copy";
    while (!CopyUndisturbed(copy)) fs::remove_all(copy);
    loop().RunTask(catalog->Close());
    catalog.reset();
    fs::remove_all(path());
    fs::rename(copy, path());
  }
  std::string path() const { return (root_ / "index").string(); }

 private:
  // Sizes of the files that say which tables count.
  std::map<std::string, uint64_t> Manifests() const {
    std::map<std::string, uint64_t> sizes;
    for (const auto& file : fs::directory_iterator(path())) {
      std::string name = file.path().filename().string();
      if (name.starts_with("MANIFEST")) sizes.emplace(name, file.file_size());
    }
    return sizes;
  }
  // False when a compaction in the background changed the set of tables meanwhile: what was copied
  // is then no state that a crash could have left.
  bool CopyUndisturbed(const fs::path& target) {
    auto before = Manifests();
    std::error_code error;
    fs::copy(path(), target, fs::copy_options::recursive, error);
    return !error && Manifests() == before;
  }

  fs::path root_;
};
#endif

std::unique_ptr<Fixture> MakeFixture([[maybe_unused]] const std::string& name) {
#ifdef REPRISE_WITH_ROCKSDB
  if (name == "rocksdb") return std::make_unique<RocksdbFixture>();
#endif
  return std::make_unique<MemoryFixture>();
}

Mark MarkOf(uint64_t seq) { return {seq, DigestOf(ViewOf(fmt::format("group {}", seq)))}; }

class CatalogTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { Reopen(); }
  void TearDown() override {
    if (catalog_ != nullptr) Close();
  }
  void Close() {
    loop().RunTask(catalog_->Close());
    catalog_.reset();
  }
  void Reopen() {
    if (catalog_ != nullptr) Close();
    Result<std::unique_ptr<Catalog>> opened = fixture_->Open();
    ASSERT_TRUE(opened.has_value()) << opened.error();
    catalog_ = std::move(*opened);
  }
  void CrashAndReopen() {
    fixture_->Crash(std::move(catalog_));
    Reopen();
  }
  Loop& loop() { return fixture_->loop(); }
  Status Apply(uint64_t seq, std::vector<RowChange> changes) {
    return loop().RunTask(catalog_->Apply(MarkOf(seq), std::move(changes)));
  }
  Status Flush() { return loop().RunTask(catalog_->Flush()); }
  Rows AllRows() {
    Rows rows;
    std::string previous;
    Status scanned = loop().RunTask(catalog_->Scan([&](ByteView key, ByteView value) {
      std::string name(TextOf(key));
      EXPECT_TRUE(rows.empty() || previous < name) << "rows come in key order";
      previous = name;
      rows.emplace(name, TextOf(value));
      return OkStatus();
    }));
    EXPECT_TRUE(scanned.ok()) << scanned;
    return rows;
  }

  std::unique_ptr<Fixture> fixture_ = MakeFixture(GetParam());
  std::unique_ptr<Catalog> catalog_;
};

TEST_P(CatalogTest, IsEmptyWhenNew) {
  EXPECT_EQ(catalog_->applied(), Mark{});
  EXPECT_EQ(catalog_->flushed(), Mark{});
  EXPECT_TRUE(AllRows().empty());
  EXPECT_TRUE(Flush().ok());
}

TEST_P(CatalogTest, PutsAndRemovesRowsInOrder) {
  ASSERT_TRUE(Apply(1, {{"b", "2"}, {"a", "1"}, {"c", "3"}}).ok());
  ASSERT_TRUE(Apply(2, {{"b", std::nullopt}, {"a", "one"}, {"missing", std::nullopt}}).ok());
  ASSERT_TRUE(Apply(3, {{"d", "x"}, {"d", std::nullopt}, {"e", "y"}, {"e", "z"}}).ok());
  EXPECT_EQ(AllRows(), (Rows{{"a", "one"}, {"c", "3"}, {"e", "z"}}));
  EXPECT_EQ(catalog_->applied(), MarkOf(3));
}

TEST_P(CatalogTest, KeepsBytesOfAnyKind) {
  std::string zeros("\0\0\x01", 3);
  std::string high = "\xff\xfe";
  ASSERT_TRUE(Apply(1, {{zeros, high}, {high, zeros}, {"", "empty key"}, {"m", ""}}).ok());
  EXPECT_EQ(AllRows(), (Rows{{"", "empty key"}, {zeros, high}, {"m", ""}, {high, zeros}}));
}

TEST_P(CatalogTest, AGroupWithoutRowsMovesTheMark) {
  ASSERT_TRUE(Apply(5, {}).ok());
  EXPECT_EQ(catalog_->applied(), MarkOf(5));
  ASSERT_TRUE(Flush().ok());
  Reopen();
  EXPECT_EQ(catalog_->applied(), MarkOf(5));
}

TEST_P(CatalogTest, KnowsWhatIsFlushed) {
  ASSERT_TRUE(Apply(1, {{"a", "1"}}).ok());
  EXPECT_EQ(catalog_->flushed(), Mark{});
  ASSERT_TRUE(Flush().ok());
  EXPECT_EQ(catalog_->flushed(), MarkOf(1));
  ASSERT_TRUE(Apply(2, {{"a", "2"}}).ok());
  EXPECT_EQ(catalog_->flushed(), MarkOf(1));
}

TEST_P(CatalogTest, HoldsAfterReopeningWhatWasFlushed) {
  ASSERT_TRUE(Apply(1, {{"a", "1"}, {"b", "2"}}).ok());
  ASSERT_TRUE(Apply(2, {{"a", std::nullopt}}).ok());
  ASSERT_TRUE(Flush().ok());
  Reopen();
  EXPECT_EQ(catalog_->applied(), MarkOf(2));
  EXPECT_EQ(catalog_->flushed(), MarkOf(2));
  EXPECT_EQ(AllRows(), (Rows{{"b", "2"}}));
}

TEST_P(CatalogTest, ConcurrentAppliesTakeEffectInTheOrderOfTheCalls) {
  int running = 50;
  for (uint64_t seq = 1; seq <= 50; ++seq) {
    std::vector<RowChange> changes{{"last", fmt::format("{}", seq)}};
    loop().Spawn(
        [](Catalog& catalog, Mark mark, std::vector<RowChange> rows, int& left) -> Task<void> {
          Status applied = co_await catalog.Apply(mark, std::move(rows));
          EXPECT_TRUE(applied.ok()) << applied;
          --left;
        }(*catalog_, MarkOf(seq), std::move(changes), running));
  }
  loop().RunUntil([&] { return running == 0; });
  EXPECT_EQ(AllRows(), (Rows{{"last", "50"}}));
}

TEST_P(CatalogTest, AFlushCoversWhatWasAppliedBeforeItAndNotMore) {
  bool flushed = false;
  bool applied = false;
  ASSERT_TRUE(Apply(1, {{"a", "1"}}).ok());
  loop().Spawn([](Catalog& catalog, bool& done) -> Task<void> {
    EXPECT_TRUE((co_await catalog.Flush()).ok());
    EXPECT_EQ(catalog.flushed(), MarkOf(1));
    done = true;
  }(*catalog_, flushed));
  loop().Spawn([](Catalog& catalog, bool& done) -> Task<void> {
    std::vector<RowChange> rows{{"a", "2"}};
    EXPECT_TRUE((co_await catalog.Apply(MarkOf(2), std::move(rows))).ok());
    done = true;
  }(*catalog_, applied));
  loop().RunUntil([&] { return flushed && applied; });
  EXPECT_EQ(catalog_->flushed(), MarkOf(1));
}

TEST_P(CatalogTest, AScanEndsWithTheCallersFailure) {
  ASSERT_TRUE(Apply(1, {{"a", "1"}, {"b", "2"}, {"c", "3"}}).ok());
  int seen = 0;
  Status scanned = loop().RunTask(catalog_->Scan([&](ByteView, ByteView) {
    return ++seen == 2 ? Status(Code::kDataLoss, "enough") : OkStatus();
  }));
  EXPECT_EQ(scanned.code(), Code::kDataLoss);
  EXPECT_EQ(seen, 2);
  EXPECT_EQ(AllRows().size(), 3u);
}

TEST_P(CatalogTest, ScansMoreRowsThanOneBatch) {
  Rows expected;
  for (uint64_t seq = 1; seq <= 10; ++seq) {
    std::vector<RowChange> changes;
    for (int i = 0; i < 700; ++i) {
      std::string key = fmt::format("{:06}", seq * 10'000 + static_cast<uint64_t>(i));
      std::string value(400, static_cast<char>('a' + seq));
      changes.push_back({key, value});
      expected.emplace(key, value);
    }
    ASSERT_TRUE(Apply(seq, std::move(changes)).ok());
    if (seq == 5) ASSERT_TRUE(Flush().ok());
  }
  EXPECT_EQ(AllRows(), expected);
}

// Random groups, flushes and crashes against a record of every state: after a crash the catalog
// holds the state after one whole group, at or beyond the last flush.
TEST_P(CatalogTest, ACrashLeavesTheStateAfterSomeGroupAtOrBeyondTheLastFlush) {
  Rng rng(42);
  std::map<uint64_t, Rows> states{{0, {}}};
  uint64_t seq = 0;
  for (int life = 0; life < 12; ++life) {
    for (uint64_t steps = rng.Below(40); steps > 0; --steps) {
      std::vector<RowChange> changes;
      Rows next = states.at(seq);
      for (uint64_t count = rng.Below(6); count > 0; --count) {
        std::string key = fmt::format("k{}", rng.Below(20));
        if (rng.Chance(1, 3)) {
          changes.push_back({key, std::nullopt});
          next.erase(key);
        } else {
          std::string value = fmt::format("{}", rng.Next());
          changes.push_back({key, value});
          next.insert_or_assign(key, value);
        }
      }
      ASSERT_TRUE(Apply(++seq, std::move(changes)).ok());
      states.insert_or_assign(seq, std::move(next));
      if (rng.Chance(1, 8)) ASSERT_TRUE(Flush().ok());
    }
    uint64_t flushed = catalog_->flushed().seq;
    CrashAndReopen();
    uint64_t survived = catalog_->applied().seq;
    ASSERT_GE(survived, flushed);
    ASSERT_LE(survived, seq);
    ASSERT_EQ(catalog_->applied(), survived == 0 ? Mark{} : MarkOf(survived));
    ASSERT_EQ(catalog_->flushed(), catalog_->applied());
    ASSERT_EQ(AllRows(), states.at(survived)) << "after group " << survived;
    seq = survived;
  }
}

std::vector<std::string> Implementations() {
#ifdef REPRISE_WITH_ROCKSDB
  return {"memory", "rocksdb"};
#else
  return {"memory"};
#endif
}
INSTANTIATE_TEST_SUITE_P(All, CatalogTest, testing::ValuesIn(Implementations()),
                         [](const auto& info) { return info.param; });

// --- the model's own faults

TEST(MemoryCatalogTest, EveryAppliedPrefixCanSurviveACrash) {
  for (size_t surviving = 0; surviving <= 4; ++surviving) {
    SystemClock clock;
    Loop loop(clock);
    MemoryCatalogDisk disk;
    std::unique_ptr<Catalog> catalog = MemoryCatalog::Open(loop, disk);
    for (uint64_t seq = 1; seq <= 4; ++seq) {
      std::vector<RowChange> changes{{"k", fmt::format("{}", seq)}};
      ASSERT_TRUE(loop.RunTask(catalog->Apply(MarkOf(seq), changes)).ok());
    }
    ASSERT_EQ(disk.unflushed_count(), 4u);
    catalog.reset();
    disk.Crash(surviving);
    catalog = MemoryCatalog::Open(loop, disk);
    EXPECT_EQ(catalog->applied().seq, surviving);
    EXPECT_EQ(disk.VisibleRows().size(), surviving == 0 ? 0u : 1u);
  }
}

TEST(MemoryCatalogTest, AfterAFailureItMustBeReopened) {
  SystemClock clock;
  Loop loop(clock);
  MemoryCatalogDisk disk;
  std::unique_ptr<Catalog> catalog = MemoryCatalog::Open(loop, disk);
  ASSERT_TRUE(loop.RunTask(catalog->Apply(MarkOf(1), {})).ok());
  disk.FailFlushes(1);
  EXPECT_EQ(loop.RunTask(catalog->Flush()).code(), Code::kUnavailable);
  EXPECT_EQ(loop.RunTask(catalog->Flush()).code(), Code::kUnavailable);
  EXPECT_EQ(loop.RunTask(catalog->Apply(MarkOf(2), {})).code(), Code::kUnavailable);
  EXPECT_EQ(catalog->flushed(), Mark{});
  catalog = MemoryCatalog::Open(loop, disk);
  EXPECT_TRUE(loop.RunTask(catalog->Flush()).ok());
}

#ifdef REPRISE_WITH_ROCKSDB
// --- damage to RocksDB's files: an error, or an honest older state; never wrong rows

class RocksdbDamageTest : public testing::Test {
 protected:
  // An index of 40 groups, flushed often, closed.
  void SetUp() override {
    std::unique_ptr<Catalog> catalog = std::move(*fixture_.Open());
    for (uint64_t seq = 1; seq <= 40; ++seq) {
      std::vector<RowChange> changes{{fmt::format("k{}", seq % 7), fmt::format("value {}", seq)}};
      Rows rows = states_.empty() ? Rows{} : states_.rbegin()->second;
      rows.insert_or_assign(changes[0].key, *changes[0].value);
      states_.emplace(seq, rows);
      ASSERT_TRUE(fixture_.loop().RunTask(catalog->Apply(MarkOf(seq), changes)).ok());
      if (seq % 10 == 0) ASSERT_TRUE(fixture_.loop().RunTask(catalog->Flush()).ok());
    }
    fixture_.loop().RunTask(catalog->Close());
    fs::copy(fixture_.path(), Saved(), fs::copy_options::recursive);
  }
  std::string Saved() const { return fixture_.path() + ".saved"; }
  void Restore() {
    ASSERT_TRUE(RocksdbCatalog::Destroy(fixture_.path()).ok());
    fs::copy(Saved(), fixture_.path(), fs::copy_options::recursive);
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& file : fs::directory_iterator(Saved())) {
      names.push_back(file.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  // Opens and scans. OK: the rows are those after group `applied`.
  Status OpenAndCheck(uint64_t* applied) {
    Result<std::unique_ptr<Catalog>> opened = fixture_.Open();
    if (!opened.has_value()) return opened.error();
    Rows rows;
    Status scanned = fixture_.loop().RunTask((*opened)->Scan([&](ByteView key, ByteView value) {
      rows.emplace(TextOf(key), TextOf(value));
      return OkStatus();
    }));
    *applied = (*opened)->applied().seq;
    fixture_.loop().RunTask((*opened)->Close());
    if (scanned.ok()) {
      EXPECT_EQ(rows, *applied == 0 ? Rows{} : states_.at(*applied)) << "silently wrong rows";
    }
    return scanned;
  }
  static bool IsEssential(const std::string& name) {
    return name.ends_with(".sst") || name.starts_with("MANIFEST") || name == "CURRENT";
  }

  RocksdbFixture fixture_;
  std::map<uint64_t, Rows> states_;
};

TEST_F(RocksdbDamageTest, AMissingFileIsDataLoss) {
  for (const std::string& name : Names()) {
    if (!IsEssential(name)) continue;
    Restore();
    fs::remove(fixture_.path() + "/" + name);
    uint64_t applied = 0;
    Status status = OpenAndCheck(&applied);
    EXPECT_EQ(status.code(), Code::kDataLoss) << name << ": " << status;
    EXPECT_NE(status.message().find("rebuilt from the journal"), std::string::npos) << status;
  }
}

TEST_F(RocksdbDamageTest, ATruncatedFileIsAnErrorOrAnHonestOlderState) {
  for (const std::string& name : Names()) {
    if (!IsEssential(name)) continue;
    uint64_t size = fs::file_size(Saved() + "/" + name);
    for (uint64_t keep : {uint64_t{0}, size / 3, size / 2, size - 1}) {
      Restore();
      fs::resize_file(fixture_.path() + "/" + name, keep);
      uint64_t applied = 0;
      Status status = OpenAndCheck(&applied);
      if (!name.starts_with("MANIFEST")) EXPECT_FALSE(status.ok()) << name << " cut to " << keep;
    }
  }
}

TEST_F(RocksdbDamageTest, AFlippedBitIsAnErrorOrHarmless) {
  Rng rng(3);
  uint64_t errors = 0;
  for (const std::string& name : Names()) {
    if (!name.ends_with(".sst") && !name.starts_with("MANIFEST")) continue;
    uint64_t size = fs::file_size(Saved() + "/" + name);
    for (int i = 0; i < 8; ++i) {
      Restore();
      std::fstream file(fixture_.path() + "/" + name,
                        std::ios::in | std::ios::out | std::ios::binary);
      auto place = static_cast<std::streamoff>(rng.Below(size));
      file.seekg(place);
      char byte = static_cast<char>(file.get());
      file.seekp(place);
      file.put(static_cast<char>(byte ^ (1 << rng.Below(8))));
      file.close();
      uint64_t applied = 0;
      if (!OpenAndCheck(&applied).ok()) ++errors;
    }
  }
  EXPECT_GT(errors, 5u);
}

TEST_F(RocksdbDamageTest, DestroyMakesRoomForAFreshIndex) {
  fs::remove(fixture_.path() + "/CURRENT");
  ASSERT_TRUE(RocksdbCatalog::Destroy(fixture_.path()).ok());
  uint64_t applied = 99;
  EXPECT_TRUE(OpenAndCheck(&applied).ok());
  EXPECT_EQ(applied, 0u);
  EXPECT_TRUE(RocksdbCatalog::Destroy(fixture_.path() + "/not there").ok());
}

TEST_F(RocksdbDamageTest, ASecondOpenerIsRefused) {
  std::unique_ptr<Catalog> first = std::move(*fixture_.Open());
  Result<std::unique_ptr<Catalog>> second = fixture_.Open();
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), Code::kUnavailable);
  fixture_.loop().RunTask(first->Close());
}

TEST_F(RocksdbDamageTest, GoingAwayWithoutCloseEndsItsThread) {
  std::unique_ptr<Catalog> catalog = std::move(*fixture_.Open());
  fixture_.loop().Spawn(
      [](Catalog& target) -> Task<void> { (void)co_await target.Apply(MarkOf(41), {}); }(*catalog));
  fixture_.loop().RunOnce(false);
  fixture_.loop().DestroyAll();
  catalog.reset();
  uint64_t applied = 0;
  EXPECT_TRUE(OpenAndCheck(&applied).ok());
  EXPECT_EQ(applied, 40u);
}
#endif

}  // namespace
}  // namespace reprise::catalog
