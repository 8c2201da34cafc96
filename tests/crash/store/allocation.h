// Allocations that fail on order: this program's operator new counts, and throws std::bad_alloc at
// a chosen one. Libraries that the program loads (RocksDB) use it too.
//
// Thread rule: any thread.
#pragma once

#include <cstdint>

namespace reprise::crash {

// The `number`-th allocation from now on fails; 0: none.
void FailAllocation(uint64_t number);
// Since the last FailAllocation.
uint64_t AllocationCount();

}  // namespace reprise::crash
