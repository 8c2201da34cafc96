// MemoryTier: segments in this process's RAM. A cache level of a store, and the model of Tier.
//
// Nothing survives the process. Segments take memory when they are first written.
//
// Thread rule: one loop. Never blocks and never suspends.
#pragma once

#include <cstdint>
#include <memory>

#include "server/tier/tier.h"

namespace reprise::tier {

struct MemoryOptions {
  uint64_t segment_bytes = 0;  // multiple of 4 KiB
  uint32_t segment_count = 0;
};

class MemoryTier {
 public:
  static std::unique_ptr<Tier> Make(MemoryOptions options);
};

}  // namespace reprise::tier
