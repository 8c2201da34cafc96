// One frame header: decoding is total, what decodes encodes to the same bytes, and damage to any
// byte of what decodes is refused.
#include <algorithm>
#include <array>
#include <cstring>

#include "core/wire/frame.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"

namespace reprise::wire {
namespace {

constexpr size_t kCrcOffset = 60;
using HeaderBytes = std::array<uint8_t, limits::kFrameHeaderBytes>;

HeaderBytes Encoded(const FrameHeader& header) {
  HeaderBytes bytes{};
  EncodeFrameHeader(header, bytes);
  return bytes;
}

void RunInput(ByteView input) {
  HeaderBytes bytes{};
  std::ranges::copy(input.first(std::min(input.size(), bytes.size())), bytes.begin());
  Result<FrameHeader> header = DecodeFrameHeader(bytes);
  if (!header.has_value()) {
    fuzz::CheckDecodeRefusal(header.error());
    return;
  }
  REPRISE_CHECK(IsKnown(header->opcode) && OpcodeName(header->opcode) != "?");
  REPRISE_CHECK(header->payload_bytes <= limits::kFramePayloadMax);
  REPRISE_CHECK(Encoded(*header) == bytes);
  // The rest of the input picks a bit to damage.
  size_t bit = input.size() > bytes.size() ? input[bytes.size()] * 2 % 512 : 0;
  bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  REPRISE_CHECK(!DecodeFrameHeader(bytes).has_value());
}

void Repair(Bytes& input) {
  if (input.size() < limits::kFrameHeaderBytes) return;
  uint32_t crc = Crc32c(ByteView(input).first(kCrcOffset));
  std::memcpy(input.data() + kCrcOffset, &crc, sizeof(crc));
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds = {fuzz::Golden("wire_header")};
  for (uint16_t opcode = 0; opcode < 100; ++opcode) {
    if (!IsKnown(static_cast<Opcode>(opcode))) continue;
    FrameHeader header{.opcode = static_cast<Opcode>(opcode), .request = opcode, .stream = 1};
    if (!IsBodiless(header.opcode)) header.payload_bytes = 100;
    HeaderBytes bytes = Encoded(header);
    seeds.emplace_back(bytes.begin(), bytes.end());
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::wire

REPRISE_FUZZ_TARGET(wire_frame) = {.name = "wire_frame",
                                   .run = reprise::wire::RunInput,
                                   .seeds = reprise::wire::Seeds,
                                   .repair = reprise::wire::Repair,
                                   .input_bytes_max = 72};
