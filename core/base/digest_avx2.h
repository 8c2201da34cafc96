// XXH3-128 for processors with AVX2; digest.cc decides at run time which one is used.
//
// A translation unit of its own, because it is compiled with other instructions than the rest: it must
// not include anything whose inline functions others use as well.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reprise::internal {

#if defined(__x86_64__)
// The canonical digest of `size` bytes.
void Xxh3Avx2(const void* data, size_t size, uint8_t digest[16]);
// `state` is an XXH3_state_t; the same as XXH3_128bits_update, which may be mixed with it.
void Xxh3UpdateAvx2(void* state, const void* data, size_t size);
#endif

}  // namespace reprise::internal
