#include "core/format/boxes.h"

#include <algorithm>
#include <numeric>

#include "core/base/check.h"
#include "core/format/layout.h"

namespace reprise::format {
namespace {

using Overlap = std::optional<std::pair<size_t, size_t>>;

class OverlapFinder {
 public:
  explicit OverlapFinder(std::span<const Box* const> boxes) : boxes_(boxes) {}

  Overlap Find() {
    std::vector<size_t> members;
    for (size_t i = 0; i < boxes_.size(); ++i) {
      if (ElementsOf(*boxes_[i]) != 0) members.push_back(i);
    }
    if (members.size() < 2) return std::nullopt;
    axes_ = boxes_[members[0]]->offset.size();
    // Two scalars share their only element.
    if (axes_ == 0) return Pair(members[0], members[1]);
    return FindIn(members);
  }

 private:
  uint64_t Begin(size_t box, size_t axis) const { return boxes_[box]->offset[axis]; }
  uint64_t End(size_t box, size_t axis) const {
    return boxes_[box]->offset[axis] + boxes_[box]->extent[axis];
  }
  static Overlap Pair(size_t left, size_t right) { return std::minmax(left, right); }

  // Boxes that may touch each other, and did not fall apart along the last `whole_axes` axes that were
  // tried; `axis` is next.
  struct Group {
    std::span<size_t> members;
    size_t axis = 0;
    size_t whole_axes = 0;
  };

  // A list of what is to be done, not recursion: boxes can be nested so that only one of them comes off
  // at a time, and a checkpoint may have millions.
  Overlap FindIn(std::span<size_t> all) {
    std::vector<Group> groups = {{.members = all}};
    while (!groups.empty()) {
      Group group = groups.back();
      groups.pop_back();
      if (group.whole_axes < axes_) {
        Split(group, groups);
      } else if (Overlap found = Sweep(group.members); found.has_value()) {
        return found;
      }
    }
    return std::nullopt;
  }

  // Adds the parts of `group` that cannot touch each other along its axis.
  void Split(const Group& group, std::vector<Group>& groups) {
    std::span<size_t> members = group.members;
    size_t axis = group.axis;
    std::ranges::sort(members, {}, [&](size_t box) { return Begin(box, axis); });
    size_t first = 0;
    uint64_t reach = End(members[0], axis);
    for (size_t i = 1; i <= members.size(); ++i) {
      if (i < members.size() && Begin(members[i], axis) < reach) {
        reach = std::max(reach, End(members[i], axis));
        continue;
      }
      bool whole = first == 0 && i == members.size();
      if (i - first >= 2) {
        groups.push_back({.members = members.subspan(first, i - first),
                          .axis = (axis + 1) % axes_,
                          .whole_axes = whole ? group.whole_axes + 1 : 1});
      }
      first = i;
      if (i < members.size()) reach = End(members[i], axis);
    }
  }

  Overlap Sweep(std::span<size_t> members) {
    std::ranges::sort(members, {}, [&](size_t box) { return Begin(box, 0); });
    std::vector<size_t> active;
    for (size_t box : members) {
      std::erase_if(active, [&](size_t other) { return End(other, 0) <= Begin(box, 0); });
      for (size_t other : active) {
        if (Touch(box, other)) return Pair(box, other);
      }
      active.push_back(box);
    }
    return std::nullopt;
  }

  bool Touch(size_t left, size_t right) const {
    for (size_t axis = 0; axis < axes_; ++axis) {
      if (Begin(left, axis) >= End(right, axis) || Begin(right, axis) >= End(left, axis)) {
        return false;
      }
    }
    return true;
  }

  std::span<const Box* const> boxes_;
  size_t axes_ = 0;
};

}  // namespace

bool IsInside(const Box& box, const std::vector<uint64_t>& shape) {
  if (box.offset.size() != shape.size() || box.extent.size() != shape.size()) return false;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (box.offset[axis] > shape[axis]) return false;
    if (box.extent[axis] > shape[axis] - box.offset[axis]) return false;
  }
  return true;
}

std::vector<Box> BoxesOfRange(const std::vector<uint64_t>& shape, uint64_t begin, uint64_t end) {
  REPRISE_CHECK(begin <= end && end <= ElementsOf(shape));
  std::vector<Box> boxes;
  if (begin == end) return boxes;
  if (shape.empty()) return {WholeBox(shape)};
  // stride[a]: elements of one index along axis a.
  std::vector<uint64_t> stride(shape.size(), 1);
  for (size_t axis = shape.size() - 1; axis > 0; --axis) {
    stride[axis - 1] = stride[axis] * shape[axis];
  }
  while (begin < end) {
    // The outermost axis along which a block may start here and still fit.
    size_t axis = 0;
    while (begin % stride[axis] != 0 || end - begin < stride[axis]) ++axis;
    uint64_t index = begin / stride[axis] % shape[axis];
    uint64_t count = std::min((end - begin) / stride[axis], shape[axis] - index);
    Box box;
    for (size_t a = 0; a < shape.size(); ++a) {
      box.offset.push_back(a <= axis ? begin / stride[a] % shape[a] : 0);
      box.extent.push_back(a < axis ? 1 : a == axis ? count : shape[a]);
    }
    boxes.push_back(std::move(box));
    begin += count * stride[axis];
  }
  return boxes;
}

Overlap FindOverlap(std::span<const Box* const> boxes) { return OverlapFinder(boxes).Find(); }

}  // namespace reprise::format
