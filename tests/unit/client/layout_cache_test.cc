#include "client/snapshot/layout_cache.h"

#include <gtest/gtest.h>

namespace reprise::client {
namespace {

struct State {
  std::vector<uint64_t> shape{8, 4};
  std::vector<uint64_t> boxes{0, 0, 8, 4};
  std::vector<uint8_t> memory = std::vector<uint8_t>(8 * 4 * 4);

  PieceView View(std::string_view name) {
    return {.name = name,
            .dtype = Dtype::kF32,
            .scope = Scope::kGlobal,
            .global_shape = shape,
            .boxes = boxes,
            .box_count = 1,
            .data = memory.data(),
            .data_bytes = memory.size()};
  }
};

TEST(LayoutCache, AnUnchangedListIsNotBuiltAgain) {
  State a, b;
  LayoutCache cache;
  std::vector<PieceView> pieces{a.View("x"), b.View("y")};
  auto first = *cache.Get(pieces, 4096);
  State moved;  // other memory, same description
  pieces[0].data = moved.memory.data();
  auto second = *cache.Get(pieces, 4096);
  EXPECT_EQ(first.get(), second.get());
  EXPECT_EQ(cache.builds(), 1u);
}

TEST(LayoutCache, AnyChangeOfNameTypeShapeBoxOrScopeBuildsAnew) {
  State state;
  LayoutCache cache;
  std::vector<PieceView> pieces{state.View("x")};
  uint64_t builds = 0;
  auto built = [&] {
    Result<std::shared_ptr<const PreparedLayout>> got = cache.Get(pieces, 4096);
    EXPECT_TRUE(got.has_value()) << got.error();
    return cache.builds() == ++builds;
  };
  EXPECT_TRUE(built());
  pieces[0].name = "z";
  EXPECT_TRUE(built());
  pieces[0].dtype = Dtype::kI32;
  EXPECT_TRUE(built());
  pieces[0].scope = Scope::kReplicated;
  EXPECT_TRUE(built());
  pieces[0].world_policy = WorldPolicy::kDrop;
  EXPECT_TRUE(built());
  std::vector<uint64_t> other_boxes{0, 0, 4, 4};
  pieces[0].boxes = other_boxes;
  pieces[0].data_bytes = 4 * 4 * 4;
  EXPECT_TRUE(built());
  pieces[0].flat = true;
  pieces[0].boxes = {};
  pieces[0].box_count = 0;
  pieces[0].flat_end = 16;
  EXPECT_TRUE(built());
  pieces[0].flat_begin = 1;
  pieces[0].data_bytes = 15 * 4;
  EXPECT_TRUE(built());
  pieces.push_back(state.View("w"));
  EXPECT_TRUE(built());
}

TEST(LayoutCache, TheOrderTellsWhereEachPieceWent) {
  State small, large;
  large.shape = {64, 64};
  large.boxes = {0, 0, 64, 64};
  large.memory.resize(64 * 64 * 4);
  LayoutCache cache;
  std::vector<PieceView> pieces{small.View("small"), large.View("large")};
  auto layout = *cache.Get(pieces, 4096);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(layout->layout.pieces[i].name, pieces[layout->order[i]].name);
  }
  EXPECT_EQ(layout->layout.pieces[0].name, "large");
}

TEST(LayoutCache, WrongSizesNullMemoryAndOverlappingBoxesAreNamed) {
  State state;
  LayoutCache cache;
  std::vector<PieceView> pieces{state.View("weights")};
  pieces[0].data_bytes = 5;
  EXPECT_NE(cache.Get(pieces, 4096).error().message().find("weights"), std::string::npos);
  pieces[0] = state.View("weights");
  pieces[0].data = nullptr;
  EXPECT_EQ(cache.Get(pieces, 4096).error().code(), Code::kInvalidArgument);
  pieces[0] = state.View("weights");
  std::vector<uint64_t> twice{0, 0, 8, 4, 2, 0, 1, 4};
  pieces[0].boxes = twice;
  pieces[0].box_count = 2;
  EXPECT_NE(cache.Get(pieces, 4096).error().message().find("overlap"), std::string::npos);
  pieces = {state.View("weights"), state.View("weights")};
  EXPECT_NE(cache.Get(pieces, 4096).error().message().find("twice"), std::string::npos);
}

}  // namespace
}  // namespace reprise::client
