#include "core/base/check.h"
#include "core/base/log.h"
#include "core/format/block.h"
#include "core/format/fields.h"
#include "core/format/journal.h"

namespace reprise::format {
namespace {

constexpr uint64_t kMagic = MagicOf("RPRJSUP1");
constexpr uint64_t kKnownFeatures = 0;
constexpr std::string_view kWhat = "superblock";
static_assert(kSuperblockBytes == kBlockBytes);

}  // namespace

Bytes EncodeSuperblock(const Superblock& superblock) {
  ByteWriter writer = BeginBlock(kMagic);
  writer.U64(kKnownFeatures);
  Put(writer, superblock.store);
  Put(writer, superblock.device);
  writer.U64(superblock.incarnation);
  writer.U64(superblock.segment_bytes);
  writer.U32(superblock.segment_count);
  writer.U32(superblock.chunk_bytes);
  writer.U32(superblock.journal_slots);
  return SealBlock(std::move(writer));
}

Result<Superblock> DecodeSuperblock(ByteView bytes) {
  REPRISE_ASSIGN(ByteReader reader, OpenBlock(bytes, kMagic, kWhat));
  uint64_t features = reader.U64();
  REPRISE_TRY(CheckFeatures(features, kKnownFeatures, kWhat));
  Superblock superblock;
  superblock.store = GetId(reader);
  superblock.device = GetId(reader);
  superblock.incarnation = reader.U64();
  superblock.segment_bytes = reader.U64();
  superblock.segment_count = reader.U32();
  superblock.chunk_bytes = reader.U32();
  superblock.journal_slots = reader.U32();
  REPRISE_TRY(CheckPadding(reader, kWhat));
  return superblock;
}

}  // namespace reprise::format
