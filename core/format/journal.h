// Journal entries and slots, and the superblock: what makes a store's history durable.
//
// Every acknowledged mutation is one Entry. A *group* of entries is one 4 KiB slot, written to both
// mirrored copies of the ring; slots are hash-chained by `previous`. Slot of group seq is
// seq mod slot_count. Encodings and golden bytes: docs/format.md, "Journal" and "Superblock".
//
// Thread rule: pure values and functions; no I/O.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/format/manifest.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::format {

// A job's name gets its identity.
struct JobEntry {
  Id job;
  std::string tenant;
  std::string name;
  bool operator==(const JobEntry&) const = default;
};
// Epoch `epoch` of `job` is granted: trainers of all older epochs are fenced.
struct EpochEntry {
  Id job;
  uint64_t epoch = 0;
  uint32_t world = 0;
  std::string launcher;
  bool operator==(const EpochEntry&) const = default;
};
struct SkippedCheckpoint {
  CheckpointKey key;
  std::string reason;
  bool operator==(const SkippedCheckpoint&) const = default;
};
// The one checkpoint (or none) that every rank of `epoch` resumes from. Aborts every uncommitted
// attempt of older epochs.
struct ResumeEntry {
  Id job;
  uint64_t epoch = 0;
  std::optional<CheckpointKey> parent;
  std::vector<SkippedCheckpoint> skipped;  // newer ones that could not be used, and why
  bool operator==(const ResumeEntry&) const = default;
};
// A layout was written and flushed; it lives while a shard refers to it.
struct LayoutEntry {
  Digest layout;
  ObjectRef object;
  bool operator==(const LayoutEntry&) const = default;
};
// A shard is written and flushed. Its extents belong to the attempt until an ABORT or a DELETE.
struct PreparedEntry {
  ShardIdentity identity;
  Digest root;
  uint64_t length = 0;
  Digest layout;
  ObjectRef manifest;
  std::vector<Run> runs;
  bool operator==(const PreparedEntry&) const = default;
};
// The attempt is the checkpoint (job, key): the linearisation point of a save.
struct CommitEntry {
  Id job;
  CheckpointKey key;
  Id attempt;
  uint32_t world = 0;
  Durability level = Durability::kServer;
  bool adopted = false;  // committed by settle, past its epoch's fence
  Digest root;
  uint64_t length = 0;  // sum over shards
  int64_t wall_micros = 0;
  ObjectRef manifest;
  bool operator==(const CommitEntry&) const = default;
};
// The checkpoint has reached a higher level.
struct PromoteEntry {
  Id job;
  CheckpointKey key;
  Durability level = Durability::kServer;
  bool operator==(const PromoteEntry&) const = default;
};
// The attempt will never commit; its extents are free.
struct AbortEntry {
  Id job;
  CheckpointKey key;
  Id attempt;
  std::string reason;
  bool operator==(const AbortEntry&) const = default;
};
struct DeleteEntry {
  Id job;
  CheckpointKey key;
  bool operator==(const DeleteEntry&) const = default;
};
struct PinEntry {
  Id job;
  CheckpointKey key;
  bool pinned = false;
  std::string reason;
  bool operator==(const PinEntry&) const = default;
};
enum class Mark : uint8_t { kIntact = 0, kDamaged = 1, kPoisoned = 2, kRecovered = 3 };
struct MarkEntry {
  Id job;
  CheckpointKey key;
  Mark mark = Mark::kIntact;
  std::string reason;
  bool operator==(const MarkEntry&) const = default;
};

// The index of each alternative is its stored type number minus 1: never reorder.
using Entry = std::variant<JobEntry, EpochEntry, ResumeEntry, LayoutEntry, PreparedEntry,
                           CommitEntry, PromoteEntry, AbortEntry, DeleteEntry, PinEntry, MarkEntry>;

// What free text may take, so that every entry fits a slot.
inline constexpr size_t kReasonBytesMax = 256;  // a reason, a launcher
inline constexpr size_t kSkippedMax = 8;        // skipped checkpoints of a RESUME
// The entry with texts shortened and the skipped list cut to these limits. Do this to what comes
// from outside before it is journalled *and* applied.
Entry Bounded(Entry entry);

// At most limits::kJournalEntryBytesMax; CHECKs the limits (names, texts, runs per shard).
Bytes EncodeEntry(const Entry& entry);
// DATA_LOSS: malformed. UNIMPLEMENTED: a type this build lacks.
Result<Entry> DecodeEntry(ByteView bytes);
// "COMMIT", "PREPARED", ... for logs.
std::string_view EntryName(const Entry& entry);
// Bytes an encoded entry takes inside a slot, its length prefix included.
size_t SlotSpaceOf(ByteView encoded_entry);
// Bytes of entries that fit one slot.
size_t SlotCapacity();

struct Slot {
  Id store;
  uint64_t seq = 0;  // of the group; the first is 1
  Digest previous;   // chain value of slot seq - 1 (zero for the first)
  std::vector<Entry> entries;
  bool operator==(const Slot&) const = default;
};
// Exactly limits::kJournalSlotBytes; CHECKs that the entries fit.
Bytes EncodeSlot(const Slot& slot);
// DATA_LOSS for anything that is not an intact slot of `store` (wrong magic, CRC, store). An intact
// slot of a newer version is UNIMPLEMENTED: recovery must stop there, not take it for a torn tail.
Result<Slot> DecodeSlot(ByteView bytes, const Id& store);
// The value the next slot carries as `previous`: XXH3-128 of the encoded slot.
Digest ChainValue(ByteView encoded_slot);

// The superblock: identity and geometry of a store directory, in four copies of 4 KiB.
struct Superblock {
  Id store;
  Id device;
  uint64_t incarnation = 0;  // raised by every start
  uint32_t chunk_bytes = 0;
  uint64_t segment_bytes = 0;
  uint32_t segment_count = 0;
  uint32_t journal_slots = 0;
  bool operator==(const Superblock&) const = default;
};
inline constexpr size_t kSuperblockBytes = 4096;
inline constexpr size_t kSuperblockCopies = 4;
Bytes EncodeSuperblock(const Superblock& superblock);
// DATA_LOSS: damaged. UNIMPLEMENTED: a version or required feature this build lacks, named.
Result<Superblock> DecodeSuperblock(ByteView bytes);

// The certificate beside a committed checkpoint manifest: proves COMMIT to a scan of the segments.
// 4 KiB: magic, store id, encoded CommitEntry, CRC32C.
Bytes EncodeCertificate(const Id& store, const CommitEntry& commit);
Result<CommitEntry> DecodeCertificate(ByteView bytes, const Id& store);

}  // namespace reprise::format
