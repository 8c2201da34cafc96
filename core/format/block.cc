#include "core/format/block.h"

#include <cstring>

#include "core/base/check.h"
#include "core/base/digest.h"
#include "core/base/log.h"

namespace reprise::format {
namespace {

constexpr uint32_t kVersion = 1;
constexpr size_t kCrcOffset = 12;
constexpr size_t kFieldsOffset = 16;

uint32_t CrcOf(ByteView block) {
  constexpr uint8_t kZeros[kFieldsOffset - kCrcOffset] = {};
  uint32_t crc = Crc32c(block.first(kCrcOffset));
  crc = Crc32c(kZeros, crc);
  return Crc32c(block.subspan(kFieldsOffset), crc);
}

}  // namespace

ByteWriter BeginBlock(uint64_t magic) {
  ByteWriter writer;
  writer.U64(magic);
  writer.U32(kVersion);
  writer.U32(0);
  return writer;
}

Bytes SealBlock(ByteWriter writer) {
  REPRISE_CHECK(writer.size() >= kFieldsOffset && writer.size() <= kBlockBytes);
  Bytes block = writer.Take();
  block.resize(kBlockBytes, 0);
  uint32_t crc = CrcOf(block);
  std::memcpy(block.data() + kCrcOffset, &crc, sizeof(crc));
  return block;
}

Result<ByteReader> OpenBlock(ByteView bytes, uint64_t magic, std::string_view what) {
  if (bytes.size() != kBlockBytes) {
    return Fail(Code::kDataLoss, "{} has {} bytes instead of {}", what, bytes.size(), kBlockBytes);
  }
  ByteReader reader(bytes);
  if (reader.U64() != magic) {
    return Fail(Code::kDataLoss, "these bytes are not a {}: the magic differs", what);
  }
  uint32_t version = reader.U32();
  if (reader.U32() != CrcOf(bytes)) {
    return Fail(Code::kDataLoss, "{} is damaged: its CRC32C does not match", what);
  }
  if (version != kVersion) {
    return Fail(Code::kUnimplemented, "{} has version {}, this build reads {}: upgrade Reprise",
                what, version, kVersion);
  }
  return reader;
}

Status CheckPadding(ByteReader& reader, std::string_view what) {
  ByteView padding = reader.Data(reader.remaining());
  // Each byte equals the one before it, and the first is zero: as fast as memory, where recovery reads
  // thousands of slots that are mostly padding.
  bool zero = padding.empty() || (padding[0] == 0 && std::memcmp(padding.data(), padding.data() + 1,
                                                                 padding.size() - 1) == 0);
  if (reader.ok() && zero) return OkStatus();
  return FailStatus(Code::kDataLoss, "{} is malformed: its fields do not fit its padding", what);
}

}  // namespace reprise::format
