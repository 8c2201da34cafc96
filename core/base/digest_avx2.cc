#include "core/base/digest_avx2.h"

#if defined(__x86_64__)

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace reprise::internal {

void Xxh3Avx2(const void* data, size_t size, uint8_t digest[16]) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, size));
  __builtin_memcpy(digest, canonical.digest, sizeof(canonical.digest));
}

void Xxh3UpdateAvx2(void* state, const void* data, size_t size) {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state), data, size);
}

}  // namespace reprise::internal

#endif
