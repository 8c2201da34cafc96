#include "tests/crash/store/allocation.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace reprise::crash {
namespace {

std::atomic<uint64_t> g_count{0};
std::atomic<uint64_t> g_fail_at{0};

void* Allocate(std::size_t size, std::size_t alignment) {
  uint64_t number = g_count.fetch_add(1, std::memory_order_relaxed) + 1;
  if (number == g_fail_at.load(std::memory_order_relaxed)) {
    static constexpr char kSaid[] = "fault point hit: an allocation fails\n";
    (void)!write(STDERR_FILENO, kSaid, sizeof(kSaid) - 1);
    return nullptr;
  }
  if (size == 0) size = 1;
  if (alignment <= __STDCPP_DEFAULT_NEW_ALIGNMENT__) return std::malloc(size);
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void* AllocateOrThrow(std::size_t size, std::size_t alignment) {
  void* memory = Allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void FailAllocation(uint64_t number) {
  g_count = 0;
  g_fail_at = number;
}

uint64_t AllocationCount() { return g_count; }

}  // namespace reprise::crash

// The forms that the others (arrays, nothrow) are defined by. Exported, so that libraries use them.
#define REPRISE_REPLACES __attribute__((visibility("default")))
REPRISE_REPLACES void* operator new(std::size_t size) {
  return reprise::crash::AllocateOrThrow(size, 0);
}
REPRISE_REPLACES void* operator new(std::size_t size, std::align_val_t alignment) {
  return reprise::crash::AllocateOrThrow(size, static_cast<std::size_t>(alignment));
}
REPRISE_REPLACES void operator delete(void* memory) noexcept { std::free(memory); }
REPRISE_REPLACES void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
REPRISE_REPLACES void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
REPRISE_REPLACES void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
