// A connection's sans-I/O half: bytes that claim to be frames arrive at a session of any role, before
// and after the handshake. The first byte picks the role and whether the handshake is done.
//
// Every accepted body is what the peer sent, a broken session says why in an ERROR it can send, and
// what is held for half-sent bodies is what was received, never what was claimed.
#include "core/wire/session.h"

#include <cstring>
#include <map>

#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"
#include "tests/unit/wire/sample_messages.h"

namespace reprise::wire {
namespace {

constexpr size_t kHeader = limits::kFrameHeaderBytes;

bool IsServerRole(Role role) { return role == Role::kStoreServer || role == Role::kLocalServer; }

Hello OurHello() {
  Hello hello;
  hello.peer.bytes.fill(7);
  hello.description = "fuzzer";
  return hello;
}
HelloOk OurHelloOk() { return {.self = Id{{1}}, .chunk_bytes = 4096, .description = "fuzzer"}; }

// Feeds whole frames; yields the bodies that were complete.
std::vector<Session::Incoming> Feed(Session& session, ByteView bytes) {
  std::vector<Session::Incoming> all;
  while (bytes.size() >= kHeader && !session.broken()) {
    auto expect = session.OnHeader(bytes.first<kHeader>());
    REPRISE_CHECK(expect.has_value() && !expect->chunk);
    auto body =
        session.OnBody(expect->header, bytes.subspan(kHeader, expect->header.payload_bytes));
    REPRISE_CHECK(body.has_value());
    if (body->has_value()) all.push_back(std::move(**body));
    bytes = bytes.subspan(kHeader + expect->header.payload_bytes);
  }
  return all;
}

void Shake(Session& session, Role role) {
  if (IsServerRole(role)) {
    Session peer(Role::kStoreClient);
    Feed(session, peer.MakeHello(OurHello()));
    REPRISE_CHECK(session.AcceptHello(OurHello(), OurHelloOk()).has_value());
  } else {
    session.MakeHello(OurHello());
    Session peer(Role::kStoreServer);
    Feed(session, Session::Pack(OurHelloOk(), 0));
  }
  REPRISE_CHECK(session.established());
}

// What an observer who knows only the protocol's rules expects of bodies.
class Observer {
 public:
  explicit Observer(Role role) : role_(role), session_(role) {}
  Session& session() { return session_; }

  // One frame: header and payload as far as the input goes. False: the connection ends here.
  bool OnFrame(ByteView& input) {
    std::array<uint8_t, kHeader> bytes{};
    std::memcpy(bytes.data(), input.data(), kHeader);
    input = input.subspan(kHeader);
    auto expect = session_.OnHeader(bytes);
    if (!expect.has_value()) return Refused(expect.error());
    REPRISE_CHECK(!session_.broken());
    const FrameHeader& header = expect->header;
    if (header.payload_bytes > input.size()) return false;  // the peer went away
    ByteView payload = input.first(header.payload_bytes);
    input = input.subspan(payload.size());
    if (expect->chunk) {
      REPRISE_CHECK(header.opcode == Opcode::kChunk);
      return true;
    }
    Bytes& body = bodies_[header.request];
    body.insert(body.end(), payload.begin(), payload.end());
    auto incoming = session_.OnBody(header, payload);
    if (!incoming.has_value()) return Refused(incoming.error());
    bool more = (header.flags & kFlagMore) != 0;
    REPRISE_CHECK(incoming->has_value() == !more);
    if (!more) {
      REPRISE_CHECK((*incoming)->body == body && (*incoming)->header.opcode == header.opcode);
      bodies_.erase(header.request);
      AnswerHello(**incoming);
    }
    REPRISE_CHECK(session_.partial_bytes() == HeldBytes());
    REPRISE_CHECK(bodies_.size() <= limits::kPartialBodiesMax);
    return !session_.broken();
  }

 private:
  uint64_t HeldBytes() const {
    uint64_t held = 0;
    for (const auto& [request, body] : bodies_) held += body.size();
    return held;
  }
  bool Refused(const Status& status) {
    fuzz::CheckRefusal(status);
    REPRISE_CHECK(session_.broken() && session_.partial_bytes() == 0);
    // The error can be sent, and the other side understands it.
    Session peer(Role::kStoreClient);
    Shake(peer, Role::kStoreClient);
    auto received = Feed(peer, Session::PackError(status, 1));
    REPRISE_CHECK(received.size() == 1);
    REPRISE_CHECK(Decode<ErrorBody>(received[0].body).has_value());
    return false;
  }
  void AnswerHello(const Session::Incoming& incoming) {
    if (incoming.header.opcode != Opcode::kHello) return;
    REPRISE_CHECK(IsServerRole(role_));
    auto hello = Decode<Hello>(incoming.body);
    if (!hello.has_value()) return;
    auto answer = session_.AcceptHello(*hello, OurHelloOk());
    REPRISE_CHECK(answer.has_value() == session_.established());
    if (!answer.has_value()) Refused(answer.error());
  }

  Role role_;
  Session session_;
  std::map<uint64_t, Bytes> bodies_;  // half-sent
};

void RunInput(ByteView input) {
  fuzz::Script script(input);
  auto role = static_cast<Role>(script.Below(8) % 4);
  bool shaken = input.empty() || input[0] % 8 < 4;
  fuzz::AllocationCount allocated;
  Observer observer(role);
  if (shaken) {
    Shake(observer.session(), role);
  } else if (!IsServerRole(role)) {
    observer.session().MakeHello(OurHello());
  }
  ByteView rest = script.Rest();
  while (rest.size() >= kHeader && observer.OnFrame(rest)) {
  }
  REPRISE_CHECK(allocated.bytes() <= 32 * input.size() + 64 * 1024);
}

// The CRC of each frame, and a payload length that stays within the input.
void Repair(Bytes& input) {
  size_t at = 1;
  while (at + kHeader <= input.size()) {
    uint8_t* header = input.data() + at;
    uint32_t payload = 0;
    std::memcpy(&payload, header + 12, sizeof(payload));
    if (size_t left = input.size() - at - kHeader; payload > left) {
      payload = static_cast<uint32_t>(left);
      std::memcpy(header + 12, &payload, sizeof(payload));
    }
    uint32_t crc = Crc32c(ByteView(header, 60));
    std::memcpy(header + 60, &crc, sizeof(crc));
    at += kHeader + payload;
  }
}

// A body cut into frames of `size` bytes.
void AppendCut(Bytes& out, Opcode opcode, ByteView body, uint64_t request, size_t size) {
  for (bool last = false; !last;) {
    last = body.size() <= size;
    ByteView part = body.first(std::min(size, body.size()));
    body = body.subspan(part.size());
    Bytes frame = Session::PackBody(opcode, part, request, 3);
    if (!last) frame[8] = kFlagMore;
    out.insert(out.end(), frame.begin(), frame.end());
  }
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(8);
  auto add = [&](uint8_t first, Bytes frames) {
    frames.insert(frames.begin(), first);
    Repair(frames);
    seeds.push_back(std::move(frames));
  };
  for (uint8_t role = 0; role < 4; ++role) {
    Bytes handshake = Session::Pack(OurHello(), 0);
    Bytes answer = Session::Pack(OurHelloOk(), 0);
    bool server = IsServerRole(static_cast<Role>(role));
    add(4 + role, server ? handshake : answer);
    ForEachMessage([&]<typename Message>(std::string_view) {
      Bytes frames;
      Bytes body = Encode(RandomMessage<Message>(rng));
      AppendCut(frames, kOpcodeOf<Message>, body, 5, 40);
      AppendCut(frames, kOpcodeOf<Message>, body, 6, body.size());
      add(role, frames);
    });
  }
  add(4, fuzz::Golden("wire_hello_frame"));
  return seeds;
}

}  // namespace
}  // namespace reprise::wire

REPRISE_FUZZ_TARGET(wire_session) = {.name = "wire_session",
                                     .run = reprise::wire::RunInput,
                                     .seeds = reprise::wire::Seeds,
                                     .repair = reprise::wire::Repair,
                                     .input_bytes_max = 2048};
