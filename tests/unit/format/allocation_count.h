// What a decoder allocates: part of its contract.
//
// Counts through the global allocation function, which this file replaces in the whole program.
// ThreadSanitizer has its own, and nothing is counted there.
//
// Thread rule: each thread counts its own.
#pragma once

#include <cstddef>

namespace reprise::format {

// Counts the bytes that this thread allocates while it lives.
class AllocationCount {
 public:
  AllocationCount();
  size_t bytes() const;

 private:
  size_t start_;
};

}  // namespace reprise::format
