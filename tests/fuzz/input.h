// Reading a fuzzed input as a script: numbers, choices and byte strings, in the order asked for.
//
// A script never ends badly: past its end every number is zero and every string empty. Also the
// checks that all targets share.
//
// Thread rule: values.
#pragma once

#include <algorithm>
#include <string>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "reprise/status.h"

namespace reprise::fuzz {

class Script {
 public:
  explicit Script(ByteView input) : rest_(input) {}

  bool AtEnd() const { return rest_.empty(); }
  uint8_t Byte() { return static_cast<uint8_t>(Number(1)); }
  uint64_t U64() { return Number(8); }
  // Little-endian, of `bytes` bytes.
  uint64_t Number(size_t bytes) {
    uint64_t value = 0;
    ByteView view = Take(bytes);
    for (size_t i = 0; i < view.size(); ++i) value |= uint64_t{view[i]} << (8 * i);
    return value;
  }
  // In [0, bound), of one byte.
  size_t Below(size_t bound) { return Byte() % bound; }
  bool Chance(uint8_t of_256) { return Byte() < of_256; }
  // A number with its own length: small ones are likely, and so are the ends of each width.
  uint64_t Odd() {
    uint8_t kind = Byte();
    switch (kind % 8) {
      case 0: return kind / 8;
      case 1: return Number(1);
      case 2: return Number(2);
      case 3: return Number(4);
      case 4: return Number(8);
      case 5: return uint64_t{1} << (kind / 8 * 2 % 64);
      case 6: return (uint64_t{1} << (kind / 8 * 2 % 64)) - 1;
      default: return ~uint64_t{0} - kind / 8;
    }
  }
  // The next `size` bytes, fewer at the end.
  ByteView Take(size_t size) {
    ByteView taken = rest_.first(std::min(size, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }
  // A length of one byte, then so many bytes.
  std::string Text() { return std::string(TextOf(Take(Byte()))); }
  // A length of two bytes, then so many bytes.
  ByteView Blob() { return Take(Number(2)); }
  ByteView Rest() { return Take(rest_.size()); }

 private:
  ByteView rest_;
};

// Every refusal explains itself.
inline void CheckRefusal(const Status& status) {
  REPRISE_CHECK(!status.ok());
  REPRISE_CHECK(!status.message().empty());
  REPRISE_CHECK(CodeName(status.code()) != "");
}
// A refusal of stored or received bytes: the reader's own defects are not among them.
inline void CheckDecodeRefusal(const Status& status) {
  CheckRefusal(status);
  REPRISE_CHECK(status.code() == Code::kDataLoss || status.code() == Code::kUnimplemented ||
                status.code() == Code::kInvalidArgument);
}

}  // namespace reprise::fuzz
