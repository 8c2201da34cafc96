// What a slot file and its companion look like: encode and decode only.
//
//   NAME.slot   4 KiB header, a hole, shard bytes from kSlotDataOffset on. The trainer that was
//               given the slot can write all of it; the header's CRC and `meta_digest` tell damage.
//   NAME.meta   written at seal, by the daemon only: u64 magic, shard manifest, layout encoding.
//               Valid only under the digest that the header of a sealed slot holds.
//
// Header, little-endian: magic u64, version u32, CRC32C u32 (of the 4 KiB with this field zero),
// then the fields of SlotHeader in order, then zeros. The files live in a tmpfs: they outlive the
// daemon process, never the machine, so the format may change with any release (unknown versions
// are dropped).
//
// Thread rule: pure values and functions.
#pragma once

#include <cstdint>

#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/format/manifest.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::node {

inline constexpr size_t kSlotHeaderBytes = 4096;
// Where shard bytes begin: a multiple of every page size, huge pages included. The hole between
// header and data has no pages.
inline constexpr uint64_t kSlotDataOffset = 2 * limits::kMiB;
inline constexpr uint32_t kSlotVersion = 1;

enum class SlotState : uint8_t {
  kFree = 1,     // nothing of value
  kFilling = 2,  // a trainer writes; worthless after a restart
  kSealed = 3,   // holds a complete shard; bytes agree with the digests in the companion
};

struct SlotHeader {
  SlotState state = SlotState::kFree;
  bool committed = false;  // the attempt became a checkpoint
  uint32_t index = 0;      // of the slot among its process's
  Id process;              // the process it was granted to
  uint64_t capacity = 0;   // bytes for the shard
  format::ShardIdentity identity;
  uint64_t length = 0;
  uint32_t chunk_bytes = 0;
  Digest layout;
  Digest root;
  uint64_t meta_bytes = 0;
  Digest meta_digest;
  bool operator==(const SlotHeader&) const = default;
};

// Exactly kSlotHeaderBytes.
Bytes EncodeSlotHeader(const SlotHeader& header);
// DATA_LOSS: not a header, damaged, or fields that contradict each other. UNIMPLEMENTED: a version
// of another release.
Result<SlotHeader> DecodeSlotHeader(ByteView bytes);

struct SlotMeta {
  format::ShardManifest manifest;  // `runs` is empty
  Bytes layout;                    // encoded
};
Bytes EncodeSlotMeta(const format::ShardManifest& manifest, ByteView layout);
// DATA_LOSS unless `bytes` are what `header` vouches for; the root is recomputed on the way.
Result<SlotMeta> DecodeSlotMeta(ByteView bytes, const SlotHeader& header);

}  // namespace reprise::node
