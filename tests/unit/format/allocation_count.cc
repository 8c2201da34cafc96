#include "tests/unit/format/allocation_count.h"

#include <cstdlib>
#include <new>

namespace {

thread_local size_t allocated_bytes = 0;

}  // namespace

// The test program counts through the global allocation function: what a decoder allocates is part
// of its contract. ThreadSanitizer has its own, and nothing is counted there.
#if !__has_feature(thread_sanitizer)
void* operator new(size_t size) {
  allocated_bytes += size;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
#endif

namespace reprise::format {

AllocationCount::AllocationCount() : start_(allocated_bytes) {}
size_t AllocationCount::bytes() const { return allocated_bytes - start_; }

}  // namespace reprise::format
