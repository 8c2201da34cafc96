// Every bound of the product, in one place. Decoders check against these before they allocate;
// queues block (back-pressure) rather than pass them. Related limits are tied by static_assert.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reprise::limits {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

// Alignment of everything that goes through O_DIRECT, whatever statx says.
inline constexpr uint64_t kIoAlignment = 4 * kKiB;

// Names of tenants, jobs and tags: [A-Za-z0-9._-], no leading dot.
inline constexpr size_t kNameLengthMax = 128;
// Tensor names are longer: fully qualified parameter names.
inline constexpr size_t kTensorNameLengthMax = 1024;
inline constexpr size_t kTensorRankMax = 16;       // dimensions of one tensor
inline constexpr size_t kBoxesPerPieceMax = 4096;  // boxes of one piece
inline constexpr size_t kPiecesPerLayoutMax = 1 << 20;
inline constexpr size_t kLayoutBytesMax = 90 * kMiB;  // also the safetensors header limit
inline constexpr uint32_t kWorldMax = 1 << 17;        // ranks of one job

inline constexpr uint32_t kChunkBytesDefault = 1 * kMiB;
inline constexpr uint32_t kChunkBytesMin = 4 * kKiB;
inline constexpr uint32_t kChunkBytesMax = 4 * kMiB;
inline constexpr uint64_t kShardBytesMax = 4096 * kGiB;
inline constexpr uint32_t kChunksPerShardMax = 1 << 22;
static_assert(kShardBytesMax / kChunkBytesDefault <= kChunksPerShardMax);

// One journal slot: header, entries, padding.
inline constexpr size_t kJournalSlotBytes = 4 * kKiB;
inline constexpr size_t kJournalEntryBytesMax = 3 * kKiB;
// Contiguous runs that one shard may occupy: its PREPARED entry must fit one slot.
inline constexpr size_t kRunsPerShardMax = 128;
static_assert(kRunsPerShardMax * 20 + 512 <= kJournalEntryBytesMax);

// Data-plane frames.
inline constexpr size_t kFrameHeaderBytes = 64;
inline constexpr uint32_t kFramePayloadMax = kChunkBytesMax;
// A message body (everything that is not chunk bytes).
inline constexpr uint32_t kMessageBytesMax = 4 * kMiB;
static_assert(kMessageBytesMax <= kFramePayloadMax);
inline constexpr uint32_t kCreditsDefault = 16;  // chunks in flight for one upload
inline constexpr uint32_t kCreditsMax = 256;

inline constexpr size_t kErrorMessageMax = 2048;
inline constexpr size_t kConnectionsMax = 4096;

}  // namespace reprise::limits
