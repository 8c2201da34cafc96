#include "core/format/layout.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/limits.h"
#include "tests/unit/format/allocation_count.h"
#include "tests/unit/format/samples.h"

namespace reprise::format {
namespace {

Piece Named(std::string name, Dtype dtype, uint64_t elements) {
  Piece piece = WholePiece(std::move(name), {elements});
  piece.dtype = dtype;
  return piece;
}

bool RefusedWith(const Layout& layout, std::string_view words) {
  Status status = Validate(layout);
  return status.code() == Code::kInvalidArgument && status.message().contains(words);
}

TEST(ElementsOf, CountsAndSaturates) {
  EXPECT_EQ(ElementsOf(std::vector<uint64_t>{}), 1u);
  EXPECT_EQ(ElementsOf(std::vector<uint64_t>{3, 4}), 12u);
  EXPECT_EQ(ElementsOf(std::vector<uint64_t>{1ull << 40, 1ull << 40}), UINT64_MAX);
  EXPECT_EQ(ElementsOf(std::vector<uint64_t>{1ull << 40, 1ull << 40, 0}), 0u);
  EXPECT_EQ(ElementsOf(Box{}), 1u);
  EXPECT_EQ(ElementsOf(FlatPiece("w", {10}, 3, 7)), 4u);
  EXPECT_EQ(BytesOf(FlatPiece("w", {10}, 3, 7)), 16u);
}

TEST(IsWhole, HoldsForTheWholeTensorOnly) {
  EXPECT_TRUE(IsWhole(WholePiece("w", {4, 8})));
  EXPECT_TRUE(IsWhole(WholePiece("scalar", {})));
  EXPECT_TRUE(IsWhole(FlatPiece("w", {4, 8}, 0, 32)));
  EXPECT_TRUE(IsWhole(FlatPiece("nothing", {0}, 0, 0)));
  EXPECT_FALSE(IsWhole(FlatPiece("w", {4, 8}, 0, 31)));
  EXPECT_FALSE(IsWhole(BoxPiece("w", {4, 8}, {{0, 0}, {4, 7}})));
  // Two columns make the tensor, but not its row-major bytes.
  Piece columns = BoxPiece("w", {4, 8}, {{0, 0}, {4, 4}});
  columns.boxes.push_back({{0, 4}, {4, 4}});
  EXPECT_FALSE(IsWhole(columns));
}

TEST(AssignPositions, OrdersByDtypeSizeThenBytesThenNameWithAuxiliaryItemsLast) {
  Piece auxiliary = Named("rng", Dtype::kU8, 5000);
  auxiliary.auxiliary = true;
  Layout layout{.pieces = {auxiliary, Named("half", Dtype::kBF16, 9), Named("b", Dtype::kF32, 7),
                           Named("a", Dtype::kF32, 7), Named("byte", Dtype::kU8, 1),
                           Named("long", Dtype::kI64, 1), Named("large", Dtype::kF32, 100)}};
  std::vector<uint32_t> order;
  AssignPositions(layout, 4096, &order);
  std::vector<std::string> names;
  for (const Piece& piece : layout.pieces) names.push_back(piece.name);
  EXPECT_EQ(names, (std::vector<std::string>{"long", "large", "a", "b", "half", "byte", "rng"}));
  EXPECT_EQ(order, (std::vector<uint32_t>{5, 6, 3, 2, 1, 4, 0}));
  EXPECT_TRUE(Validate(layout).ok()) << Validate(layout);
}

TEST(AssignPositions, IsTheSameForEveryOrderOfTheInput) {
  Rng rng(1);
  Layout layout = RandomLayout(rng, 30);
  for (int round = 0; round < 20; ++round) {
    Layout shuffled = layout;
    for (size_t i = shuffled.pieces.size() - 1; i > 0; --i) {
      std::swap(shuffled.pieces[i], shuffled.pieces[rng.Below(i + 1)]);
    }
    AssignPositions(shuffled, layout.chunk_bytes);
    ASSERT_EQ(shuffled, layout);
  }
}

TEST(AssignPositions, StartsPiecesOfAtLeastOneChunkAtAChunk) {
  Layout layout = LayoutOf({Named("small", Dtype::kF32, 3), Named("exact", Dtype::kF32, 1024),
                            Named("large", Dtype::kF32, 1025), Named("empty", Dtype::kF32, 0)});
  std::vector<uint64_t> positions;
  for (const Piece& piece : layout.pieces) positions.push_back(piece.position);
  EXPECT_EQ(positions, (std::vector<uint64_t>{0, 8192, 12288, 12352}));
  EXPECT_EQ(layout.shard_bytes, 12352u);
}

TEST(AssignPositions, LeavesLargePiecesInPlaceWhenASmallOneGrows) {
  auto position_of_last = [](uint64_t small_elements) {
    Layout layout = LayoutOf({Named("a", Dtype::kF64, small_elements),
                              Named("b", Dtype::kF32, 5000), Named("c", Dtype::kF32, 4000)});
    return layout.pieces.back().position;
  };
  EXPECT_EQ(position_of_last(10), position_of_last(400));
}

TEST(Layout, ComesBackAsItWas) {
  Rng rng(2);
  for (int round = 0; round < 500; ++round) {
    Layout layout = RandomLayout(rng, 20);
    Result<Layout> decoded = DecodeLayout(EncodeLayout(layout));
    ASSERT_TRUE(decoded.has_value()) << decoded.error();
    ASSERT_EQ(*decoded, layout);
    ASSERT_EQ(LayoutDigest(*decoded), LayoutDigest(layout));
  }
  Layout none{.chunk_bytes = 4096};
  EXPECT_EQ(DecodeLayout(EncodeLayout(none)).value(), none);
}

TEST(Layout, TruncationAtEveryLengthIsRefusedWithoutLargeAllocations) {
  Rng rng(3);
  Bytes encoded = EncodeLayout(RandomLayout(rng, 40));
  for (size_t size = 0; size < encoded.size(); ++size) {
    AllocationCount allocations;
    ASSERT_FALSE(DecodeLayout(ByteView(encoded).first(size)).has_value());
    ASSERT_LE(allocations.bytes(), 64 * size + 4096) << size;
  }
  encoded.push_back(0);
  EXPECT_FALSE(DecodeLayout(encoded).has_value()) << "trailing byte";
}

TEST(Layout, ClaimedCountsOfBillionsAllocateNothing) {
  Rng rng(4);
  Bytes encoded = EncodeLayout(RandomLayout(rng, 20));
  for (size_t offset = 0; offset + 4 <= encoded.size(); ++offset) {
    Bytes changed = encoded;
    std::fill_n(changed.begin() + static_cast<ptrdiff_t>(offset), 4, 0xff);
    AllocationCount allocations;
    (void)DecodeLayout(changed).has_value();
    ASSERT_LE(allocations.bytes(), 64 * changed.size() + 4096) << offset;
  }
}

TEST(Layout, ManyBoxesOfAScalarAreRefusedBeforeTheyAreAllocated) {
  Piece scalar = WholePiece("s", {});
  Layout layout = LayoutOf({scalar});
  Bytes encoded = EncodeLayout(layout);
  // The box count lies before the eight bytes of the position.
  encoded[encoded.size() - 11] = 0x0f;
  AllocationCount allocations;
  EXPECT_FALSE(DecodeLayout(encoded).has_value());
  EXPECT_LT(allocations.bytes(), 4096u);
}

TEST(Layout, WhateverDecodesEncodesToTheSameBytes) {
  Rng rng(5);
  int decoded_count = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes encoded = EncodeLayout(RandomLayout(rng, 4));
    encoded[rng.Below(encoded.size())] ^= 1 << rng.Below(8);
    Result<Layout> decoded = DecodeLayout(encoded);
    if (!decoded.has_value()) continue;
    ++decoded_count;
    ASSERT_EQ(EncodeLayout(*decoded), encoded);
  }
  EXPECT_GT(decoded_count, 100);
}

TEST(Layout, OfANewerVersionOrWithUnknownFeaturesIsUnimplemented) {
  for (size_t offset : {size_t{8}, size_t{16}}) {
    Bytes encoded = EncodeLayout(LayoutOf({}));
    encoded[offset] += 2;
    EXPECT_EQ(DecodeLayout(encoded).error().code(), Code::kUnimplemented);
  }
}

TEST(ValidateLayout, RefusesBadNames) {
  auto with_name = [](std::string name) { return LayoutOf({WholePiece(std::move(name), {4})}); };
  EXPECT_TRUE(Validate(with_name("layers.0.weight")).ok());
  EXPECT_TRUE(Validate(with_name(std::string(1024, 'n'))).ok());
  EXPECT_TRUE(RefusedWith(with_name(""), "must have a name"));
  EXPECT_TRUE(RefusedWith(with_name(std::string(1025, 'n')), "1025 bytes"));
  EXPECT_TRUE(RefusedWith(with_name("__metadata__"), "reserved"));
  for (const char* bad : {"\xff", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
    EXPECT_TRUE(RefusedWith(with_name(bad), "UTF-8"));
  }
  EXPECT_TRUE(RefusedWith(LayoutOf({WholePiece("w", {4}), WholePiece("w", {4})}), "used twice"));
}

TEST(ValidateLayout, RefusesBadShapesAndBoxes) {
  auto boxes = [](std::vector<Box> boxes) {
    Piece piece = WholePiece("w", {4, 8});
    piece.boxes = std::move(boxes);
    return LayoutOf({piece});
  };
  EXPECT_TRUE(Validate(boxes({})).ok());
  EXPECT_TRUE(Validate(boxes({{{0, 0}, {4, 4}}, {{0, 4}, {4, 4}}})).ok());
  EXPECT_TRUE(RefusedWith(boxes({{{0, 0}, {4, 9}}}), "outside"));
  EXPECT_TRUE(RefusedWith(boxes({{{0}, {4}}}), "outside"));
  EXPECT_TRUE(RefusedWith(boxes({{{0, 0}, {4, 5}}, {{3, 4}, {1, 1}}}), "overlap"));
  EXPECT_TRUE(RefusedWith(boxes(std::vector<Box>(4097, {{0, 0}, {0, 0}})), "too many boxes"));
  EXPECT_TRUE(RefusedWith(LayoutOf({WholePiece("w", std::vector<uint64_t>(17, 1))}), "axes"));
  EXPECT_TRUE(RefusedWith(LayoutOf({WholePiece("w", {1ull << 32, 1ull << 32})}), "2^64"));
  EXPECT_TRUE(RefusedWith(LayoutOf({WholePiece("w", {1ull << 41})}), "4 TiB"));
  EXPECT_TRUE(RefusedWith(LayoutOf({FlatPiece("w", {4}, 0, 5)}), "outside"));
  EXPECT_TRUE(RefusedWith(LayoutOf({FlatPiece("w", {4}, 3, 2)}), "outside"));
}

TEST(ValidateLayout, RefusesAuxiliaryItemsThatAreNotBytes) {
  Piece piece = Named("aux", Dtype::kU8, 10);
  piece.auxiliary = true;
  EXPECT_TRUE(Validate(LayoutOf({piece})).ok());
  piece.dtype = Dtype::kF32;
  EXPECT_TRUE(RefusedWith(LayoutOf({piece}), "must be U8"));
}

TEST(ValidateLayout, RefusesPositionsThatOverlapOrAreNotAligned) {
  const Layout valid = LayoutOf({Named("a", Dtype::kF32, 2000), Named("b", Dtype::kF32, 10)});
  auto refused_with = [&](auto change, std::string_view words) {
    Layout layout = valid;
    change(layout);
    return RefusedWith(layout, words);
  };
  EXPECT_TRUE(refused_with([](auto& l) { l.pieces[1].position = 7936; }, "overlaps"));
  EXPECT_TRUE(refused_with([](auto& l) { l.pieces[1].position += 32; }, "aligned"));
  EXPECT_TRUE(refused_with([](auto& l) { l.pieces[0].position = 64; }, "aligned"));
  EXPECT_TRUE(refused_with([](auto& l) { l.shard_bytes += 1; }, "ends at"));
  EXPECT_TRUE(refused_with([](auto& l) { l.chunk_bytes = 4097; }, "power of two"));
  EXPECT_TRUE(refused_with([](auto& l) { l.chunk_bytes = 8 << 20; }, "power of two"));
  EXPECT_TRUE(refused_with([](auto& l) { std::swap(l.pieces[0], l.pieces[1]); }, "overlaps"));
}

}  // namespace
}  // namespace reprise::format
