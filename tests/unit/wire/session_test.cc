#include "core/wire/session.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/base/check.h"
#include "core/base/random.h"

namespace reprise::wire {
namespace {

constexpr size_t kHeader = limits::kFrameHeaderBytes;

std::span<const uint8_t, kHeader> HeaderOf(ByteView bytes) { return bytes.first<kHeader>(); }

Bytes HeaderFor(Opcode opcode, uint32_t payload_bytes = 0, uint32_t flags = 0, uint64_t request = 1,
                uint64_t stream = 0) {
  FrameHeader header;
  header.opcode = opcode;
  header.payload_bytes = payload_bytes;
  header.flags = flags;
  header.request = request;
  header.stream = stream;
  Bytes bytes(kHeader);
  EncodeFrameHeader(header, std::span<uint8_t, kHeader>(bytes));
  return bytes;
}

// Feeds a stream of message frames; returns the bodies, or the first error.
Result<std::vector<Session::Incoming>> Feed(Session& session, ByteView bytes) {
  std::vector<Session::Incoming> bodies;
  while (!bytes.empty()) {
    REPRISE_ASSIGN(Session::Expect expect, session.OnHeader(HeaderOf(bytes)));
    bytes = bytes.subspan(kHeader);
    REPRISE_ASSIGN(std::optional<Session::Incoming> body,
                   session.OnBody(expect.header, bytes.first(expect.header.payload_bytes)));
    bytes = bytes.subspan(expect.header.payload_bytes);
    if (body.has_value()) bodies.push_back(std::move(*body));
  }
  return bodies;
}

struct Pair {
  Session client;
  Session server;
  explicit Pair(bool local = false)
      : client(local ? Role::kLocalClient : Role::kStoreClient),
        server(local ? Role::kLocalServer : Role::kStoreServer) {}

  Status Handshake(Hello hello = {}) {
    REPRISE_ASSIGN_STATUS(auto hellos, Feed(server, client.MakeHello(hello)));
    REPRISE_ASSIGN_STATUS(Hello received, Decode<Hello>(hellos.at(0).body));
    REPRISE_ASSIGN_STATUS(Bytes answer, server.AcceptHello(received, {}));
    return StatusOf(Feed(client, answer));
  }
};

TEST(Session, AHandshakeEstablishesBothSides) {
  Pair pair;
  Status status = pair.Handshake();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(pair.client.established());
  EXPECT_TRUE(pair.server.established());
}

TEST(Session, NothingButHelloIsLegalBeforeTheHandshake) {
  for (uint32_t value = 0; value < 100; ++value) {
    auto opcode = static_cast<Opcode>(value);
    if (!IsKnown(opcode)) continue;
    Session server(Role::kStoreServer);
    EXPECT_EQ(server.OnHeader(HeaderOf(HeaderFor(opcode))).has_value(), opcode == Opcode::kHello)
        << OpcodeName(opcode);
    Session client(Role::kStoreClient);
    client.MakeHello({});
    bool legal = opcode == Opcode::kHelloOk || opcode == Opcode::kError;
    EXPECT_EQ(client.OnHeader(HeaderOf(HeaderFor(opcode))).has_value(), legal)
        << OpcodeName(opcode);
  }
}

TEST(Session, TheServerTakesNothingBetweenHelloAndItsAnswer) {
  Session client(Role::kStoreClient);
  Session server(Role::kStoreServer);
  Bytes hello = client.MakeHello({});
  ASSERT_TRUE(Feed(server, hello).has_value());
  EXPECT_FALSE(Feed(server, hello).has_value());
  EXPECT_TRUE(server.broken());
}

TEST(Session, AHelloOverItsLimitIsRefusedFromTheHeaderAlone) {
  Session server(Role::kStoreServer);
  auto refused = server.OnHeader(HeaderOf(HeaderFor(Opcode::kHello, limits::kHelloBytesMax + 1)));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code(), Code::kInvalidArgument);
}

TEST(Session, VersionsAreNegotiatedOrRefusedByName) {
  Hello wide;
  wide.version_max = 7;
  EXPECT_TRUE(Pair().Handshake(wide).ok());
  Hello newer;
  newer.version_min = 2;
  newer.version_max = 3;
  newer.description = "node-17";
  Status refused = Pair().Handshake(newer);
  EXPECT_EQ(refused.code(), Code::kUnimplemented);
  EXPECT_NE(refused.message().find("node-17 speaks versions 2 to 3"), std::string::npos) << refused;
}

TEST(Session, AVersionTheClientDoesNotSpeakIsRefused) {
  Session client(Role::kStoreClient);
  client.MakeHello({});
  HelloOk answer;
  answer.version = 9;
  Result<std::vector<Session::Incoming>> fed = Feed(client, Session::Pack(answer, 0));
  ASSERT_FALSE(fed.has_value());
  EXPECT_EQ(fed.error().code(), Code::kUnimplemented);
  EXPECT_FALSE(client.established());
}

TEST(Session, UnknownRequiredFeaturesAreNamed) {
  Hello hello;
  hello.required_features = 0x30;
  Status refused = Pair().Handshake(hello);
  EXPECT_EQ(refused.code(), Code::kUnimplemented);
  EXPECT_NE(refused.message().find("0x30"), std::string::npos);
}

TEST(Session, EachRoleTakesWhatThePeerSendsAndNothingElse) {
  for (bool local : {false, true}) {
    int legal_at_client = 0;
    int legal_at_server = 0;
    for (uint32_t value = 0; value < 100; ++value) {
      auto opcode = static_cast<Opcode>(value);
      if (!IsKnown(opcode)) continue;
      Pair pair(local);
      ASSERT_TRUE(pair.Handshake().ok());
      bool at_client = pair.client.OnHeader(HeaderOf(HeaderFor(opcode))).has_value();
      bool at_server = pair.server.OnHeader(HeaderOf(HeaderFor(opcode))).has_value();
      EXPECT_EQ(pair.client.broken(), !at_client);
      legal_at_client += at_client;
      legal_at_server += at_server;
      // Only chunks travel both ways, between node and store.
      if (at_client && at_server) EXPECT_EQ(opcode, Opcode::kChunk);
    }
    EXPECT_EQ(legal_at_client, local ? 12 : 9);
    EXPECT_EQ(legal_at_server, local ? 16 : 10);
  }
}

TEST(Session, AChunkIsLeftToTheDriverToReceive) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  auto expect = pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kChunk, 4096)));
  ASSERT_TRUE(expect.has_value());
  EXPECT_TRUE(expect->chunk);
  EXPECT_EQ(expect->header.payload_bytes, 4096u);
}

TEST(Session, BodilessOpcodesWithAPayloadAreRefused) {
  for (Opcode opcode : {Opcode::kReadClose, Opcode::kPutAbandon, Opcode::kBye}) {
    Pair pair;
    ASSERT_TRUE(pair.Handshake().ok());
    EXPECT_TRUE(pair.server.OnHeader(HeaderOf(HeaderFor(opcode))).has_value());
    EXPECT_FALSE(pair.server.OnHeader(HeaderOf(HeaderFor(opcode, 1))).has_value());
  }
}

TEST(Session, ABodyLargerThanOneFrameArrivesWhole) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  Rng rng(5);
  PutSeal seal;
  seal.layout.resize(9 * limits::kMiB);
  for (uint8_t& byte : seal.layout) byte = static_cast<uint8_t>(rng.Next());
  Bytes frames = Session::Pack(seal, 3, 8);
  EXPECT_GT(frames.size(), 3 * kHeader + seal.layout.size());
  auto bodies = Feed(pair.server, frames);
  ASSERT_TRUE(bodies.has_value()) << bodies.error();
  ASSERT_EQ(bodies->size(), 1u);
  EXPECT_EQ(bodies->at(0).header.stream, 8u);
  EXPECT_EQ(bodies->at(0).header.flags, 0u);
  EXPECT_EQ(Decode<PutSeal>(bodies->at(0).body).value(), seal);
  EXPECT_EQ(pair.server.partial_bytes(), 0u);
}

TEST(Session, BodiesOfSeveralRequestsMayBeInterleaved) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  Bytes part = {1, 2, 3};
  auto send = [&](uint64_t request, uint32_t flags) {
    auto expect =
        pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, 3, flags, request, request)));
    REPRISE_CHECK(expect.has_value());
    return pair.server.OnBody(expect->header, part);
  };
  EXPECT_FALSE(send(1, kFlagMore)->has_value());
  EXPECT_FALSE(send(2, kFlagMore)->has_value());
  EXPECT_EQ(pair.server.partial_bytes(), 6u);
  EXPECT_EQ(send(1, 0)->value().body, (Bytes{1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(send(2, 0)->value().header.stream, 2u);
}

TEST(Session, ContinuationsMustKeepTheirOpcodeAndStream) {
  for (bool other_opcode : {true, false}) {
    Pair pair;
    ASSERT_TRUE(pair.Handshake().ok());
    Bytes first = HeaderFor(Opcode::kPutSeal, 1, kFlagMore, 4, 4);
    auto expect = pair.server.OnHeader(HeaderOf(first));
    ASSERT_TRUE(pair.server.OnBody(expect->header, Bytes{1}).has_value());
    Bytes second = other_opcode ? HeaderFor(Opcode::kPutOpen, 1, 0, 4, 4)
                                : HeaderFor(Opcode::kPutSeal, 1, 0, 4, 5);
    EXPECT_FALSE(pair.server.OnHeader(HeaderOf(second)).has_value());
  }
}

TEST(Session, AFrameWithoutABodyDoesNotEndAHalfSentOne) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  auto expect = pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, 1, kFlagMore, 4, 4)));
  ASSERT_TRUE(pair.server.OnBody(expect->header, Bytes{1}).has_value());
  auto refused = pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutAbandon, 0, 0, 4, 4)));
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message().find("PUT_ABANDON interrupts the PUT_SEAL"),
            std::string::npos);
}

TEST(Session, ContinuationsThatBringNothingAreRefused) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  EXPECT_FALSE(
      pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, 0, kFlagMore))).has_value());
}

TEST(Session, AFrameOfAMessageOverItsLimitIsRefusedFromTheHeaderAlone) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  auto fits = pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, limits::kMessageBytesMax)));
  EXPECT_TRUE(fits.has_value());
  auto refused =
      pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, limits::kMessageBytesMax + 1)));
  EXPECT_FALSE(refused.has_value());
}

TEST(Session, TheSumOfHalfSentBodiesIsBounded) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  Bytes part(limits::kMessageBytesMax);
  size_t frames = 0;
  for (;; ++frames) {
    ASSERT_LE(frames * part.size(), limits::kBodyBytesMax);
    uint64_t request = frames % 3;
    auto expect = pair.server.OnHeader(
        HeaderOf(HeaderFor(Opcode::kPutSeal, limits::kMessageBytesMax, kFlagMore, request)));
    if (!expect.has_value()) break;
    ASSERT_TRUE(pair.server.OnBody(expect->header, part).has_value());
  }
  EXPECT_EQ(frames, limits::kBodyBytesMax / limits::kMessageBytesMax);
  EXPECT_EQ(pair.server.partial_bytes(), 0u) << "a broken session keeps no bodies";
}

TEST(Session, TheNumberOfHalfSentBodiesIsBounded) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  for (uint64_t request = 0; request < limits::kPartialBodiesMax; ++request) {
    auto expect =
        pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, 1, kFlagMore, request)));
    ASSERT_TRUE(expect.has_value());
    ASSERT_TRUE(pair.server.OnBody(expect->header, Bytes{1}).has_value());
  }
  EXPECT_FALSE(
      pair.server.OnHeader(HeaderOf(HeaderFor(Opcode::kPutSeal, 1, kFlagMore, 99))).has_value());
}

TEST(Session, AnErrorReachesThePeerWithItsCodeAndWords) {
  Pair pair;
  ASSERT_TRUE(pair.Handshake().ok());
  auto bodies = Feed(pair.client, Session::PackError({Code::kFenced, "epoch 4 is over"}, 12, 3));
  ASSERT_TRUE(bodies.has_value());
  EXPECT_EQ(bodies->at(0).header.opcode, Opcode::kError);
  EXPECT_EQ(bodies->at(0).header.request, 12u);
  auto error = Decode<ErrorBody>(bodies->at(0).body);
  EXPECT_EQ(*error, (ErrorBody{Code::kFenced, "epoch 4 is over"}));
}

TEST(Session, AnErrorInsteadOfHelloOkReachesTheClient) {
  Session client(Role::kStoreClient);
  client.MakeHello({});
  auto bodies = Feed(client, Session::PackError({Code::kUnimplemented, "too old"}, 0));
  ASSERT_TRUE(bodies.has_value()) << bodies.error();
  EXPECT_FALSE(client.established());
}

}  // namespace
}  // namespace reprise::wire
