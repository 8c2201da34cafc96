// The journal on real files, through the engine that REPRISE_IO names (or the one chosen by probe).
// What it promises about crashes is tested on the simulated disk (tests/unit/journal).
#include "server/journal/journal.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "core/base/log.h"

namespace reprise::journal {
namespace {

namespace fs = std::filesystem;

class RealJournalTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path("build") / fmt::format("journal_test.{}", getpid());
    fs::remove_all(root_);
    fs::create_directories(root_);
    options_ = {(root_ / "JOURNAL.0").string(), (root_ / "JOURNAL.1").string(), 64, {}, {}};
    options_.store.bytes.fill(9);
    Result<std::unique_ptr<Io>> io = CreateIo(loop_);
    if (!io.has_value()) GTEST_SKIP() << io.error();
    io_ = std::move(*io);
    Status created = loop_.RunTask(Journal::Create(*io_, options_));
    ASSERT_TRUE(created.ok()) << created;
  }
  void TearDown() override {
    io_.reset();
    fs::remove_all(root_);
  }
  Result<Journal::Recovered> Open(Mark applied = {}) {
    return loop_.RunTask(Journal::Open(*io_, options_, applied));
  }

  SystemClock clock_;
  Loop loop_{clock_};
  std::unique_ptr<Io> io_;
  fs::path root_;
  Options options_;
};

Task<void> AppendMany(Journal& journal, int client, int count, int& left) {
  for (int i = 0; i < count; ++i) {
    std::vector<format::Entry> entries{
        format::JobEntry{{}, "tenant", fmt::format("{}-{}", client, i)}};
    Result<Mark> mark = co_await journal.Append(std::move(entries));
    EXPECT_TRUE(mark.has_value()) << mark.error();
    if (mark.has_value()) journal.SetIndexed({mark->seq - 1, {}});
  }
  --left;
}

TEST_F(RealJournalTest, KeepsConcurrentAppendsOverSeveralLapsAndAReopening) {
  Result<Journal::Recovered> opened = Open();
  ASSERT_TRUE(opened.has_value()) << opened.error();
  int left = 8;
  for (int client = 0; client < 8; ++client) {
    loop_.Spawn(AppendMany(*opened->journal, client, 30, left));
  }
  loop_.RunUntil([&] { return left == 0; });
  Mark last = opened->journal->last();
  EXPECT_GE(last.seq, 30u);
  loop_.RunTask(opened->journal->Close());

  Result<Journal::Recovered> again = Open(last);
  ASSERT_TRUE(again.has_value()) << again.error();
  EXPECT_TRUE(again->replay.empty());
  EXPECT_EQ(again->journal->last(), last);
  EXPECT_TRUE(again->repairs.empty());
  loop_.RunTask(again->journal->Close());
}

TEST_F(RealJournalTest, RepairsACopyThatWasDamagedOnDisk) {
  Result<Journal::Recovered> opened = Open();
  ASSERT_TRUE(opened.has_value()) << opened.error();
  int left = 1;
  loop_.Spawn(AppendMany(*opened->journal, 0, 10, left));
  loop_.RunUntil([&] { return left == 0; });
  loop_.RunTask(opened->journal->Close());
  {
    std::fstream file(options_.path_b, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(5 * 4096 + 40);
    file.write("garbage", 7);
  }
  Result<Journal::Recovered> again = Open();
  ASSERT_TRUE(again.has_value()) << again.error();
  EXPECT_EQ(again->replay.size(), 10u);
  ASSERT_EQ(again->repairs.size(), 1u);
  EXPECT_NE(again->repairs[0].find("JOURNAL.1"), std::string::npos);
  loop_.RunTask(again->journal->Close());
}

TEST_F(RealJournalTest, AMissingJournalIsNotFoundAndAUsedOneIsNotOverwritten) {
  Result<Journal::Recovered> opened = Open();
  ASSERT_TRUE(opened.has_value()) << opened.error();
  int left = 1;
  loop_.Spawn(AppendMany(*opened->journal, 0, 1, left));
  loop_.RunUntil([&] { return left == 0; });
  loop_.RunTask(opened->journal->Close());
  EXPECT_EQ(loop_.RunTask(Journal::Create(*io_, options_)).code(), Code::kAlreadyExists);
  fs::remove(options_.path_a);
  fs::remove(options_.path_b);
  EXPECT_EQ(Open().error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace reprise::journal
