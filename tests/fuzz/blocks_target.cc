// The self-checking 4 KiB blocks: journal slot, superblock, certificate; also a bare journal entry.
// The first byte picks; the rest is the block's beginning, zeros follow.
//
// What decodes encodes to the same bytes; any damaged byte is refused; a foreign store is refused.
#include <cstring>

#include "core/format/block.h"
#include "core/format/journal.h"
#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

enum Kind : uint8_t { kSlot, kSuperblock, kCertificate, kEntry, kKinds };
constexpr size_t kCrcOffset = 12;
constexpr size_t kFieldsOffset = 16;

// Slots and certificates begin with the store's identity: one that any input can have.
Id StoreIn(ByteView block) {
  Id store;
  std::memcpy(store.bytes.data(), block.data() + kFieldsOffset, store.bytes.size());
  return store;
}
Id AnotherStore(Id store) {
  store.bytes[3] ^= 0x10;
  return store;
}

// `decode` takes the block and the store it must belong to.
template <typename Decode, typename Encode>
void RunBlock(Bytes& block, size_t damage_at, Decode decode, Encode encode) {
  fuzz::AllocationCount allocated;
  auto value = decode(block, StoreIn(block));
  // A slot has at most 4 KiB of entries; the smallest entries are the widest in memory.
  REPRISE_CHECK(allocated.bytes() <= 1024 * 1024);
  if (!value.has_value()) {
    fuzz::CheckDecodeRefusal(value.error());
    return;
  }
  REPRISE_CHECK(encode(*value) == block);
  block[damage_at % block.size()] ^= 0x20;
  auto damaged = decode(block, StoreIn(block));
  REPRISE_CHECK(!damaged.has_value());
}

void RunSlot(Bytes& block, size_t damage_at) {
  Id other = AnotherStore(StoreIn(block));
  REPRISE_CHECK(!DecodeSlot(block, other).has_value());
  RunBlock(
      block, damage_at, [](ByteView bytes, const Id& store) { return DecodeSlot(bytes, store); },
      EncodeSlot);
}

void RunCertificate(Bytes& block, size_t damage_at) {
  Id store = StoreIn(block);
  REPRISE_CHECK(!DecodeCertificate(block, AnotherStore(store)).has_value());
  RunBlock(
      block, damage_at,
      [](ByteView bytes, const Id& owner) { return DecodeCertificate(bytes, owner); },
      [&](const CommitEntry& commit) { return EncodeCertificate(store, commit); });
}

void RunEntry(ByteView bytes) {
  Result<Entry> entry = DecodeEntry(bytes);
  if (!entry.has_value()) {
    fuzz::CheckDecodeRefusal(entry.error());
    return;
  }
  REPRISE_CHECK(std::ranges::equal(EncodeEntry(*entry), bytes));
  REPRISE_CHECK(Bounded(*entry) == *entry);
  REPRISE_CHECK(!EntryName(*entry).empty());
}

Bytes BlockOf(ByteView bytes) {
  Bytes block(bytes.begin(), bytes.end());
  block.resize(kBlockBytes);
  return block;
}

void RunInput(ByteView input) {
  if (input.size() < 2) return;
  uint8_t kind = input[0] % kKinds;
  if (kind == kEntry) {
    RunEntry(input.subspan(1));
    return;
  }
  Bytes block = BlockOf(input.subspan(1));
  size_t damage_at = input[1] * 16u + input[0];
  if (kind == kSlot) RunSlot(block, damage_at);
  if (kind == kCertificate) RunCertificate(block, damage_at);
  if (kind == kSuperblock) {
    RunBlock(
        block, damage_at, [](ByteView bytes, const Id&) { return DecodeSuperblock(bytes); },
        EncodeSuperblock);
  }
}

void Repair(Bytes& input) {
  if (input.size() < 1 + kFieldsOffset || input[0] % kKinds == kEntry) return;
  Bytes block = BlockOf(ByteView(input).subspan(1));
  std::memset(block.data() + kCrcOffset, 0, sizeof(uint32_t));
  uint32_t crc = Crc32c(block);
  std::memcpy(input.data() + 1 + kCrcOffset, &crc, sizeof(crc));
}

// Without the zeros at the end, which Run adds.
Bytes Trimmed(Bytes block) {
  while (!block.empty() && block.back() == 0) block.pop_back();
  return block;
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(11);
  auto add = [&](Kind kind, Bytes bytes) {
    bytes.insert(bytes.begin(), kind);
    seeds.push_back(std::move(bytes));
  };
  add(kSlot, Trimmed(fuzz::Golden("slot")));
  add(kSuperblock, Trimmed(fuzz::Golden("superblock")));
  add(kCertificate, Trimmed(fuzz::Golden("certificate")));
  for (size_t index = 0; index < std::variant_size_v<Entry>; ++index) {
    Entry entry = RandomEntry(rng, index);
    add(kEntry, EncodeEntry(entry));
    Slot slot{.store = rng.NewId(), .seq = 1 + index, .entries = {entry}};
    add(kSlot, Trimmed(EncodeSlot(slot)));
  }
  add(kSlot, Trimmed(EncodeSlot(RandomSlot(rng))));
  add(kSuperblock, Trimmed(EncodeSuperblock(RandomSuperblock(rng))));
  return seeds;
}

}  // namespace
}  // namespace reprise::format

REPRISE_FUZZ_TARGET(blocks) = {.name = "blocks",
                               .run = reprise::format::RunInput,
                               .seeds = reprise::format::Seeds,
                               .repair = reprise::format::Repair,
                               .input_bytes_max = 2048};
