#include "core/format/boxes.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <numeric>

#include "core/base/random.h"
#include "core/format/layout.h"

namespace reprise::format {
namespace {

std::vector<const Box*> PointersTo(const std::vector<Box>& boxes) {
  std::vector<const Box*> pointers;
  for (const Box& box : boxes) pointers.push_back(&box);
  return pointers;
}

bool Touch(const Box& left, const Box& right) {
  if (ElementsOf(left) == 0 || ElementsOf(right) == 0) return false;
  for (size_t a = 0; a < left.offset.size(); ++a) {
    if (left.offset[a] >= right.offset[a] + right.extent[a]) return false;
    if (right.offset[a] >= left.offset[a] + left.extent[a]) return false;
  }
  return true;
}

bool AnyTouch(const std::vector<Box>& boxes) {
  for (size_t i = 0; i < boxes.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      if (Touch(boxes[i], boxes[k])) return true;
    }
  }
  return false;
}

// Boxes of which only one at a time can be parted from the rest: a column, a row, a column ...
std::vector<Box> NestedBoxes(size_t count) {
  std::vector<Box> boxes;
  uint64_t left = 0, top = 0;
  for (size_t i = 0; i < count; ++i) {
    bool column = i % 2 == 0;
    Box box{{left, top}, {column ? 1 : count - left, column ? count - top : 1}};
    (column ? left : top) += 1;
    boxes.push_back(std::move(box));
  }
  return boxes;
}

TEST(FindOverlap, NeedsNoStackForBoxesThatPartOneByOne) {
  constexpr size_t kStackBytes = 256 * 1024;
  std::vector<Box> boxes = NestedBoxes(2500);
  std::vector<const Box*> pointers = PointersTo(boxes);
  std::optional<std::pair<size_t, size_t>> found;
  auto look = [&] { found = FindOverlap(pointers); };
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kStackBytes), 0);
  pthread_t thread;
  auto run = [](void* work) -> void* {
    (*static_cast<decltype(look)*>(work))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, &look), 0);
  ASSERT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
  EXPECT_FALSE(found.has_value());
}

TEST(FindOverlap, AgreesWithComparingAllPairs) {
  Rng rng(1);
  int overlaps = 0;
  for (int round = 0; round < 20000; ++round) {
    size_t axes = 1 + rng.Below(4);
    std::vector<Box> boxes(rng.Below(8));
    for (Box& box : boxes) {
      for (size_t a = 0; a < axes; ++a) {
        box.offset.push_back(rng.Below(12));
        box.extent.push_back(rng.Below(5));
      }
    }
    auto found = FindOverlap(PointersTo(boxes));
    ASSERT_EQ(found.has_value(), AnyTouch(boxes));
    if (!found.has_value()) continue;
    ++overlaps;
    ASSERT_LT(found->first, found->second);
    ASSERT_TRUE(Touch(boxes[found->first], boxes[found->second]));
  }
  EXPECT_GT(overlaps, 1000);
}

TEST(FindOverlap, TwoScalarsOverlap) {
  EXPECT_FALSE(FindOverlap(PointersTo({Box{}})).has_value());
  EXPECT_TRUE(FindOverlap(PointersTo({Box{}, Box{}})).has_value());
}

TEST(FindOverlap, FindsNothingInAPinwheelThatNoAxisSplits) {
  std::vector<Box> pinwheel = {
      {{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}};
  EXPECT_FALSE(FindOverlap(PointersTo(pinwheel)).has_value());
  pinwheel[4] = {{1, 1}, {1, 2}};
  EXPECT_TRUE(FindOverlap(PointersTo(pinwheel)).has_value());
}

TEST(FindOverlap, LooksAtALargeGridOnlyAFewTimes) {
  // Comparing all pairs would take minutes here.
  std::vector<Box> boxes;
  for (uint64_t i = 0; i < 64; ++i) {
    for (uint64_t j = 0; j < 64; ++j) {
      for (uint64_t k = 0; k < 64; ++k) boxes.push_back({{i * 3, j * 5, k * 7}, {3, 5, 7}});
    }
  }
  EXPECT_FALSE(FindOverlap(PointersTo(boxes)).has_value());
  boxes[100000].extent[2] += 1;
  EXPECT_TRUE(FindOverlap(PointersTo(boxes)).has_value());
}

// The row-major indices of the elements of `box`.
void AppendElements(const Box& box, const std::vector<uint64_t>& shape,
                    std::vector<uint64_t>& elements) {
  for (uint64_t i = 0; i < ElementsOf(box); ++i) {
    uint64_t rest = i;
    uint64_t index = 0;
    uint64_t stride = 1;
    for (size_t a = shape.size(); a-- > 0;) {
      index += (box.offset[a] + rest % box.extent[a]) * stride;
      rest /= box.extent[a];
      stride *= shape[a];
    }
    elements.push_back(index);
  }
}

TEST(BoxesOfRange, HoldExactlyTheElementsOfTheRangeInOrder) {
  Rng rng(2);
  for (int round = 0; round < 5000; ++round) {
    std::vector<uint64_t> shape;
    for (size_t axes = rng.Below(5); axes > 0; --axes) shape.push_back(1 + rng.Below(5));
    uint64_t end = rng.Below(ElementsOf(shape) + 1);
    uint64_t begin = rng.Below(end + 1);
    std::vector<Box> boxes = BoxesOfRange(shape, begin, end);
    EXPECT_LE(boxes.size(), std::max<size_t>(1, 2 * shape.size()));
    std::vector<uint64_t> elements;
    for (const Box& box : boxes) {
      ASSERT_TRUE(IsInside(box, shape));
      AppendElements(box, shape, elements);
    }
    std::vector<uint64_t> expected(end - begin);
    std::iota(expected.begin(), expected.end(), begin);
    ASSERT_EQ(elements, expected);
  }
}

TEST(IsInside, RefusesWrongAxesAndOverflow) {
  EXPECT_TRUE(IsInside({{1}, {3}}, {4}));
  EXPECT_TRUE(IsInside({{4}, {0}}, {4}));
  EXPECT_FALSE(IsInside({{5}, {0}}, {4}));
  EXPECT_FALSE(IsInside({{1}, {4}}, {4}));
  EXPECT_FALSE(IsInside({{2}, {UINT64_MAX}}, {4}));
  EXPECT_FALSE(IsInside({{0, 0}, {1, 1}}, {4}));
  EXPECT_TRUE(IsInside({}, {}));
}

}  // namespace
}  // namespace reprise::format
