// NvmeTier: segments on a local disk through Io, O_DIRECT.
//
// Segment files `seg/00000000`... have one fixed size, are made once (allocated, written with zeros
// in the background, flushed, directory synced) and then recycled, never renamed: writing into
// unwritten extents costs half the speed. Fresh segments are usable at once; written ones are
// preferred. The last max(256 MiB, 2 %) of the capacity, scaled down for small geometries, is left
// to commits and deletes.
//
// Thread rule: the Io's loop.
#pragma once

#include <memory>
#include <string>

#include "core/io/io.h"
#include "server/tier/tier.h"

namespace reprise::tier {

struct NvmeOptions {
  std::string directory;  // holds the segment files
  uint64_t segment_bytes = 0;
  uint32_t segment_count = 0;
  bool prewrite = true;  // write new segments with zeros in the background while idle
};

class NvmeTier {
 public:
  // Opens existing segments and learns which are written; makes the directory when missing.
  static Task<Result<std::unique_ptr<Tier>>> Open(Io& io, NvmeOptions options);
};

}  // namespace reprise::tier
