#include "core/format/journal.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/base/limits.h"
#include "core/format/block.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

constexpr size_t kEntryTypes = std::variant_size_v<Entry>;

// Rewrites the CRC of a block that a test has changed on purpose.
void Reseal(Bytes& block) {
  std::memset(block.data() + 12, 0, 4);
  uint32_t crc = Crc32c(block);
  std::memcpy(block.data() + 12, &crc, 4);
}

template <typename Decode>
void ExpectEveryFlipDetected(Bytes block, Decode decode) {
  ASSERT_EQ(block.size(), 4096u);
  ASSERT_TRUE(decode(block).has_value());
  for (size_t bit = 0; bit < block.size() * 8; ++bit) {
    block[bit / 8] ^= 1 << bit % 8;
    auto decoded = decode(block);
    ASSERT_FALSE(decoded.has_value()) << "bit " << bit;
    ASSERT_EQ(decoded.error().code(), Code::kDataLoss) << "bit " << bit;
    block[bit / 8] ^= 1 << bit % 8;
  }
}

template <typename Decode>
void ExpectEveryTruncationRefused(const Bytes& block, Decode decode) {
  for (size_t size = 0; size < block.size(); ++size) {
    auto decoded = decode(ByteView(block).first(size));
    ASSERT_FALSE(decoded.has_value()) << size;
    ASSERT_EQ(decoded.error().code(), Code::kDataLoss) << size;
  }
  Bytes longer = block;
  longer.push_back(0);
  ASSERT_FALSE(decode(longer).has_value());
}

TEST(Entry, EveryKindComesBackAsItWas) {
  Rng rng(1);
  for (int round = 0; round < 300; ++round) {
    for (size_t index = 0; index < kEntryTypes; ++index) {
      Entry entry = RandomEntry(rng, index);
      Bytes encoded = EncodeEntry(entry);
      ASSERT_EQ(encoded[0], index + 1);
      Result<Entry> decoded = DecodeEntry(encoded);
      ASSERT_TRUE(decoded.has_value()) << decoded.error();
      ASSERT_EQ(*decoded, entry);
    }
  }
}

TEST(Entry, TruncationAtEveryLengthIsRefused) {
  Rng rng(2);
  for (size_t index = 0; index < kEntryTypes; ++index) {
    Bytes encoded = EncodeEntry(RandomEntry(rng, index));
    for (size_t size = 0; size < encoded.size(); ++size) {
      ASSERT_FALSE(DecodeEntry(ByteView(encoded).first(size)).has_value());
    }
    encoded.push_back(0);
    ASSERT_FALSE(DecodeEntry(encoded).has_value()) << "trailing byte";
  }
}

TEST(Entry, WhateverDecodesEncodesToTheSameBytes) {
  Rng rng(3);
  for (int round = 0; round < 20000; ++round) {
    Bytes encoded = EncodeEntry(RandomEntry(rng));
    encoded[rng.Below(encoded.size())] = static_cast<uint8_t>(rng.Next());
    Result<Entry> decoded = DecodeEntry(encoded);
    if (decoded.has_value()) ASSERT_EQ(EncodeEntry(*decoded), encoded);
  }
}

TEST(Entry, TheLargestOfEachKindFitsOneSlot) {
  std::string reason(kReasonBytesMax, 'r');
  PreparedEntry prepared;
  prepared.runs.resize(limits::kRunsPerShardMax);
  ResumeEntry resume;
  resume.parent.emplace();
  resume.skipped.assign(kSkippedMax, {{}, reason});
  for (const Entry& entry : {Entry(prepared), Entry(resume), Entry(AbortEntry{.reason = reason})}) {
    EXPECT_LE(SlotSpaceOf(EncodeEntry(entry)), SlotCapacity());
  }
}

TEST(Entry, BoundedCutsTextsBetweenCharacters) {
  AbortEntry entry;
  entry.reason = std::string(kReasonBytesMax - 1, 'x') + "漢字";
  auto bounded = std::get<AbortEntry>(Bounded(entry));
  EXPECT_EQ(bounded.reason, std::string(kReasonBytesMax - 1, 'x'));
  ResumeEntry resume;
  resume.skipped.assign(20, {{1, 2}, std::string(1000, 'y')});
  auto bounded_resume = std::get<ResumeEntry>(Bounded(resume));
  EXPECT_EQ(bounded_resume.skipped.size(), kSkippedMax);
  EXPECT_TRUE(DecodeEntry(EncodeEntry(bounded_resume)).has_value());
}

TEST(Entry, BoundedLeavesEntriesWithinTheLimitsAlone) {
  Rng rng(4);
  for (size_t index = 0; index < kEntryTypes; ++index) {
    Entry entry = RandomEntry(rng, index);
    EXPECT_EQ(Bounded(entry), entry);
  }
}

TEST(Entry, AnUnknownTypeIsUnimplemented) {
  for (int type : {0, 12, 255}) {
    Bytes encoded(40, 0);
    encoded[0] = static_cast<uint8_t>(type);
    Result<Entry> decoded = DecodeEntry(encoded);
    ASSERT_FALSE(decoded.has_value());
    EXPECT_EQ(decoded.error().code(), Code::kUnimplemented);
  }
}

TEST(EntryDeathTest, AnOverlongReasonIsAProgrammingError) {
  AbortEntry entry;
  entry.reason = std::string(kReasonBytesMax + 1, 'x');
  EXPECT_DEATH((void)EncodeEntry(entry), "ABORT entry");
}

TEST(Slot, ComesBackAsItWas) {
  Rng rng(5);
  for (int round = 0; round < 300; ++round) {
    Slot slot = RandomSlot(rng);
    Bytes encoded = EncodeSlot(slot);
    ASSERT_EQ(encoded.size(), limits::kJournalSlotBytes);
    Result<Slot> decoded = DecodeSlot(encoded, slot.store);
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    ASSERT_EQ(*decoded, slot);
  }
}

TEST(Slot, MayBeEmptyAndMayBeFullToTheLastByte) {
  Slot slot{.seq = 1};
  EXPECT_TRUE(DecodeSlot(EncodeSlot(slot), slot.store).has_value());
  size_t space = SlotCapacity();
  Entry empty_mark = MarkEntry{};
  size_t mark_bytes = SlotSpaceOf(EncodeEntry(empty_mark));
  while (space >= 2 * mark_bytes + kReasonBytesMax) {
    slot.entries.push_back(MarkEntry{.reason = std::string(kReasonBytesMax, 'x')});
    space -= mark_bytes + kReasonBytesMax;
  }
  size_t half = (space - 2 * mark_bytes) / 2;
  slot.entries.push_back(MarkEntry{.reason = std::string(half, 'x')});
  slot.entries.push_back(MarkEntry{.reason = std::string(space - 2 * mark_bytes - half, 'x')});
  Bytes encoded = EncodeSlot(slot);
  EXPECT_EQ(encoded.back(), 'x');
  Result<Slot> decoded = DecodeSlot(encoded, slot.store);
  ASSERT_TRUE(decoded.has_value()) << decoded.error();
  EXPECT_EQ(*decoded, slot);
}

TEST(Slot, EveryFlippedBitIsDetected) {
  Rng rng(6);
  Slot slot = RandomSlot(rng);
  ExpectEveryFlipDetected(EncodeSlot(slot),
                          [&](ByteView bytes) { return DecodeSlot(bytes, slot.store); });
}

TEST(Slot, EveryOtherLengthIsRefused) {
  Rng rng(7);
  Slot slot = RandomSlot(rng);
  ExpectEveryTruncationRefused(EncodeSlot(slot),
                               [&](ByteView bytes) { return DecodeSlot(bytes, slot.store); });
}

TEST(Slot, OfAnotherStoreIsRefused) {
  Rng rng(8);
  Slot slot = RandomSlot(rng);
  Result<Slot> decoded = DecodeSlot(EncodeSlot(slot), rng.NewId());
  ASSERT_FALSE(decoded.has_value());
  EXPECT_EQ(decoded.error().code(), Code::kDataLoss);
}

TEST(Slot, ErasedAndForeignBlocksAreDataLoss) {
  Rng rng(9);
  Superblock superblock = RandomSuperblock(rng);
  for (const Bytes& block : {Bytes(4096, 0), Bytes(4096, 0xff), EncodeSuperblock(superblock)}) {
    Result<Slot> decoded = DecodeSlot(block, superblock.store);
    ASSERT_FALSE(decoded.has_value());
    EXPECT_EQ(decoded.error().code(), Code::kDataLoss);
  }
}

TEST(Slot, OfANewerVersionIsNotTakenForDamage) {
  Slot slot{.seq = 7, .entries = {MarkEntry{}}};
  Bytes encoded = EncodeSlot(slot);
  encoded[8] = 2;
  Reseal(encoded);
  EXPECT_EQ(DecodeSlot(encoded, slot.store).error().code(), Code::kUnimplemented);
}

TEST(Slot, WithAnIntactCrcButImpossibleFieldsIsRefused) {
  Slot slot{.seq = 7, .entries = {MarkEntry{}, DeleteEntry{}}};
  const Bytes encoded = EncodeSlot(slot);
  auto refuses = [&](size_t offset, uint8_t value) {
    Bytes changed = encoded;
    changed[offset] = value;
    Reseal(changed);
    return !DecodeSlot(changed, slot.store).has_value();
  };
  EXPECT_TRUE(refuses(32, 0)) << "seq 0";
  EXPECT_TRUE(refuses(56, 1)) << "too few entries";
  EXPECT_TRUE(refuses(56, 3)) << "too many entries";
  EXPECT_TRUE(refuses(59, 0xff)) << "a claimed count of billions";
  EXPECT_TRUE(refuses(61, 0xff)) << "a payload longer than the slot";
  EXPECT_TRUE(refuses(64, 1)) << "an entry shorter than its fields";
  EXPECT_TRUE(refuses(4095, 1)) << "padding that is not zero";
}

TEST(SlotDeathTest, EntriesThatDoNotFitAreAProgrammingError) {
  Slot slot{.seq = 1};
  slot.entries.assign(40, AbortEntry{.reason = std::string(200, 'x')});
  EXPECT_DEATH((void)EncodeSlot(slot), "do not fit one slot");
}

TEST(ChainValue, DependsOnEveryByteOfTheSlot) {
  Rng rng(10);
  Bytes encoded = EncodeSlot(RandomSlot(rng));
  Digest value = ChainValue(encoded);
  for (size_t i = 0; i < encoded.size(); ++i) {
    encoded[i] ^= 1;
    ASSERT_NE(ChainValue(encoded), value) << i;
    encoded[i] ^= 1;
  }
}

TEST(Superblock, ComesBackAsItWas) {
  Rng rng(11);
  for (int round = 0; round < 100; ++round) {
    Superblock superblock = RandomSuperblock(rng);
    Result<Superblock> decoded = DecodeSuperblock(EncodeSuperblock(superblock));
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    ASSERT_EQ(*decoded, superblock);
  }
}

TEST(Superblock, EveryFlippedBitAndEveryOtherLengthIsDetected) {
  Rng rng(12);
  Bytes encoded = EncodeSuperblock(RandomSuperblock(rng));
  ExpectEveryFlipDetected(encoded, DecodeSuperblock);
  ExpectEveryTruncationRefused(encoded, DecodeSuperblock);
}

TEST(Superblock, AnUnknownFeatureIsNamed) {
  Bytes encoded = EncodeSuperblock({});
  encoded[16] = 0b1001;
  encoded[23] = 0x80;
  Reseal(encoded);
  Status status = StatusOf(DecodeSuperblock(encoded));
  EXPECT_EQ(status.code(), Code::kUnimplemented);
  EXPECT_NE(status.message().find("feature bits 0, 3, 63"), std::string::npos) << status;
}

TEST(Certificate, ComesBackAsItWasAndEveryFlippedBitIsDetected) {
  Rng rng(13);
  Id store = rng.NewId();
  auto commit = std::get<CommitEntry>(RandomEntry(rng, 5));
  Bytes encoded = EncodeCertificate(store, commit);
  auto decode = [&](ByteView bytes) { return DecodeCertificate(bytes, store); };
  Result<CommitEntry> decoded = decode(encoded);
  ASSERT_TRUE(decoded.has_value()) << decoded.error();
  EXPECT_EQ(*decoded, commit);
  ExpectEveryFlipDetected(encoded, decode);
  ExpectEveryTruncationRefused(encoded, decode);
}

TEST(Certificate, OfAnotherStoreOrAnotherEntryIsRefused) {
  Rng rng(14);
  Id store = rng.NewId();
  Bytes encoded = EncodeCertificate(store, std::get<CommitEntry>(RandomEntry(rng, 5)));
  EXPECT_FALSE(DecodeCertificate(encoded, rng.NewId()).has_value());
  // Byte 36 is the type of the entry; a DELETE has fewer fields than a COMMIT.
  encoded[36] = 9;
  Reseal(encoded);
  EXPECT_FALSE(DecodeCertificate(encoded, store).has_value());
}

}  // namespace
}  // namespace reprise::format
