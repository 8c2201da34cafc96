// Layouts: decoded layouts by digest, from RAM or from the tier; and whether a set of them covers
// every tensor.
//
// Both answers are cached, bounded: a job saves thousands of times with the same layouts. A verdict
// is cached only when no piece is `replicated`, because those are judged by their bytes' digests
// too.
//
// Thread rule: the store's loop.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "core/format/layout.h"
#include "reprise/status.h"
#include "server/lifecycle/core.h"

namespace reprise::lifecycle {

inline constexpr size_t kLayoutsCachedMax = 4096;
inline constexpr uint64_t kLayoutCacheBytesMax = 256 * limits::kMiB;
inline constexpr size_t kCoverageVerdictsMax = 1024;

using LayoutPtr = std::shared_ptr<const format::Layout>;

class Layouts {
 public:
  explicit Layouts(Core& core) : core_(core) {}

  // Checks `encoded` against `digest` and keeps it in RAM. INVALID_ARGUMENT: it does not match or
  // does not decode.
  Result<LayoutPtr> Take(const Digest& digest, ByteView encoded);
  // From RAM, or read from the tier. NOT_FOUND: not stored. DATA_LOSS: stored bytes are damaged.
  Task<Result<LayoutPtr>> Get(Digest digest);

  // Whether a verdict that these layouts (by rank) cover everything is known already.
  bool KnownCovered(const std::vector<Digest>& by_rank) const;
  void NoteCovered(const std::vector<Digest>& by_rank);

 private:
  struct Cached {
    LayoutPtr layout;
    uint64_t size_bytes = 0;
    std::list<Digest>::iterator place;
  };
  void Keep(const Digest& digest, LayoutPtr layout, uint64_t size_bytes);

  Core& core_;
  std::list<Digest> recent_;  // front: used last
  std::unordered_map<Digest, Cached, DigestHash> cached_;
  uint64_t cached_bytes_ = 0;
  std::set<Digest> covered_;
};

// Any piece is of scope `replicated`.
bool HasReplicated(const format::Layout& layout);

}  // namespace reprise::lifecycle
