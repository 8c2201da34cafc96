#include "core/base/text.h"

#include <algorithm>
#include <bit>
#include <cstdint>

namespace reprise {

bool IsUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    auto lead = static_cast<uint8_t>(text[i]);
    // The leading ones of the first byte are the length; one stands for a continuation byte.
    auto ones = static_cast<size_t>(std::countl_one(lead));
    size_t length = ones == 0 ? 1 : ones >= 2 && ones <= 4 ? ones : 0;
    if (length == 0 || length > text.size() - i) return false;
    uint32_t code_point = length == 1 ? lead : lead & (0x7fu >> length);
    for (size_t k = 1; k < length; ++k) {
      auto next = static_cast<uint8_t>(text[i + k]);
      if (next >> 6 != 0x2) return false;
      code_point = code_point << 6 | (next & 0x3fu);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    bool surrogate = code_point >= 0xd800 && code_point <= 0xdfff;
    if (code_point < kSmallest[length] || code_point > 0x10ffff || surrogate) return false;
    i += length;
  }
  return true;
}

std::string_view CutText(std::string_view text, size_t size_max) {
  if (text.size() <= size_max) return text;
  while (size_max > 0 && (static_cast<uint8_t>(text[size_max]) & 0xC0) == 0x80) --size_max;
  return text.substr(0, size_max);
}

std::string Utf8Text(std::string text) {
  if (IsUtf8(text)) return text;
  std::ranges::replace_if(text, [](char byte) { return static_cast<uint8_t>(byte) >= 0x80; }, '?');
  return text;
}

}  // namespace reprise
