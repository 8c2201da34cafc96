// CRC32C by the processor's instruction where it has one, else by table: the one checksum the client
// library needs, without a library of its own to install. 8 bytes in 3 cycles are enough for headers
// and 4 KiB blocks.

#include <array>

#include "core/base/digest.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace reprise {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // Castagnoli, reflected

// Tables for eight bytes a turn: table[k][b] is the CRC of byte b followed by k zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = (crc >> 8) ^ tables[0][crc & 0xFF];
    }
  }
  return tables;
}

uint64_t Load64(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

[[maybe_unused]] uint32_t ByTable(const uint8_t* data, size_t size, uint32_t crc) {
  static constexpr auto kTables = MakeTables();
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t word = Load64(data) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; size > 0; --size, ++data) crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 0xFF];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t ByInstruction(const uint8_t* data, size_t size,
                                                         uint32_t seed) {
  uint64_t crc = seed;
  for (; size >= 8; size -= 8, data += 8) crc = _mm_crc32_u64(crc, Load64(data));
  auto low = static_cast<uint32_t>(crc);
  for (; size > 0; --size, ++data) low = _mm_crc32_u8(low, *data);
  return low;
}
bool HasInstruction() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}
#elif defined(__ARM_FEATURE_CRC32)
uint32_t ByInstruction(const uint8_t* data, size_t size, uint32_t crc) {
  for (; size >= 8; size -= 8, data += 8) crc = __crc32cd(crc, Load64(data));
  for (; size > 0; --size, ++data) crc = __crc32cb(crc, *data);
  return crc;
}
bool HasInstruction() { return true; }
#else
uint32_t ByInstruction(const uint8_t* data, size_t size, uint32_t crc) {
  return ByTable(data, size, crc);
}
bool HasInstruction() { return false; }
#endif

}  // namespace

uint32_t Crc32c(ByteView data, uint32_t seed) {
  return ~(HasInstruction() ? ByInstruction(data.data(), data.size(), ~seed)
                            : ByTable(data.data(), data.size(), ~seed));
}

uint32_t Crc32cByTable(ByteView data, uint32_t seed) {
  return ~ByTable(data.data(), data.size(), ~seed);
}

}  // namespace reprise
