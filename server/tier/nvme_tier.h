// NvmeTier: segments on a local disk through Io, O_DIRECT.
//
// Segment files `seg/00000000`... have one fixed size, are made once (allocated, written with zeros
// in the background, flushed, directory synced) and then recycled, never renamed: writing into
// unwritten extents costs half the speed. Fresh segments are usable at once; written ones are
// preferred. The last max(256 MiB, 2 %) of the capacity, scaled down for small geometries, is left
// to commits and deletes.
//
// An error of a write or a flush makes the segment suspect until restart: nothing new is placed
// there. After a failed flush every later Flush of that segment fails too, because its success would
// prove nothing. Protocol narrative: nvme_tier.cc.
//
// Thread rule: the Io's loop.
#pragma once

#include <memory>
#include <string>

#include "core/io/io.h"
#include "server/tier/tier.h"

namespace reprise::tier {

// Test only: each flag removes one barrier, so that the crash enumeration can show that it is
// needed. All false in production.
struct NvmeMutations {
  bool skip_flush = false;          // Flush answers OK without an fdatasync
  bool trust_second_flush = false;  // a flush after a failed one is believed
  bool skip_creation_sync = false;  // a new segment's name is not made durable
};

struct NvmeOptions {
  std::string directory;  // holds the segment files
  uint64_t segment_bytes = 0;
  uint32_t segment_count = 0;
  bool prewrite = true;  // write new segments with zeros in the background while idle
  NvmeMutations mutations;
};

class NvmeTier {
 public:
  // Opens existing segments and learns which are written; makes the directory when missing.
  // INVALID_ARGUMENT: impossible geometry. Close it before the Io goes away.
  static Task<Result<std::unique_ptr<Tier>>> Open(Io& io, NvmeOptions options);
};

}  // namespace reprise::tier
