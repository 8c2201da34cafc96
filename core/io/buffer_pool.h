// BufferPool: a fixed number of equal, aligned buffers for the data path, handed out with waiting.
//
// The pool is the memory bound of whoever uses it: when all buffers are out, Acquire waits, and so
// does the peer whose bytes would have gone into the next one. The arena is 2 MiB-aligned, backed
// by huge pages where allowed, faulted in at creation, kept out of forked children, and registered
// with the I/O engine. A buffer's content is whatever its last user left.
//
// Owner: a composition root, which destroys it before its Io and after all buffers came back.
// Thread rule: the Io's loop.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/io/io.h"

namespace reprise {

struct BufferPoolOptions {
  size_t buffer_bytes = 1 << 20;  // rounded up to limits::kIoAlignment
  size_t buffer_count = 64;
};

class BufferPool {
 public:
  // One buffer; goes back to its pool when destroyed.
  class [[nodiscard]] Buffer {
   public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept
        : pool_(std::exchange(other.pool_, nullptr)), data_(std::exchange(other.data_, nullptr)) {}
    Buffer& operator=(Buffer&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(data_, other.data_);
      return *this;
    }
    ~Buffer() {
      if (pool_ != nullptr) pool_->Return(data_);
    }
    // False for the empty buffer that a passed deadline yields.
    explicit operator bool() const { return pool_ != nullptr; }
    uint8_t* data() const { return data_; }
    size_t size() const { return pool_ == nullptr ? 0 : pool_->buffer_bytes(); }
    MutableByteView span() const { return {data_, size()}; }
    MutableByteView first(size_t bytes) const { return span().first(bytes); }

   private:
    friend class BufferPool;
    Buffer(BufferPool* pool, uint8_t* data) : pool_(pool), data_(data) {}
    BufferPool* pool_ = nullptr;
    uint8_t* data_ = nullptr;
  };

  // RESOURCE_EXHAUSTED when the memory cannot be had.
  static Result<std::unique_ptr<BufferPool>> Create(Io& io, BufferPoolOptions options);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // Waits for a buffer; empty when `deadline` passed first. First come, first served.
  Task<Buffer> Acquire(std::optional<TimePoint> deadline = {});
  // A buffer if one is free and nobody waits.
  Buffer TryAcquire();

  size_t buffer_bytes() const { return buffer_bytes_; }
  size_t buffer_count() const { return buffer_count_; }
  size_t available() const { return free_.size(); }

 private:
  BufferPool(Io& io, BufferPoolOptions options, uint8_t* arena, size_t arena_bytes);
  void Return(uint8_t* data);

  Io& io_;
  const size_t buffer_bytes_;
  const size_t buffer_count_;
  uint8_t* const arena_;
  const size_t arena_bytes_;
  std::vector<uint8_t*> free_;
  // Buffers promised to waiters that have been woken but have not run yet.
  size_t promised_ = 0;
  WaitList waiters_;
};

}  // namespace reprise
