// The safetensors file form of a shard or of a whole checkpoint: 8-byte little-endian header length,
// JSON header, tensor bytes with no holes.
//
// A bare name is used only for a whole tensor; a piece is "name#o0:e0xo1:e1" (offset and extent of
// each axis; boxes joined by '+'), "name#flatB:N" or "name#empty", so that no loader takes a shard
// for the tensor. '#' and '%' in names become %23 and %25. Dtypes the format lacks are U8 with the
// true dtype in __metadata__. Auxiliary items come last. docs/format.md, "File form".
//
// Thread rule: pure functions; no I/O. nlohmann-json is used inside safetensors.cc only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/format/layout.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::format {

struct SafetensorsItem {
  std::string name;
  Dtype dtype = Dtype::kU8;
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // byte offsets from the end of the header, half-open
  uint64_t end = 0;
  bool operator==(const SafetensorsItem&) const = default;
};

struct SafetensorsHeader {
  std::vector<SafetensorsItem> items;           // in byte order
  std::map<std::string, std::string> metadata;  // "__metadata__"
  bool operator==(const SafetensorsHeader&) const = default;
};

// Length prefix and JSON, padded with spaces to 8 bytes. INVALID_ARGUMENT names the defect: items
// that are not contiguous from 0, a name twice or not UTF-8, a header over 90 MiB.
Result<Bytes> EncodeSafetensorsHeader(const SafetensorsHeader& header);
// Bytes of a file's prefix and header together, from its first 8 bytes; tensor bytes begin there.
Result<uint64_t> SafetensorsHeaderBytes(ByteView prefix);
// `bytes` starts at the length prefix and holds the whole header. INVALID_ARGUMENT names the defect
// (holes, overlaps, size that does not match dtype and shape, header over 90 MiB).
Result<SafetensorsHeader> DecodeSafetensorsHeader(ByteView bytes);

// The name a piece has in a file: bare when it is the whole tensor.
std::string PieceFileName(const Piece& piece);
// Header of the file form of a shard; item i is piece i.
SafetensorsHeader HeaderOfLayout(const Layout& layout, std::map<std::string, std::string> metadata);

}  // namespace reprise::format
