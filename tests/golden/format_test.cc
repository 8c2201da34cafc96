// Golden bytes of core/format: what released versions wrote must decode to the same values, and what
// this version writes must be the same bytes. Files under vN/ are never edited; a changed format gets
// a new folder, which WritesANewVersion fills:
//   REPRISE_GOLDEN_WRITE=tests/golden/v2 build/release/tests/golden_format
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "core/format/journal.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "core/format/safetensors.h"

namespace reprise::format {
namespace {

constexpr const char* kFolder = "tests/golden/v1";
constexpr size_t kBytesPerLine = 32;

// first, first + 1, ...: values whose bytes are easy to find in a dump.
template <typename Sixteen>
Sixteen Numbered(uint8_t first) {
  Sixteen value;
  for (size_t i = 0; i < value.bytes.size(); ++i) value.bytes[i] = static_cast<uint8_t>(first + i);
  return value;
}
Id IdFrom(uint8_t first) { return Numbered<Id>(first); }
Digest DigestFrom(uint8_t first) { return Numbered<Digest>(first); }

const CheckpointKey kKey{.epoch = 3, .step = 12000};

ObjectRef ObjectFrom(uint8_t first) {
  return {.run = {.segment = first, .offset = 0x5000, .length = 0x1000},
          .length = 0x321,
          .digest = DigestFrom(first)};
}

Layout SampleLayout() {
  Layout layout;
  Piece weight{.name = "layers.0.weight", .dtype = Dtype::kBF16, .global_shape = {64, 48}};
  weight.boxes = {{{16, 0}, {16, 48}}};
  weight.scope = Scope::kGlobal;
  Piece strided{.name = "layers.0.qkv", .dtype = Dtype::kBF16, .global_shape = {6, 4}};
  strided.boxes = {{{0, 0}, {1, 4}}, {{3, 2}, {1, 2}}};
  strided.scope = Scope::kGlobal;
  Piece moment{.name = "optimizer.exp_avg", .dtype = Dtype::kF32, .global_shape = {64, 48}};
  moment.kind = PieceKind::kFlat;
  moment.flat_begin = 768;
  moment.flat_end = 1804;
  moment.scope = Scope::kGlobal;
  Piece step{.name = "step", .dtype = Dtype::kI64, .boxes = {Box{}}};
  Piece mean{.name = "bn.moyenne_é", .dtype = Dtype::kComplex64, .global_shape = {5}};
  mean.boxes = {WholeBox(mean.global_shape)};
  mean.scope = Scope::kRank;
  mean.world_policy = WorldPolicy::kBroadcast;
  Piece random{.name = "rng", .dtype = Dtype::kU8, .global_shape = {11}};
  random.boxes = {WholeBox(random.global_shape)};
  random.scope = Scope::kRank;
  random.world_policy = WorldPolicy::kDrop;
  random.auxiliary = true;
  layout.pieces = {random, weight, moment, mean, step, strided};
  AssignPositions(layout, 4096);
  return layout;
}

ShardManifest SampleShardManifest() {
  ShardManifest manifest;
  manifest.identity = {
      .job = IdFrom(0x10), .key = kKey, .attempt = IdFrom(0x20), .rank = 1, .world = 4};
  manifest.layout = DigestFrom(0x30);
  manifest.length = 9000;
  manifest.chunk_bytes = 4096;
  manifest.chunk_digests = {DigestFrom(0x40), DigestFrom(0x50), DigestFrom(0x60)};
  manifest.piece_digests = {DigestFrom(0x70), Digest{}};
  manifest.runs = {{.segment = 7, .offset = 0x3000, .length = 0x2000},
                   {.segment = 9, .offset = 0, .length = 0x1000}};
  manifest.root = ShardRoot(manifest);
  return manifest;
}

CheckpointManifest SampleCheckpointManifest() {
  CheckpointManifest manifest{.job = IdFrom(0x10),
                              .key = kKey,
                              .attempt = IdFrom(0x20),
                              .world = 2,
                              .wall_micros = 1760000000123456,
                              .metadata = "{\"loss\":2.5}"};
  for (uint8_t rank = 0; rank < 2; ++rank) {
    manifest.shards.push_back({.rank = rank,
                               .root = DigestFrom(static_cast<uint8_t>(0x80 + 16 * rank)),
                               .length = 9000u + rank,
                               .layout = DigestFrom(0x30),
                               .manifest = ObjectFrom(static_cast<uint8_t>(0xa0 + rank))});
  }
  manifest.layouts = {{DigestFrom(0x30), ObjectFrom(0xb0)}};
  return manifest;
}

CommitEntry SampleCommit() {
  return {.job = IdFrom(0x10),
          .key = kKey,
          .attempt = IdFrom(0x20),
          .world = 2,
          .level = Durability::kServer,
          .adopted = true,
          .root = DigestFrom(0x80),
          .length = 18001,
          .wall_micros = -5,
          .manifest = ObjectFrom(0xa0)};
}

// One entry of each type.
Slot SampleSlot() {
  Id job = IdFrom(0x10);
  ShardIdentity identity = SampleShardManifest().identity;
  Slot slot{.store = IdFrom(0x01), .seq = 77, .previous = DigestFrom(0xc0)};
  slot.entries = {
      JobEntry{job, "team-a", "llama.7b"},
      EpochEntry{job, 3, 4, "slurm-4711"},
      ResumeEntry{job, 3, CheckpointKey{2, 11000}, {{{2, 11500}, "rank 3: shard is gone"}}},
      LayoutEntry{DigestFrom(0x30), ObjectFrom(0xb0)},
      PreparedEntry{identity, DigestFrom(0x80), 9000, DigestFrom(0x30), ObjectFrom(0xa1),
                    SampleShardManifest().runs},
      SampleCommit(),
      PromoteEntry{job, kKey, Durability::kObject},
      AbortEntry{job, {3, 12500}, IdFrom(0x21), "rank 1 skipped: no slot"},
      DeleteEntry{job, {1, 500}},
      PinEntry{job, kKey, true, "paper"},
      MarkEntry{job, kKey, Mark::kPoisoned, "loss spike"},
  };
  return slot;
}

Superblock SampleSuperblock() {
  return {.store = IdFrom(0x01),
          .device = IdFrom(0xd0),
          .incarnation = 42,
          .chunk_bytes = 1 << 20,
          .segment_bytes = uint64_t{1} << 30,
          .segment_count = 1800,
          .journal_slots = 16384};
}

SafetensorsHeader SampleHeader() {
  return HeaderOfLayout(SampleLayout(), {{"format", "pt"}, {"reprise.step", "12000"}});
}

// Header and bytes: byte i of the tensors is i mod 251. Read by test_safetensors.py.
Bytes SampleFile() {
  SafetensorsHeader header = SampleHeader();
  Bytes file = EncodeSafetensorsHeader(header).value();
  for (uint64_t i = 0; i < header.items.back().end; ++i) file.push_back(i % 251);
  return file;
}

// What this version writes.
std::map<std::string, Bytes> Samples() {
  return {{"layout", EncodeLayout(SampleLayout())},
          {"shard_manifest", EncodeShardManifest(SampleShardManifest())},
          {"checkpoint_manifest", EncodeCheckpointManifest(SampleCheckpointManifest())},
          {"slot", EncodeSlot(SampleSlot())},
          {"superblock", EncodeSuperblock(SampleSuperblock())},
          {"certificate", EncodeCertificate(IdFrom(0x01), SampleCommit())},
          {"safetensors_header", EncodeSafetensorsHeader(SampleHeader()).value()},
          {"safetensors_file", SampleFile()}};
}

std::string HexLines(const Bytes& bytes) {
  std::string lines;
  for (size_t i = 0; i < bytes.size(); i += kBytesPerLine) {
    lines += HexOf(ByteView(bytes).subspan(i, std::min(kBytesPerLine, bytes.size() - i))) + "\n";
  }
  return lines;
}

std::filesystem::path PathOf(const std::string& folder, const std::string& name) {
  return std::filesystem::path(folder) / (name + ".hex");
}

Bytes ReadGolden(const std::string& name) {
  std::ifstream file(PathOf(kFolder, name));
  EXPECT_TRUE(file.good()) << PathOf(kFolder, name) << " (run from the top of the repository)";
  Bytes bytes;
  std::string line;
  while (std::getline(file, line)) {
    for (size_t i = 0; i + 1 < line.size(); i += 2) {
      bytes.push_back(static_cast<uint8_t>(std::stoi(line.substr(i, 2), nullptr, 16)));
    }
  }
  return bytes;
}

template <typename Value>
void ExpectGolden(const std::string& name, const Value& value,
                  std::function<Result<Value>(ByteView)> decode) {
  Bytes golden = ReadGolden(name);
  Result<Value> decoded = decode(golden);
  ASSERT_TRUE(decoded.has_value()) << decoded.error();
  EXPECT_TRUE(*decoded == value) << "the golden bytes mean something else now";
  EXPECT_EQ(HexLines(Samples().at(name)), HexLines(golden)) << "new bytes need a new version";
}

TEST(Golden, LayoutStaysAsItIs) { ExpectGolden<Layout>("layout", SampleLayout(), DecodeLayout); }
TEST(Golden, ShardManifestStaysAsItIs) {
  ExpectGolden<ShardManifest>("shard_manifest", SampleShardManifest(), DecodeShardManifest);
}
TEST(Golden, CheckpointManifestStaysAsItIs) {
  ExpectGolden<CheckpointManifest>("checkpoint_manifest", SampleCheckpointManifest(),
                                   DecodeCheckpointManifest);
}
TEST(Golden, SlotStaysAsItIs) {
  ExpectGolden<Slot>("slot", SampleSlot(),
                     [](ByteView bytes) { return DecodeSlot(bytes, IdFrom(0x01)); });
}
TEST(Golden, SuperblockStaysAsItIs) {
  ExpectGolden<Superblock>("superblock", SampleSuperblock(), DecodeSuperblock);
}
TEST(Golden, CertificateStaysAsItIs) {
  ExpectGolden<CommitEntry>("certificate", SampleCommit(),
                            [](ByteView bytes) { return DecodeCertificate(bytes, IdFrom(0x01)); });
}
TEST(Golden, SafetensorsHeaderStaysAsItIs) {
  ExpectGolden<SafetensorsHeader>("safetensors_header", SampleHeader(), DecodeSafetensorsHeader);
  ExpectGolden<SafetensorsHeader>("safetensors_file", SampleHeader(), DecodeSafetensorsHeader);
}

// Digests that other implementations must reproduce.
TEST(Golden, DigestsStayAsTheyAre) {
  EXPECT_EQ(DigestOf({}).ToHex(), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(Crc32c(ViewOf("123456789")), 0xe3069283u);
  std::ifstream file(PathOf(kFolder, "digests").replace_extension("txt"));
  std::string name;
  std::string digest;
  std::map<std::string, std::string> golden;
  while (file >> name >> digest) golden[name] = digest;
  EXPECT_EQ(golden["layout"], LayoutDigest(SampleLayout()).ToHex());
  EXPECT_EQ(golden["shard_root"], ShardRoot(SampleShardManifest()).ToHex());
  EXPECT_EQ(golden["checkpoint_root"], CheckpointRoot(SampleCheckpointManifest()).ToHex());
  EXPECT_EQ(golden["slot_chain"], ChainValue(EncodeSlot(SampleSlot())).ToHex());
}

TEST(Golden, WritesANewVersion) {
  const char* folder = std::getenv("REPRISE_GOLDEN_WRITE");
  if (folder == nullptr) return;
  std::filesystem::create_directories(folder);
  auto write = [](const std::filesystem::path& path, const std::string& text) {
    // noreplace: golden bytes that exist are never written again.
    std::ofstream file(path, std::ios::out | std::ios::noreplace);
    if (file.good()) file << text;
  };
  for (const auto& [name, bytes] : Samples()) write(PathOf(folder, name), HexLines(bytes));
  write(PathOf(folder, "digests").replace_extension("txt"),
        "layout " + LayoutDigest(SampleLayout()).ToHex() + "\nshard_root " +
            ShardRoot(SampleShardManifest()).ToHex() + "\ncheckpoint_root " +
            CheckpointRoot(SampleCheckpointManifest()).ToHex() + "\nslot_chain " +
            ChainValue(EncodeSlot(SampleSlot())).ToHex() + "\n");
}

}  // namespace
}  // namespace reprise::format
