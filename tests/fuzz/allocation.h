// Bytes that the program allocates while a decoder runs: a claimed length must not become memory.
//
// Counted by the sanitizer's allocator; in builds without one nothing is counted and bytes() is 0.
//
// Thread rule: each thread counts its own.
#pragma once

#include <cstddef>

namespace reprise::fuzz {

class AllocationCount {
 public:
  AllocationCount();
  size_t bytes() const;

 private:
  size_t start_;
};

}  // namespace reprise::fuzz
