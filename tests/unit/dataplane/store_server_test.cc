// StoreServer against peers that are slow, silent, broken or hostile, on a simulated network.
#include "server/dataplane/store_server.h"

#include <gtest/gtest.h>

#include <array>
#include <string_view>

#include "core/base/check.h"
#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "core/io/transfer.h"
#include "core/wire/session.h"
#include "tests/unit/dataplane/fake_shard_store.h"
#include "tests/unit/dataplane/sample_shard.h"

namespace reprise::dataplane {
namespace {

using wire::Opcode;
using wire::Session;

constexpr size_t kHeader = limits::kFrameHeaderBytes;

struct Frame {
  wire::FrameHeader header;
  Bytes body;
};

// A peer that says exactly what a test makes it say.
class RawPeer {
 public:
  explicit RawPeer(SimIo& io) : io_(io), loop_(io.loop()) {
    auto socket = loop_.RunTask(io.Connect("store:7000", loop_.Now() + std::chrono::seconds(1)));
    REPRISE_CHECK(socket.has_value(), socket.error().message());
    socket_ = *socket;
  }
  ~RawPeer() { Close(); }
  void Close() {
    if (socket_.valid()) io_.CloseSocket(std::exchange(socket_, SocketId{}));
  }

  void Send(Bytes bytes) {
    Status sent = loop_.RunTask(SendFully(io_, socket_, bytes, loop_.Now() + Nanos(1'000'000'000)));
    EXPECT_TRUE(sent.ok()) << sent;
  }
  void Greet(wire::Hello hello = {}) {
    hello.description = "raw peer";
    Send(Session(wire::Role::kStoreClient).MakeHello(hello));
    EXPECT_EQ(Next().header.opcode, Opcode::kHelloOk);
  }
  // Waits for the next frame; BYE stands for the end of the stream.
  Frame Next(Nanos patience = std::chrono::hours(1)) {
    TimePoint deadline = loop_.Now() + patience;
    std::array<uint8_t, kHeader> bytes;
    Status status = loop_.RunTask(RecvFully(io_, socket_, bytes, deadline));
    if (!status.ok()) return {{.opcode = Opcode::kBye}, {}};
    auto header = wire::DecodeFrameHeader(bytes);
    REPRISE_CHECK(header.has_value(), header.error().message());
    Frame frame{*header, Bytes(header->payload_bytes)};
    status = loop_.RunTask(RecvFully(io_, socket_, frame.body, deadline));
    if (!status.ok()) return {{.opcode = Opcode::kBye}, {}};
    return frame;
  }
  // The next frame is an ERROR; its Status.
  Status NextError() {
    Frame frame = Next();
    EXPECT_EQ(frame.header.opcode, Opcode::kError) << wire::OpcodeName(frame.header.opcode);
    if (frame.header.opcode != Opcode::kError) return OkStatus();
    auto body = wire::Decode<wire::ErrorBody>(frame.body);
    return Status(body->code, body->message);
  }
  wire::PutGrant OpenPut(const SampleShard& shard, uint64_t stream) {
    Send(Session::Pack(shard.Open(), 1000 + stream, stream));
    Frame frame = Next();
    EXPECT_EQ(frame.header.opcode, Opcode::kPutGrant);
    EXPECT_EQ(frame.header.stream, stream);
    auto grant = wire::Decode<wire::PutGrant>(frame.body);
    return grant.has_value() ? *grant : wire::PutGrant{};
  }
  static Bytes Chunk(const SampleShard& shard, uint64_t index, uint64_t stream) {
    wire::FrameHeader header{.opcode = Opcode::kChunk, .stream = stream, .offset = index};
    header.digest = shard.manifest.chunk_digests.at(index);
    return ChunkOf(header, shard.Chunk(index));
  }
  static Bytes ChunkOf(wire::FrameHeader header, ByteView payload) {
    header.payload_bytes = static_cast<uint32_t>(payload.size());
    Bytes bytes(kHeader);
    wire::EncodeFrameHeader(header, std::span<uint8_t, kHeader>(bytes));
    bytes.insert(bytes.end(), payload.begin(), payload.end());
    return bytes;
  }
  static Bytes Seal(const SampleShard& shard, uint64_t stream) {
    wire::PutSeal seal{shard.manifest.piece_digests, {}, shard.manifest.root};
    return Session::Pack(seal, 2000 + stream, stream);
  }

 private:
  SimIo& io_;
  Loop& loop_;
  SocketId socket_;
};

class StoreServerTest : public testing::Test {
 protected:
  StoreServerTest()
      : node_io_(world_.loop(), world_, "node"),
        store_io_(world_.loop(), world_, "store"),
        store_(world_.loop(), 8192) {
    options_.address = "store:7000";
    options_.credits = 2;
    options_.receive_buffers = 4;
    options_.send_buffers = 4;
    options_.connections_max = 3;
    options_.streams_per_connection_max = 3;
  }
  void SetUp() override { Start(); }
  void TearDown() override {
    StopServer();
    for (const std::string& violation : store_.violations()) ADD_FAILURE() << violation;
    EXPECT_EQ(store_.sessions, 0);
    EXPECT_EQ(world_.net().OpenSockets("store"), 0u);
  }
  void Start() {
    server_ = std::make_unique<StoreServer>(store_io_, store_, options_);
    Status status = loop().RunTask(server_->Start());
    ASSERT_TRUE(status.ok()) << status;
  }
  void StopServer() {
    if (server_ == nullptr) return;
    loop().RunTask(server_->Close());
    server_.reset();
  }
  Loop& loop() { return world_.loop(); }
  void Until(std::function<bool()> condition) { loop().RunUntil(condition); }
  // The peer is told `says`, and then loses the connection and all it held.
  void ExpectExpelled(RawPeer& peer, std::string_view says) {
    Status error = peer.NextError();
    EXPECT_NE(error.message().find(says), std::string::npos) << error;
    EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
    EXPECT_EQ(store_.sessions, 0);
    EXPECT_EQ(server_->metrics().connections_failed, 1u);
  }

  SimWorld world_{3};
  SimIo node_io_;
  SimIo store_io_;
  FakeShardStore store_;
  StoreServerOptions options_;
  std::unique_ptr<StoreServer> server_;
  SampleShard shard_ = MakeShard();
};

TEST_F(StoreServerTest, AResetInTheMiddleOfAFrameFreesTheSession) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  EXPECT_EQ(store_.sessions, 1);
  Bytes chunk = RawPeer::Chunk(shard_, 0, 1);
  chunk.resize(kHeader + 5000);
  peer.Send(chunk);
  world_.net().Reset("node", "store");
  Until([&] { return store_.sessions == 0 && server_->metrics().connections == 0; });
  EXPECT_EQ(server_->metrics().connections_failed, 1u);
}

TEST_F(StoreServerTest, ALostPeerKeepsItsSessionOnlyUntilItsWritesHaveEnded) {
  store_.hold_writes = true;
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  peer.Send(RawPeer::Chunk(shard_, 0, 1));
  Until([&] { return store_.writes_in_flight == 1; });
  world_.net().Reset("node", "store");
  world_.RunFor(std::chrono::seconds(5));
  EXPECT_EQ(store_.sessions, 1) << "a write is in flight";
  store_.Release();
  Until([&] { return store_.sessions == 0; });
}

TEST_F(StoreServerTest, APeerThatFallsSilentWithAnUploadOpenIsToldWhichSettingToRaise) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  ExpectExpelled(peer, "raise store.idle_timeout");
}

TEST_F(StoreServerTest, APeerThatFallsSilentInsideAFrameLosesTheConnection) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  Bytes chunk = RawPeer::Chunk(shard_, 0, 1);
  chunk.resize(kHeader + 100);
  peer.Send(chunk);
  EXPECT_EQ(peer.Next(std::chrono::seconds(59)).header.opcode, Opcode::kBye);
  EXPECT_EQ(store_.sessions, 1) << "not yet";
  Until([&] { return store_.sessions == 0; });
  EXPECT_EQ(server_->metrics().connections_failed, 1u);
}

TEST_F(StoreServerTest, APeerThatWaitsForASlowDiskIsNotSilent) {
  store_.hold_writes = true;
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  peer.Send(RawPeer::Chunk(shard_, 0, 1));
  world_.RunFor(std::chrono::minutes(5));
  store_.Release();
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kCredit);
}

TEST_F(StoreServerTest, AReaderThatDoesNotReadLosesTheConnection) {
  SampleOptions large;
  large.length = 4 << 20;
  shard_ = MakeShard(large);
  RawPeer peer(node_io_);
  peer.Greet();
  auto put = std::make_unique<RawPeer>(node_io_);
  put->Greet();
  put->OpenPut(shard_, 1);
  for (uint64_t i = 0; i < shard_.chunk_count(); ++i) {
    put->Send(RawPeer::Chunk(shard_, i, 1));
    ASSERT_EQ(put->Next().header.opcode, Opcode::kCredit);
  }
  put->Send(RawPeer::Seal(shard_, 1));
  ASSERT_EQ(put->Next().header.opcode, Opcode::kSealed);
  wire::ReadOpen open;
  open.job = shard_.manifest.identity.job;
  open.key = shard_.manifest.identity.key;
  peer.Send(Session::Pack(open, 1, 5));
  ASSERT_EQ(peer.Next().header.opcode, Opcode::kReadOk);
  peer.Send(
      Session::Pack(wire::ReadChunks{0, 0, static_cast<uint32_t>(shard_.chunk_count())}, 2, 5));
  Until([&] { return store_.sessions == 0; });
  EXPECT_LT(server_->metrics().chunks_sent, shard_.chunk_count());
}

TEST_F(StoreServerTest, AStrangerWhoSaysNothingIsSentAway) {
  RawPeer peer(node_io_);
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
  EXPECT_EQ(server_->metrics().connections_failed, 1u);
}

TEST_F(StoreServerTest, AnUnusedConnectionEndsQuietly) {
  RawPeer peer(node_io_);
  peer.Greet();
  EXPECT_EQ(peer.Next(std::chrono::minutes(9)).header.opcode, Opcode::kBye);
  EXPECT_EQ(server_->metrics().connections, 1u) << "not yet";
  Until([&] { return server_->metrics().connections == 0; });
  EXPECT_EQ(server_->metrics().connections_failed, 0u);
}

TEST_F(StoreServerTest, ByeEndsTheConnectionQuietly) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.Send(Session::PackBody(Opcode::kBye, {}, 1));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
  EXPECT_EQ(server_->metrics().connections_failed, 0u);
}

TEST_F(StoreServerTest, AVersionNobodySpeaksIsRefusedInWords) {
  RawPeer peer(node_io_);
  wire::Hello hello;
  hello.version_min = 2;
  hello.version_max = 9;
  peer.Send(Session(wire::Role::kStoreClient).MakeHello(hello));
  EXPECT_EQ(peer.NextError().code(), Code::kUnimplemented);
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
}

TEST_F(StoreServerTest, ForeignBytesAreRefused) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.Send(Bytes(kHeader, 'x'));
  ExpectExpelled(peer, "does not speak this protocol");
}

TEST_F(StoreServerTest, AFrameOverTheLimitIsRefusedBeforeItsPayload) {
  RawPeer peer(node_io_);
  peer.Greet();
  wire::FrameHeader header{.opcode = Opcode::kPutOpen};
  header.payload_bytes = limits::kFramePayloadMax + 1;
  Bytes bytes(kHeader);
  wire::EncodeFrameHeader(header, std::span<uint8_t, kHeader>(bytes));
  peer.Send(bytes);
  ExpectExpelled(peer, "the limit is");
}

TEST_F(StoreServerTest, AChunkWithoutACreditEndsTheConnection) {
  store_.hold_writes = true;
  RawPeer peer(node_io_);
  peer.Greet();
  EXPECT_EQ(peer.OpenPut(shard_, 1).credits, 2u);
  for (uint64_t i = 0; i < 3; ++i) peer.Send(RawPeer::Chunk(shard_, i, 1));
  Status error = peer.NextError();
  EXPECT_NE(error.message().find("without a credit"), std::string::npos) << error;
  EXPECT_EQ(store_.writes_in_flight_max, 2u);
  store_.Release();
  Until([&] { return store_.sessions == 0; });
}

TEST_F(StoreServerTest, ChunksThatDoNotFitTheShardEndTheConnection) {
  wire::FrameHeader header{.opcode = Opcode::kChunk, .stream = 1};
  wire::FrameHeader outside = header;
  outside.offset = shard_.chunk_count();
  Bytes first(shard_.Chunk(0).begin(), shard_.Chunk(0).end());
  std::vector<Bytes> wrong = {
      RawPeer::ChunkOf(outside, first),
      RawPeer::ChunkOf(header, ByteView(first).first(100)),
      RawPeer::ChunkOf({.opcode = Opcode::kChunk, .stream = 77}, first),
  };
  for (const Bytes& chunk : wrong) {
    RawPeer peer(node_io_);
    peer.Greet();
    peer.OpenPut(shard_, 1);
    peer.Send(chunk);
    EXPECT_EQ(peer.NextError().code(), Code::kInvalidArgument);
    EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
  }
  RawPeer twice(node_io_);
  twice.Greet();
  twice.OpenPut(shard_, 1);
  twice.Send(RawPeer::Chunk(shard_, 0, 1));
  EXPECT_EQ(twice.Next().header.opcode, Opcode::kCredit);
  twice.Send(RawPeer::Chunk(shard_, 0, 1));
  EXPECT_NE(twice.NextError().message().find("sent twice"), std::string::npos);
}

TEST_F(StoreServerTest, MessagesForStreamsThatAreNotOpenEndTheConnection) {
  for (Opcode opcode : {Opcode::kPutAbandon, Opcode::kReadClose}) {
    RawPeer peer(node_io_);
    peer.Greet();
    peer.Send(Session::PackBody(opcode, {}, 1, 9));
    EXPECT_NE(peer.NextError().message().find("not open"), std::string::npos);
    EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
  }
}

TEST_F(StoreServerTest, TooManyStreamsAreRefusedAndTheConnectionStaysUsable) {
  RawPeer peer(node_io_);
  peer.Greet();
  for (uint64_t stream = 1; stream <= 3; ++stream) peer.OpenPut(shard_, stream);
  peer.Send(Session::Pack(shard_.Open(), 1, 4));
  EXPECT_EQ(peer.NextError().code(), Code::kResourceExhausted);
  peer.Send(Session::PackBody(Opcode::kPutAbandon, {}, 2, 3));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kDone);
  peer.OpenPut(shard_, 4);
}

TEST_F(StoreServerTest, AStreamIdInUseIsRefusedAndTheConnectionStaysUsable) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  peer.Send(Session::Pack(shard_.Open(), 1, 1));
  EXPECT_EQ(peer.NextError().code(), Code::kInvalidArgument);
  peer.OpenPut(shard_, 2);
}

TEST_F(StoreServerTest, RequestsThatCanNeverSucceedAreRefusedAndTheConnectionStaysUsable) {
  RawPeer peer(node_io_);
  peer.Greet();
  wire::PutOpen rank = shard_.Open();
  rank.shard.rank = rank.shard.world;
  wire::PutOpen length = shard_.Open();
  length.length = limits::kShardBytesMax + 1;
  wire::PutOpen chunk = shard_.Open();
  chunk.chunk_bytes = 0;
  for (const wire::PutOpen& open : {rank, length, chunk}) {
    peer.Send(Session::Pack(open, 1, 1));
    EXPECT_EQ(peer.NextError().code(), Code::kInvalidArgument);
  }
  peer.OpenPut(shard_, 1);
}

TEST_F(StoreServerTest, TwoUploadsInterleaveOnOneConnection) {
  SampleOptions options;
  options.rank = 1;
  options.world = 2;
  SampleShard other = MakeShard(options);
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  peer.OpenPut(other, 2);
  for (uint64_t i = 0; i < shard_.chunk_count(); ++i) {
    peer.Send(RawPeer::Chunk(shard_, i, 1));
    peer.Send(RawPeer::Chunk(other, i, 2));
    EXPECT_EQ(peer.Next().header.opcode, Opcode::kCredit);
    EXPECT_EQ(peer.Next().header.opcode, Opcode::kCredit);
  }
  peer.Send(RawPeer::Seal(other, 2));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kSealed);
  peer.Send(RawPeer::Seal(shard_, 1));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kSealed);
  EXPECT_EQ(store_.sealed_count(), 2u);
  EXPECT_EQ(server_->metrics().shards_sealed, 2u);
}

TEST_F(StoreServerTest, ACorruptChunkFailsItsUploadAndNothingElse) {
  SampleOptions options;
  options.seed = 2;
  SampleShard other = MakeShard(options);
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  peer.OpenPut(other, 2);
  Bytes corrupt = RawPeer::Chunk(shard_, 0, 1);
  corrupt.back() ^= 1;
  peer.Send(corrupt);
  Frame frame = peer.Next();
  EXPECT_EQ(frame.header.opcode, Opcode::kError);
  EXPECT_EQ(frame.header.request, 0u);
  EXPECT_EQ(frame.header.stream, 1u);
  EXPECT_EQ(wire::Decode<wire::ErrorBody>(frame.body)->code, Code::kDataLoss);
  EXPECT_EQ(store_.sessions, 1) << "the space of the failed upload is free at once";
  peer.Send(RawPeer::Chunk(shard_, 1, 1));  // was in flight
  peer.Send(RawPeer::Chunk(other, 0, 2));
  EXPECT_EQ(peer.Next().header.stream, 2u);
  peer.Send(Session::PackBody(Opcode::kPutAbandon, {}, 5, 1));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kDone);
  EXPECT_EQ(server_->metrics().chunks_corrupt, 1u);
  EXPECT_EQ(store_.chunks_written, 1u);
}

TEST_F(StoreServerTest, ConnectionsOverTheLimitAreClosedAtOnce) {
  std::vector<std::unique_ptr<RawPeer>> peers;
  for (int i = 0; i < 3; ++i) {
    peers.push_back(std::make_unique<RawPeer>(node_io_));
    peers.back()->Greet();
  }
  RawPeer late(node_io_);
  EXPECT_EQ(late.Next(std::chrono::seconds(1)).header.opcode, Opcode::kBye);
  EXPECT_EQ(server_->metrics().connections_refused, 1u);
  peers.pop_back();
  Until([&] { return server_->metrics().connections == 2; });
  RawPeer(node_io_).Greet();
}

TEST_F(StoreServerTest, CloseEndsConnectionsAndWaitsForWritesInFlight) {
  store_.hold_writes = true;
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  peer.Send(RawPeer::Chunk(shard_, 0, 1));
  Until([&] { return store_.writes_in_flight == 1; });
  bool closed = false;
  loop().Spawn([](StoreServer& server, bool& flag) -> Task<void> {
    co_await server.Close();
    flag = true;
  }(*server_, closed));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kBye);
  EXPECT_FALSE(closed);
  EXPECT_EQ(store_.sessions, 1);
  store_.Release();
  Until([&] { return closed; });
  EXPECT_EQ(store_.sessions, 0);
}

TEST_F(StoreServerTest, BytesAreCounted) {
  RawPeer peer(node_io_);
  peer.Greet();
  peer.OpenPut(shard_, 1);
  uint64_t before = server_->metrics().bytes_received;
  peer.Send(RawPeer::Chunk(shard_, 0, 1));
  EXPECT_EQ(peer.Next().header.opcode, Opcode::kCredit);
  EXPECT_EQ(server_->metrics().bytes_received - before, kHeader + 8192);
  peer.Close();
  Until([&] { return server_->metrics().connections == 0; });
  EXPECT_EQ(server_->metrics().bytes_received - before, kHeader + 8192);
}

}  // namespace
}  // namespace reprise::dataplane
