#include "core/format/fields.h"

#include <fmt/format.h>

#include "core/base/log.h"

namespace reprise::format {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint64_t kKnownFeatures = 0;

}  // namespace

void PutHead(ByteWriter& writer, uint64_t magic, uint32_t own_field) {
  writer.U64(magic);
  writer.U32(kVersion);
  writer.U32(own_field);
  writer.U64(kKnownFeatures);
}

Result<uint32_t> GetHead(ByteReader& reader, uint64_t magic, std::string_view what) {
  uint64_t found_magic = reader.U64();
  uint32_t version = reader.U32();
  uint32_t own_field = reader.U32();
  uint64_t features = reader.U64();
  if (!reader.ok() || found_magic != magic) {
    return Fail(Code::kDataLoss, "these bytes are not a {}", what);
  }
  if (version != kVersion) {
    return Fail(Code::kUnimplemented, "{} has version {}, this build reads {}: upgrade Reprise",
                what, version, kVersion);
  }
  Status status = CheckFeatures(features, kKnownFeatures, what);
  if (!status.ok()) return Error(std::move(status));
  return own_field;
}

Status CheckFeatures(uint64_t required, uint64_t known, std::string_view what) {
  uint64_t unknown = required & ~known;
  if (unknown == 0) return OkStatus();
  std::string bits;
  for (int bit = 0; bit < 64; ++bit) {
    if ((unknown >> bit & 1) == 0) continue;
    if (!bits.empty()) bits += ", ";
    bits += std::to_string(bit);
  }
  return FailStatus(Code::kUnimplemented,
                    "{} needs feature bits {} that this build lacks: upgrade Reprise", what, bits);
}

}  // namespace reprise::format
