// Every bound of the product, in one place. Decoders check against these before they allocate;
// queues block (back-pressure) rather than pass them. Related limits are tied by static_assert.
//
// Thread rule: constants.
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
// The part of a message body (everything that is not chunk bytes) that one frame carries.
inline constexpr uint32_t kMessageBytesMax = 4 * kMiB;
static_assert(kMessageBytesMax <= kFramePayloadMax);
// A whole message body, which may take several frames: a layout with its piece digests, a manifest.
inline constexpr size_t kBodyBytesMax = 128 * kMiB;
static_assert(kLayoutBytesMax + kPiecesPerLayoutMax * 16 + kMiB <= kBodyBytesMax);
static_assert((kChunksPerShardMax + kPiecesPerLayoutMax) * 16 + kMiB <= kBodyBytesMax);
// Bodies that one connection may leave half-sent at a time.
inline constexpr size_t kPartialBodiesMax = 16;
// HELLO and its answer: all a stranger may make us hold.
inline constexpr uint32_t kHelloBytesMax = 1 * kKiB;
// Free text in messages: descriptions, launchers, hosts.
inline constexpr size_t kTextBytesMax = 256;
inline constexpr size_t kRingChunksMax = 1 << 16;  // chunks of one restore ring
inline constexpr size_t kStreamsPerConnectionMax = 64;
inline constexpr uint32_t kCreditsDefault = 16;  // chunks in flight for one upload
inline constexpr uint32_t kCreditsMax = 256;

inline constexpr size_t kErrorMessageMax = 2048;
inline constexpr size_t kConnectionsMax = 4096;

}  // namespace reprise::limits
