// A slab slot's header and companion, both of which a trainer may have written over. The first two
// bytes are the header's length in the input; the companion follows.
//
// A header that decodes encodes to one that decodes to the same; a companion is accepted only under a
// header that vouches for it, and then agrees with it in every field.
#include "server/node/slot_format.h"

#include <cstring>

#include "core/format/layout.h"
#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"

namespace reprise::node {
namespace {

constexpr size_t kCrcOffset = 12;
// Of the fields that Repair makes fit (slot_format.cc, PutFields).
constexpr size_t kMetaBytesOffset =
    16 + 1 + 1 + 4 + 16 + 8 + (16 + 8 + 8 + 16 + 4 + 4) + 8 + 4 + 16 + 16;

struct Parts {
  Bytes header;
  ByteView meta;
};

Parts PartsOf(ByteView input) {
  fuzz::Script script(input);
  ByteView header = script.Take(script.Number(2) % kSlotHeaderBytes);
  Parts parts{{header.begin(), header.end()}, script.Rest()};
  parts.header.resize(kSlotHeaderBytes);
  return parts;
}

void CheckMeta(ByteView bytes, const SlotHeader& header) {
  fuzz::AllocationCount allocated;
  Result<SlotMeta> meta = DecodeSlotMeta(bytes, header);
  REPRISE_CHECK(allocated.bytes() <= 16 * bytes.size() + 16 * 1024);
  if (!meta.has_value()) {
    fuzz::CheckDecodeRefusal(meta.error());
    return;
  }
  REPRISE_CHECK(meta->manifest.identity == header.identity);
  REPRISE_CHECK(meta->manifest.length == header.length && header.length <= header.capacity);
  REPRISE_CHECK(meta->manifest.chunk_bytes == header.chunk_bytes);
  REPRISE_CHECK(meta->manifest.root == header.root && DigestOf(meta->layout) == header.layout);
  Bytes encoded = EncodeSlotMeta(meta->manifest, meta->layout);
  REPRISE_CHECK(std::ranges::equal(encoded, bytes));
}

void RunInput(ByteView input) {
  Parts parts = PartsOf(input);
  Result<SlotHeader> header = DecodeSlotHeader(parts.header);
  if (!header.has_value()) {
    fuzz::CheckDecodeRefusal(header.error());
    return;
  }
  Result<SlotHeader> again = DecodeSlotHeader(EncodeSlotHeader(*header));
  REPRISE_CHECK(again.has_value() && *again == *header);
  CheckMeta(parts.meta, *header);
  parts.header[parts.meta.size() % kSlotHeaderBytes] ^= 4;
  REPRISE_CHECK(!DecodeSlotHeader(parts.header).has_value());
}

void Store(MutableByteView out, size_t offset, const void* data, size_t size) {
  if (offset + size <= out.size()) std::memcpy(out.data() + offset, data, size);
}

// The companion's length and digest, then the header's CRC.
void Repair(Bytes& input) {
  Parts parts = PartsOf(input);
  if (input.size() < 2 + kCrcOffset) return;
  uint64_t meta_bytes = parts.meta.size();
  Digest digest = DigestOf(parts.meta);
  Store(parts.header, kMetaBytesOffset, &meta_bytes, sizeof(meta_bytes));
  Store(parts.header, kMetaBytesOffset + 8, digest.bytes.data(), digest.bytes.size());
  uint32_t zero = 0;
  Store(parts.header, kCrcOffset, &zero, sizeof(zero));
  uint32_t crc = Crc32c(parts.header);
  Store(parts.header, kCrcOffset, &crc, sizeof(crc));
  size_t in_input = input.size() - 2 - parts.meta.size();
  std::memcpy(input.data() + 2, parts.header.data(), in_input);
}

Bytes SeedOf(const format::ShardManifest& manifest, ByteView layout, SlotState state) {
  SlotHeader header;
  header.state = state;
  header.process = Id{{1}};
  header.capacity = manifest.length + 4096;
  header.identity = manifest.identity;
  header.length = manifest.length;
  header.chunk_bytes = manifest.chunk_bytes;
  header.layout = manifest.layout;
  header.root = manifest.root;
  Bytes meta = EncodeSlotMeta(manifest, layout);
  header.meta_bytes = meta.size();
  header.meta_digest = DigestOf(meta);
  Bytes block = EncodeSlotHeader(header);
  while (block.back() == 0) block.pop_back();
  ByteWriter seed;
  seed.U16(static_cast<uint16_t>(block.size()));
  seed.Data(block);
  seed.Data(meta);
  return seed.Take();
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(12);
  for (int i = 0; i < 6; ++i) {
    format::ShardManifest manifest = format::RandomShardManifest(rng);
    Bytes layout = format::EncodeLayout(format::RandomLayout(rng, 3));
    manifest.runs.clear();
    manifest.layout = DigestOf(layout);
    manifest.root = format::ShardRoot(manifest);
    seeds.push_back(SeedOf(manifest, layout, static_cast<SlotState>(1 + i % 3)));
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::node

REPRISE_FUZZ_TARGET(slot_format) = {.name = "slot_format",
                                    .run = reprise::node::RunInput,
                                    .seeds = reprise::node::Seeds,
                                    .repair = reprise::node::Repair,
                                    .input_bytes_max = 1024};
