#include "reprise/types.h"

#include <algorithm>

#include "core/base/digest.h"
#include "core/base/limits.h"

namespace reprise {
namespace {

struct DtypeRow {
  Dtype dtype;
  uint32_t bytes;
  std::string_view name;
};
constexpr DtypeRow kDtypes[] = {
    {Dtype::kBool, 1, "BOOL"},      {Dtype::kU8, 1, "U8"},
    {Dtype::kI8, 1, "I8"},          {Dtype::kU16, 2, "U16"},
    {Dtype::kI16, 2, "I16"},        {Dtype::kU32, 4, "U32"},
    {Dtype::kI32, 4, "I32"},        {Dtype::kU64, 8, "U64"},
    {Dtype::kI64, 8, "I64"},        {Dtype::kF16, 2, "F16"},
    {Dtype::kBF16, 2, "BF16"},      {Dtype::kF32, 4, "F32"},
    {Dtype::kF64, 8, "F64"},        {Dtype::kF8E4M3, 1, "F8_E4M3"},
    {Dtype::kF8E5M2, 1, "F8_E5M2"}, {Dtype::kF8E8M0, 1, "F8_E8M0"},
    {Dtype::kComplex64, 8, "C64"},  {Dtype::kComplex128, 16, "C128"},
};

constexpr std::string_view kDurabilities[] = {"local", "peer", "server", "object"};

}  // namespace

uint32_t DtypeBytes(Dtype dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.bytes;
  }
  return 0;
}

std::string_view DtypeName(Dtype dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "";
}

std::optional<Dtype> DtypeFromName(std::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

std::string_view DurabilityName(Durability durability) {
  auto index = static_cast<size_t>(durability) - 1;
  return index < std::size(kDurabilities) ? kDurabilities[index] : "unknown";
}

std::optional<Durability> DurabilityFromName(std::string_view name) {
  for (size_t i = 0; i < std::size(kDurabilities); ++i) {
    if (kDurabilities[i] == name) return static_cast<Durability>(i + 1);
  }
  return std::nullopt;
}

std::string Id::ToHex() const { return HexOf(bytes); }

std::optional<Id> Id::FromHex(std::string_view text) {
  Result<Digest> digest = Digest::FromHex(text);
  if (!digest.has_value()) return std::nullopt;
  return Id{digest->bytes};
}

bool IsValidName(std::string_view name) {
  if (name.empty() || name.size() > limits::kNameLengthMax || name.front() == '.') return false;
  return std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

}  // namespace reprise
