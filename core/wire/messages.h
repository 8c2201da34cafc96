// Message bodies of the data plane and of the local socket. Plain structs with Encode and Decode.
//
// Decode refuses trailing bytes, over-long strings and counts, and never allocates from a claimed
// length. Who sends what when, with examples: docs/wire.md.
//
// Thread rule: pure values and functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/format/journal.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "core/wire/frame.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::wire {

// kHello: the first frame of every connection, from the side that connected.
struct Hello {
  uint16_t version_min = kVersion;
  uint16_t version_max = kVersion;
  uint64_t required_features = 0;  // unknown bits: UNIMPLEMENTED naming them
  Id peer;                         // node id, or process uuid
  std::string description;         // host, pid, program, for logs and errors
  bool operator==(const Hello&) const = default;
};
struct HelloOk {
  uint16_t version = kVersion;
  Id self;  // store id or node id
  uint32_t chunk_bytes = 0;
  std::string description;
  bool operator==(const HelloOk&) const = default;
};
struct ErrorBody {
  Code code = Code::kInternal;
  std::string message;
  bool operator==(const ErrorBody&) const = default;
};

// --- putting a shard
struct PutOpen {
  format::ShardIdentity shard;
  uint64_t length = 0;
  uint32_t chunk_bytes = 0;
  Digest layout;
  Digest root_if_sealed;  // zero while the shard is still being made
  bool operator==(const PutOpen&) const = default;
};
struct PutGrant {
  bool already_sealed = false;
  bool needs_layout = false;
  uint32_t credits = 0;  // chunks the sender may have in flight
  bool operator==(const PutGrant&) const = default;
};
struct PutSeal {
  std::vector<Digest> piece_digests;
  Bytes layout;  // encoding, when the grant asked for it
  Digest root;
  bool operator==(const PutSeal&) const = default;
};
struct Sealed {
  Digest root;
  bool operator==(const Sealed&) const = default;
};

// --- reading a checkpoint
struct ReadOpen {
  // On the data plane: job and key. On the local socket: names and selector (the daemon resolves).
  Id job;
  CheckpointKey key;
  std::string tenant;
  std::string job_name;
  std::optional<uint64_t> step;
  std::optional<uint64_t> epoch;
  bool operator==(const ReadOpen&) const = default;
};
struct ReadOk {
  CheckpointKey key;
  Bytes checkpoint_manifest;  // encoded; its root was checked by the sender
  bool operator==(const ReadOk&) const = default;
};
struct ReadShard {
  uint32_t rank = 0;
  bool operator==(const ReadShard&) const = default;
};
struct ReadLayout {
  Digest layout;
  bool operator==(const ReadLayout&) const = default;
};
struct BlobBody {  // kShardManifest, kLayout
  Bytes data;
  bool operator==(const BlobBody&) const = default;
};
struct ReadChunks {
  uint32_t rank = 0;
  uint64_t first = 0;
  uint32_t count = 0;
  bool operator==(const ReadChunks&) const = default;
};

// --- local socket
struct Register {
  std::string tenant;
  std::string job;
  uint32_t rank = 0;
  uint32_t world = 0;
  Id process;
  std::string launcher;
  std::string host;
  bool takeover = false;
  uint64_t timeout_ms = 0;
  uint64_t epoch = 0;  // repeated on a new connection: the epoch this process is in already
  bool operator==(const Register&) const = default;
};
struct Registered {
  Id job;
  uint64_t epoch = 0;
  std::optional<CheckpointKey> resume;
  std::vector<format::SkippedCheckpoint> skipped;
  bool operator==(const Registered&) const = default;
};
struct Attach {
  uint64_t slot_bytes = 0;  // room for the largest shard this rank will save
  uint32_t slots = 2;
  bool operator==(const Attach&) const = default;
};
struct Attached {
  uint32_t slots = 0;
  uint64_t slot_bytes = 0;   // rounded up; kSlot frames follow, one per slot
  uint64_t data_offset = 0;  // where shard bytes begin in the slot file (after its header)
  uint32_t chunk_bytes = 0;
  bool operator==(const Attached&) const = default;
};
struct SlotInfo {  // kSlot: a descriptor comes along
  uint32_t index = 0;
  uint64_t file_bytes = 0;
  uint64_t data_offset = 0;
  bool read_only = false;  // a predecessor's sealed slot
  bool operator==(const SlotInfo&) const = default;
};
struct SaveBegin {
  uint64_t step = 0;
  uint64_t length = 0;
  Digest layout;
  Bytes layout_bytes;  // empty when this connection has sent this layout before
  std::string metadata;
  Durability durability = Durability::kServer;
  Keep keep;  // rank 0's is applied when the step commits
  bool operator==(const SaveBegin&) const = default;
};
struct SaveGrant {
  uint64_t save = 0;  // names this save on this connection
  uint32_t slot = 0;
  bool operator==(const SaveGrant&) const = default;
};
struct SaveChunks {
  uint64_t save = 0;
  uint64_t first = 0;
  uint64_t count = 0;
  bool operator==(const SaveChunks&) const = default;
};
struct SaveSeal {
  uint64_t save = 0;
  bool operator==(const SaveSeal&) const = default;
};
// The client gives up a save (or a step it never began): job-wide abort.
struct SaveSkip {
  uint64_t step = 0;
  std::optional<uint64_t> save;
  std::string reason;
  bool operator==(const SaveSkip&) const = default;
};
enum class SavePhase : uint8_t {
  kTransferring = 1,  // bytes_sent rises
  kLocalSealed = 2,   // this rank's shard is sealed in the slab
  kLocalAll = 3,      // every rank's is: `local` durability
  kCommitted = 4,     // `server` durability
  kFailed = 5,        // terminal; code and message say why, for all ranks alike
};
struct SaveState {
  uint64_t save = 0;
  uint64_t step = 0;
  SavePhase phase = SavePhase::kTransferring;
  Code code = Code::kOk;
  std::string message;
  uint64_t bytes_sent = 0;
  bool operator==(const SaveState&) const = default;
};
struct RingAttach {
  uint32_t chunks = 0;  // wanted size of the restore ring
  bool operator==(const RingAttach&) const = default;
};
struct RingInfo {  // kRing: a descriptor comes along
  uint32_t chunks = 0;
  uint64_t stride_bytes = 0;  // distance between chunk buffers
  bool operator==(const RingInfo&) const = default;
};
enum class Source : uint8_t {
  kNone = 0,
  kLocalSlab = 1,
  kPeer = 2,
  kStoreRam = 3,
  kNvme = 4,
  kObject = 5
};
std::string_view SourceName(Source source);  // "slab", "peer", "ram", "nvme", "object"
struct Fetch {                               // of the checkpoint opened as the header's stream id
  uint32_t rank = 0;
  uint64_t first = 0;
  uint32_t count = 0;
  bool operator==(const Fetch&) const = default;
};
struct ChunkAt {
  uint32_t rank = 0;
  uint64_t index = 0;
  uint32_t ring_index = 0;
  uint32_t length = 0;
  Source source = Source::kNone;
  bool operator==(const ChunkAt&) const = default;
};
struct RingFree {
  std::vector<uint32_t> ring_indices;
  bool operator==(const RingFree&) const = default;
};
struct Corrupt {
  uint32_t rank = 0;
  uint64_t index = 0;
  uint32_t ring_index = 0;
  Source source = Source::kNone;
  bool operator==(const Corrupt&) const = default;
};
struct SlotOf {
  uint32_t rank = 0;  // of the checkpoint opened as the header's stream id; kSlot or kError answers
  bool operator==(const SlotOf&) const = default;
};

// Encode(message) and Decode<Message>(bytes) exist for every struct above.
template <typename Message>
Bytes Encode(const Message& message);
// INVALID_ARGUMENT names the message and the defect.
template <typename Message>
Result<Message> Decode(ByteView body);

// The opcode a message travels under (BlobBody and ErrorBody are given one by their sender).
template <typename Message>
inline constexpr Opcode kOpcodeOf = Opcode::kError;
template <>
inline constexpr Opcode kOpcodeOf<Hello> = Opcode::kHello;
template <>
inline constexpr Opcode kOpcodeOf<HelloOk> = Opcode::kHelloOk;
template <>
inline constexpr Opcode kOpcodeOf<PutOpen> = Opcode::kPutOpen;
template <>
inline constexpr Opcode kOpcodeOf<PutGrant> = Opcode::kPutGrant;
template <>
inline constexpr Opcode kOpcodeOf<PutSeal> = Opcode::kPutSeal;
template <>
inline constexpr Opcode kOpcodeOf<Sealed> = Opcode::kSealed;
template <>
inline constexpr Opcode kOpcodeOf<ReadOpen> = Opcode::kReadOpen;
template <>
inline constexpr Opcode kOpcodeOf<ReadOk> = Opcode::kReadOk;
template <>
inline constexpr Opcode kOpcodeOf<ReadShard> = Opcode::kReadShard;
template <>
inline constexpr Opcode kOpcodeOf<ReadLayout> = Opcode::kReadLayout;
template <>
inline constexpr Opcode kOpcodeOf<ReadChunks> = Opcode::kReadChunks;
template <>
inline constexpr Opcode kOpcodeOf<Register> = Opcode::kRegister;
template <>
inline constexpr Opcode kOpcodeOf<Registered> = Opcode::kRegistered;
template <>
inline constexpr Opcode kOpcodeOf<Attach> = Opcode::kAttach;
template <>
inline constexpr Opcode kOpcodeOf<Attached> = Opcode::kAttached;
template <>
inline constexpr Opcode kOpcodeOf<SlotInfo> = Opcode::kSlot;
template <>
inline constexpr Opcode kOpcodeOf<SaveBegin> = Opcode::kSaveBegin;
template <>
inline constexpr Opcode kOpcodeOf<SaveGrant> = Opcode::kSaveGrant;
template <>
inline constexpr Opcode kOpcodeOf<SaveChunks> = Opcode::kSaveChunks;
template <>
inline constexpr Opcode kOpcodeOf<SaveSeal> = Opcode::kSaveSeal;
template <>
inline constexpr Opcode kOpcodeOf<SaveSkip> = Opcode::kSaveSkip;
template <>
inline constexpr Opcode kOpcodeOf<SaveState> = Opcode::kSaveState;
template <>
inline constexpr Opcode kOpcodeOf<RingAttach> = Opcode::kRingAttach;
template <>
inline constexpr Opcode kOpcodeOf<RingInfo> = Opcode::kRing;
template <>
inline constexpr Opcode kOpcodeOf<Fetch> = Opcode::kFetch;
template <>
inline constexpr Opcode kOpcodeOf<ChunkAt> = Opcode::kChunkAt;
template <>
inline constexpr Opcode kOpcodeOf<RingFree> = Opcode::kRingFree;
template <>
inline constexpr Opcode kOpcodeOf<Corrupt> = Opcode::kCorrupt;
template <>
inline constexpr Opcode kOpcodeOf<SlotOf> = Opcode::kSlotOf;

}  // namespace reprise::wire
