#include "client/session/session.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/unit/client/fake_daemon.h"

namespace reprise::client {
namespace {

TEST(SessionTest, ABufferOfAnEarlierConnectionIsNotGivenBackOnThisOne) {
  test::FakeDaemon daemon;
  Session::Options options;
  options.socket_path = daemon.socket_path();
  auto session = Session::Open(options);
  ASSERT_TRUE(session.has_value()) << session.error();
  uint64_t first = (*session)->generation();
  auto attach = [&] {
    return (*session)->Call(wire::RingAttach{}, wire::Opcode::kRing,
                            Deadline::After(std::chrono::seconds(10)), "a ring");
  };
  ASSERT_TRUE(attach().has_value());
  daemon.Stop();
  daemon.Start();
  while ((*session)->generation() == first || (*session)->generation() == 0) {
    std::this_thread::yield();
  }
  // This daemon ends the program when a buffer is given back that it never handed out.
  Reply stale;
  stale.header.opcode = wire::Opcode::kChunkAt;
  stale.body = wire::Encode(wire::ChunkAt{});
  (*session)->GiveBack(stale, first);
  EXPECT_TRUE(attach().has_value()) << "messages keep their order: it has read what came before";
}

}  // namespace
}  // namespace reprise::client
