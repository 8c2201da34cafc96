// AlignedBuffer: owned memory that direct I/O accepts, aligned to limits::kIoAlignment.
//
// For control-path blocks (journal slots, superblocks, zeros). Bulk data uses pooled or slab memory.
//
// Thread rule: a movable value with one owner. Allocation failure stops the process, as `new` does.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/limits.h"

namespace reprise {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // `size_bytes` (rounded up to limits::kIoAlignment) zero bytes.
  explicit AlignedBuffer(uint64_t size_bytes)
      : size_(AlignUp(size_bytes, limits::kIoAlignment)),
        data_(
            static_cast<uint8_t*>(::operator new(size_, std::align_val_t{limits::kIoAlignment}))) {
    std::memset(data_.get(), 0, size_);
  }
  // `content`, padded with zeros.
  static AlignedBuffer CopyOf(ByteView content) {
    AlignedBuffer buffer(content.size());
    if (!content.empty()) std::memcpy(buffer.data(), content.data(), content.size());
    return buffer;
  }

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }
  MutableByteView span() { return {data_.get(), size_}; }
  ByteView view() const { return {data_.get(), size_}; }

 private:
  struct Release {
    void operator()(uint8_t* memory) const {
      ::operator delete(memory, std::align_val_t{limits::kIoAlignment});
    }
  };
  size_t size_ = 0;
  std::unique_ptr<uint8_t, Release> data_;
};

}  // namespace reprise
