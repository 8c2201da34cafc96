#include "core/wire/frame.h"

#include <cstring>

#include "core/base/log.h"

namespace reprise::wire {
namespace {

constexpr size_t kCrcOffset = 60;
static_assert(kCrcOffset + sizeof(uint32_t) == limits::kFrameHeaderBytes);

template <typename T>
void Store(std::span<uint8_t, limits::kFrameHeaderBytes> out, size_t offset, T value) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  std::memcpy(out.data() + offset, &value, sizeof(T));
}

}  // namespace

std::string_view OpcodeName(Opcode opcode) {
  switch (opcode) {
    case Opcode::kHello: return "HELLO";
    case Opcode::kHelloOk: return "HELLO_OK";
    case Opcode::kError: return "ERROR";
    case Opcode::kDone: return "DONE";
    case Opcode::kPutOpen: return "PUT_OPEN";
    case Opcode::kPutGrant: return "PUT_GRANT";
    case Opcode::kChunk: return "CHUNK";
    case Opcode::kCredit: return "CREDIT";
    case Opcode::kPutSeal: return "PUT_SEAL";
    case Opcode::kSealed: return "SEALED";
    case Opcode::kPutAbandon: return "PUT_ABANDON";
    case Opcode::kReadOpen: return "READ_OPEN";
    case Opcode::kReadOk: return "READ_OK";
    case Opcode::kReadShard: return "READ_SHARD";
    case Opcode::kShardManifest: return "SHARD_MANIFEST";
    case Opcode::kReadLayout: return "READ_LAYOUT";
    case Opcode::kLayout: return "LAYOUT";
    case Opcode::kReadChunks: return "READ_CHUNKS";
    case Opcode::kReadClose: return "READ_CLOSE";
    case Opcode::kRegister: return "REGISTER";
    case Opcode::kRegistered: return "REGISTERED";
    case Opcode::kAttach: return "ATTACH";
    case Opcode::kAttached: return "ATTACHED";
    case Opcode::kSlot: return "SLOT";
    case Opcode::kSaveBegin: return "SAVE_BEGIN";
    case Opcode::kSaveGrant: return "SAVE_GRANT";
    case Opcode::kSaveChunks: return "SAVE_CHUNKS";
    case Opcode::kSaveSeal: return "SAVE_SEAL";
    case Opcode::kSaveSkip: return "SAVE_SKIP";
    case Opcode::kSaveState: return "SAVE_STATE";
    case Opcode::kRingAttach: return "RING_ATTACH";
    case Opcode::kRing: return "RING";
    case Opcode::kFetch: return "FETCH";
    case Opcode::kChunkAt: return "CHUNK_AT";
    case Opcode::kRingFree: return "RING_FREE";
    case Opcode::kCorrupt: return "CORRUPT";
    case Opcode::kSlotOf: return "SLOT_OF";
    case Opcode::kBye: return "BYE";
  }
  return "?";
}

bool IsKnown(Opcode opcode) { return OpcodeName(opcode) != "?"; }

bool IsBodiless(Opcode opcode) {
  switch (opcode) {
    case Opcode::kDone:
    case Opcode::kCredit:
    case Opcode::kPutAbandon:
    case Opcode::kReadClose:
    case Opcode::kBye: return true;
    default: return false;
  }
}

void EncodeFrameHeader(const FrameHeader& header,
                       std::span<uint8_t, limits::kFrameHeaderBytes> out) {
  Store(out, 0, kMagic);
  Store(out, 4, kVersion);
  Store(out, 6, static_cast<uint16_t>(header.opcode));
  Store(out, 8, header.flags);
  Store(out, 12, header.payload_bytes);
  Store(out, 16, header.request);
  Store(out, 24, header.stream);
  Store(out, 32, header.offset);
  std::memcpy(out.data() + 40, header.digest.bytes.data(), header.digest.bytes.size());
  Store(out, 56, uint32_t{0});
  Store(out, kCrcOffset, Crc32c(out.first(kCrcOffset)));
}

Result<FrameHeader> DecodeFrameHeader(std::span<const uint8_t, limits::kFrameHeaderBytes> bytes) {
  ByteReader reader(bytes);
  uint32_t magic = reader.U32();
  if (magic != kMagic) {
    return Fail(Code::kDataLoss,
                "frame header: magic is {:#010x}, not {:#010x}: the peer does not speak this "
                "protocol, or the stream is out of step; close the connection",
                magic, kMagic);
  }
  uint16_t version = reader.U16();
  FrameHeader header;
  auto opcode = static_cast<Opcode>(reader.U16());
  header.opcode = opcode;
  header.flags = reader.U32();
  header.payload_bytes = reader.U32();
  header.request = reader.U64();
  header.stream = reader.U64();
  header.offset = reader.U64();
  header.digest = GetDigest(reader);
  uint32_t reserved = reader.U32();
  uint32_t stored_crc = reader.U32();
  uint32_t crc = Crc32c(bytes.first(kCrcOffset));
  if (stored_crc != crc) {
    return Fail(Code::kDataLoss,
                "frame header: CRC32C is {:#010x}, computed {:#010x}: damaged on the way; close "
                "the connection",
                stored_crc, crc);
  }
  if (version != kVersion || reserved != 0) {
    return Fail(Code::kUnimplemented,
                "frame header: version {} (reserved {}), this build speaks {}: upgrade the older "
                "side",
                version, reserved, kVersion);
  }
  if (!IsKnown(opcode)) {
    return Fail(Code::kUnimplemented, "frame header: opcode {} is not known to this build",
                static_cast<uint16_t>(opcode));
  }
  if ((header.flags & ~kKnownFlags) != 0) {
    return Fail(Code::kUnimplemented, "frame header: flags {:#x} are not known to this build",
                header.flags & ~kKnownFlags);
  }
  if (header.payload_bytes > limits::kFramePayloadMax) {
    return Fail(Code::kInvalidArgument, "frame header: payload of {} bytes, the limit is {}",
                header.payload_bytes, limits::kFramePayloadMax);
  }
  return header;
}

}  // namespace reprise::wire
