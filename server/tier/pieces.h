// Pieces: a byte range of concatenated runs, cut at run boundaries and into I/O sized parts.
//
// Thread rule: pure function.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/format/manifest.h"

namespace reprise::tier {

// [offset, offset + length) of `segment`, which is [begin, begin + length) of the caller's buffer.
struct Piece {
  uint32_t segment = 0;
  uint64_t offset = 0;
  uint64_t begin = 0;
  uint64_t length = 0;
};

// Cuts [position, position + size) of the concatenation of `runs` into pieces of at most
// `piece_bytes_max`. CHECKs that all are multiples of 4 KiB and the range lies within the runs.
inline std::vector<Piece> CutIntoPieces(const std::vector<format::Run>& runs, uint64_t position,
                                        uint64_t size, uint64_t piece_bytes_max) {
  REPRISE_CHECK(IsAligned(position, limits::kIoAlignment), "unaligned position");
  REPRISE_CHECK(IsAligned(size, limits::kIoAlignment), "unaligned size");
  std::vector<Piece> pieces;
  uint64_t run_begin = 0;  // of the current run, in the concatenation
  uint64_t done = 0;
  for (const format::Run& run : runs) {
    while (done < size && position + done < run_begin + run.length) {
      uint64_t within = position + done - run_begin;
      uint64_t length = std::min({run.length - within, size - done, piece_bytes_max});
      pieces.push_back({run.segment, run.offset + within, done, length});
      done += length;
    }
    run_begin += run.length;
  }
  REPRISE_CHECK(done == size, "range beyond the end of the runs");
  return pieces;
}

}  // namespace reprise::tier
