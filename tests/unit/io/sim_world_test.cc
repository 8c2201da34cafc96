// The simulated world: determinism, crashes of one host among several, and the network's faults.
#include "core/io/sim_world.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/base/aligned_buffer.h"
#include "core/io/sim_io.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

using namespace std::chrono_literals;

constexpr size_t kBlock = limits::kIoAlignment;

Task<void> ServeOnce(Io& io, SocketId listener, Gate::Hold) {
  SocketId peer{static_cast<int>(co_await io.Accept(listener))};
  Bytes data(100'000);
  EXPECT_EQ(co_await RecvFully(io, peer, data), OkStatus());
  EXPECT_EQ(co_await SendFully(io, peer, data), OkStatus());
  io.CloseSocket(peer);
}

Task<void> EchoAndWrite(SimIo& server, SimIo& client) {
  Gate gate(server.loop());
  Result<SocketId> listener = co_await server.Listen("server:7000");
  server.loop().Spawn(ServeOnce(server, *listener, gate.Enter()));
  Result<SocketId> socket = co_await client.Connect("server:7000", client.loop().Now() + 1s);
  EXPECT_TRUE(socket.has_value());
  Bytes out(100'000);
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<uint8_t>(i * 7);
  Bytes in(out.size());
  EXPECT_EQ(co_await SendFully(client, *socket, out), OkStatus());
  EXPECT_EQ(co_await RecvFully(client, *socket, in), OkStatus());
  EXPECT_EQ(in, out);
  client.CloseSocket(*socket);
  co_await gate.Close();
  server.CloseSocket(*listener);
  AlignedBuffer block(4 * kBlock);
  Result<FileId> file = co_await server.Open("/f", {.create = true});
  EXPECT_EQ(co_await WriteFully(server, *file, block.view(), 0), OkStatus());
  EXPECT_EQ(co_await FlushFile(server, *file), OkStatus());
  EXPECT_EQ(co_await server.Close(*file), OkStatus());
}

uint64_t HashOfRun(uint64_t seed) {
  SimWorld world(seed);
  world.net().faults.segment = true;
  world.net().faults.latency_max = 5ms;
  world.disk("server").faults.reorder = true;
  world.disk("server").faults.short_ppm = 500'000;
  SimIo server(world.loop(), world, "server");
  SimIo client(world.loop(), world, "client");
  world.loop().RunTask(EchoAndWrite(server, client));
  EXPECT_EQ(world.net().OpenSockets("server"), 0u);
  EXPECT_EQ(world.net().OpenSockets("client"), 0u);
  return world.TraceHash();
}

TEST(SimWorld, TheSameSeedGivesTheSameTraceAndAnotherSeedAnother) {
  EXPECT_EQ(HashOfRun(1), HashOfRun(1));
  EXPECT_NE(HashOfRun(1), HashOfRun(2));
}

TEST(SimWorld, AnHourOfSimulatedTimeTakesNone) {
  SimWorld world(1);
  TimePoint start = world.clock().Now();
  world.RunFor(1h);
  EXPECT_EQ(world.clock().Now() - start, 1h);
}

TEST(SimWorld, LoopsOfOneWorldAdvanceTogether) {
  SimWorld world(1);
  Loop& other = world.NewLoop();
  SimIo server(other, world, "server");
  SimIo client(world.loop(), world, "client");
  std::optional<SocketId> listener;
  other.Spawn([](SimIo& io, std::optional<SocketId>& slot) -> Task<void> {
    Result<SocketId> made = co_await io.Listen("server:7000");
    slot = *made;
    co_await io.loop().Sleep(50ms);
    SocketId peer{static_cast<int>(co_await io.Accept(*made))};
    EXPECT_EQ(co_await SendFully(io, peer, ViewOf("hello")), OkStatus());
    io.CloseSocket(peer);
  }(server, listener));
  world.loop().RunTask([](SimIo& io) -> Task<void> {
    co_await io.loop().Sleep(1ms);
    Result<SocketId> socket = co_await io.Connect("server:7000", io.loop().Now() + 1s);
    EXPECT_TRUE(socket.has_value());
    uint8_t text[5];
    EXPECT_EQ(co_await RecvFully(io, *socket, text), OkStatus());
    EXPECT_EQ(TextOf(text), "hello");
    io.CloseSocket(*socket);
  }(client));
  EXPECT_EQ(world.clock().Now().since_start, 1s + 50ms + 10us + 50us);
  server.CloseSocket(*listener);
}

TEST(SimWorld, CallsCrossLoopsOfOneWorld) {
  SimWorld world(1);
  Loop& other = world.NewLoop();
  int answer = world.loop().RunTask(CallOn<int>(world.loop(), other, [&other]() -> Task<int> {
    return [](Loop& loop) -> Task<int> {
      co_await loop.Sleep(1s);
      co_return 42;
    }(other);
  }));
  EXPECT_EQ(answer, 42);
}

TEST(SimWorld, AWorldInWhichNothingCanHappenIsReported) {
  SimWorld world(1);
  bool stuck = false;
  world.OnStuck([&] { stuck = true; });
  world.loop().RunUntil([&] { return stuck; });
  EXPECT_TRUE(stuck);
}

// A host that writes without end, as a store would.
Task<void> WriteForEver(SimIo& io) {
  Result<FileId> file = co_await io.Open("/f", {.create = true});
  AlignedBuffer block(kBlock);
  while (true) {
    EXPECT_EQ(co_await WriteFully(io, *file, block.view(), 0), OkStatus());
    EXPECT_EQ(co_await FlushFile(io, *file), OkStatus());
    ++block.data()[0];
  }
}

Task<void> WaitForEver(SimIo& io, SocketId listener) {
  SocketId peer{static_cast<int>(co_await io.Accept(listener, io.loop().Now() + 1h))};
  uint8_t byte[1];
  (void)co_await io.Recv(peer, byte, io.loop().Now() + 1h);
  ADD_FAILURE() << "a dropped request resumed";
}

// How the peer of a crashed host learns of it.
struct CrashCase {
  SimCrash kind;
  int64_t before_restart;  // what a waiting receive gets
};

TEST(SimWorld, ACrashedHostDropsItsRequestsAndComesBack) {
  for (CrashCase test :
       {CrashCase{SimCrash::kPowerLoss, -ETIME}, CrashCase{SimCrash::kProcessDeath, -ECONNRESET}}) {
    SimWorld world(3);
    Loop& loop = world.NewLoop();
    auto server = std::make_unique<SimIo>(loop, world, "server");
    SimIo client(world.loop(), world, "client");
    SocketId listener = *loop.RunTask(server->Listen("server:7000"));
    loop.Spawn(WaitForEver(*server, listener));
    loop.Spawn(WriteForEver(*server));
    SocketId socket =
        *world.loop().RunTask(client.Connect("server:7000", world.clock().Now() + 1s));
    world.RunFor(10ms);
    EXPECT_GT(server->in_flight(), 0u);

    server->CrashHost(test.kind);
    loop.DestroyAll();
    server.reset();
    if (test.kind == SimCrash::kPowerLoss) {
      world.disk("server").Crash(RandomOutcome(3));
    } else {
      world.disk("server").SettleInFlight(RandomOutcome(3));
    }
    world.loop().RunTask([](SimIo& io, SocketId id, int64_t expected) -> Task<void> {
      uint8_t byte[1];
      EXPECT_EQ(co_await io.Recv(id, byte, io.loop().Now() + 1s), expected);
      EXPECT_FALSE((co_await io.Connect("server:7000", io.loop().Now() + 1s)).has_value());
    }(client, socket, test.before_restart));

    SimIo again(loop, world, "server");
    world.loop().RunTask([](SimIo& io, SocketId id) -> Task<void> {
      // Whatever it is sent now, the new host answers with a reset.
      (void)co_await io.Send(id, ViewOf("are you there"));
      uint8_t byte[1];
      EXPECT_EQ(co_await io.Recv(id, byte, io.loop().Now() + 1s), -ECONNRESET);
      io.CloseSocket(id);
    }(client, socket));
    EXPECT_EQ(world.net().OpenSockets("server"), 0u);
  }
}

TEST(SimWorld, DestroyingAnEngineWithRequestsInFlightIsCaught) {
  EXPECT_DEATH(
      {
        SimWorld world(1);
        auto io = std::make_unique<SimIo>(world.loop(), world, "host");
        world.loop().Spawn(WriteForEver(*io));
        world.RunFor(1ms);
        io.reset();
      },
      "destroyed with requests in flight");
}

class SimNetTest : public ::testing::Test {
 protected:
  SimNetTest() {
    listener_ = *world_.loop().RunTask(server_.Listen("server:7000"));
    near_ = *world_.loop().RunTask(client_.Connect("server:7000", world_.clock().Now() + 1s));
    world_.loop().RunTask([](SimNetTest& test) -> Task<void> {
      test.far_.value = static_cast<int>(co_await test.server_.Accept(test.listener_));
    }(*this));
  }
  ~SimNetTest() override {
    client_.CloseSocket(near_);
    server_.CloseSocket(far_);
    server_.CloseSocket(listener_);
  }
  void Run(Task<void> task) { world_.loop().RunTask(std::move(task)); }

  SimWorld world_{11};
  SimIo server_{world_.loop(), world_, "server"};
  SimIo client_{world_.loop(), world_, "client"};
  SocketId listener_, near_, far_;
};

TEST_F(SimNetTest, AOneWayPartitionHoldsBytesUntilItIsHealed) {
  world_.net().Partition("client", "server");
  Run([](SimWorld& world, SimIo& server, SimIo& client, SocketId near, SocketId far) -> Task<void> {
    uint8_t text[2];
    EXPECT_EQ(co_await SendFully(client, near, ViewOf("up")), OkStatus());
    EXPECT_EQ(co_await server.Recv(far, text, server.loop().Now() + 1s), -ETIME);
    EXPECT_EQ(co_await SendFully(server, far, ViewOf("dn")), OkStatus());
    EXPECT_EQ(co_await RecvFully(client, near, text, client.loop().Now() + 1s), OkStatus());
    // Connecting needs both directions.
    EXPECT_EQ(StatusOf(co_await client.Connect("server:7000", client.loop().Now() + 1s)).code(),
              Code::kDeadlineExceeded);
    world.net().HealAll();
    EXPECT_EQ(co_await RecvFully(server, far, text, server.loop().Now() + 1s), OkStatus());
    EXPECT_EQ(TextOf(text), "up");
  }(world_, server_, client_, near_, far_));
}

TEST_F(SimNetTest, AResetReachesBothEnds) {
  world_.net().Reset("client", "server");
  Run([](SimIo& server, SimIo& client, SocketId near, SocketId far) -> Task<void> {
    uint8_t byte[1];
    EXPECT_EQ(co_await client.Recv(near, byte), -ECONNRESET);
    EXPECT_EQ(co_await server.Recv(far, byte), -ECONNRESET);
    EXPECT_EQ(co_await server.Send(far, ViewOf("x")), -ECONNRESET);
  }(server_, client_, near_, far_));
}

TEST_F(SimNetTest, SegmentsAreCutAnywhere) {
  world_.net().faults.segment = true;
  Run([](SimIo& server, SimIo& client, SocketId near, SocketId far) -> Task<void> {
    Bytes out(10'000, 3);
    Bytes in(out.size());
    EXPECT_EQ(co_await SendFully(client, near, out), OkStatus());
    int pieces = 0;
    for (size_t got = 0; got < in.size(); ++pieces) {
      int64_t moved = co_await server.Recv(far, MutableByteView(in).subspan(got));
      EXPECT_GT(moved, 0);
      if (moved <= 0) co_return;
      got += static_cast<size_t>(moved);
    }
    EXPECT_GT(pieces, 2);
    EXPECT_EQ(in, out);
  }(server_, client_, near_, far_));
}

TEST_F(SimNetTest, ClosingASocketThatIsInUseIsCaught) {
  world_.loop().Spawn([](SimIo& io, SocketId id) -> Task<void> {
    uint8_t byte[1];
    (void)co_await io.Recv(id, byte);
  }(server_, far_));
  world_.RunFor(1ms);
  EXPECT_DEATH(server_.CloseSocket(far_), "closed while requests");
  server_.Shutdown(far_);
  world_.RunFor(1ms);
}

}  // namespace
}  // namespace reprise
