// Digests against published vectors, and their streaming forms against the whole.
#include "core/base/digest.h"

#include <gtest/gtest.h>

#include "core/base/random.h"

namespace reprise {
namespace {

TEST(Crc32c, MatchesThePublishedVectors) {
  EXPECT_EQ(Crc32c(ViewOf("123456789")), 0xE3069283u);
  EXPECT_EQ(Crc32c({}), 0u);
  // RFC 3720, B.4.
  EXPECT_EQ(Crc32c(Bytes(32, 0x00)), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(Bytes(32, 0xff)), 0x62A8AB43u);
}

TEST(Crc32c, IsTheSameByInstructionAndByTable) {
  Bytes data(300);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * 37 + 11);
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t size = 0; begin + size <= data.size(); ++size) {
      ByteView view = ByteView(data).subspan(begin, size);
      ASSERT_EQ(Crc32c(view, 5), Crc32cByTable(view, 5)) << begin << " " << size;
    }
  }
}

TEST(Crc32c, ContinuesFromASeed) {
  EXPECT_EQ(Crc32c(ViewOf("6789"), Crc32c(ViewOf("12345"))), 0xE3069283u);
}

TEST(Crc32c, NoticesEverySingleBitOfASlot) {
  Bytes slot(512);
  Rng rng(1);
  for (uint8_t& byte : slot) byte = static_cast<uint8_t>(rng.Next());
  uint32_t good = Crc32c(slot);
  for (size_t bit = 0; bit < slot.size() * 8; ++bit) {
    slot[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    EXPECT_NE(Crc32c(slot), good) << bit;
    slot[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
  }
}

TEST(Digest, OfNothingIsThePublishedVector) {
  // XXH3-128, seed 0, empty input, canonical order.
  EXPECT_EQ(DigestOf({}).ToHex(), "99aa06d3014798d86001c324468d497f");
}

TEST(Digest, IsTheSameWithAndWithoutAvx2) {
  Bytes data(300'000);
  Rng rng(3);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(rng.Next());
  for (size_t size = 0; size < 2000; ++size) {
    ByteView view = ByteView(data).subspan(size % 7, size);
    ASSERT_EQ(DigestOf(view), DigestWithoutAvx2(view)) << size;
  }
  EXPECT_EQ(DigestOf(data), DigestWithoutAvx2(data));
}

TEST(Digest, OfACopyIsThatOfTheTarget) {
  Rng rng(4);
  for (size_t size : {0, 1, 4096, 65'536, 65'537, 1 << 20}) {
    Bytes source(size);
    for (uint8_t& byte : source) byte = static_cast<uint8_t>(rng.Next());
    Bytes target(size);
    EXPECT_EQ(CopyAndDigest(target, source), DigestWithoutAvx2(source)) << size;
    EXPECT_EQ(target, source) << size;
  }
}

TEST(Digest, AStreamEqualsTheWholeHoweverItIsCut) {
  Bytes data(10'000);
  Rng rng(2);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(rng.Next());
  for (int round = 0; round < 20; ++round) {
    DigestStream stream;
    ByteView rest = data;
    while (!rest.empty()) {
      size_t size = 1 + rng.Below(rest.size());
      stream.Update(rest.first(size));
      rest = rest.subspan(size);
    }
    EXPECT_EQ(stream.Finish(), DigestOf(data));
  }
}

TEST(Digest, HexGoesThereAndBackAndRefusesNonsense) {
  Digest digest = DigestOf(ViewOf("x"));
  EXPECT_EQ(Digest::FromHex(digest.ToHex()), digest);
  EXPECT_FALSE(Digest::FromHex("abc").has_value());
  EXPECT_FALSE(Digest::FromHex(std::string(32, 'g')).has_value());
  EXPECT_FALSE(Digest::FromHex(std::string(34, '0')).has_value());
  EXPECT_TRUE(Digest().IsZero());
}

TEST(Digest, TravelsThroughAWriterAndReader) {
  ByteWriter writer;
  Put(writer, DigestOf(ViewOf("x")));
  Bytes bytes = writer.Take();
  ByteReader reader(bytes);
  EXPECT_EQ(GetDigest(reader), DigestOf(ViewOf("x")));
  EXPECT_TRUE(reader.AtEnd());
}

}  // namespace
}  // namespace reprise
