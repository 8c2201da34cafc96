// Real processes, killed by their own pid: what EOF alone would not tell in time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "server/node/pid_watch.h"
#include "tests/unit/node/node_fixture.h"

namespace reprise::node {
namespace {

using ::testing::HasSubstr;

// What the child sends, made by the parent: between fork and exit the child only makes system
// calls.
struct Script {
  sockaddr_un address{};
  Bytes greeting;            // HELLO, REGISTER, ATTACH: five frames come back
  Bytes save;                // what it does before it waits for its death
  bool fork_worker = false;  // leaves a grandchild that keeps the socket open
};

void WriteAll(int fd, const Bytes& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    ssize_t moved = ::write(fd, bytes.data() + sent, bytes.size() - sent);
    if (moved <= 0) ::_exit(3);
    sent += static_cast<size_t>(moved);
  }
}

void ReadAll(int fd, uint8_t* target, size_t size) {
  while (size > 0) {
    ssize_t moved = ::read(fd, target, size);
    if (moved <= 0) ::_exit(4);
    target += moved;
    size -= static_cast<size_t>(moved);
  }
}

void SkipFrames(int fd, int count) {
  static uint8_t scratch[65536];
  for (int i = 0; i < count; ++i) {
    ReadAll(fd, scratch, limits::kFrameHeaderBytes);
    uint32_t payload;
    std::memcpy(&payload, scratch + 12, sizeof(payload));
    if (payload > sizeof(scratch)) ::_exit(5);
    ReadAll(fd, scratch, payload);
  }
}

[[noreturn]] void ChildMain(const Script& script, int go) {
  int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  const auto* address = reinterpret_cast<const sockaddr*>(&script.address);
  if (::connect(fd, address, sizeof(script.address)) != 0) ::_exit(2);
  WriteAll(fd, script.greeting);
  SkipFrames(fd, 5);
  if (script.fork_worker && ::fork() == 0) {
    // Ends with the test, which then closes the other end.
    char byte;
    while (::read(go, &byte, 1) > 0) {
    }
    ::_exit(0);
  }
  WriteAll(fd, script.save);
  while (true) ::pause();
}

class TrainerDeathTest : public NodeFixture {
 protected:
  TrainerDeathTest() { EXPECT_EQ(::pipe(go_), 0); }
  ~TrainerDeathTest() override {
    ::close(go_[1]);
    ::close(go_[0]);
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
  }

  // Rank 2 of 4 registers, attaches, begins step 40, copies all or three of eight chunks, seals or
  // not.
  Script MakeScript(bool seal, bool fork_worker) {
    Script script;
    script.fork_worker = fork_worker;
    script.address.sun_family = AF_UNIX;
    std::strncpy(script.address.sun_path, options_.socket_path.c_str(),
                 sizeof(script.address.sun_path) - 1);
    auto add = [](Bytes& to, const Bytes& frames) {
      to.insert(to.end(), frames.begin(), frames.end());
    };
    wire::Session session(wire::Role::kLocalClient);
    LocalClient rank(*io_, 2, 4);
    add(script.greeting, session.MakeHello({.peer = rank.process, .description = "child"}));
    add(script.greeting, wire::Session::Pack(rank.Registration(), 1));
    add(script.greeting, wire::Session::Pack(wire::Attach{kMiB, 2}, 2));
    wire::SaveBegin begin;
    begin.step = 40;
    begin.length = layout_.shard_bytes;
    begin.layout = format::LayoutDigest(layout_);
    begin.layout_bytes = format::EncodeLayout(layout_);
    begin.metadata = "{}";
    add(script.save, wire::Session::Pack(begin, 3));
    // The slot is all zeros, which is as good a shard as any.
    add(script.save, wire::Session::Pack(wire::SaveChunks{1, 0, seal ? 8u : 3u}, 0));
    if (seal) add(script.save, wire::Session::Pack(wire::SaveSeal{1}, 0));
    return script;
  }
  void StartChild(const Script& script) {
    child_ = ::fork();
    if (child_ != 0) return;
    ::close(go_[1]);
    ChildMain(script, go_[0]);
  }
  void KillChild() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = -1;
  }

  format::Layout layout_ = TestLayout(8);
  pid_t child_ = -1;
  int go_[2] = {-1, -1};
};

TEST_F(TrainerDeathTest, AProcessKilledInMidSaveAbortsTheAttemptForAllRanksWithItsName) {
  Run([this]() -> Task<void> {
    StartChild(MakeScript(false, false));
    pid_t pid = child_;
    co_await Until([&] { return store_.sends == 3; });
    TimePoint killed = loop_.Now();
    KillChild();
    co_await Until([&] { return !coordinator_.skips.empty() && !coordinator_.gone.empty(); });
    EXPECT_LT(loop_.Now() - killed, std::chrono::seconds(1));
    EXPECT_EQ(coordinator_.skips[0].step, 40u);
    EXPECT_EQ(coordinator_.skips[0].reason,
              fmt::format("rank 2 on node7 (pid {}) died in mid-save", pid));
    EXPECT_EQ(coordinator_.gone[0].rank, 2u);
    EXPECT_EQ(coordinator_.registered[0].who.pid, pid);
    co_await Until([&] { return node_->stats().slab_used_bytes == 0; });
    co_await Until([&] { return store_.uploads_open() == 0; });
  });
}

TEST_F(TrainerDeathTest, AWorkerThatHoldsTheSocketOpenDoesNotDelayTheNews) {
  Run([this]() -> Task<void> {
    StartChild(MakeScript(false, true));
    co_await Until([&] { return store_.sends == 3; });
    TimePoint killed = loop_.Now();
    KillChild();
    co_await Until([&] { return !coordinator_.skips.empty(); });
    EXPECT_LT(loop_.Now() - killed, std::chrono::seconds(1));
    EXPECT_THAT(coordinator_.skips[0].reason, HasSubstr("died in mid-save"));
  });
}

TEST_F(TrainerDeathTest, WhatAProcessHadSealedOutlivesIt) {
  Run([this]() -> Task<void> {
    store_.Hold(true);
    StartChild(MakeScript(true, false));
    co_await Until([&] {
      return !coordinator_.reports.empty() && coordinator_.reports.back().items.size() == 1;
    });
    KillChild();
    co_await Until([&] { return !coordinator_.gone.empty(); });
    EXPECT_TRUE(coordinator_.skips.empty());
    store_.Hold(false);
    co_await Until([&] { return store_.sealed_count() == 1; });
    EXPECT_EQ(coordinator_.reports.back().items.size(), 1u);
  });
}

TEST_F(TrainerDeathTest, ASnapshotWhoseLastBytesWereCopiedIsSealedAfterItsProcessDied) {
  Run([this]() -> Task<void> {
    // Without an attempt nothing can be sealed yet, but all is in the slot.
    coordinator_.HoldBegin(true);
    StartChild(MakeScript(true, false));
    co_await Until([&] { return node_->stats().bytes_hashed == layout_.shard_bytes; });
    KillChild();
    co_await Until([&] { return !coordinator_.gone.empty(); });
    coordinator_.HoldBegin(false);
    co_await Until([&] { return store_.sealed_count() == 1; });
    EXPECT_TRUE(coordinator_.skips.empty());
  });
}

TEST_F(TrainerDeathTest, AnOrderlyByeIsReportedAsSuch) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    co_await client->SendBytes(wire::Session::PackBody(wire::Opcode::kBye, {}, 0));
    co_await Until([&] { return !coordinator_.gone.empty(); });
    EXPECT_THAT(coordinator_.gone[0].reason, HasSubstr("detached"));
  });
}

TEST_F(TrainerDeathTest,
       AProcessThatLeavesDuringRegistrationIsTakenOutAtOnceAndAgainIfItWasTooLate) {
  Run([this]() -> Task<void> {
    coordinator_.HoldRegister(true);
    LocalClient client(*io_, 0, 1);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    co_await client.Send(client.Registration(), 1);
    co_await Until([&] { return coordinator_.registers == 1; });
    client.Close();
    co_await Until([&] { return coordinator_.gone.size() == 1; });
    EXPECT_EQ(coordinator_.gone[0].epoch, 0u);
    EXPECT_EQ(coordinator_.gone[0].process, client.process);
    coordinator_.HoldRegister(false);
    co_await Until([&] { return coordinator_.gone.size() == 2; });
    EXPECT_EQ(coordinator_.gone[1].epoch, 1u);
  });
}

TEST_F(TrainerDeathTest, AProcessThatLeavesBetweenTwoTriesToRegisterIsNotRegistered) {
  Run([this]() -> Task<void> {
    coordinator_.SetAway(true);
    LocalClient client(*io_, 0, 1);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    co_await client.Send(client.Registration(), 1);
    co_await Until([&] { return coordinator_.registers == 3; });
    coordinator_.SetAway(false);
    client.Close();
    co_await Until([&] { return coordinator_.gone.size() == 1; });
    co_await loop_.Sleep(std::chrono::milliseconds(600));  // the pause before the next try
    EXPECT_EQ(coordinator_.registers, 3u);
    EXPECT_TRUE(coordinator_.registered.empty());
  });
}

TEST_F(TrainerDeathTest, ClosingDoesNotWaitForARegistrationUnderWay) {
  Run([this]() -> Task<void> {
    coordinator_.HoldRegister(true);
    LocalClient client(*io_, 0, 1);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    co_await client.Send(client.Registration(), 1);
    co_await Until([&] { return coordinator_.registers == 1; });
    TimePoint before = loop_.Now();
    co_await Stop();
    EXPECT_LT(loop_.Now() - before, std::chrono::seconds(5));
    coordinator_.HoldRegister(false);
    co_await Until([&] { return !coordinator_.registered.empty(); });
  });
}

TEST(PidWatchTest, ADeathIsToldOnceAndAnUnwatchedOneNotAtAll) {
  SystemClock clock;
  Loop loop(clock);
  pid_t pids[2];
  for (pid_t& pid : pids) {
    pid = ::fork();
    if (pid == 0) {
      while (true) ::pause();
    }
  }
  auto watch = PidWatch::Create(loop);
  ASSERT_TRUE(watch.has_value()) << StatusOf(watch);
  int told[2] = {0, 0};
  auto first = (*watch)->Watch(pids[0], [&] { ++told[0]; });
  auto second = (*watch)->Watch(pids[1], [&] { ++told[1]; });
  ASSERT_TRUE(first.has_value()) << StatusOf(first);
  ASSERT_TRUE(second.has_value()) << StatusOf(second);
  (*watch)->Unwatch(*first);
  for (pid_t pid : pids) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  loop.RunUntil([&] { return told[1] > 0; });
  EXPECT_EQ(told[0], 0);
  EXPECT_EQ(told[1], 1);
  EXPECT_EQ(StatusOf((*watch)->Watch(pids[0], [] {})).code(), Code::kNotFound);
  EXPECT_EQ(StatusOf((*watch)->Watch(0, [] {})).code(), Code::kUnimplemented);
}

}  // namespace
}  // namespace reprise::node
