#include "reprise/c.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "reprise/status.h"
#include "tests/unit/client/fake_daemon.h"

namespace reprise::client::test {
namespace {

constexpr auto kInvalid = static_cast<reprise_code>(Code::kInvalidArgument);
constexpr auto kPrecondition = static_cast<reprise_code>(Code::kFailedPrecondition);

class CApi : public testing::Test {
 protected:
  void SetUp() override {
    socket_ = daemon_.socket_path();
    options_.struct_size = sizeof(options_);
    options_.uri = "reprise://tenant/job";
    options_.world = 1;
    options_.launcher = "test";
    options_.socket = socket_.c_str();
    options_.connect_timeout_s = 10;
    options_.stall_budget_s = 5;
    ASSERT_EQ(reprise_open(&options_, &client_), 0) << reprise_error(client_);
    reprise_run run{.struct_size = sizeof(run)};
    ASSERT_EQ(reprise_register(client_, 10, &run), 0) << reprise_error(client_);
    EXPECT_EQ(run.epoch, 5u);
    EXPECT_EQ(run.has_checkpoint, 0);
    EXPECT_STREQ(run.skipped, "");
  }
  void TearDown() override { reprise_close(client_, 5, nullptr, 0); }

  reprise_piece Piece(std::vector<uint8_t>& memory) {
    shape_ = {memory.size()};
    boxes_ = {0, memory.size()};
    reprise_piece piece{};
    piece.struct_size = sizeof(piece);
    piece.dtype = 2;
    piece.scope = 1;
    piece.world_policy = 1;
    piece.name = "x";
    piece.ndim = 1;
    piece.box_count = 1;
    piece.global_shape = shape_.data();
    piece.boxes = boxes_.data();
    piece.data = memory.data();
    piece.data_bytes = memory.size();
    piece.source_rank = -1;
    return piece;
  }
  // The error of starting a save of `piece`; the save must not start.
  std::string Refused(const reprise_piece& piece) {
    reprise_save* save = nullptr;
    EXPECT_EQ(reprise_save_start(client_, 1, &piece, 1, nullptr, &save), kInvalid);
    EXPECT_EQ(save, nullptr);
    return reprise_error(client_);
  }

  FakeDaemon daemon_;
  std::string socket_;
  reprise_options options_{};
  reprise_client* client_ = nullptr;
  std::vector<uint64_t> shape_;
  std::vector<uint64_t> boxes_;
};

TEST_F(CApi, SavesAndReadsBack) {
  std::vector<uint8_t> memory(10'000, 7);
  reprise_piece piece = Piece(memory);
  reprise_save_options save_options{sizeof(save_options), R"({"a":1})", 3};
  reprise_save* save = nullptr;
  ASSERT_EQ(reprise_save_start(client_, 3, &piece, 1, &save_options, &save), 0);
  EXPECT_EQ(reprise_save_wait_copied(save, 10), 0);
  EXPECT_EQ(reprise_save_wait(save, 3, 10), 0) << reprise_save_error(save);
  reprise_save_state state{.struct_size = sizeof(state)};
  reprise_save_get_state(save, &state);
  EXPECT_EQ(state.phase, 4);
  EXPECT_EQ(state.step, 3u);
  EXPECT_EQ(state.bytes, 10'000u);
  reprise_save_release(save);

  reprise_reader* reader = nullptr;
  ASSERT_EQ(reprise_reader_open(client_, 3, -1, 10, &reader), 0) << reprise_error(client_);
  EXPECT_NE(std::string(reprise_reader_items(reader)).find(R"("metadata":{"a":1})"),
            std::string::npos);
  std::vector<uint8_t> back(10'000, 0);
  piece.data = back.data();
  EXPECT_EQ(reprise_reader_read(reader, &piece, 1, 10), 0) << reprise_reader_error(reader);
  EXPECT_EQ(back, memory);
  reprise_read_stats stats{.struct_size = sizeof(stats)};
  reprise_reader_get_stats(reader, &stats);
  EXPECT_EQ(stats.bytes_nvme, 10'000u);
  reprise_reader_close(reader);
}

TEST_F(CApi, MalformedPiecesAreNamed) {
  std::vector<uint8_t> memory(100);
  reprise_piece piece = Piece(memory);
  piece.name = nullptr;
  EXPECT_NE(Refused(piece).find("name is NULL"), std::string::npos);
  piece = Piece(memory);
  piece.dtype = 99;
  EXPECT_NE(Refused(piece).find("dtype 99"), std::string::npos);
  piece = Piece(memory);
  piece.scope = 0;
  EXPECT_NE(Refused(piece).find("scope"), std::string::npos);
  piece = Piece(memory);
  piece.flags = 64;
  EXPECT_NE(Refused(piece).find("flags"), std::string::npos);
  piece = Piece(memory);
  piece.ndim = 1000;
  EXPECT_NE(Refused(piece).find("axes"), std::string::npos);
  piece = Piece(memory);
  piece.boxes = nullptr;
  EXPECT_NE(Refused(piece).find("boxes is NULL"), std::string::npos);
  piece = Piece(memory);
  piece.global_shape = nullptr;
  EXPECT_NE(Refused(piece).find("global_shape is NULL"), std::string::npos);
  piece = Piece(memory);
  piece.data = nullptr;
  EXPECT_NE(Refused(piece).find("null pointer"), std::string::npos);
  piece = Piece(memory);
  piece.data_bytes = 99;
  EXPECT_NE(Refused(piece).find("99 bytes"), std::string::npos);
  piece = Piece(memory);
  std::vector<uint64_t> overlapping{0, 60, 50, 40};
  piece.boxes = overlapping.data();
  piece.box_count = 2;
  EXPECT_NE(Refused(piece).find("overlap"), std::string::npos);
}

TEST_F(CApi, StructsOfAnotherSizeAreRefusedOrUsedAsStride) {
  std::vector<uint8_t> memory(100);
  reprise_piece piece = Piece(memory);
  piece.struct_size = 8;
  EXPECT_NE(Refused(piece).find("struct_size is 8"), std::string::npos);
  // A later version's larger struct: its known part is read, its size is the array's stride.
  struct Larger {
    reprise_piece known;
    uint64_t unknown;
  };
  std::vector<Larger> pieces(2, Larger{Piece(memory), ~0ull});
  pieces[0].known.struct_size = pieces[1].known.struct_size = sizeof(Larger);
  pieces[1].known.name = "y";
  reprise_save* save = nullptr;
  ASSERT_EQ(reprise_save_start(client_, 1, &pieces[0].known, 2, nullptr, &save), 0)
      << reprise_error(client_);
  EXPECT_EQ(reprise_save_wait_copied(save, 10), 0);
  reprise_save_release(save);
  pieces[1].known.struct_size = sizeof(reprise_piece);
  EXPECT_EQ(reprise_save_start(client_, 2, &pieces[0].known, 2, nullptr, &save), kInvalid);
  reprise_options small = options_;
  small.struct_size = 4;
  reprise_client* other = nullptr;
  EXPECT_EQ(reprise_open(&small, &other), kInvalid);
  EXPECT_NE(std::string(reprise_error(other)).find("struct_size"), std::string::npos);
  EXPECT_EQ(reprise_close(other, 0, nullptr, 0), 0);
}

TEST_F(CApi, NullHandlesAndPointersAreErrorsNotCrashes) {
  EXPECT_EQ(reprise_open(&options_, nullptr), kInvalid);
  reprise_client* other = nullptr;
  EXPECT_EQ(reprise_open(nullptr, &other), kInvalid);
  EXPECT_EQ(reprise_register(other, 1, nullptr), kInvalid);
  reprise_run run{.struct_size = sizeof(run)};
  EXPECT_EQ(reprise_register(other, 1, &run), kPrecondition);
  reprise_close(other, 0, nullptr, 0);
  EXPECT_EQ(reprise_register(nullptr, 1, &run), kInvalid);
  EXPECT_EQ(reprise_save_start(client_, 1, nullptr, 1, nullptr, nullptr), kInvalid);
  reprise_save* save = nullptr;
  EXPECT_EQ(reprise_save_start(client_, 1, nullptr, 1, nullptr, &save), kInvalid);
  EXPECT_EQ(reprise_save_wait(nullptr, 3, 1), kInvalid);
  EXPECT_EQ(reprise_save_wait_copied(nullptr, 1), kInvalid);
  reprise_save_abort(nullptr, "x");
  reprise_save_get_state(nullptr, nullptr);
  reprise_save_release(nullptr);
  EXPECT_EQ(reprise_reader_open(client_, 1, -1, 1, nullptr), kInvalid);
  EXPECT_EQ(reprise_reader_read(nullptr, nullptr, 0, 1), kInvalid);
  reprise_reader_get_stats(nullptr, nullptr);
  reprise_reader_close(nullptr);
  EXPECT_STREQ(reprise_reader_items(nullptr), "");
  EXPECT_NE(reprise_error(nullptr), nullptr);
  EXPECT_NE(reprise_save_error(nullptr), nullptr);
  EXPECT_EQ(reprise_close(nullptr, 0, nullptr, 0), 0);
}

TEST_F(CApi, CodesHaveNamesAndTheVersionIsKnown) {
  EXPECT_STREQ(reprise_code_name(0), "OK");
  EXPECT_STREQ(reprise_code_name(18), "FENCED");
  EXPECT_STREQ(reprise_code_name(-5), "UNKNOWN_CODE");
  EXPECT_STREQ(reprise_code_name(200), "UNKNOWN_CODE");
  EXPECT_STREQ(reprise_version(), "0.1.0");
}

TEST_F(CApi, CloseCopiesItsErrorText) {
  daemon_.Set([](auto& b) { b.refuse_begin = Status(Code::kAborted, "the disk is full"); });
  std::vector<uint8_t> memory(100);
  reprise_piece piece = Piece(memory);
  reprise_save* save = nullptr;
  ASSERT_EQ(reprise_save_start(client_, 1, &piece, 1, nullptr, &save), 0);
  reprise_save_release(save);
  char text[128];
  EXPECT_EQ(reprise_close(client_, 10, text, sizeof(text)),
            static_cast<reprise_code>(Code::kAborted));
  EXPECT_NE(std::string(text).find("the disk is full"), std::string::npos);
  client_ = nullptr;
}

TEST_F(CApi, AReaderOutlivesItsClientsHandle) {
  std::vector<uint8_t> memory(5000, 3);
  reprise_piece piece = Piece(memory);
  reprise_save* save = nullptr;
  ASSERT_EQ(reprise_save_start(client_, 3, &piece, 1, nullptr, &save), 0);
  ASSERT_EQ(reprise_save_wait(save, 3, 10), 0);
  reprise_reader* reader = nullptr;
  ASSERT_EQ(reprise_reader_open(client_, 3, -1, 10, &reader), 0);
  reprise_close(client_, 10, nullptr, 0);
  client_ = nullptr;
  EXPECT_EQ(reprise_save_wait(save, 3, 10), 0);
  reprise_save_release(save);
  EXPECT_EQ(reprise_reader_read(reader, &piece, 1, 10), 0) << reprise_reader_error(reader);
  reprise_reader_close(reader);
}

TEST_F(CApi, EveryCallFailsInAForkedChild) {
  std::vector<uint8_t> memory(100);
  reprise_piece piece = Piece(memory);
  reprise_save* save = nullptr;
  ASSERT_EQ(reprise_save_start(client_, 1, &piece, 1, nullptr, &save), 0);
  ASSERT_EQ(reprise_save_wait(save, 3, 10), 0);
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    reprise_save* other = nullptr;
    bool right = reprise_save_start(client_, 2, &piece, 1, nullptr, &other) == kPrecondition &&
                 reprise_save_wait(save, 3, 1) == kPrecondition &&
                 reprise_skip(client_, 4, "x") == kPrecondition &&
                 std::strstr(reprise_error(client_), "fork()") != nullptr &&
                 reprise_close(client_, 1, nullptr, 0) == kPrecondition;
    reprise_save_release(save);
    ::_exit(right ? 0 : 1);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_TRUE(WIFEXITED(how) && WEXITSTATUS(how) == 0);
  reprise_save_release(save);
}

}  // namespace
}  // namespace reprise::client::test
