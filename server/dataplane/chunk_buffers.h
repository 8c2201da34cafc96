// ChunkBuffers: a fixed set of 4 KiB-aligned chunk buffers of one Io, lent one at a time.
//
// The memory bound of the data plane: what is received, copied or read lies in one of these buffers,
// and who finds none waits. Memory is taken once, at construction, and registered with the Io.
// A Lease gives its buffer back when it goes away; leases must not outlive the set.
//
// Thread rule: the Io's loop. Take suspends, nothing blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/base/bytes.h"
#include "core/io/io.h"

namespace reprise::dataplane {

class ChunkBuffers {
 public:
  // `count` buffers of `bytes` each; `bytes` is a multiple of 4 KiB.
  ChunkBuffers(Io& io, uint32_t count, uint32_t bytes);
  ~ChunkBuffers();
  ChunkBuffers(const ChunkBuffers&) = delete;
  ChunkBuffers& operator=(const ChunkBuffers&) = delete;

  class [[nodiscard]] Lease {
   public:
    Lease() = default;
    Lease(ChunkBuffers* owner, uint8_t* data) : owner_(owner), data_(data) {}
    Lease(Lease&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)),
          data_(std::exchange(other.data_, nullptr)) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(owner_, other.owner_);
      std::swap(data_, other.data_);
      return *this;
    }
    ~Lease() { Release(); }
    explicit operator bool() const { return data_ != nullptr; }
    MutableByteView view() const { return {data_, data_ == nullptr ? 0 : owner_->bytes_}; }
    // Zeroes [size, size rounded up to 4 KiB) and returns the padded part of the buffer.
    MutableByteView Padded(size_t size) const;
    void Release();

   private:
    ChunkBuffers* owner_ = nullptr;
    uint8_t* data_ = nullptr;
  };

  // A buffer, or an empty Lease when all are lent or somebody waits already.
  Lease TryTake();
  // A buffer, or an empty Lease when `deadline` passed first.
  Task<Lease> Take(std::optional<TimePoint> deadline = {});
  size_t available() const { return free_.size(); }
  uint32_t count() const { return count_; }

 private:
  const uint32_t count_;
  const uint32_t bytes_;
  uint8_t* memory_;
  std::vector<uint8_t*> free_;
  WaitList waiters_;
};

}  // namespace reprise::dataplane
