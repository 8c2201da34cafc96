// TruncationGuard: what keeps the daemon alive when a process makes a file shorter that the daemon has
// mapped. Trainers hold writable descriptors of their slots, so any of them can.
//
// Touching a page behind the end of its file raises SIGBUS, whose default is the end of the process and
// with it of every other rank's saves. The handler installed here puts zero pages of the daemon's own
// in place of the rest of the mapping and marks it damaged. Bytes read from then on are zeros, not what
// was written: whoever digests a mapping asks damaged() afterwards, before the digest counts.
//
// A SIGBUS elsewhere (a failing memory module) ends the process as before. At most kRangesMax mappings
// are guarded at a time; more are mapped without.
//
// Thread rule: any thread. The handler uses only mmap and atomics.
#pragma once

#include <cstddef>
#include <utility>

namespace reprise::node {

class TruncationGuard {
 public:
  static constexpr size_t kRangesMax = 4096;

  TruncationGuard() = default;
  // Guards a mapping until destruction, which must come before munmap. Installs the handler at first.
  TruncationGuard(void* address, size_t bytes);
  TruncationGuard(TruncationGuard&& other) noexcept
      : index_(std::exchange(other.index_, kRangesMax)) {}
  TruncationGuard& operator=(TruncationGuard&& other) noexcept {
    std::swap(index_, other.index_);
    return *this;
  }
  ~TruncationGuard();

  // The file was made shorter and something was read (or written) behind its end.
  bool damaged() const;

 private:
  size_t index_ = kRangesMax;  // kRangesMax: guards nothing
};

}  // namespace reprise::node
