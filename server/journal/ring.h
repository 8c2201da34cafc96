// Ring: one copy of the journal as a file of slots. Creation, whole reads, single slot writes.
//
// Two files hold the same slots; which of them is right is decided in recovery.h, not here. Slots
// are read in large pieces; a part of the device that cannot be read counts as damaged slots.
//
// Thread rule: the Io's loop. Format: docs/format.md, "Journal".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/aligned_buffer.h"
#include "core/io/io.h"
#include "reprise/status.h"

namespace reprise::journal {

// What one copy held when it was read.
struct RingImage {
  std::string name;              // its path, for messages
  AlignedBuffer bytes;           // slot_count slots
  std::vector<bool> unreadable;  // per slot: the device failed, or the file ended before it
};

// "dir" of "dir/name"; "." when there is none.
std::string ParentOf(const std::string& path);

// Makes `path` (or overwrites it) with `slot_count` slots of zeros; durable with its name on OK.
Task<Status> WriteEmptyRing(Io& io, std::string path, uint32_t slot_count);

// Opens a copy for reads and slot writes: direct, and dsync unless a test removes that barrier. Waits
// until what a killed predecessor still has in flight on the file has ended (its lock goes with it).
// NOT_FOUND: no such copy. FAILED_PRECONDITION: another process serves this journal.
Task<Result<FileId>> OpenRing(Io& io, std::string path, bool dsync);

// Reads the whole copy. What cannot be read is marked, not an error.
Task<RingImage> ReadRing(Io& io, FileId file, std::string path, uint32_t slot_count);

// Writes one slot at `position`. Anything but a full write is a failure, and is not retried.
Task<Status> WriteSlot(Io& io, FileId file, uint32_t position, ByteView slot);

}  // namespace reprise::journal
