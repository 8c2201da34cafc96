// A safetensors header: any bytes behind a correct length prefix. What decodes is contiguous and
// encodes to a header that decodes to the same items.
#include "core/format/safetensors.h"

#include <cstring>

#include "core/base/random.h"
#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

constexpr size_t kPrefixBytes = 8;

void CheckItems(const SafetensorsHeader& header) {
  uint64_t end = 0;
  for (const SafetensorsItem& item : header.items) {
    REPRISE_CHECK(item.begin == end && item.end >= item.begin);
    REPRISE_CHECK(item.end - item.begin == ElementsOf(item.shape) * DtypeBytes(item.dtype));
    end = item.end;
  }
}

void RunInput(ByteView input) {
  Result<uint64_t> header_bytes =
      SafetensorsHeaderBytes(input.first(std::min<size_t>(input.size(), kPrefixBytes)));
  if (!header_bytes.has_value()) fuzz::CheckDecodeRefusal(header_bytes.error());
  fuzz::AllocationCount allocated;
  Result<SafetensorsHeader> header = DecodeSafetensorsHeader(input);
  // A JSON document is a tree of nodes: a two-byte element of a list makes one, in a doubling list.
  REPRISE_CHECK(allocated.bytes() <= 400 * input.size() + 64 * 1024);
  if (!header.has_value()) {
    fuzz::CheckDecodeRefusal(header.error());
    return;
  }
  REPRISE_CHECK(header_bytes.has_value() && *header_bytes <= input.size());
  CheckItems(*header);
  Result<Bytes> encoded = EncodeSafetensorsHeader(*header);
  REPRISE_CHECK(encoded.has_value());
  Result<SafetensorsHeader> again = DecodeSafetensorsHeader(*encoded);
  REPRISE_CHECK(again.has_value());
  REPRISE_CHECK(*again == *header);
}

// The length prefix is what the input has.
void Repair(Bytes& input) {
  if (input.size() < kPrefixBytes) return;
  uint64_t length = input.size() - kPrefixBytes;
  std::memcpy(input.data(), &length, sizeof(length));
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds = {fuzz::Golden("safetensors_header")};
  Rng rng(7);
  for (int i = 0; i < 12; ++i) {
    std::map<std::string, std::string> metadata;
    if (i % 2 == 0) metadata = {{"format", "pt"}, {"step", "7"}};
    Layout layout = RandomLayout(rng, 4);
    SafetensorsHeader header = HeaderOfLayout(layout, metadata);
    if (auto bytes = EncodeSafetensorsHeader(header); bytes.has_value()) seeds.push_back(*bytes);
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::format

REPRISE_FUZZ_TARGET(safetensors) = {.name = "safetensors",
                                    .run = reprise::format::RunInput,
                                    .seeds = reprise::format::Seeds,
                                    .repair = reprise::format::Repair,
                                    .input_bytes_max = 2048};
