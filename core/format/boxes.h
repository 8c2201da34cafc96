// Geometry of boxes: volumes, the boxes of a flat range, and whether any two boxes overlap.
//
// FindOverlap splits the boxes along one axis after the other into groups that cannot touch each
// other; a grid of shards, along any axes, falls apart completely, in O(n log n) for each axis. What
// stays together is swept with an active set.
//
// Thread rule: pure functions; no I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "reprise/types.h"

namespace reprise::format {

// True when `box` has one offset and extent for each axis of `shape` and lies inside it.
bool IsInside(const Box& box, const std::vector<uint64_t>& shape);

// The boxes whose elements are [begin, end) of the row-major tensor, in that order: at most
// 2 * axes - 1. CHECKs begin <= end <= elements of `shape`.
std::vector<Box> BoxesOfRange(const std::vector<uint64_t>& shape, uint64_t begin, uint64_t end);

// Two boxes with an element in common, as indices into `boxes` in ascending order; none when all are
// disjoint. All boxes have the same number of axes and offset + extent does not overflow.
std::optional<std::pair<size_t, size_t>> FindOverlap(std::span<const Box* const> boxes);

}  // namespace reprise::format
