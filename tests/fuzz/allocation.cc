#include "tests/fuzz/allocation.h"

// Of the sanitizers' interface; absent in programs without one.
extern "C" [[gnu::weak]] int __sanitizer_install_malloc_and_free_hooks(
    void (*on_malloc)(const volatile void*, size_t), void (*on_free)(const volatile void*));

namespace reprise::fuzz {
namespace {

thread_local size_t allocated_bytes = 0;

void OnMalloc(const volatile void*, size_t size) { allocated_bytes += size; }
void OnFree(const volatile void*) {}

}  // namespace

AllocationCount::AllocationCount() {
  static const bool hooked = __sanitizer_install_malloc_and_free_hooks != nullptr &&
                             __sanitizer_install_malloc_and_free_hooks(OnMalloc, OnFree) != 0;
  static_cast<void>(hooked);
  start_ = allocated_bytes;
}

size_t AllocationCount::bytes() const { return allocated_bytes - start_; }

}  // namespace reprise::fuzz
