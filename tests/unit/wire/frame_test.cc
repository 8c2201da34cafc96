#include "core/wire/frame.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "core/base/random.h"

namespace reprise::wire {
namespace {

using HeaderBytes = std::array<uint8_t, limits::kFrameHeaderBytes>;

HeaderBytes Encoded(const FrameHeader& header) {
  HeaderBytes bytes;
  EncodeFrameHeader(header, bytes);
  return bytes;
}

// Gives a header with a changed field a valid CRC again.
void Reseal(HeaderBytes& bytes) {
  uint32_t crc = Crc32c(ByteView(bytes).first(60));
  std::memcpy(bytes.data() + 60, &crc, sizeof(crc));
}

FrameHeader Sample() {
  FrameHeader header;
  header.opcode = Opcode::kChunk;
  header.payload_bytes = 4096;
  header.request = 0x1122334455667788;
  header.stream = 7;
  header.offset = 9;
  header.digest = DigestOf(ViewOf("chunk"));
  return header;
}

TEST(Frame, EveryOpcodeSurvivesEncodingAndDecoding) {
  Rng rng(1);
  int known = 0;
  for (uint32_t value = 0; value < 300; ++value) {
    auto opcode = static_cast<Opcode>(value);
    if (!IsKnown(opcode)) continue;
    ++known;
    FrameHeader header = Sample();
    header.opcode = opcode;
    header.request = rng.Next();
    header.stream = rng.Next();
    header.offset = rng.Next();
    header.flags = rng.Chance(1, 2) ? kFlagMore : 0;
    header.payload_bytes = static_cast<uint32_t>(rng.Below(limits::kFramePayloadMax + 1));
    Result<FrameHeader> decoded = DecodeFrameHeader(Encoded(header));
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    EXPECT_EQ(*decoded, header);
  }
  EXPECT_EQ(known, 38);
}

TEST(Frame, NamesOfOpcodesAreDistinct) {
  std::set<std::string_view> names;
  for (uint32_t value = 0; value < 300; ++value) {
    auto opcode = static_cast<Opcode>(value);
    if (IsKnown(opcode)) EXPECT_TRUE(names.insert(OpcodeName(opcode)).second);
  }
}

TEST(Frame, AFlipOfAnyBitIsRefused) {
  HeaderBytes intact = Encoded(Sample());
  for (size_t bit = 0; bit < intact.size() * 8; ++bit) {
    HeaderBytes damaged = intact;
    damaged[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    Result<FrameHeader> decoded = DecodeFrameHeader(damaged);
    ASSERT_FALSE(decoded.has_value()) << "bit " << bit;
    EXPECT_EQ(decoded.error().code(), Code::kDataLoss) << "bit " << bit;
  }
}

TEST(Frame, AnUnknownVersionOpcodeFlagOrReservedFieldIsUnimplemented) {
  struct Case {
    size_t offset;
    uint8_t value;
    std::string_view says;
  };
  for (Case change : {Case{4, 2, "version 2"}, Case{6, 200, "opcode 200"}, Case{8, 2, "flags 0x2"},
                      Case{56, 1, "reserved 1"}}) {
    HeaderBytes bytes = Encoded(Sample());
    bytes[change.offset] = change.value;
    Reseal(bytes);
    Result<FrameHeader> decoded = DecodeFrameHeader(bytes);
    ASSERT_FALSE(decoded.has_value());
    EXPECT_EQ(decoded.error().code(), Code::kUnimplemented);
    EXPECT_NE(decoded.error().message().find(change.says), std::string::npos) << decoded.error();
  }
}

TEST(Frame, APayloadOverTheLimitIsRefused) {
  FrameHeader header = Sample();
  header.payload_bytes = limits::kFramePayloadMax + 1;
  Result<FrameHeader> decoded = DecodeFrameHeader(Encoded(header));
  ASSERT_FALSE(decoded.has_value());
  EXPECT_EQ(decoded.error().code(), Code::kInvalidArgument);
}

TEST(Frame, ForeignBytesAreToldApartFromDamage) {
  HeaderBytes http{};
  std::memcpy(http.data(), "GET / HTTP/1.1\r\n", 16);
  Result<FrameHeader> decoded = DecodeFrameHeader(http);
  ASSERT_FALSE(decoded.has_value());
  EXPECT_NE(decoded.error().message().find("does not speak"), std::string::npos);
}

}  // namespace
}  // namespace reprise::wire
