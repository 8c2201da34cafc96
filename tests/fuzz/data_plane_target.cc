// A store's data plane as a stranger may use it: frames with right checksums and any content, in any
// order, over a simulated network, to a server in front of a store with a history.
//
// Input: a script of frames, of bytes that are none, and of pauses. The server answers in frames that
// the protocol allows, lets go of the connection and of all it held, and what the store held before
// is still there, bit for bit.
#include "server/dataplane/store_server.h"

#include <array>
#include <optional>

#include "core/io/transfer.h"
#include "core/wire/session.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/store_base.h"
#include "tests/fuzz/target.h"

namespace reprise::dataplane {
namespace {

using namespace std::chrono_literals;
using lifecycle::kTestChunk;
using lifecycle::StoreHost;
using wire::Opcode;
using wire::Session;

constexpr size_t kHeader = limits::kFrameHeaderBytes;
constexpr size_t kStepsMax = 24;

enum Step : uint8_t { kMessage, kChunk, kSavedChunk, kGarbage, kPause, kLeave, kSteps };

Bytes FrameOf(wire::FrameHeader header, ByteView payload) {
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  Bytes frame(kHeader);
  wire::EncodeFrameHeader(header, std::span<uint8_t, kHeader>(frame.data(), kHeader));
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

StoreServerOptions ServerOptions() {
  StoreServerOptions options;
  options.address = "front:7000";
  options.receive_buffers = 4;
  options.send_buffers = 4;
  options.credits = 2;
  options.streams_per_connection_max = 3;
  return options;
}

// The peer: sends what the script says, checks what comes back.
class Peer {
 public:
  explicit Peer(SimIo& io) : io_(io) {}

  Task<void> Run(fuzz::Script script) {
    auto socket = co_await io_.Connect("front:7000", io_.loop().Now() + 1s);
    REPRISE_CHECK(socket.has_value());
    socket_ = *socket;
    io_.loop().Spawn(Listen());
    if (script.Chance(240)) co_await Send(session_.MakeHello({.description = "fuzzer"}));
    for (size_t steps = 0; steps < kStepsMax && !script.AtEnd() && !left_; ++steps) {
      co_await Do(script);
    }
    co_await io_.loop().Sleep(5ms);
    io_.Shutdown(socket_);
    while (!ended_) co_await io_.loop().Sleep(1ms);
    io_.CloseSocket(socket_);
  }

 private:
  Task<void> Send(Bytes bytes) {
    Status sent = co_await SendFully(io_, socket_, bytes, io_.loop().Now() + 1s);
    if (!sent.ok()) left_ = true;
  }
  Task<void> Do(fuzz::Script& script) {
    wire::FrameHeader header;
    switch (script.Below(kSteps)) {
      case kMessage:
        header = HeaderOf(script, static_cast<Opcode>(script.Byte()));
        if (script.Chance(10)) header.flags = 1;
        co_await Send(FrameOf(header, script.Blob()));
        break;
      case kChunk: {
        header = HeaderOf(script, Opcode::kChunk);
        ByteView payload = script.Blob();
        if (!script.Chance(20)) header.digest = DigestOf(payload);
        co_await Send(FrameOf(header, payload));
        break;
      }
      case kSavedChunk: co_await SendSavedChunk(script); break;
      case kGarbage: {
        ByteView bytes = script.Take(script.Byte());
        co_await Send({bytes.begin(), bytes.end()});
        break;
      }
      case kPause:
        co_await io_.loop().Sleep(std::chrono::milliseconds(script.Odd() % 100'000));
        break;
      default:
        if (script.Chance(64)) left_ = true;
    }
  }
  static wire::FrameHeader HeaderOf(fuzz::Script& script, Opcode opcode) {
    wire::FrameHeader header{.opcode = opcode};
    header.request = script.Byte();
    header.stream = script.Byte() % 4;
    header.offset = script.Odd();
    return header;
  }
  // A chunk as rank 1 of the half-done attempt has it.
  Task<void> SendSavedChunk(fuzz::Script& script) {
    auto content = lifecycle::MakeContent(1, 2, 4, 3 * kTestChunk);
    wire::FrameHeader header = HeaderOf(script, Opcode::kChunk);
    uint64_t at = header.offset < 3 ? header.offset * kTestChunk : 0;
    ByteView payload = ByteView(content.bytes).subspan(at, kTestChunk);
    header.digest = DigestOf(payload);
    co_await Send(FrameOf(header, payload));
  }
  // Every frame of the server is one that its peer accepts.
  Task<void> Listen() {
    std::array<uint8_t, kHeader> bytes{};
    bool greeted = false;
    while (true) {
      Status got = co_await RecvFully(io_, socket_, bytes);
      if (!got.ok()) break;
      auto header = wire::DecodeFrameHeader(bytes);
      REPRISE_CHECK(header.has_value());
      Bytes payload(header->payload_bytes);
      if (Status body = co_await RecvFully(io_, socket_, payload); !body.ok()) break;
      if (header->opcode == Opcode::kHelloOk) greeted = true;
      // Before its HELLO a peer understands nothing, and the server may only refuse it.
      if (!greeted) {
        REPRISE_CHECK(header->opcode == Opcode::kError);
        continue;
      }
      auto expect = session_.OnHeader(bytes);
      REPRISE_CHECK(expect.has_value(), expect.has_value() ? "" : expect.error().message());
      if (expect->chunk) {
        REPRISE_CHECK(DigestOf(payload) == header->digest, "a chunk with another digest");
        continue;
      }
      auto incoming = session_.OnBody(*header, payload);
      REPRISE_CHECK(incoming.has_value());
      if (header->opcode != Opcode::kError) continue;
      auto error = wire::Decode<wire::ErrorBody>((*incoming)->body);
      REPRISE_CHECK(error.has_value() && !error->message.empty());
    }
    ended_ = true;
  }

  SimIo& io_;
  SocketId socket_;
  Session session_{wire::Role::kStoreClient};
  bool left_ = false;
  bool ended_ = false;
};

void CheckStore(StoreHost& host) {
  const fuzz::StoreBase& base = fuzz::BaseOfStore();
  REPRISE_CHECK(!host.store().failed());
  for (const auto& [key, seed] : base.seeds) {
    Status read = lifecycle::CheckBytes(host, base.run.answer.job, key, base.run.world, seed);
    REPRISE_CHECK(read.ok(), read.message());
  }
}

void RunInput(ByteView input) {
  const fuzz::StoreBase& base = fuzz::BaseOfStore();
  StoreHost host(base.disk, base.index, 7);
  REPRISE_CHECK(host.Open().ok());
  {
    SimIo front(host.loop(), host.world(), "front");
    SimIo node(host.loop(), host.world(), "node");
    StoreServer server(front, host.store(), ServerOptions());
    REPRISE_CHECK(host.Run(server.Start()).ok());
    Peer peer(node);
    host.Run(peer.Run(fuzz::Script(input)));
    host.RunFor(1s);
    REPRISE_CHECK(server.metrics().connections == 0, "the server keeps a connection that ended");
    CheckStore(host);
    host.Run(server.Close());
    REPRISE_CHECK(host.world().net().OpenSockets("front") == 0);
  }
  host.Close();
}

class SeedWriter {
 public:
  SeedWriter() { writer_.U8(0); }
  template <typename Message>
  SeedWriter& Add(const Message& message, uint8_t request, uint8_t stream) {
    writer_.U8(kMessage);
    writer_.U8(static_cast<uint8_t>(wire::kOpcodeOf<Message>));
    Head(request, stream, 0);
    writer_.U8(255);
    Bytes body = wire::Encode(message);
    writer_.U16(static_cast<uint16_t>(body.size()));
    writer_.Data(body);
    return *this;
  }
  SeedWriter& AddEmpty(Opcode opcode, uint8_t request, uint8_t stream) {
    writer_.U8(kMessage);
    writer_.U8(static_cast<uint8_t>(opcode));
    Head(request, stream, 0);
    writer_.U8(255);
    writer_.U16(0);
    return *this;
  }
  SeedWriter& AddSaved(uint8_t stream, uint8_t index) {
    writer_.U8(kSavedChunk);
    Head(0, stream, index);
    return *this;
  }
  Bytes Take() { return writer_.Take(); }

 private:
  // What HeaderOf reads; small numbers are one byte in Script::Odd.
  void Head(uint8_t request, uint8_t stream, uint8_t offset) {
    writer_.U8(request);
    writer_.U8(stream);
    writer_.U8(static_cast<uint8_t>(offset * 8));
  }
  ByteWriter writer_;
};

std::vector<Bytes> Seeds() {
  const fuzz::StoreBase& base = fuzz::BaseOfStore();
  std::vector<Bytes> seeds;
  auto content = lifecycle::MakeContent(1, 2, 4, 3 * kTestChunk);
  format::ShardManifest shard = ManifestOf(base.run.Identity(1, 4, base.attempt), content);
  wire::PutOpen open{shard.identity, shard.length, kTestChunk, shard.layout, {}};
  SeedWriter put;
  put.Add(open, 1, 1);
  for (uint8_t index : {0, 1, 2}) put.AddSaved(1, index);
  put.Add(wire::PutSeal{content.piece_digests, content.encoded_layout, shard.root}, 2, 1);
  seeds.push_back(put.Add(open, 3, 2).Take());
  seeds.push_back(
      SeedWriter().Add(open, 1, 1).AddSaved(1, 1).AddEmpty(Opcode::kPutAbandon, 4, 1).Take());
  for (const auto& [key, seed] : base.seeds) {
    wire::ReadOpen read{.job = base.run.answer.job, .key = key};
    seeds.push_back(SeedWriter()
                        .Add(read, 1, 1)
                        .Add(wire::ReadShard{1}, 2, 1)
                        .Add(wire::ReadLayout{content.layout_digest}, 3, 1)
                        .Add(wire::ReadChunks{0, 0, 3}, 4, 1)
                        .Add(wire::ReadChunks{1, 1, 1}, 5, 1)
                        .AddEmpty(Opcode::kReadClose, 6, 1)
                        .AddEmpty(Opcode::kBye, 0, 0)
                        .Take());
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::dataplane

REPRISE_FUZZ_TARGET(data_plane) = {.name = "data_plane",
                                   .run = reprise::dataplane::RunInput,
                                   .seeds = reprise::dataplane::Seeds,
                                   .input_bytes_max = 1024};
