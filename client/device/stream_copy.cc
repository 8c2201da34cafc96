#include "client/device/stream_copy.h"

#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace reprise::client {

#if defined(__x86_64__)
namespace {

bool HasAvx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}

// 128 bytes a turn: two full cache lines, so that write-combining buffers are flushed whole.
__attribute__((target("avx2"))) void StreamAvx2(uint8_t* target, const uint8_t* source,
                                                size_t bytes) {
  size_t head = -reinterpret_cast<uintptr_t>(target) & 63;
  std::memcpy(target, source, head);
  target += head;
  source += head;
  bytes -= head;
  for (; bytes >= 128; bytes -= 128, target += 128, source += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(source + 1024), _MM_HINT_NTA);
    _mm_prefetch(reinterpret_cast<const char*>(source + 1088), _MM_HINT_NTA);
    const auto* from = reinterpret_cast<const __m256i*>(source);
    auto* to = reinterpret_cast<__m256i*>(target);
    __m256i a = _mm256_loadu_si256(from);
    __m256i b = _mm256_loadu_si256(from + 1);
    __m256i c = _mm256_loadu_si256(from + 2);
    __m256i d = _mm256_loadu_si256(from + 3);
    _mm256_stream_si256(to, a);
    _mm256_stream_si256(to + 1, b);
    _mm256_stream_si256(to + 2, c);
    _mm256_stream_si256(to + 3, d);
  }
  std::memcpy(target, source, bytes);
}

}  // namespace

void StreamCopy(void* target, const void* source, size_t bytes) {
  if (bytes < kStreamBytesMin || !HasAvx2()) {
    std::memcpy(target, source, bytes);
    return;
  }
  StreamAvx2(static_cast<uint8_t*>(target), static_cast<const uint8_t*>(source), bytes);
}

void CopyFence() { _mm_sfence(); }

const char* StreamCopyKind() { return HasAvx2() ? "avx2" : "memcpy"; }

#else

void StreamCopy(void* target, const void* source, size_t bytes) {
  std::memcpy(target, source, bytes);
}

void CopyFence() { std::atomic_thread_fence(std::memory_order_release); }

const char* StreamCopyKind() { return "memcpy"; }

#endif

}  // namespace reprise::client
