#include "tests/unit/format/samples.h"

#include "core/base/limits.h"

namespace reprise::format {
namespace {

ObjectRef RandomObject(Rng& rng) {
  return {.run = RandomRun(rng), .length = rng.Next(), .digest = RandomDigest(rng)};
}

CheckpointKey RandomKey(Rng& rng) { return {.epoch = rng.Next(), .step = rng.Next()}; }

ShardIdentity RandomIdentity(Rng& rng) {
  auto world = static_cast<uint32_t>(1 + rng.Below(limits::kWorldMax));
  return {.job = rng.NewId(),
          .key = RandomKey(rng),
          .attempt = rng.NewId(),
          .rank = static_cast<uint32_t>(rng.Below(world)),
          .world = world};
}

void FillBoxes(Rng& rng, Piece& piece) {
  // Slabs along the first axis, so that they cannot overlap.
  if (piece.global_shape.empty()) {
    if (rng.Chance(1, 2)) piece.boxes.push_back({});
    return;
  }
  uint64_t row = 0;
  while (row < piece.global_shape[0]) {
    Box box = WholeBox(piece.global_shape);
    box.offset[0] = row;
    box.extent[0] = rng.Below(piece.global_shape[0] - row + 1);
    row += box.extent[0] + 1;
    if (rng.Chance(2, 3)) piece.boxes.push_back(std::move(box));
  }
}

Piece RandomPiece(Rng& rng, size_t number) {
  Piece piece;
  piece.name = RandomText(rng, 40) + "." + std::to_string(number);
  piece.scope = static_cast<Scope>(1 + rng.Below(3));
  piece.world_policy = static_cast<WorldPolicy>(1 + rng.Below(4));
  piece.auxiliary = rng.Chance(1, 5);
  piece.dtype = piece.auxiliary ? Dtype::kU8 : static_cast<Dtype>(1 + rng.Below(18));
  size_t axes = piece.auxiliary ? 1 : rng.Below(5);
  for (size_t axis = 0; axis < axes; ++axis) piece.global_shape.push_back(rng.Below(12));
  if (rng.Chance(1, 3)) {
    piece.kind = PieceKind::kFlat;
    piece.flat_end = rng.Below(ElementsOf(piece.global_shape) + 1);
    piece.flat_begin = rng.Below(piece.flat_end + 1);
  } else {
    FillBoxes(rng, piece);
  }
  return piece;
}

}  // namespace

Digest RandomDigest(Rng& rng) { return Digest{rng.NewId().bytes}; }

std::string RandomText(Rng& rng, size_t size_max) {
  constexpr std::string_view kAlphabet[] = {"a", "Z", ".",  "_", "7", "\"",
                                            "#", "%", "\n", "é", "漢"};
  std::string text;
  size_t size = rng.Below(size_max + 1);
  while (true) {
    std::string_view next = kAlphabet[rng.Below(std::size(kAlphabet))];
    if (text.size() + next.size() > size) return text;
    text += next;
  }
}

Run RandomRun(Rng& rng) {
  return {.segment = static_cast<uint32_t>(rng.Next()),
          .offset = rng.Below(1 << 20) * limits::kIoAlignment,
          .length = (1 + rng.Below(64)) * limits::kIoAlignment};
}

Layout RandomLayout(Rng& rng, size_t piece_count_max) {
  Layout layout;
  size_t count = 1 + rng.Below(piece_count_max);
  for (size_t i = 0; i < count; ++i) layout.pieces.push_back(RandomPiece(rng, i));
  AssignPositions(layout, 4096u << rng.Below(11));
  return layout;
}

ShardManifest RandomShardManifest(Rng& rng) {
  ShardManifest manifest;
  manifest.identity = RandomIdentity(rng);
  manifest.layout = RandomDigest(rng);
  manifest.chunk_bytes = 4096u << rng.Below(11);
  manifest.length = rng.Below(20 * uint64_t{manifest.chunk_bytes});
  uint64_t chunks = ChunkCount(manifest.length, manifest.chunk_bytes);
  for (uint64_t i = 0; i < chunks; ++i) manifest.chunk_digests.push_back(RandomDigest(rng));
  for (uint64_t i = rng.Below(9); i > 0; --i) manifest.piece_digests.push_back(RandomDigest(rng));
  manifest.runs.push_back(RandomRun(rng));
  manifest.runs.push_back({.offset = 4096, .length = AlignUp(manifest.length, 4096)});
  manifest.root = ShardRoot(manifest);
  return manifest;
}

CheckpointManifest RandomCheckpointManifest(Rng& rng, uint32_t world) {
  CheckpointManifest manifest;
  manifest.job = rng.NewId();
  manifest.key = RandomKey(rng);
  manifest.attempt = rng.NewId();
  manifest.world = world;
  manifest.wall_micros = static_cast<int64_t>(rng.Next());
  manifest.metadata = RandomText(rng, 100);
  Digest layout;
  for (uint32_t rank = 0; rank < world; ++rank) {
    // Rising digests: a layout is shared by neighbours, and the list comes out sorted.
    if (rank == 0 || rng.Chance(1, 2)) {
      layout.bytes[0] = static_cast<uint8_t>(rank >> 8);
      layout.bytes[1] = static_cast<uint8_t>(rank);
      manifest.layouts.emplace_back(layout, RandomObject(rng));
    }
    manifest.shards.push_back({.rank = rank,
                               .root = RandomDigest(rng),
                               .length = rng.Next(),
                               .layout = layout,
                               .manifest = RandomObject(rng)});
  }
  return manifest;
}

Entry RandomEntry(Rng& rng, size_t index) {
  auto world = static_cast<uint32_t>(rng.Next());
  auto level = static_cast<Durability>(1 + rng.Below(4));
  bool flag = rng.Chance(1, 2);
  std::string reason = RandomText(rng, kReasonBytesMax);
  switch (index) {
    case 0: return JobEntry{rng.NewId(), RandomText(rng, 128), RandomText(rng, 128)};
    case 1: return EpochEntry{rng.NewId(), rng.Next(), world, reason};
    case 2: {
      ResumeEntry entry{.job = rng.NewId(), .epoch = rng.Next()};
      if (flag) entry.parent = RandomKey(rng);
      for (size_t i = rng.Below(kSkippedMax + 1); i > 0; --i) {
        entry.skipped.push_back({RandomKey(rng), RandomText(rng, kReasonBytesMax)});
      }
      return entry;
    }
    case 3: return LayoutEntry{RandomDigest(rng), RandomObject(rng)};
    case 4: {
      PreparedEntry entry{.identity = RandomIdentity(rng),
                          .root = RandomDigest(rng),
                          .length = rng.Next(),
                          .layout = RandomDigest(rng),
                          .manifest = RandomObject(rng)};
      for (size_t i = rng.Below(limits::kRunsPerShardMax + 1); i > 0; --i) {
        entry.runs.push_back(RandomRun(rng));
      }
      return entry;
    }
    case 5:
      return CommitEntry{.job = rng.NewId(),
                         .key = RandomKey(rng),
                         .attempt = rng.NewId(),
                         .world = world,
                         .level = level,
                         .adopted = flag,
                         .root = RandomDigest(rng),
                         .length = rng.Next(),
                         .wall_micros = static_cast<int64_t>(rng.Next()),
                         .manifest = RandomObject(rng)};
    case 6: return PromoteEntry{rng.NewId(), RandomKey(rng), level};
    case 7: return AbortEntry{rng.NewId(), RandomKey(rng), rng.NewId(), reason};
    case 8: return DeleteEntry{rng.NewId(), RandomKey(rng)};
    case 9: return PinEntry{rng.NewId(), RandomKey(rng), flag, reason};
    default: return MarkEntry{rng.NewId(), RandomKey(rng), static_cast<Mark>(rng.Below(4)), reason};
  }
}

Entry RandomEntry(Rng& rng) { return RandomEntry(rng, rng.Below(std::variant_size_v<Entry>)); }

Slot RandomSlot(Rng& rng) {
  Slot slot{.store = rng.NewId(), .seq = 1 + rng.Below(1 << 30), .previous = RandomDigest(rng)};
  size_t space = SlotCapacity();
  while (true) {
    Entry entry = RandomEntry(rng);
    size_t size = SlotSpaceOf(EncodeEntry(entry));
    if (size > space) return slot;
    space -= size;
    slot.entries.push_back(std::move(entry));
  }
}

Superblock RandomSuperblock(Rng& rng) {
  return {.store = rng.NewId(),
          .device = rng.NewId(),
          .incarnation = rng.Next(),
          .chunk_bytes = static_cast<uint32_t>(rng.Next()),
          .segment_bytes = rng.Next(),
          .segment_count = static_cast<uint32_t>(rng.Next()),
          .journal_slots = static_cast<uint32_t>(rng.Next())};
}

Piece BoxPiece(std::string name, std::vector<uint64_t> shape, Box box, Scope scope) {
  return {.name = std::move(name),
          .dtype = Dtype::kF32,
          .global_shape = std::move(shape),
          .boxes = {std::move(box)},
          .scope = scope};
}

Piece WholePiece(std::string name, std::vector<uint64_t> shape, Scope scope) {
  Box box = WholeBox(shape);
  return BoxPiece(std::move(name), std::move(shape), std::move(box), scope);
}

Piece FlatPiece(std::string name, std::vector<uint64_t> shape, uint64_t begin, uint64_t end) {
  return {.name = std::move(name),
          .dtype = Dtype::kF32,
          .global_shape = std::move(shape),
          .kind = PieceKind::kFlat,
          .flat_begin = begin,
          .flat_end = end,
          .scope = Scope::kGlobal};
}

Layout LayoutOf(std::vector<Piece> pieces) {
  Layout layout{.pieces = std::move(pieces)};
  AssignPositions(layout, 4096);
  return layout;
}

}  // namespace reprise::format
