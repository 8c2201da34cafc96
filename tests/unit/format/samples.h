// Random but reproducible values of every format.
//
// Thread rule: pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/format/journal.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"

namespace reprise::format {

Digest RandomDigest(Rng& rng);
std::string RandomText(Rng& rng, size_t size_max);
Run RandomRun(Rng& rng);
// Valid: one to `piece_count_max` pieces of all kinds, scopes and dtypes, with positions.
Layout RandomLayout(Rng& rng, size_t piece_count_max);
ShardManifest RandomShardManifest(Rng& rng);
CheckpointManifest RandomCheckpointManifest(Rng& rng, uint32_t world);
// One of the alternative `index`.
Entry RandomEntry(Rng& rng, size_t index);
Entry RandomEntry(Rng& rng);
// With as many random entries as fit.
Slot RandomSlot(Rng& rng);
Superblock RandomSuperblock(Rng& rng);

// A piece of scope `scope` that is one box of a float tensor.
Piece BoxPiece(std::string name, std::vector<uint64_t> shape, Box box,
               Scope scope = Scope::kGlobal);
Piece WholePiece(std::string name, std::vector<uint64_t> shape, Scope scope = Scope::kGlobal);
Piece FlatPiece(std::string name, std::vector<uint64_t> shape, uint64_t begin, uint64_t end);
// A layout of `pieces` with positions for 4 KiB chunks.
Layout LayoutOf(std::vector<Piece> pieces);

}  // namespace reprise::format
