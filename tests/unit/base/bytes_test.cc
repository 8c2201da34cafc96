// Byte encoding: what a writer wrote a reader reads, and hostile input never gets far.
#include "core/base/bytes.h"

#include <gtest/gtest.h>

namespace reprise {
namespace {

TEST(Bytes, AReaderReadsWhatAWriterWrote) {
  ByteWriter writer;
  writer.U8(0x12);
  writer.U16(0x3456);
  writer.U32(0x789abcde);
  writer.U64(0x0123456789abcdef);
  writer.I64(-5);
  writer.String("name");
  writer.PadTo(64);
  Bytes bytes = writer.Take();
  EXPECT_EQ(bytes.size(), 64u);
  EXPECT_EQ(bytes[1], 0x56) << "little-endian";
  ByteReader reader(bytes);
  EXPECT_EQ(reader.U8(), 0x12);
  EXPECT_EQ(reader.U16(), 0x3456);
  EXPECT_EQ(reader.U32(), 0x789abcdeu);
  EXPECT_EQ(reader.U64(), 0x0123456789abcdefu);
  EXPECT_EQ(reader.I64(), -5);
  EXPECT_EQ(reader.String(16), "name");
  EXPECT_TRUE(reader.ok());
  EXPECT_FALSE(reader.AtEnd());
  reader.Data(reader.remaining());
  EXPECT_TRUE(reader.AtEnd());
}

TEST(Bytes, AfterTheFirstFailureEverythingReadsAsZero) {
  Bytes bytes = {1, 2, 3};
  ByteReader reader(bytes);
  EXPECT_EQ(reader.U32(), 0u);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.U8(), 0);
  EXPECT_TRUE(reader.Data(1).empty());
  EXPECT_FALSE(reader.AtEnd());
}

TEST(Bytes, EveryTruncationOfAMessageIsNoticed) {
  ByteWriter writer;
  writer.U32(7);
  writer.String("hello");
  writer.U64(9);
  Bytes bytes = writer.Take();
  for (size_t size = 0; size < bytes.size(); ++size) {
    ByteReader reader(ByteView(bytes).first(size));
    reader.U32();
    reader.String(100);
    reader.U64();
    EXPECT_FALSE(reader.ok()) << size;
  }
}

TEST(Bytes, ABlobLongerThanItsLimitIsRefused) {
  ByteWriter writer;
  writer.String("12345");
  Bytes bytes = writer.Take();
  EXPECT_EQ(ByteReader(bytes).String(5), "12345");
  ByteReader reader(bytes);
  EXPECT_EQ(reader.String(4), "");
  EXPECT_FALSE(reader.ok());
}

TEST(Bytes, AClaimedCountThatCannotFitIsRefused) {
  ByteWriter writer;
  writer.U32(3);
  writer.U64(0);
  writer.U64(0);
  Bytes bytes = writer.Take();
  EXPECT_EQ(ByteReader(bytes).Count(5), 3u);
  ByteReader reader(bytes);
  EXPECT_EQ(reader.Count(8), 0u);
  EXPECT_FALSE(reader.ok());
  Bytes huge = {0xff, 0xff, 0xff, 0xff};
  ByteReader liar(huge);
  EXPECT_EQ(liar.Count(1), 0u);
  EXPECT_FALSE(liar.ok());
}

TEST(Bytes, AlignmentRoundsUp) {
  EXPECT_EQ(AlignUp(0, 4096), 0u);
  EXPECT_EQ(AlignUp(1, 4096), 4096u);
  EXPECT_EQ(AlignUp(4096, 4096), 4096u);
  EXPECT_TRUE(IsAligned(8192, 4096));
  EXPECT_FALSE(IsAligned(8193, 4096));
  EXPECT_EQ(CeilDiv(10, 3), 4u);
  EXPECT_EQ(CeilDiv(~uint64_t{0}, 2), uint64_t{1} << 63) << "no overflow";
}

TEST(Bytes, SizesAndHexReadWell) {
  EXPECT_EQ(HexOf(Bytes{0x00, 0xab, 0xff}), "00abff");
  EXPECT_EQ(HumanBytes(1536 * 1024 * 1024ull), "1.50 GiB");
}

}  // namespace
}  // namespace reprise
