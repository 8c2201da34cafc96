// crash_flips: every single bit of a stored volume, flipped one at a time.
//
//   crash_flips volume [--stride N] [--part I --parts N] [--seed S]
//       SUPER, both copies of the journal, and everything in the segments. A bit that recovery reads
//       (SUPER, journal, checkpoint manifest, certificate): the store is opened and what it then
//       knows is compared; every 4096th time all bytes of all checkpoints are, too. A bit that only
//       a reader reads (payload, shard manifest, layout, padding of manifests): that object is read
//       through the store's read session and checked against the digest a reader has.
//   crash_flips index --directory D [--stride N] ...
//       One random bit of every byte of RocksDB's files (not of its message log): the store is
//       opened and what it then knows is compared.
//
// Each flip ends as `corrected` (the damage is undone, everything is as before), `reported` (an
// error, or a checkpoint marked damaged, and everything else as before), `harmless` (padding behind an
// object, or a file of RocksDB's that nobody needs: what is read is what was saved), or it is a
// violation: `silent` (other bytes or rows, or damage that stays, without a word), `lost` (something
// the flip did not touch is gone), `refused` (the store does not open).
// A crash ends the process. The last line is JSON.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "core/base/aligned_buffer.h"
#include "core/base/log.h"
#include "core/format/journal.h"
#include "tests/crash/flips/volume.h"
#include "tests/crash/store/content.h"

namespace reprise::crash {
namespace {

struct Arguments {
  std::string directory;
  uint64_t stride = 1;
  uint64_t part = 0;
  uint64_t parts = 1;
  uint64_t seed = 1;
  std::string mutation;
};

constexpr uint64_t kThoroughEvery = 4096;
constexpr size_t kViolationsShown = 10;

class Sweep {
 public:
  Sweep(Volume& volume, const Arguments& arguments) : volume_(volume), arguments_(arguments) {}

  void SweepVolume();
  void SweepIndex();
  int Report() const;

 private:
  using Verdict = std::string;

  bool Mine(uint64_t bit) const {
    return bit % arguments_.stride == arguments_.seed % arguments_.stride &&
           bit / arguments_.stride % arguments_.parts == arguments_.part;
  }
  void Note(const std::string& region, const std::string& place, const Verdict& verdict);
  void SweepRecovered(const std::string& region, const std::string& path, uint64_t begin,
                      uint64_t end);
  void SweepRead(const std::string& path, uint64_t begin, uint64_t end, const Block& block);
  Verdict ReadBlock(lifecycle::ReadSession& session, const Block& block,
                    const format::ShardManifest& shard);
  bool CopiesAgree();
  Verdict OpenAndJudge(const std::optional<CheckpointKey>& touched);
  Verdict JudgeRows(const std::optional<CheckpointKey>& touched);
  Verdict CompareAll(const std::optional<CheckpointKey>& touched);

  Volume& volume_;
  const Arguments& arguments_;
  uint64_t flips_ = 0;
  uint64_t opens_ = 0;
  std::map<std::string, std::map<std::string, uint64_t>> verdicts_;  // by region
  std::vector<std::string> violations_;
};

bool IsViolation(const std::string& verdict) {
  return verdict != "corrected" && verdict != "reported" && verdict != "harmless";
}

void Sweep::Note(const std::string& region, const std::string& place, const Verdict& verdict) {
  ++flips_;
  ++verdicts_[region][verdict.substr(0, verdict.find(':'))];
  if (!IsViolation(verdict)) return;
  violations_.push_back(place + ": " + verdict);
  if (violations_.size() <= kViolationsShown) {
    std::printf("VIOLATION %s\n", violations_.back().c_str());
    std::fflush(stdout);
  }
}

// --- damage that recovery meets

Sweep::Verdict Sweep::OpenAndJudge(const std::optional<CheckpointKey>& touched) {
  ++opens_;
  if (Status opened = volume_.Open(); !opened.ok()) return "refused: " + opened.ToString();
  Verdict verdict = JudgeRows(touched);
  if (verdict != "silent" && opens_ % kThoroughEvery == 0) {
    if (Verdict bytes = CompareAll(touched); !bytes.empty()) verdict = bytes;
  }
  volume_.Close();
  return verdict;
}

// What the recovered store knows, against what an undamaged one knows.
Sweep::Verdict Sweep::JudgeRows(const std::optional<CheckpointKey>& touched) {
  bool told = !volume_.store().recovery().repairs.empty();
  if (volume_.store().state().Rows() == volume_.rows()) return told ? "corrected" : "harmless";
  if (!told) return "silent";
  const lifecycle::JobState* job = volume_.store().state().FindJob(volume_.job());
  if (job == nullptr) return "lost: the job is gone";
  for (uint64_t step = 1; step <= kVolumeCheckpoints; ++step) {
    CheckpointKey key{1, step};
    auto found = job->checkpoints.find(key);
    bool there = found != job->checkpoints.end();
    if (touched == key) {
      if (there && found->second.mark == format::Mark::kIntact) return "silent: not marked";
    } else if (!there || found->second.mark != format::Mark::kIntact) {
      return "lost: step " + std::to_string(step);
    }
  }
  return "reported";
}

// Every byte of every checkpoint but the damaged one. Empty: all well.
Sweep::Verdict Sweep::CompareAll(const std::optional<CheckpointKey>& touched) {
  for (uint64_t step = 1; step <= kVolumeCheckpoints; ++step) {
    CheckpointKey key{1, step};
    auto session = volume_.Run(volume_.store().OpenRead(volume_.job(), key));
    Status same = session.has_value() ? volume_.Run(CompareCheckpoint(**session, kVolumeShardBytes))
                                      : session.error();
    if (same.code() == Code::kInternal) return "silent: " + same.message();
    if (!same.ok() && touched != key) return "lost: " + same.ToString();
  }
  return "";
}

// A recovery writes all copies of SUPER anew, with another incarnation.
bool Sweep::CopiesAgree() {
  ByteView super = volume_.io().file("/volume/SUPER");
  size_t copy = super.size() / format::kSuperblockCopies;
  for (size_t at = copy; at < super.size(); at += copy) {
    if (!std::ranges::equal(super.first(copy), super.subspan(at, copy))) return false;
  }
  return format::DecodeSuperblock(super.first(copy)).has_value();
}

void Sweep::SweepRecovered(const std::string& region, const std::string& path, uint64_t begin,
                           uint64_t end) {
  std::optional<CheckpointKey> touched;
  if (region == "manifest" || region == "certificate") {
    touched = volume_.blocks().at(path)[begin / 4096].key;
  }
  for (uint64_t bit = begin * 8; bit < end * 8; ++bit) {
    if (!Mine(bit)) continue;
    uint8_t mask = static_cast<uint8_t>(1u << (bit % 8));
    uint8_t before = volume_.io().file(path)[bit / 8];
    volume_.io().file(path)[bit / 8] ^= mask;
    Verdict verdict = OpenAndJudge(touched);
    bool undone = region == "super" ? CopiesAgree() : volume_.io().file(path)[bit / 8] == before;
    volume_.Rollback();
    volume_.io().file(path)[bit / 8] = before;
    // What recovery reads it also repairs, or says that it cannot.
    if (verdict == "corrected" && !undone) verdict = "silent: said to be repaired, and is not";
    if (verdict == "harmless") verdict = undone ? "corrected" : "silent: the damage stays, untold";
    Note(region, fmt::format("{} bit {}", path, bit), verdict);
  }
}

// --- damage that readers meet

Sweep::Verdict Sweep::ReadBlock(lifecycle::ReadSession& session, const Block& block,
                                const format::ShardManifest& shard) {
  if (block.kind == BlockKind::kLayout) {
    auto layout = volume_.Run(session.Layout(block.layout));
    if (!layout.has_value()) return "reported";
    return DigestOf(*layout) == block.layout ? "harmless" : "silent";
  }
  if (block.kind == BlockKind::kManifest) {
    auto again = volume_.Run(volume_.store().OpenRead(volume_.job(), block.key));
    if (!again.has_value()) return "reported";
    return (*again)->manifest() == session.manifest() ? "harmless" : "silent";
  }
  if (block.kind == BlockKind::kShardManifest) {
    auto found = volume_.Run(session.ShardManifest(block.rank));
    if (!found.has_value()) return "reported";
    return *found == shard ? "harmless" : "silent";
  }
  static AlignedBuffer buffer(4096);
  Status read = volume_.Run(session.ReadChunk(shard, block.chunk, buffer.span()));
  if (!read.ok()) return "reported";
  return DigestOf(buffer.view()) == shard.chunk_digests[block.chunk] ? "silent" : "reported";
}

void Sweep::SweepRead(const std::string& path, uint64_t begin, uint64_t end, const Block& block) {
  static const std::map<BlockKind, std::string> kNames = {{BlockKind::kPayload, "payload"},
                                                          {BlockKind::kShardManifest, "shard"},
                                                          {BlockKind::kManifest, "manifest"},
                                                          {BlockKind::kLayout, "layout"}};
  const std::string& region = kNames.at(block.kind);
  auto session = volume_.Run(volume_.store().OpenRead(volume_.job(), block.key));
  auto shard = volume_.Run((*session)->ShardManifest(block.rank));
  Bytes& bytes = volume_.io().file(path);
  for (uint64_t bit = begin * 8; bit < end * 8; ++bit) {
    if (!Mine(bit)) continue;
    uint8_t mask = static_cast<uint8_t>(1u << (bit % 8));
    bytes[bit / 8] ^= mask;
    Verdict verdict = ReadBlock(**session, block, *shard);
    bytes[bit / 8] ^= mask;
    bool content = bit / 8 % 4096 < block.length;
    if (verdict == "harmless" && content) verdict = "silent: content that no digest covers";
    Note(region, fmt::format("{} bit {}", path, bit), verdict);
  }
}

void Sweep::SweepVolume() {
  SweepRecovered("super", "/volume/SUPER", 0, volume_.io().file("/volume/SUPER").size());
  for (const char* copy : {"/volume/JOURNAL.0", "/volume/JOURNAL.1"}) {
    SweepRecovered("journal", copy, 0, volume_.io().file(copy).size());
  }
  for (const auto& [path, blocks] : volume_.blocks()) {
    for (uint64_t i = 0; i < blocks.size(); ++i) {
      uint64_t end = i * 4096 + blocks[i].length;
      if (blocks[i].kind == BlockKind::kManifest) SweepRecovered("manifest", path, i * 4096, end);
      if (blocks[i].kind == BlockKind::kCertificate) {
        SweepRecovered("certificate", path, i * 4096, end);
      }
    }
  }
  if (Status opened = volume_.Open(); !opened.ok()) {
    violations_.push_back("the undamaged volume does not open: " + opened.ToString());
    return;
  }
  for (const auto& [path, blocks] : volume_.blocks()) {
    for (uint64_t i = 0; i < blocks.size(); ++i) {
      const Block& block = blocks[i];
      if (block.kind == BlockKind::kFree || block.kind == BlockKind::kCertificate) continue;
      // Of a manifest only the padding: its content was swept through recovery.
      uint64_t skipped = block.kind == BlockKind::kManifest ? block.length : 0;
      SweepRead(path, i * 4096 + skipped, (i + 1) * 4096, block);
    }
  }
  volume_.Close();
}

// --- RocksDB's files

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void Sweep::SweepIndex() {
  namespace fs = std::filesystem;
  fs::path index = arguments_.directory;
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(index)) {
    files[entry.path().filename()] = ReadFile(entry.path());
  }
  Rng rng(arguments_.seed);
  uint64_t byte = 0;
  for (const auto& [name, content] : files) {
    for (uint64_t at = 0; at < content.size(); ++at) {
      auto mask = static_cast<char>(1u << rng.Below(8));
      if (name.starts_with("LOG") || !Mine(byte++)) continue;
      fs::remove_all(index);
      fs::create_directory(index);
      for (const auto& [other, bytes] : files) {
        std::string copy = bytes;
        if (other == name) copy[at] = static_cast<char>(copy[at] ^ mask);
        if (!other.starts_with("LOG")) std::ofstream(index / other, std::ios::binary) << copy;
      }
      Verdict verdict = OpenAndJudge(std::nullopt);
      volume_.Rollback();
      std::string region = "index " + name.substr(0, name.find_first_of("-0123456789"));
      Note(name.ends_with(".sst") ? "index table" : region,
           fmt::format("{} byte {} mask {:#x}", name, at, static_cast<uint8_t>(mask)), verdict);
    }
  }
}

int Sweep::Report() const {
  std::map<std::string, uint64_t> all;
  std::string regions;
  for (const auto& [region, counts] : verdicts_) {
    std::string inner;
    for (const auto& [verdict, count] : counts) {
      all[verdict] += count;
      inner += fmt::format("{}\"{}\": {}", inner.empty() ? "" : ", ", verdict, count);
    }
    regions += fmt::format("{}\"{}\": {{{}}}", regions.empty() ? "" : ", ", region, inner);
  }
  std::printf(
      "{\"flips\": %llu, \"opens\": %llu, \"corrected\": %llu, \"reported\": %llu, "
      "\"harmless\": %llu, \"silent\": %llu, \"lost\": %llu, \"refused\": %llu, \"regions\": "
      "{%s}}\n",
      static_cast<unsigned long long>(flips_), static_cast<unsigned long long>(opens_),
      static_cast<unsigned long long>(all["corrected"]),
      static_cast<unsigned long long>(all["reported"]),
      static_cast<unsigned long long>(all["harmless"]),
      static_cast<unsigned long long>(all["silent"]), static_cast<unsigned long long>(all["lost"]),
      static_cast<unsigned long long>(all["refused"]), regions.c_str());
  return violations_.empty() ? 0 : 1;
}

}  // namespace
}  // namespace reprise::crash

int main(int argc, char** argv) {
  using namespace reprise::crash;
  Arguments arguments;
  CLI::App app("Every single bit of a stored volume, flipped one at a time.");
  app.require_subcommand(1);
  auto* volume = app.add_subcommand("volume", "SUPER, journal and segments");
  auto* index = app.add_subcommand("index", "RocksDB's files");
  for (CLI::App* command : {volume, index}) {
    command->add_option("--stride", arguments.stride, "Every n-th bit (index: byte) only");
    command->add_option("--part", arguments.part, "Of --parts");
    command->add_option("--parts", arguments.parts, "Processes that share the sweep");
    command->add_option("--seed", arguments.seed, "Of the bits in the index; offset of the stride");
  }
  volume->add_option("--mutate", arguments.mutation, "Remove one check of recovery (volume.cc)");
  index->add_option("--directory", arguments.directory, "For the index; made anew")->required();
  CLI11_PARSE(app, argc, argv);
  reprise::SetLogLevel(reprise::LogLevel::kError);
  Volume made(arguments.directory, arguments.mutation);
  if (reprise::Status status = made.Make(); !status.ok()) {
    std::printf("the volume cannot be made: %s\n", status.ToString().c_str());
    return 2;
  }
  // Damage is reported at its level; a million such lines help nobody.
  Sweep sweep(made, arguments);
  volume->parsed() ? sweep.SweepVolume() : sweep.SweepIndex();
  return sweep.Report();
}
