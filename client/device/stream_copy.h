// StreamCopy: memcpy that writes large blocks past the cache where the processor can.
//
// A snapshot is written once and read by another process: keeping it out of the trainer's cache
// leaves the training step its working set, and saves reading the target's lines before writing them.
//
// Thread rule: any thread. After the last copy of a chunk call CopyFence before telling anyone.
#pragma once

#include <cstddef>

namespace reprise::client {

// Blocks from this size on are streamed.
inline constexpr size_t kStreamBytesMin = 32 * 1024;

// Copies `bytes` bytes; the ranges do not overlap.
void StreamCopy(void* target, const void* source, size_t bytes);
// Makes streamed writes visible before any later write.
void CopyFence();
// Whether this processor streams ("avx2" or "memcpy"), for reports.
const char* StreamCopyKind();

}  // namespace reprise::client
