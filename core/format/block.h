// The self-checking 4 KiB block that slots, superblocks and certificates are: magic, version, CRC32C
// over the whole block with the CRC field zero, then fields, then zero padding.
//
//   0  u64  magic        8  u32  version       12  u32  CRC32C       16  fields, then zeros to 4096
//
// Internal to core/format; docs/format.md, "Blocks". The first 16 bytes have this shape in every
// version, so that a newer block is told apart from a damaged one.
//
// Thread rule: pure functions; no I/O.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/base/bytes.h"
#include "reprise/status.h"

namespace reprise::format {

inline constexpr size_t kBlockBytes = 4096;

// A writer that holds the block's head; append the fields, then seal it.
ByteWriter BeginBlock(uint64_t magic);
// Pads to kBlockBytes and writes the CRC; CHECKs that the fields fit.
Bytes SealBlock(ByteWriter writer);

// A reader at the block's first field. DATA_LOSS: size, magic or CRC do not match. UNIMPLEMENTED: an
// intact block of a version this build lacks.
Result<ByteReader> OpenBlock(ByteView bytes, uint64_t magic, std::string_view what);
// DATA_LOSS unless all fields were there and everything after them is zero.
Status CheckPadding(ByteReader& reader, std::string_view what);

}  // namespace reprise::format
