#include "core/io/buffer_pool.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"

namespace reprise {
namespace {

constexpr size_t kArenaAlignment = 2 * limits::kMiB;

// `bytes` of zeroed memory at a multiple of kArenaAlignment, or null.
uint8_t* MapArena(size_t bytes) {
  size_t mapped = bytes + kArenaAlignment;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* begin = static_cast<uint8_t*>(memory);
  auto* arena =
      reinterpret_cast<uint8_t*>(AlignUp(reinterpret_cast<uintptr_t>(begin), kArenaAlignment));
  size_t before = static_cast<size_t>(arena - begin);
  if (before > 0) munmap(begin, before);
  munmap(arena + bytes, mapped - before - bytes);
  // Advice before the first touch, so that the pages are huge from the start.
  madvise(arena, bytes, MADV_HUGEPAGE);
  madvise(arena, bytes, MADV_DONTFORK);
  if (madvise(arena, bytes, MADV_POPULATE_WRITE) == 0) return arena;
  if (errno == EINVAL) {  // before Linux 5.14
    std::memset(arena, 0, bytes);
    return arena;
  }
  munmap(arena, bytes);
  return nullptr;
}

}  // namespace

Result<std::unique_ptr<BufferPool>> BufferPool::Create(Io& io, BufferPoolOptions options) {
  if (options.buffer_bytes == 0 || options.buffer_count == 0) {
    return Error(Code::kInvalidArgument, "a buffer pool needs at least one buffer of one byte");
  }
  options.buffer_bytes = AlignUp(options.buffer_bytes, limits::kIoAlignment);
  size_t bytes = AlignUp(options.buffer_bytes * options.buffer_count, kArenaAlignment);
  uint8_t* arena = MapArena(bytes);
  if (arena == nullptr) {
    return Fail(Code::kResourceExhausted, "no memory for {} buffers of {}", options.buffer_count,
                HumanBytes(options.buffer_bytes));
  }
  return std::unique_ptr<BufferPool>(new BufferPool(io, options, arena, bytes));
}

BufferPool::BufferPool(Io& io, BufferPoolOptions options, uint8_t* arena, size_t arena_bytes)
    : io_(io),
      buffer_bytes_(options.buffer_bytes),
      buffer_count_(options.buffer_count),
      arena_(arena),
      arena_bytes_(arena_bytes),
      waiters_(io.loop()) {
  free_.reserve(buffer_count_);
  // Handed out from the end: the first buffers of the arena first.
  for (size_t i = buffer_count_; i > 0; --i) free_.push_back(arena_ + (i - 1) * buffer_bytes_);
  io_.RegisterBuffers({{arena_, arena_bytes_}});
}

BufferPool::~BufferPool() {
  REPRISE_CHECK(free_.size() == buffer_count_, "a buffer pool is destroyed with buffers out");
  io_.UnregisterBuffers({{arena_, arena_bytes_}});
  munmap(arena_, arena_bytes_);
}

Task<BufferPool::Buffer> BufferPool::Acquire(std::optional<TimePoint> deadline) {
  if (free_.size() <= promised_ || !waiters_.empty()) {
    if (!co_await waiters_.Wait(deadline)) co_return Buffer();
    --promised_;
  }
  uint8_t* data = free_.back();
  free_.pop_back();
  co_return Buffer(this, data);
}

BufferPool::Buffer BufferPool::TryAcquire() {
  if (free_.size() <= promised_ || !waiters_.empty()) return Buffer();
  uint8_t* data = free_.back();
  free_.pop_back();
  return Buffer(this, data);
}

void BufferPool::Return(uint8_t* data) {
  free_.push_back(data);
  if (waiters_.WakeOne()) ++promised_;
}

}  // namespace reprise
