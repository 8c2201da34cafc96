// The contract of Io (core/io/io.h), run by every engine: io_uring, thread pool, simulated.
//
// With REPRISE_IO set to one of the real engines only that one runs (and, for uring, the simulated
// one); without it all three do. A kernel that forbids io_uring makes its cases skipped, visibly.
#include "core/io/io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/async/sync.h"
#include "core/base/aligned_buffer.h"
#include "core/base/random.h"
#include "core/io/buffer_pool.h"
#include "core/io/sim_io.h"
#include "core/io/thread_io.h"
#include "core/io/transfer.h"
#include "core/io/uring_io.h"

// ASSERT_TRUE for coroutines.
#define CO_ASSERT_TRUE(condition)        \
  if (!(condition)) {                    \
    ADD_FAILURE() << "not: " #condition; \
    co_return;                           \
  }
// The same for a Result, showing its error.
#define CO_ASSERT_OK(result)           \
  if (!(result).has_value()) {         \
    ADD_FAILURE() << (result).error(); \
    co_return;                         \
  }

namespace reprise {
namespace {

using namespace std::chrono_literals;

constexpr size_t kBlock = limits::kIoAlignment;
constexpr uint32_t kQueueDepth = 64;

AlignedBuffer RandomBlocks(size_t blocks, uint64_t seed) {
  AlignedBuffer buffer(blocks * kBlock);
  Rng rng(seed);
  for (size_t i = 0; i < buffer.size(); i += 8) {
    uint64_t word = rng.Next();
    std::memcpy(buffer.data() + i, &word, 8);
  }
  return buffer;
}

bool Same(ByteView left, ByteView right) { return std::ranges::equal(left, right); }

class IoTest : public ::testing::TestWithParam<std::string> {
  // Public: the tests are free coroutines.
 public:
  void SetUp() override {
    if (GetParam() == "simulated") {
      world_ = std::make_unique<SimWorld>(1);
      loop_ = &world_->loop();
      sim_ = new SimIo(*loop_, *world_, "host");
      io_.reset(sim_);
      root_ = "/test";
      Run([](Io& io, std::string root) -> Task<void> {
        EXPECT_TRUE((co_await io.MakeDirectory(root)).ok());
      }(*io_, root_));
      return;
    }
    real_loop_ = std::make_unique<Loop>(clock_);
    loop_ = real_loop_.get();
    io_ = MakeReal(*loop_);
    if (io_ == nullptr) return;
    std::string pattern = ::testing::TempDir() + "/reprise_io_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }

  void TearDown() override {
    io_.reset();
    if (!root_.empty() && world_ == nullptr) std::filesystem::remove_all(root_);
  }

  // Null, with the case marked as skipped, where the kernel forbids the engine.
  std::unique_ptr<Io> MakeReal(Loop& loop) {
    IoOptions options;
    options.queue_depth = kQueueDepth;
    if (GetParam() == "threads") {
      auto made = ThreadIo::Create(loop, options);
      EXPECT_TRUE(made.has_value());
      return std::move(*made);
    }
    auto made = UringIo::Create(loop, options);
    if (made.has_value()) return std::move(*made);
    [&] { GTEST_SKIP() << "NOT TESTED: " << made.error(); }();
    return nullptr;
  }

  bool is_simulated() const { return world_ != nullptr; }
  void Run(Task<void> task) { loop_->RunTask(std::move(task)); }
  std::string PathOf(const std::string& name) const { return root_ + "/" + name; }
  TimePoint In(Nanos span) const { return loop_->Now() + span; }

  SystemClock clock_;
  std::unique_ptr<SimWorld> world_;
  std::unique_ptr<Loop> real_loop_;
  Loop* loop_ = nullptr;
  SimIo* sim_ = nullptr;
  std::unique_ptr<Io> io_;
  std::string root_;
};

// Two ends of one connection.
struct Pair {
  SocketId listener, near, far;
};

Task<Pair> MakePair(Io& io, std::string address) {
  Pair pair;
  Result<SocketId> listener = co_await io.Listen(address);
  EXPECT_TRUE(listener.has_value()) << StatusOf(listener);
  if (!listener.has_value()) co_return pair;
  pair.listener = *listener;
  Result<std::string> bound = io.LocalAddress(pair.listener);
  EXPECT_TRUE(bound.has_value());
  Result<SocketId> near = co_await io.Connect(*bound, io.loop().Now() + 5s);
  EXPECT_TRUE(near.has_value()) << StatusOf(near);
  if (near.has_value()) pair.near = *near;
  pair.far.value = static_cast<int>(co_await io.Accept(pair.listener, io.loop().Now() + 5s));
  EXPECT_TRUE(pair.far.valid());
  co_return pair;
}

void ClosePair(Io& io, const Pair& pair) {
  io.CloseSocket(pair.near);
  io.CloseSocket(pair.far);
  io.CloseSocket(pair.listener);
}

// --- files ---

TEST_P(IoTest, WhatWasWrittenAndFlushedIsReadBack) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    AlignedBuffer out = RandomBlocks(16, 1);
    AlignedBuffer in(out.size());
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await WriteFully(io, *file, out.view(), kBlock), OkStatus());
    EXPECT_EQ(co_await FlushFile(io, *file), OkStatus());
    EXPECT_EQ(co_await io.SyncDirectory(test.root_), OkStatus());
    EXPECT_EQ(co_await io.Size(*file), out.size() + kBlock);
    EXPECT_EQ(co_await ReadFully(io, *file, in.span(), kBlock), OkStatus());
    EXPECT_TRUE(Same(in.view(), out.view()));
    // The hole in front reads as zeros.
    EXPECT_EQ(co_await ReadFully(io, *file, in.span().first(kBlock), 0), OkStatus());
    EXPECT_EQ(std::count(in.data(), in.data() + kBlock, 0), static_cast<ptrdiff_t>(kBlock));
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, BufferedFilesTakeAnyOffsetAndSize) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    Result<FileId> file = co_await io.Open(test.PathOf("text"), {.create = true, .direct = false});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await WriteFully(io, *file, ViewOf("hello world"), 3), OkStatus());
    EXPECT_EQ(co_await FlushFile(io, *file), OkStatus());
    uint8_t text[5];
    EXPECT_EQ(co_await ReadFully(io, *file, text, 9), OkStatus());
    EXPECT_EQ(TextOf(text), "world");
    EXPECT_EQ(co_await io.Size(*file), uint64_t{14});
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, MisalignedDirectRequestsAreInvalid) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    AlignedBuffer buffer(2 * kBlock);
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await io.Write(*file, buffer.view().first(kBlock), 100), -EINVAL);
    EXPECT_EQ(co_await io.Write(*file, buffer.view().subspan(1, kBlock), 0), -EINVAL);
    EXPECT_EQ(co_await io.Write(*file, buffer.view().first(100), 0), -EINVAL);
    EXPECT_EQ(co_await io.Size(*file), uint64_t{0});
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, ReadingBehindTheEndIsZeroAndReadFullyNamesIt) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    AlignedBuffer buffer(2 * kBlock);
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await io.Write(*file, buffer.view().first(kBlock), 0),
              static_cast<int64_t>(kBlock));
    EXPECT_EQ(co_await io.Read(*file, buffer.span(), kBlock), 0);
    EXPECT_EQ(co_await io.Read(*file, buffer.span(), 0), static_cast<int64_t>(kBlock));
    EXPECT_EQ((co_await ReadFully(io, *file, buffer.span(), 0)).code(), Code::kOutOfRange);
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

Task<void> WriteBlock(Io& io, FileId file, ByteView block, uint64_t offset, Gate::Hold) {
  EXPECT_EQ(co_await WriteFully(io, file, block, offset), OkStatus());
}

TEST_P(IoTest, MoreRequestsThanTheQueueHoldsAllComplete) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    constexpr size_t kCount = 10 * kQueueDepth;
    AlignedBuffer out = RandomBlocks(kCount, 2);
    AlignedBuffer in(out.size());
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    Gate gate(io.loop());
    for (size_t i = 0; i < kCount; ++i) {
      io.loop().Spawn(
          WriteBlock(io, *file, out.view().subspan(i * kBlock, kBlock), i * kBlock, gate.Enter()));
    }
    co_await gate.Close();
    EXPECT_EQ(co_await ReadFully(io, *file, in.span(), 0), OkStatus());
    EXPECT_TRUE(Same(in.view(), out.view()));
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, ACompletionNeverResumesInTheTurnOfItsSubmission) {
  FileId file;
  AlignedBuffer buffer(kBlock);
  Run([](IoTest& test, Io& io, FileId& opened, ByteView data) -> Task<void> {
    Result<FileId> result = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(result);
    opened = *result;
    EXPECT_EQ(co_await WriteFully(io, opened, data, 0), OkStatus());
  }(*this, *io_, file, buffer.view()));
  ASSERT_TRUE(file.valid());
  enum { kIdle, kSubmitted, kResumed } state = kIdle;
  loop_->Spawn([](Io& io, FileId id, MutableByteView data, auto& progress) -> Task<void> {
    progress = kSubmitted;
    EXPECT_EQ(co_await io.Read(id, data, 0), static_cast<int64_t>(kBlock));
    progress = kResumed;
  }(*io_, file, buffer.span(), state));
  while (state == kIdle) loop_->RunOnce(false);
  EXPECT_EQ(state, kSubmitted);
  loop_->RunUntil([&] { return state == kResumed; });
  Run([](Io& io, FileId id) -> Task<void> { EXPECT_EQ(co_await io.Close(id), OkStatus()); }(*io_,
                                                                                            file));
}

TEST_P(IoTest, OpenReportsMissingExistingAndSymbolicLinks) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    EXPECT_EQ(StatusOf(co_await io.Open(test.PathOf("none"), {})).code(), Code::kNotFound);
    Result<FileId> file = co_await io.Open(test.PathOf("new"), {.create = true, .exclusive = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
    EXPECT_EQ(
        StatusOf(co_await io.Open(test.PathOf("new"), {.create = true, .exclusive = true})).code(),
        Code::kAlreadyExists);
    if (test.is_simulated()) co_return;
    EXPECT_EQ(symlink(test.PathOf("new").c_str(), test.PathOf("link").c_str()), 0);
    EXPECT_FALSE((co_await io.Open(test.PathOf("link"), {})).has_value());
  }(*this, *io_));
}

TEST_P(IoTest, ALockedFileCannotBeLockedAgainUntilItIsClosed) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    Result<FileId> first = co_await io.Open(test.PathOf("lock"), {.create = true, .direct = false});
    Result<FileId> second = co_await io.Open(test.PathOf("lock"), {.direct = false});
    CO_ASSERT_TRUE(first.has_value() && second.has_value());
    EXPECT_EQ(co_await io.Lock(*first), OkStatus());
    EXPECT_EQ((co_await io.Lock(*second)).code(), Code::kFailedPrecondition);
    EXPECT_EQ(co_await io.Close(*first), OkStatus());
    EXPECT_EQ(co_await io.Lock(*second), OkStatus());
    EXPECT_EQ(co_await io.Close(*second), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, DirectoriesAreMadeListedSortedAndEmptied) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    std::string directory = test.PathOf("dir");
    EXPECT_EQ(StatusOf(co_await io.List(directory)).code(), Code::kNotFound);
    EXPECT_EQ(co_await io.MakeDirectory(directory), OkStatus());
    EXPECT_EQ(co_await io.MakeDirectory(directory), OkStatus());
    EXPECT_EQ((co_await io.MakeDirectory(directory + "/a/b")).code(), Code::kNotFound);
    for (std::string name : {"c", "a", "b"}) {
      Result<FileId> file = co_await io.Open(directory + "/" + name, {.create = true});
      CO_ASSERT_OK(file);
      EXPECT_EQ(co_await io.Close(*file), OkStatus());
    }
    EXPECT_EQ(co_await io.List(directory), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(co_await io.Remove(directory + "/b"), OkStatus());
    EXPECT_EQ((co_await io.Remove(directory + "/b")).code(), Code::kNotFound);
    EXPECT_EQ(co_await io.List(directory), (std::vector<std::string>{"a", "c"}));
    EXPECT_FALSE((co_await io.Remove(directory)).ok());
    EXPECT_EQ(co_await io.SyncDirectory(directory), OkStatus());
    EXPECT_EQ((co_await io.SyncDirectory(test.PathOf("none"))).code(), Code::kNotFound);
  }(*this, *io_));
}

TEST_P(IoTest, AllocateExtendsTheFileAndTruncateCutsIt) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await io.Allocate(*file, 0, 8 * kBlock), OkStatus());
    EXPECT_EQ(co_await io.Size(*file), 8 * kBlock);
    AlignedBuffer buffer(kBlock);
    EXPECT_EQ(co_await ReadFully(io, *file, buffer.span(), 7 * kBlock), OkStatus());
    EXPECT_EQ(co_await io.Truncate(*file, 2 * kBlock), OkStatus());
    EXPECT_EQ(co_await io.Size(*file), 2 * kBlock);
    EXPECT_GT(*co_await io.FreeBytes(test.root_), 0u);
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, SynchronousFilesAreWrittenWithoutAFlush) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    AlignedBuffer out = RandomBlocks(1, 3);
    Result<FileId> file = co_await io.Open(test.PathOf("slot"), {.create = true, .dsync = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ(co_await WriteFully(io, *file, out.view(), 0), OkStatus());
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
    EXPECT_EQ(co_await io.SyncDirectory(test.root_), OkStatus());
    if (test.sim_ != nullptr) {
      EXPECT_TRUE(test.sim_->disk().UnflushedCells().size() == 1);  // the directory's own name
    }
  }(*this, *io_));
}

TEST_P(IoTest, AFullDiskIsResourceExhausted) {
  if (!is_simulated()) GTEST_SKIP() << "needs a disk of a chosen size: simulated engine only";
  sim_->disk().faults.capacity_bytes = 4 * kBlock;
  Run([](IoTest& test, Io& io) -> Task<void> {
    AlignedBuffer out = RandomBlocks(1, 4);
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    EXPECT_EQ((co_await io.Allocate(*file, 0, 5 * kBlock)).code(), Code::kResourceExhausted);
    EXPECT_EQ(co_await io.Allocate(*file, 0, 4 * kBlock), OkStatus());
    EXPECT_EQ(co_await io.FreeBytes(test.root_), uint64_t{0});
    EXPECT_EQ(co_await WriteFully(io, *file, out.view(), 3 * kBlock), OkStatus());
    EXPECT_EQ((co_await WriteFully(io, *file, out.view(), 4 * kBlock)).code(),
              Code::kResourceExhausted);
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
    EXPECT_EQ(co_await io.Remove(test.PathOf("data")), OkStatus());
    EXPECT_EQ(co_await io.FreeBytes(test.root_), 4 * kBlock);
  }(*this, *io_));
}

// --- sockets ---

Task<void> SendAll(Io& io, SocketId socket, ByteView data, Gate::Hold) {
  EXPECT_EQ(co_await SendFully(io, socket, data, io.loop().Now() + 30s), OkStatus());
}

TEST_P(IoTest, BytesArriveInOrderThroughAStreamLargerThanItsBuffers) {
  Run([](IoTest&, Io& io) -> Task<void> {
    Pair pair = co_await MakePair(io, "127.0.0.1:0");
    CO_ASSERT_TRUE(pair.near.valid() && pair.far.valid());
    AlignedBuffer out = RandomBlocks(2048, 5);
    AlignedBuffer in(out.size());
    Gate gate(io.loop());
    io.loop().Spawn(SendAll(io, pair.near, out.view(), gate.Enter()));
    EXPECT_EQ(co_await RecvFully(io, pair.far, in.span(), io.loop().Now() + 30s), OkStatus());
    EXPECT_TRUE(Same(in.view(), out.view()));
    co_await gate.Close();
    // And back.
    EXPECT_EQ(co_await SendFully(io, pair.far, ViewOf("echo")), OkStatus());
    EXPECT_EQ(co_await RecvFully(io, pair.near, in.span().first(4)), OkStatus());
    EXPECT_EQ(TextOf(in.view().first(4)), "echo");
    ClosePair(io, pair);
  }(*this, *io_));
}

TEST_P(IoTest, ASilentPeerEndsInDeadlineExceededAndLosesNoBytes) {
  Run([](IoTest&, Io& io) -> Task<void> {
    Pair pair = co_await MakePair(io, "127.0.0.1:0");
    CO_ASSERT_TRUE(pair.near.valid() && pair.far.valid());
    uint8_t byte[1];
    EXPECT_EQ(co_await io.Recv(pair.far, byte, io.loop().Now() + 20ms), -ETIME);
    EXPECT_EQ((co_await RecvFully(io, pair.far, byte, io.loop().Now())).code(),
              Code::kDeadlineExceeded);
    EXPECT_EQ(co_await io.Accept(pair.listener, io.loop().Now() + 1ms), -ETIME);
    EXPECT_EQ(co_await SendFully(io, pair.near, ViewOf("x")), OkStatus());
    EXPECT_EQ(co_await RecvFully(io, pair.far, byte), OkStatus());
    EXPECT_EQ(byte[0], 'x');
    ClosePair(io, pair);
  }(*this, *io_));
}

TEST_P(IoTest, AReaderThatStopsMakesItsSenderWait) {
  Run([](IoTest&, Io& io) -> Task<void> {
    Pair pair = co_await MakePair(io, "127.0.0.1:0");
    CO_ASSERT_TRUE(pair.near.valid() && pair.far.valid());
    AlignedBuffer out(16 << 20);
    EXPECT_EQ((co_await SendFully(io, pair.near, out.view(), io.loop().Now() + 200ms)).code(),
              Code::kDeadlineExceeded);
    ClosePair(io, pair);
  }(*this, *io_));
}

Task<void> ExpectRecvEnds(Io& io, SocketId socket, Gate::Hold) {
  uint8_t byte[1];
  int64_t result = co_await io.Recv(socket, byte);
  EXPECT_TRUE(result == 0 || result == -ECANCELED) << result;
}

Task<void> ExpectAcceptEnds(Io& io, SocketId listener, Gate::Hold) {
  EXPECT_EQ(co_await io.Accept(listener), -ECANCELED);
}

TEST_P(IoTest, ShutdownEndsWaitingReceivesAndAccepts) {
  Run([](IoTest&, Io& io) -> Task<void> {
    for (std::string address : {"127.0.0.1:0", "unix:"}) {
      if (address == "unix:") {
        address += ::testing::TempDir() + "/reprise_shutdown_" + std::to_string(getpid());
      }
      Pair pair = co_await MakePair(io, address);
      CO_ASSERT_TRUE(pair.near.valid() && pair.far.valid());
      Gate gate(io.loop());
      io.loop().Spawn(ExpectRecvEnds(io, pair.near, gate.Enter()));
      io.loop().Spawn(ExpectAcceptEnds(io, pair.listener, gate.Enter()));
      for (int i = 0; i < 3; ++i) co_await io.loop().Yield();
      io.Shutdown(pair.near);
      io.Shutdown(pair.listener);
      co_await gate.Close();
      EXPECT_EQ(co_await io.Accept(pair.listener), -ECANCELED);
      EXPECT_EQ(co_await io.Send(pair.near, ViewOf("x")), -EPIPE);
      uint8_t byte[1];
      EXPECT_EQ(co_await io.Recv(pair.far, byte), 0) << "the peer sees the end of the stream";
      ClosePair(io, pair);
      if (address.starts_with("unix:")) unlink(address.c_str() + 5);
    }
  }(*this, *io_));
}

TEST_P(IoTest, APeerThatClosedIsUnavailable) {
  Run([](IoTest&, Io& io) -> Task<void> {
    Pair pair = co_await MakePair(io, "127.0.0.1:0");
    CO_ASSERT_TRUE(pair.near.valid() && pair.far.valid());
    io.CloseSocket(pair.near);
    uint8_t byte[1];
    EXPECT_EQ((co_await RecvFully(io, pair.far, byte)).code(), Code::kUnavailable);
    AlignedBuffer out(16 << 20);
    EXPECT_EQ((co_await SendFully(io, pair.far, out.view(), io.loop().Now() + 5s)).code(),
              Code::kUnavailable);
    io.CloseSocket(pair.far);
    io.CloseSocket(pair.listener);
  }(*this, *io_));
}

TEST_P(IoTest, ListenersGetDistinctPortsAndRefusedConnectsSaySo) {
  Run([](IoTest&, Io& io) -> Task<void> {
    Result<SocketId> first = co_await io.Listen("127.0.0.1:0");
    Result<SocketId> second = co_await io.Listen("127.0.0.1:0");
    CO_ASSERT_TRUE(first.has_value() && second.has_value());
    std::string address = *io.LocalAddress(*first);
    EXPECT_NE(address, *io.LocalAddress(*second));
    EXPECT_FALSE(address.ends_with(":0"));
    EXPECT_EQ(StatusOf(co_await io.Listen(address)).code(), Code::kAlreadyExists);
    io.CloseSocket(*first);
    io.CloseSocket(*second);
    EXPECT_EQ(StatusOf(co_await io.Connect(address, io.loop().Now() + 5s)).code(),
              Code::kUnavailable);
    EXPECT_EQ(StatusOf(co_await io.Connect("nonsense", io.loop().Now() + 5s)).code(),
              Code::kInvalidArgument);
  }(*this, *io_));
}

TEST_P(IoTest, AUnixSocketIsTakenOverOnlyFromTheDead) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    std::string address = "unix:" + test.PathOf("socket");
    Result<SocketId> first = co_await io.Listen(address);
    CO_ASSERT_OK(first);
    EXPECT_EQ(*io.LocalAddress(*first), address);
    EXPECT_EQ(StatusOf(co_await io.Listen(address)).code(), Code::kAlreadyExists);
    io.CloseSocket(*first);  // leaves its file behind, as a killed process does
    Result<SocketId> second = co_await io.Listen(address);
    CO_ASSERT_OK(second);
    io.CloseSocket(*second);
  }(*this, *io_));
}

TEST_P(IoTest, UnixSocketsKnowTheirPeerAndTcpSocketsDoNot) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    Pair unix_pair = co_await MakePair(io, "unix:" + test.PathOf("socket"));
    Pair tcp_pair = co_await MakePair(io, "127.0.0.1:0");
    CO_ASSERT_TRUE(unix_pair.far.valid() && tcp_pair.far.valid());
    Result<PeerCredentials> peer = io.Credentials(unix_pair.far);
    CO_ASSERT_OK(peer);
    EXPECT_GT(peer->pid, 0);
    if (!test.is_simulated()) {
      EXPECT_EQ(peer->pid, getpid());
      EXPECT_EQ(peer->uid, getuid());
    }
    EXPECT_EQ(StatusOf(io.Credentials(tcp_pair.far)).code(), Code::kInvalidArgument);
    ClosePair(io, unix_pair);
    ClosePair(io, tcp_pair);
  }(*this, *io_));
}

TEST_P(IoTest, ADescriptorTravelsOverAUnixSocket) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    Pair pair = co_await MakePair(io, "unix:" + test.PathOf("socket"));
    CO_ASSERT_TRUE(pair.near.valid() && pair.far.valid());
    int memory = memfd_create("shared", MFD_CLOEXEC);
    EXPECT_EQ(pwrite(memory, "content", 7, 0), 7);
    int64_t sent = co_await io.SendFd(pair.near, ViewOf("fd"), memory);
    uint8_t text[8];
    EXPECT_EQ(sent, 2);
    auto receive = io.RecvFd(pair.far, text);
    EXPECT_EQ(co_await receive, 2);
    int passed = receive.passed_fd();
    EXPECT_GE(passed, 0);
    EXPECT_NE(passed, memory);
    EXPECT_EQ(fcntl(passed, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    EXPECT_EQ(pread(passed, text, 7, 0), 7);
    EXPECT_EQ(TextOf(ByteView(text, 7)), "content");
    close(passed);
    // The next message has none.
    EXPECT_EQ(co_await io.Send(pair.near, ViewOf("no")), 2);
    auto plain = io.RecvFd(pair.far, text);
    EXPECT_EQ(co_await plain, 2);
    EXPECT_EQ(plain.passed_fd(), -1);
    close(memory);
    ClosePair(io, pair);
  }(*this, *io_));
}

// --- buffers, threads ---

TEST_P(IoTest, ABufferPoolMakesTheNextOneWait) {
  Run([](IoTest&, Io& io) -> Task<void> {
    auto pool = BufferPool::Create(io, {.buffer_bytes = 4 * kBlock, .buffer_count = 2});
    CO_ASSERT_OK(pool);
    std::vector<int> order;
    {
      BufferPool::Buffer first = co_await (*pool)->Acquire();
      BufferPool::Buffer second = co_await (*pool)->Acquire();
      EXPECT_TRUE(IsAligned(reinterpret_cast<uintptr_t>(first.data()), kBlock));
      EXPECT_EQ(first.size(), 4 * kBlock);
      EXPECT_FALSE(co_await (*pool)->Acquire(io.loop().Now() + 1ms)) << "all are out";
      EXPECT_FALSE((*pool)->TryAcquire());
      // Two waiters get the one that comes back in the order in which they asked.
      Gate gate(io.loop());
      for (int i = 0; i < 2; ++i) {
        io.loop().Spawn(
            [](BufferPool& from, std::vector<int>& seen, int who, Gate::Hold) -> Task<void> {
              BufferPool::Buffer mine = co_await from.Acquire();
              EXPECT_TRUE(mine);
              seen.push_back(who);
            }(**pool, order, i, gate.Enter()));
      }
      for (int i = 0; i < 3; ++i) co_await io.loop().Yield();
      EXPECT_TRUE(order.empty());
      first = BufferPool::Buffer();
      EXPECT_FALSE((*pool)->TryAcquire()) << "it is promised to the first waiter";
      co_await gate.Close();
    }
    EXPECT_EQ(order, (std::vector<int>{0, 1}));
    EXPECT_EQ((*pool)->available(), 2u);
  }(*this, *io_));
}

TEST_P(IoTest, PooledBuffersGoToDiskAndBackAlsoAfterThePoolWasReplaced) {
  Run([](IoTest& test, Io& io) -> Task<void> {
    Result<FileId> file = co_await io.Open(test.PathOf("data"), {.create = true});
    CO_ASSERT_OK(file);
    // The second arena is usually mapped where the first one was: a registration that outlived its
    // memory would read and write the old pages.
    for (uint8_t fill : {1, 2}) {
      auto pool = BufferPool::Create(io, {.buffer_bytes = 1 << 20, .buffer_count = 4});
      CO_ASSERT_OK(pool);
      BufferPool::Buffer out = co_await (*pool)->Acquire();
      BufferPool::Buffer in = co_await (*pool)->Acquire();
      std::memset(out.data(), fill, out.size());
      std::memset(in.data(), 0, in.size());
      EXPECT_EQ(co_await WriteFully(io, *file, out.span(), 0), OkStatus());
      EXPECT_EQ(co_await ReadFully(io, *file, in.span(), 0), OkStatus());
      EXPECT_TRUE(Same(in.span(), out.span())) << "fill " << int{fill};
    }
    EXPECT_EQ(co_await io.Close(*file), OkStatus());
  }(*this, *io_));
}

TEST_P(IoTest, AnotherThreadWakesASleepingLoop) {
  if (is_simulated()) GTEST_SKIP() << "a simulated world has one thread";
  for (int round = 0; round < 100; ++round) {
    bool done = false;
    std::thread other([&] { loop_->Post([&] { done = true; }); });
    loop_->RunUntil([&] { return done; });
    other.join();
  }
}

TEST_P(IoTest, CallsCrossFromOneLoopToAnotherAndBack) {
  if (is_simulated()) GTEST_SKIP() << "a simulated world has one thread";
  Loop other(clock_);
  std::unique_ptr<Io> other_io = MakeReal(other);
  ASSERT_NE(other_io, nullptr);
  std::thread thread([&] { other.Run(); });
  Run([](IoTest& test, Io& io, Loop& target, Io& remote) -> Task<void> {
    for (int i = 0; i < 50; ++i) {
      int answer =
          co_await CallOn<int>(io.loop(), target, [&remote, path = test.root_, i]() -> Task<int> {
            return [](Io& there, std::string where, int value) -> Task<int> {
              EXPECT_TRUE((co_await there.List(where)).has_value());
              co_return value;
            }(remote, path, i);
          });
      EXPECT_EQ(answer, i);
    }
  }(*this, *io_, other, *other_io));
  other.Stop();
  thread.join();
}

std::vector<std::string> EnginesToTest() {
  const char* chosen = std::getenv("REPRISE_IO");
  if (chosen != nullptr && std::string(chosen) == "uring") return {"uring", "simulated"};
  if (chosen != nullptr && std::string(chosen) == "threads") return {"threads"};
  return {"uring", "threads", "simulated"};
}

INSTANTIATE_TEST_SUITE_P(Engines, IoTest, ::testing::ValuesIn(EnginesToTest()),
                         [](const auto& info) { return info.param; });

TEST(CreateIo, RefusesAnUnknownEngine) {
  if (std::getenv("REPRISE_IO") != nullptr) GTEST_SKIP() << "REPRISE_IO overrides the option";
  SystemClock clock;
  Loop loop(clock);
  EXPECT_EQ(StatusOf(CreateIo(loop, {.engine = "magic"})).code(), Code::kInvalidArgument);
  Result<std::unique_ptr<Io>> io = CreateIo(loop);
  ASSERT_TRUE(io.has_value());
}

}  // namespace
}  // namespace reprise
