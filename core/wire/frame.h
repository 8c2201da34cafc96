// Frames: the 64-byte header in front of everything on a data-plane or local connection.
//
// Little-endian. The payload (at most limits::kFramePayloadMax) follows at once: either the encoded
// body of a message (messages.h) or the bytes of one chunk, which the receiver reads straight into an
// aligned private buffer. A body longer than one frame continues in frames flagged kMore. Lengths are
// checked before anything is allocated. Layout and golden bytes: docs/wire.md.
//
//   0 magic u32  4 version u16  6 opcode u16  8 flags u32  12 payload length u32
//  16 request id u64  24 stream id u64  32 offset u64  40 digest 16 bytes  56 reserved u32  60 CRC32C
//
// Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/base/limits.h"
#include "reprise/status.h"

namespace reprise::wire {

inline constexpr uint32_t kMagic = 0x31525052;  // "RPR1"
inline constexpr uint16_t kVersion = 1;

// What a frame is. Numbers are stored in golden bytes: never reuse one.
enum class Opcode : uint16_t {
  // every connection
  kHello = 1,
  kHelloOk = 2,
  kError = 3,  // answers the request id with a Status
  kDone = 4,   // answers the request id with success and no body
  // node or client -> store: putting a shard (stream id = one upload)
  kPutOpen = 16,
  kPutGrant = 17,
  kChunk = 18,   // payload is the chunk; offset is its index; digest is the sender's
  kCredit = 19,  // receiver -> sender: offset more chunks may be sent
  kPutSeal = 20,
  kSealed = 21,
  kPutAbandon = 22,  // sender gives the upload up; kDone answers when its space is free again
  // reading a checkpoint (stream id = one open checkpoint)
  kReadOpen = 32,
  kReadOk = 33,
  kReadShard = 34,
  kShardManifest = 35,
  kReadLayout = 36,
  kLayout = 37,
  kReadChunks = 38,  // answered by `count` kChunk frames with the same request id, in order
  kReadClose = 39,
  // training process -> node daemon (Unix socket)
  kRegister = 64,
  kRegistered = 65,
  kAttach = 66,
  kAttached = 67,
  kSlot = 68,  // daemon -> client: one slot; a descriptor comes with the header byte 0
  kSaveBegin = 69,
  kSaveGrant = 70,
  kSaveChunks = 71,  // chunks are in the slot; no answer
  kSaveSeal = 72,    // all chunks are in the slot; no answer, kSaveState follows
  kSaveSkip = 73,
  kSaveState = 74,  // daemon -> client, unasked
  kRingAttach = 75,
  kRing = 76,     // daemon -> client: the restore ring's descriptor
  kFetch = 77,    // chunks of one shard into the ring
  kChunkAt = 78,  // daemon -> client: a chunk lies in the ring or in a slot
  kRingFree = 79,
  kCorrupt = 80,  // client -> daemon: a delivered chunk failed its digest; fetch it elsewhere
  kSlotOf = 81,   // client -> daemon: is there a sealed local copy of this shard?
  kBye = 82,      // orderly detach
};
bool IsKnown(Opcode opcode);
std::string_view OpcodeName(Opcode opcode);  // "PUT_OPEN", ...; "?" for an unknown one
// Opcodes that never carry a payload.
bool IsBodiless(Opcode opcode);

enum FrameFlags : uint32_t {
  kFlagMore = 1,  // the message body continues in the next frame of this request id
};
inline constexpr uint32_t kKnownFlags = kFlagMore;

struct FrameHeader {
  Opcode opcode = Opcode::kHello;
  uint32_t flags = 0;
  uint32_t payload_bytes = 0;
  uint64_t request = 0;
  uint64_t stream = 0;
  uint64_t offset = 0;
  Digest digest;
  bool operator==(const FrameHeader&) const = default;
};

// Writes the header into 64 bytes.
void EncodeFrameHeader(const FrameHeader& header,
                       std::span<uint8_t, limits::kFrameHeaderBytes> out);
// DATA_LOSS: wrong magic or CRC. UNIMPLEMENTED: version, opcode or flag this build does not know.
// INVALID_ARGUMENT: payload over the limit. Messages name the value seen.
Result<FrameHeader> DecodeFrameHeader(std::span<const uint8_t, limits::kFrameHeaderBytes> bytes);

}  // namespace reprise::wire
