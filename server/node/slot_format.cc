#include "server/node/slot_format.h"

#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"

namespace reprise::node {
namespace {

constexpr uint64_t kHeaderMagic = 0x31544f4c53525052;  // "RPRSLOT1"
constexpr uint64_t kMetaMagic = 0x3154454d53525052;    // "RPRSMET1"
constexpr size_t kCrcOffset = 12;

Id GetId(ByteReader& reader) {
  Id id;
  ByteView view = reader.Data(id.bytes.size());
  if (view.size() == id.bytes.size()) std::memcpy(id.bytes.data(), view.data(), view.size());
  return id;
}

uint32_t CrcOf(ByteView block) {
  constexpr uint8_t kZeros[4] = {};
  uint32_t crc = Crc32c(block.first(kCrcOffset));
  crc = Crc32c(kZeros, crc);
  return Crc32c(block.subspan(kCrcOffset + 4), crc);
}

void PutFields(ByteWriter& writer, const SlotHeader& header) {
  writer.U8(static_cast<uint8_t>(header.state));
  writer.U8(header.committed);
  writer.U32(header.index);
  writer.Data(header.process.bytes);
  writer.U64(header.capacity);
  writer.Data(header.identity.job.bytes);
  writer.U64(header.identity.key.epoch);
  writer.U64(header.identity.key.step);
  writer.Data(header.identity.attempt.bytes);
  writer.U32(header.identity.rank);
  writer.U32(header.identity.world);
  writer.U64(header.length);
  writer.U32(header.chunk_bytes);
  Put(writer, header.layout);
  Put(writer, header.root);
  writer.U64(header.meta_bytes);
  Put(writer, header.meta_digest);
}

SlotHeader GetFields(ByteReader& reader) {
  SlotHeader header;
  header.state = static_cast<SlotState>(reader.U8());
  header.committed = reader.U8() != 0;
  header.index = reader.U32();
  header.process = GetId(reader);
  header.capacity = reader.U64();
  header.identity.job = GetId(reader);
  header.identity.key.epoch = reader.U64();
  header.identity.key.step = reader.U64();
  header.identity.attempt = GetId(reader);
  header.identity.rank = reader.U32();
  header.identity.world = reader.U32();
  header.length = reader.U64();
  header.chunk_bytes = reader.U32();
  header.layout = GetDigest(reader);
  header.root = GetDigest(reader);
  header.meta_bytes = reader.U64();
  header.meta_digest = GetDigest(reader);
  return header;
}

bool IsConsistent(const SlotHeader& header) {
  if (header.state < SlotState::kFree || header.state > SlotState::kSealed) return false;
  if (header.capacity > limits::kShardBytesMax || header.length > header.capacity) return false;
  return header.meta_bytes <= 2 * limits::kLayoutBytesMax;
}

}  // namespace

Bytes EncodeSlotHeader(const SlotHeader& header) {
  REPRISE_CHECK(IsConsistent(header));
  ByteWriter writer;
  writer.U64(kHeaderMagic);
  writer.U32(kSlotVersion);
  writer.U32(0);
  PutFields(writer, header);
  writer.PadTo(kSlotHeaderBytes);
  Bytes block = writer.Take();
  uint32_t crc = CrcOf(block);
  std::memcpy(block.data() + kCrcOffset, &crc, sizeof(crc));
  return block;
}

Result<SlotHeader> DecodeSlotHeader(ByteView bytes) {
  if (bytes.size() != kSlotHeaderBytes) return Error(Code::kDataLoss, "slot header is not 4 KiB");
  ByteReader reader(bytes);
  uint64_t magic = reader.U64();
  uint32_t version = reader.U32();
  uint32_t crc = reader.U32();
  if (magic != kHeaderMagic) return Fail(Code::kDataLoss, "slot header has magic {:#x}", magic);
  if (version != kSlotVersion) {
    return Fail(Code::kUnimplemented, "slot header has version {}, this build knows {}", version,
                kSlotVersion);
  }
  if (crc != CrcOf(bytes)) return Error(Code::kDataLoss, "slot header fails its checksum");
  SlotHeader header = GetFields(reader);
  if (!reader.ok() || !IsConsistent(header)) {
    return Error(Code::kDataLoss, "slot header has fields that contradict each other");
  }
  return header;
}

Bytes EncodeSlotMeta(const format::ShardManifest& manifest, ByteView layout) {
  ByteWriter writer;
  writer.U64(kMetaMagic);
  writer.Blob(format::EncodeShardManifest(manifest));
  writer.Blob(layout);
  return writer.Take();
}

Result<SlotMeta> DecodeSlotMeta(ByteView bytes, const SlotHeader& header) {
  if (bytes.size() != header.meta_bytes || DigestOf(bytes) != header.meta_digest) {
    return Error(Code::kDataLoss, "slot companion is not the one its header names");
  }
  ByteReader reader(bytes);
  uint64_t magic = reader.U64();
  ByteView manifest_bytes = reader.Blob(limits::kLayoutBytesMax);
  ByteView layout = reader.Blob(limits::kLayoutBytesMax);
  if (!reader.AtEnd() || magic != kMetaMagic) {
    return Error(Code::kDataLoss, "slot companion is malformed");
  }
  SlotMeta meta;
  REPRISE_ASSIGN(meta.manifest, format::DecodeShardManifest(manifest_bytes));
  meta.layout.assign(layout.begin(), layout.end());
  const format::ShardManifest& manifest = meta.manifest;
  if (manifest.identity != header.identity || manifest.root != header.root ||
      manifest.length != header.length || manifest.chunk_bytes != header.chunk_bytes ||
      manifest.layout != header.layout || DigestOf(meta.layout) != header.layout) {
    return Error(Code::kDataLoss, "slot companion and header describe different shards");
  }
  return meta;
}

}  // namespace reprise::node
