// Byte views and bounded little-endian encoding: the only way formats and messages touch raw bytes.
//
// ByteWriter appends to a growing buffer; ByteReader walks an untrusted one. A reader never reads
// past its end and never allocates from a claimed length: after the first failure every further read
// yields zero values and ok() is false, so that a decoder reads all fields and tests once.
//
// Thread rule: values without shared state. No I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace reprise {

using ByteView = std::span<const uint8_t>;
using MutableByteView = std::span<uint8_t>;
using Bytes = std::vector<uint8_t>;

inline ByteView ViewOf(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
inline std::string_view TextOf(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// `value` rounded up to a multiple of `alignment` (a power of two).
constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}
constexpr bool IsAligned(uint64_t value, uint64_t alignment) {
  return (value & (alignment - 1)) == 0;
}
constexpr uint64_t CeilDiv(uint64_t value, uint64_t divisor) {
  return value / divisor + (value % divisor != 0);
}

// Lower-case hexadecimal, two digits a byte.
std::string HexOf(ByteView bytes);
// Human-readable size with binary units ("1.50 GiB").
std::string HumanBytes(uint64_t bytes);

// Appends little-endian fields to an owned buffer.
class ByteWriter {
 public:
  void U8(uint8_t value) { buffer_.push_back(value); }
  void U16(uint16_t value) { Raw(value); }
  void U32(uint32_t value) { Raw(value); }
  void U64(uint64_t value) { Raw(value); }
  void I64(int64_t value) { Raw(value); }
  void Data(ByteView data) { buffer_.insert(buffer_.end(), data.begin(), data.end()); }
  // u32 length, then the bytes.
  void Blob(ByteView data) {
    U32(static_cast<uint32_t>(data.size()));
    Data(data);
  }
  void String(std::string_view text) { Blob(ViewOf(text)); }
  // Zero bytes until size() is a multiple of `alignment`.
  void PadTo(size_t alignment) { buffer_.resize(AlignUp(buffer_.size(), alignment), 0); }

  size_t size() const { return buffer_.size(); }
  ByteView view() const { return buffer_; }
  Bytes Take() { return std::move(buffer_); }

 private:
  template <typename T>
  void Raw(T value) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
    const auto* raw = reinterpret_cast<const uint8_t*>(&value);
    buffer_.insert(buffer_.end(), raw, raw + sizeof(T));
  }
  Bytes buffer_;
};

// Reads little-endian fields from an untrusted buffer it does not own.
class ByteReader {
 public:
  explicit ByteReader(ByteView data) : data_(data) {}

  uint8_t U8() { return Raw<uint8_t>(); }
  uint16_t U16() { return Raw<uint16_t>(); }
  uint32_t U32() { return Raw<uint32_t>(); }
  uint64_t U64() { return Raw<uint64_t>(); }
  int64_t I64() { return Raw<int64_t>(); }
  // The next `size` bytes as a view into the source; empty on failure.
  ByteView Data(size_t size) {
    if (!ok_ || size > remaining()) {
      ok_ = false;
      return {};
    }
    ByteView view = data_.subspan(position_, size);
    position_ += size;
    return view;
  }
  // u32 length (refused above `size_max`), then the bytes as a view.
  ByteView Blob(size_t size_max) {
    uint32_t size = U32();
    if (size > size_max) ok_ = false;
    return Data(ok_ ? size : 0);
  }
  std::string String(size_t size_max) { return std::string(TextOf(Blob(size_max))); }
  // An element count, refused when even `element_size_min` bytes each would pass the end: a claimed
  // count can therefore be used to reserve memory.
  uint32_t Count(size_t element_size_min) {
    uint32_t count = U32();
    if (element_size_min == 0 || count > remaining() / element_size_min) {
      if (count != 0) ok_ = false;
    }
    return ok_ ? count : 0;
  }

  // Marks the input as malformed (a decoder's own range checks use this).
  void Fail() { ok_ = false; }
  bool ok() const { return ok_; }
  // ok() and everything was consumed.
  bool AtEnd() const { return ok_ && position_ == data_.size(); }
  size_t remaining() const { return data_.size() - position_; }
  size_t position() const { return position_; }

 private:
  template <typename T>
  T Raw() {
    T value{};
    if (!ok_ || remaining() < sizeof(T)) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, data_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }
  ByteView data_;
  size_t position_ = 0;
  bool ok_ = true;
};

}  // namespace reprise
