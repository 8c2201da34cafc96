#include "core/format/journal.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/format/block.h"
#include "core/format/fields.h"

namespace reprise::format {
namespace {

constexpr uint64_t kSlotMagic = MagicOf("RPRJSLT1");
constexpr uint64_t kCertificateMagic = MagicOf("RPRJCRT1");
constexpr size_t kSlotHeaderBytes = 64;

constexpr std::array<std::string_view, std::variant_size_v<Entry>> kEntryNames = {
    "JOB",     "EPOCH", "RESUME", "LAYOUT", "PREPARED", "COMMIT",
    "PROMOTE", "ABORT", "DELETE", "PIN",    "MARK"};

// One Put and one Get for each alternative of Entry, in its order.

void Put(ByteWriter& writer, const JobEntry& entry) {
  format::Put(writer, entry.job);
  writer.String(entry.tenant);
  writer.String(entry.name);
}
void Get(ByteReader& reader, JobEntry& entry) {
  entry.job = GetId(reader);
  entry.tenant = reader.String(limits::kNameLengthMax);
  entry.name = reader.String(limits::kNameLengthMax);
}

void Put(ByteWriter& writer, const EpochEntry& entry) {
  format::Put(writer, entry.job);
  writer.U64(entry.epoch);
  writer.U32(entry.world);
  writer.String(entry.launcher);
}
void Get(ByteReader& reader, EpochEntry& entry) {
  entry.job = GetId(reader);
  entry.epoch = reader.U64();
  entry.world = reader.U32();
  entry.launcher = reader.String(kReasonBytesMax);
}

void Put(ByteWriter& writer, const ResumeEntry& entry) {
  format::Put(writer, entry.job);
  writer.U64(entry.epoch);
  writer.U8(entry.parent.has_value());
  if (entry.parent.has_value()) format::Put(writer, *entry.parent);
  writer.U32(static_cast<uint32_t>(entry.skipped.size()));
  for (const SkippedCheckpoint& skipped : entry.skipped) {
    format::Put(writer, skipped.key);
    writer.String(skipped.reason);
  }
}
void Get(ByteReader& reader, ResumeEntry& entry) {
  entry.job = GetId(reader);
  entry.epoch = reader.U64();
  if (GetBool(reader)) entry.parent = GetKey(reader);
  uint32_t count = reader.Count(sizeof(CheckpointKey) + sizeof(uint32_t));
  if (count > kSkippedMax) reader.Fail();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    SkippedCheckpoint skipped;
    skipped.key = GetKey(reader);
    skipped.reason = reader.String(kReasonBytesMax);
    entry.skipped.push_back(std::move(skipped));
  }
}

void Put(ByteWriter& writer, const LayoutEntry& entry) {
  reprise::Put(writer, entry.layout);
  format::Put(writer, entry.object);
}
void Get(ByteReader& reader, LayoutEntry& entry) {
  entry.layout = GetDigest(reader);
  entry.object = GetObjectRef(reader);
}

void Put(ByteWriter& writer, const PreparedEntry& entry) {
  format::Put(writer, entry.identity);
  reprise::Put(writer, entry.root);
  writer.U64(entry.length);
  reprise::Put(writer, entry.layout);
  format::Put(writer, entry.manifest);
  writer.U32(static_cast<uint32_t>(entry.runs.size()));
  for (const Run& run : entry.runs) format::Put(writer, run);
}
void Get(ByteReader& reader, PreparedEntry& entry) {
  entry.identity = GetShardIdentity(reader);
  entry.root = GetDigest(reader);
  entry.length = reader.U64();
  entry.layout = GetDigest(reader);
  entry.manifest = GetObjectRef(reader);
  uint32_t count = reader.Count(kRunBytes);
  if (count > limits::kRunsPerShardMax) reader.Fail();
  for (uint32_t i = 0; i < count && reader.ok(); ++i) entry.runs.push_back(GetRun(reader));
}

void Put(ByteWriter& writer, const CommitEntry& entry) {
  format::Put(writer, entry.job);
  format::Put(writer, entry.key);
  format::Put(writer, entry.attempt);
  writer.U32(entry.world);
  writer.U8(static_cast<uint8_t>(entry.level));
  writer.U8(entry.adopted);
  reprise::Put(writer, entry.root);
  writer.U64(entry.length);
  writer.I64(entry.wall_micros);
  format::Put(writer, entry.manifest);
}
void Get(ByteReader& reader, CommitEntry& entry) {
  entry.job = GetId(reader);
  entry.key = GetKey(reader);
  entry.attempt = GetId(reader);
  entry.world = reader.U32();
  entry.level = GetEnum(reader, Durability::kLocal, Durability::kObject);
  entry.adopted = GetBool(reader);
  entry.root = GetDigest(reader);
  entry.length = reader.U64();
  entry.wall_micros = reader.I64();
  entry.manifest = GetObjectRef(reader);
}

void Put(ByteWriter& writer, const PromoteEntry& entry) {
  format::Put(writer, entry.job);
  format::Put(writer, entry.key);
  writer.U8(static_cast<uint8_t>(entry.level));
}
void Get(ByteReader& reader, PromoteEntry& entry) {
  entry.job = GetId(reader);
  entry.key = GetKey(reader);
  entry.level = GetEnum(reader, Durability::kLocal, Durability::kObject);
}

void Put(ByteWriter& writer, const AbortEntry& entry) {
  format::Put(writer, entry.job);
  format::Put(writer, entry.key);
  format::Put(writer, entry.attempt);
  writer.String(entry.reason);
}
void Get(ByteReader& reader, AbortEntry& entry) {
  entry.job = GetId(reader);
  entry.key = GetKey(reader);
  entry.attempt = GetId(reader);
  entry.reason = reader.String(kReasonBytesMax);
}

void Put(ByteWriter& writer, const DeleteEntry& entry) {
  format::Put(writer, entry.job);
  format::Put(writer, entry.key);
}
void Get(ByteReader& reader, DeleteEntry& entry) {
  entry.job = GetId(reader);
  entry.key = GetKey(reader);
}

void Put(ByteWriter& writer, const PinEntry& entry) {
  format::Put(writer, entry.job);
  format::Put(writer, entry.key);
  writer.U8(entry.pinned);
  writer.String(entry.reason);
}
void Get(ByteReader& reader, PinEntry& entry) {
  entry.job = GetId(reader);
  entry.key = GetKey(reader);
  entry.pinned = GetBool(reader);
  entry.reason = reader.String(kReasonBytesMax);
}

void Put(ByteWriter& writer, const MarkEntry& entry) {
  format::Put(writer, entry.job);
  format::Put(writer, entry.key);
  writer.U8(static_cast<uint8_t>(entry.mark));
  writer.String(entry.reason);
}
void Get(ByteReader& reader, MarkEntry& entry) {
  entry.job = GetId(reader);
  entry.key = GetKey(reader);
  entry.mark = GetEnum(reader, Mark::kIntact, Mark::kRecovered);
  entry.reason = reader.String(kReasonBytesMax);
}

// Decodes the alternative whose index is `index`; false when there is none.
template <size_t kIndex = 0>
bool GetAlternative(ByteReader& reader, size_t index, Entry& entry) {
  if constexpr (kIndex == std::variant_size_v<Entry>) {
    return false;
  } else {
    if (index != kIndex) return GetAlternative<kIndex + 1>(reader, index, entry);
    Get(reader, entry.emplace<kIndex>());
    return true;
  }
}

void Shorten(std::string& text) { text.resize(CutText(text, kReasonBytesMax).size()); }

}  // namespace

Entry Bounded(Entry entry) {
  std::visit(
      [](auto& value) {
        using Type = std::remove_cvref_t<decltype(value)>;
        if constexpr (requires { value.reason; }) Shorten(value.reason);
        if constexpr (std::is_same_v<Type, EpochEntry>) Shorten(value.launcher);
        if constexpr (std::is_same_v<Type, ResumeEntry>) {
          if (value.skipped.size() > kSkippedMax) value.skipped.resize(kSkippedMax);
          for (SkippedCheckpoint& skipped : value.skipped) Shorten(skipped.reason);
        }
      },
      entry);
  return entry;
}

Bytes EncodeEntry(const Entry& entry) {
  ByteWriter writer;
  writer.U8(static_cast<uint8_t>(entry.index() + 1));
  std::visit([&writer](const auto& value) { Put(writer, value); }, entry);
  Result<Entry> again = DecodeEntry(writer.view());
  REPRISE_CHECK(again.has_value(), again.has_value() ? "" : again.error().message());
  return writer.Take();
}

Result<Entry> DecodeEntry(ByteView bytes) {
  if (bytes.empty() || bytes.size() > limits::kJournalEntryBytesMax) {
    return Fail(Code::kDataLoss, "a journal entry of {} bytes is malformed", bytes.size());
  }
  ByteReader reader(bytes);
  Entry entry;
  uint8_t type = reader.U8();
  if (type == 0 || !GetAlternative(reader, type - 1u, entry)) {
    return Fail(Code::kUnimplemented,
                "the journal holds an entry of type {} that this build lacks: upgrade Reprise",
                type);
  }
  if (!reader.AtEnd()) {
    return Fail(Code::kDataLoss, "a {} entry of {} bytes is malformed", EntryName(entry),
                bytes.size());
  }
  return entry;
}

std::string_view EntryName(const Entry& entry) { return kEntryNames[entry.index()]; }

size_t SlotSpaceOf(ByteView encoded_entry) { return sizeof(uint32_t) + encoded_entry.size(); }

size_t SlotCapacity() { return limits::kJournalSlotBytes - kSlotHeaderBytes; }

Bytes EncodeSlot(const Slot& slot) {
  ByteWriter payload;
  for (const Entry& entry : slot.entries) payload.Blob(EncodeEntry(entry));
  REPRISE_CHECK(payload.size() <= SlotCapacity(), "the entries of a group do not fit one slot");
  REPRISE_CHECK(slot.seq != 0, "the first slot has seq 1");
  ByteWriter writer = BeginBlock(kSlotMagic);
  format::Put(writer, slot.store);
  writer.U64(slot.seq);
  reprise::Put(writer, slot.previous);
  writer.U32(static_cast<uint32_t>(slot.entries.size()));
  writer.U32(static_cast<uint32_t>(payload.size()));
  REPRISE_CHECK(writer.size() == kSlotHeaderBytes);
  writer.Data(payload.view());
  return SealBlock(std::move(writer));
}

Result<Slot> DecodeSlot(ByteView bytes, const Id& store) {
  REPRISE_ASSIGN(ByteReader reader, OpenBlock(bytes, kSlotMagic, "journal slot"));
  Slot slot;
  slot.store = GetId(reader);
  slot.seq = reader.U64();
  slot.previous = GetDigest(reader);
  uint32_t count = reader.U32();
  uint32_t payload_length = reader.U32();
  if (slot.store != store) {
    return Fail(Code::kDataLoss, "journal slot belongs to store {}, not to {}", slot.store.ToHex(),
                store.ToHex());
  }
  ByteReader payload(reader.Data(payload_length));
  if (!reader.ok() || slot.seq == 0 || count > payload_length / sizeof(uint32_t)) {
    return Error(Code::kDataLoss, "journal slot is malformed: its lengths do not fit");
  }
  for (uint32_t i = 0; i < count; ++i) {
    ByteView encoded = payload.Blob(limits::kJournalEntryBytesMax);
    if (!payload.ok()) break;
    REPRISE_ASSIGN(Entry entry, DecodeEntry(encoded));
    slot.entries.push_back(std::move(entry));
  }
  if (!payload.AtEnd()) {
    return Error(Code::kDataLoss, "journal slot is malformed: its entries do not fit its length");
  }
  REPRISE_TRY(CheckPadding(reader, "journal slot"));
  return slot;
}

Digest ChainValue(ByteView encoded_slot) { return DigestOf(encoded_slot); }

Bytes EncodeCertificate(const Id& store, const CommitEntry& commit) {
  ByteWriter writer = BeginBlock(kCertificateMagic);
  format::Put(writer, store);
  writer.Blob(EncodeEntry(commit));
  return SealBlock(std::move(writer));
}

Result<CommitEntry> DecodeCertificate(ByteView bytes, const Id& store) {
  REPRISE_ASSIGN(ByteReader reader, OpenBlock(bytes, kCertificateMagic, "certificate"));
  Id found = GetId(reader);
  ByteView encoded = reader.Blob(limits::kJournalEntryBytesMax);
  if (!reader.ok() || found != store) {
    return Fail(Code::kDataLoss, "certificate belongs to store {}, not to {}", found.ToHex(),
                store.ToHex());
  }
  REPRISE_ASSIGN(Entry entry, DecodeEntry(encoded));
  REPRISE_TRY(CheckPadding(reader, "certificate"));
  auto* commit = std::get_if<CommitEntry>(&entry);
  if (commit == nullptr) return Error(Code::kDataLoss, "certificate does not hold a COMMIT");
  return std::move(*commit);
}

}  // namespace reprise::format
