// Frames and message bodies of wire version 1, byte for byte (docs/wire.md).
#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <string>

#include "core/wire/frame.h"
#include "core/wire/session.h"
#include "tests/unit/wire/sample_messages.h"

namespace reprise::wire {
namespace {

// Bytes of tests/golden/v1/<name>.hex: hexadecimal digits; white space is skipped.
Bytes Golden(const std::string& name) {
  std::ifstream file("tests/golden/v1/" + name + ".hex");
  EXPECT_TRUE(file.is_open()) << name;
  Bytes bytes;
  std::string word;
  while (file >> word) {
    EXPECT_EQ(word.size() % 2, 0u);
    for (size_t i = 0; i + 1 < word.size(); i += 2) {
      bytes.push_back(static_cast<uint8_t>(std::stoul(word.substr(i, 2), nullptr, 16)));
    }
  }
  return bytes;
}

FrameHeader GoldenHeader() {
  FrameHeader header;
  header.opcode = Opcode::kChunk;
  header.payload_bytes = 0x00100000;
  header.request = 0x0102030405060708;
  header.stream = 0x1112131415161718;
  header.offset = 0x2122232425262728;
  header.digest = DigestOf(ViewOf("reprise"));
  return header;
}

TEST(WireGolden, TheFrameHeaderIsUnchanged) {
  Bytes golden = Golden("wire_header");
  ASSERT_EQ(golden.size(), limits::kFrameHeaderBytes);
  Result<FrameHeader> decoded =
      DecodeFrameHeader(ByteView(golden).first<limits::kFrameHeaderBytes>());
  ASSERT_TRUE(decoded.has_value()) << decoded.error();
  EXPECT_EQ(*decoded, GoldenHeader());
  Bytes encoded(limits::kFrameHeaderBytes);
  EncodeFrameHeader(*decoded, std::span<uint8_t, limits::kFrameHeaderBytes>(encoded));
  EXPECT_EQ(HexOf(encoded), HexOf(golden));
}

TEST(WireGolden, AHelloAsItCrossesTheWireIsUnchanged) {
  Hello hello;
  hello.peer.bytes.fill(0xAB);
  hello.description = "node n1, pid 7";
  EXPECT_EQ(HexOf(Session(Role::kStoreClient).MakeHello(hello)), HexOf(Golden("wire_hello_frame")));
}

TEST(WireGolden, EveryMessageBodyIsUnchanged) {
  ForEachMessage([]<typename Message>(std::string_view name) {
    Rng rng(20);
    Message sample = RandomMessage<Message>(rng);
    Bytes golden = Golden("wire_" + std::string(name));
    Result<Message> decoded = Decode<Message>(golden);
    ASSERT_TRUE(decoded.has_value()) << name << ": " << decoded.error();
    EXPECT_EQ(*decoded, sample) << name;
    EXPECT_EQ(HexOf(Encode(*decoded)), HexOf(golden)) << name;
  });
}

}  // namespace
}  // namespace reprise::wire
