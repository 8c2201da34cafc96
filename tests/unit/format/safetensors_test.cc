#include "core/format/safetensors.h"

#include <gtest/gtest.h>

#include "core/base/limits.h"
#include "tests/unit/format/allocation_count.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

Bytes FileOf(std::string_view json) {
  ByteWriter writer;
  writer.U64(json.size());
  writer.Data(ViewOf(json));
  return writer.Take();
}

std::string JsonOf(const SafetensorsHeader& header) {
  Bytes encoded = EncodeSafetensorsHeader(header).value();
  return std::string(TextOf(ByteView(encoded).subspan(8)));
}

// Why `json` is refused, "" when it is not.
std::string Refusal(std::string_view json) {
  Status status = StatusOf(DecodeSafetensorsHeader(FileOf(json)));
  if (!status.ok()) EXPECT_EQ(status.code(), Code::kInvalidArgument);
  return status.message();
}

TEST(SafetensorsHeader, ComesBackAsItWas) {
  Rng rng(1);
  for (int round = 0; round < 500; ++round) {
    Layout layout = RandomLayout(rng, 20);
    SafetensorsHeader header =
        HeaderOfLayout(layout, {{"format", "pt"}, {"note", RandomText(rng, 50)}});
    Result<Bytes> encoded = EncodeSafetensorsHeader(header);
    ASSERT_TRUE(encoded.has_value()) << encoded.error();
    ASSERT_EQ(encoded->size() % 8, 0u);
    ASSERT_EQ(SafetensorsHeaderBytes(*encoded).value(), encoded->size());
    encoded->push_back(0x55);  // the first tensor byte
    Result<SafetensorsHeader> decoded = DecodeSafetensorsHeader(*encoded);
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    ASSERT_EQ(*decoded, header);
  }
}

TEST(SafetensorsHeader, IsTheJsonThatLoadersExpect) {
  SafetensorsHeader header{
      .items = {{"w", Dtype::kF32, {2, 3}, 0, 24}, {"b", Dtype::kBF16, {}, 24, 26}},
      .metadata = {{"format", "pt"}}};
  std::string json = JsonOf(header);
  EXPECT_EQ(json.substr(0, json.find_last_of('}') + 1),
            R"({"__metadata__":{"format":"pt"},)"
            R"("w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
            R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}})");
  EXPECT_EQ(JsonOf({}), "{}      ");
}

TEST(SafetensorsHeader, StoresDtypesThatLoadersLackAsBytes) {
  SafetensorsHeader header{.items = {{"c", Dtype::kComplex64, {3}, 0, 24},
                                     {"z", Dtype::kComplex128, {}, 24, 40},
                                     {"scale", Dtype::kF8E8M0, {5}, 40, 45}}};
  std::string json = JsonOf(header);
  EXPECT_TRUE(json.contains(R"("c":{"dtype":"U8","shape":[3,8],)"));
  EXPECT_TRUE(json.contains(R"("z":{"dtype":"U8","shape":[16],)"));
  EXPECT_TRUE(json.contains(R"("scale":{"dtype":"U8","shape":[5],)"));
  EXPECT_TRUE(json.contains(R"("reprise.dtype:c":"C64")"));
  EXPECT_EQ(DecodeSafetensorsHeader(EncodeSafetensorsHeader(header).value()).value(), header);
}

TEST(SafetensorsHeader, TruncationAtEveryLengthIsRefused) {
  Rng rng(2);
  Bytes encoded = EncodeSafetensorsHeader(HeaderOfLayout(RandomLayout(rng, 5), {})).value();
  for (size_t size = 0; size < encoded.size(); ++size) {
    ASSERT_FALSE(DecodeSafetensorsHeader(ByteView(encoded).first(size)).has_value()) << size;
  }
}

TEST(SafetensorsHeader, AClaimedLengthAllocatesNothing) {
  for (uint64_t length : {uint64_t{1}, uint64_t{90} << 20, UINT64_MAX, uint64_t{1} << 40}) {
    ByteWriter writer;
    writer.U64(length);
    writer.String("{}");
    AllocationCount allocations;
    EXPECT_FALSE(DecodeSafetensorsHeader(writer.view()).has_value());
    EXPECT_LT(allocations.bytes(), 4096u);
  }
}

TEST(SafetensorsHeader, RefusesWhatIsNotAHeader) {
  EXPECT_EQ(Refusal("{}"), "");
  EXPECT_EQ(Refusal("{}   "), "");
  EXPECT_TRUE(Refusal("[]").contains("brace"));
  EXPECT_TRUE(Refusal(" {}").contains("brace"));
  EXPECT_TRUE(Refusal("{}x").contains("JSON"));
  EXPECT_TRUE(Refusal("{\"").contains("JSON"));
  EXPECT_TRUE(Refusal("{\"\xff\":1}").contains("JSON"));
  EXPECT_TRUE(Refusal(R"({"w":1})").contains("data_offsets"));
  EXPECT_TRUE(Refusal(R"({"w":{"dtype":"F32","shape":[1]}})").contains("data_offsets"));
  EXPECT_TRUE(Refusal(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}})").contains("\"w\""));
  EXPECT_TRUE(
      Refusal(R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})").contains("\"w\""));
  EXPECT_TRUE(
      Refusal(R"({"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})").contains("\"w\""));
  EXPECT_TRUE(Refusal(R"({"__metadata__":{"a":1}})").contains("not a string"));
  EXPECT_TRUE(Refusal(R"({"__metadata__":[]})").contains("not an object"));
  EXPECT_TRUE(
      Refusal(R"({"w":{"dtype":"F5","shape":[1],"data_offsets":[0,4]}})").contains("dtype F5"));
}

TEST(SafetensorsHeader, RefusesHolesOverlapsAndWrongSizes) {
  auto two = [](std::string_view first, std::string_view second) {
    return Refusal(std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") +
                   std::string(first) + R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" +
                   std::string(second) + "}}");
  };
  EXPECT_EQ(two("[0,4]", "[4,8]"), "");
  EXPECT_EQ(two("[4,8]", "[0,4]"), "");
  EXPECT_TRUE(two("[0,4]", "[5,9]").contains("hole"));
  EXPECT_TRUE(two("[0,4]", "[3,7]").contains("overlap"));
  EXPECT_TRUE(two("[0,4]", "[0,4]").contains("overlap"));
  EXPECT_TRUE(two("[1,5]", "[5,9]").contains("hole"));
  EXPECT_TRUE(two("[0,4]", "[4,9]").contains("do not match"));
  EXPECT_TRUE(two("[0,4]", "[4,3]").contains("do not match"));
  EXPECT_TRUE(Refusal(R"({"a":{"dtype":"F64","shape":[4294967296,4294967296],)"
                      R"("data_offsets":[0,0]}})")
                  .contains("do not match"));
}

TEST(SafetensorsHeader, RefusesNamesThatAreTwice) {
  EXPECT_TRUE(Refusal(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                      R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})")
                  .contains("\"a\" is twice"));
  EXPECT_TRUE(Refusal(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})")
                  .contains("\"dtype\" is twice"));
  EXPECT_TRUE(Refusal(R"({"__metadata__":{"k":"1","k":"2"}})").contains("\"k\" is twice"));
}

TEST(SafetensorsHeader, RefusesDeepNestingWithoutFollowingIt) {
  std::string deep = R"({"a":)" + std::string(1 << 20, '[');
  EXPECT_NE(Refusal(deep), "");
  deep += std::string(1 << 20, ']') + "}";
  EXPECT_TRUE(Refusal(deep).contains("nested"));
}

TEST(SafetensorsHeader, RefusesFalseClaimsAboutDtypes) {
  auto claim = [](std::string_view key, std::string_view dtype) {
    return Refusal(R"({"__metadata__":{"reprise.dtype:)" + std::string(key) + R"(":")" +
                   std::string(dtype) +
                   R"("},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})");
  };
  EXPECT_EQ(claim("a", "F8_E8M0"), "");
  EXPECT_TRUE(claim("a", "C64").contains("cannot be C64"));
  EXPECT_TRUE(claim("a", "F32").contains("cannot be F32"));
  EXPECT_TRUE(claim("a", "nonsense").contains("cannot be nonsense"));
  EXPECT_TRUE(claim("b", "F8_E8M0").contains("names no tensor"));
}

TEST(SafetensorsHeader, IsNotEncodedWhenItCouldNotBeDecoded) {
  SafetensorsItem item{"a", Dtype::kU8, {4}, 0, 4};
  auto encodes = [](SafetensorsHeader header) {
    return EncodeSafetensorsHeader(header).has_value();
  };
  EXPECT_TRUE(encodes({.items = {item}}));
  EXPECT_FALSE(encodes({.items = {item, item}}));
  EXPECT_FALSE(encodes({.items = {{"a", Dtype::kU8, {4}, 1, 5}}}));
  EXPECT_FALSE(encodes({.items = {{"\xff", Dtype::kU8, {4}, 0, 4}}}));
  EXPECT_FALSE(encodes({.items = {{"__metadata__", Dtype::kU8, {4}, 0, 4}}}));
  EXPECT_FALSE(encodes({.metadata = {{"key", "\xff"}}}));
  EXPECT_FALSE(encodes({.metadata = {{"reprise.dtype:a", "C64"}}}));
  EXPECT_FALSE(encodes({.metadata = {{"key", std::string(limits::kLayoutBytesMax, 'x')}}}));
}

TEST(PieceFileName, IsBareForAWholeTensorOnly) {
  EXPECT_EQ(PieceFileName(WholePiece("w", {4, 8})), "w");
  EXPECT_EQ(PieceFileName(WholePiece("scalar", {})), "scalar");
  EXPECT_EQ(PieceFileName(FlatPiece("w", {4, 8}, 0, 32)), "w");
  EXPECT_EQ(PieceFileName(BoxPiece("w", {4, 8}, {{0, 4}, {4, 4}})), "w#0:4x4:4");
  EXPECT_EQ(PieceFileName(FlatPiece("w", {4, 8}, 3, 20)), "w#flat3:17");
  Piece two = BoxPiece("w", {4, 8}, {{0, 4}, {1, 4}});
  two.boxes.push_back({{2, 0}, {2, 8}});
  EXPECT_EQ(PieceFileName(two), "w#0:1x4:4+2:2x0:8");
  two.boxes.clear();
  EXPECT_EQ(PieceFileName(two), "w#empty");
  EXPECT_EQ(PieceFileName(WholePiece("100%#1", {})), "100%25%231");
}

TEST(HeaderOfLayout, PutsPiecesWithoutGapsInShardOrder) {
  Piece strided = BoxPiece("strided", {6, 2}, {{0, 0}, {1, 2}});
  strided.boxes.push_back({{2, 0}, {1, 2}});
  Layout layout = LayoutOf({WholePiece("w", {3}), BoxPiece("part", {8, 2}, {{4, 0}, {4, 2}}),
                            FlatPiece("flat", {100}, 10, 13), strided});
  SafetensorsHeader header = HeaderOfLayout(layout, {});
  EXPECT_EQ(header.items,
            (std::vector<SafetensorsItem>{{"part#4:4x0:2", Dtype::kF32, {4, 2}, 0, 32},
                                          {"strided#0:1x0:2+2:1x0:2", Dtype::kF32, {4}, 32, 48},
                                          {"flat#flat10:3", Dtype::kF32, {3}, 48, 60},
                                          {"w", Dtype::kF32, {3}, 60, 72}}));
}

}  // namespace
}  // namespace reprise::format
