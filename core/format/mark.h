// GroupMark: a position in a store's journal, as its readers remember it.
//
// Thread rule: plain value.
#pragma once

#include <cstdint>

#include "core/base/digest.h"

namespace reprise::format {

// How far a consumer of the journal has come: a group's number and its slot's chain value. Zero
// means "before the first group".
struct GroupMark {
  uint64_t seq = 0;
  Digest chain;
  bool operator==(const GroupMark&) const = default;
};

}  // namespace reprise::format
