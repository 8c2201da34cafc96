// A store's directory with damage anywhere: superblock, both journal copies, segments, missing files,
// a lost index. The input is a script of damage; then the store is opened, read, and written to.
//
// Opening succeeds or says why not. Whatever is read afterwards is what was saved, bit for bit, or an
// error: also when the damage has right checksums nothing crashes or hangs.
#include <cstring>

#include "core/base/log.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/store_base.h"
#include "tests/fuzz/target.h"

namespace reprise::fuzz {
namespace {

using namespace std::chrono_literals;
using lifecycle::StoreHost;

constexpr size_t kBlock = 4096;
constexpr size_t kCrcOffset = 12;

// The files worth damaging, and how much of each is in use.
struct File {
  std::string path;
  uint64_t size;
};
const std::vector<File>& Files() {
  static const std::vector<File>* files = [] {
    auto* all = new std::vector<File>;
    const SimDisk& disk = BaseOfStore().disk;
    for (const std::string& path : disk.Files()) {
      if (auto size = disk.Contents(path)->size(); size >= kBlock) all->push_back({path, size});
    }
    return all;
  }();
  return *files;
}

class Vandal {
 public:
  Vandal(Script& script, SimDisk& disk) : script_(script), disk_(disk) {}
  bool forged() const { return forged_; }

  void Hurt() {
    const File& file = Files()[script_.Below(Files().size())];
    if (!disk_.Exists(file.path)) return;
    uint64_t block = script_.Byte() % (file.size / kBlock) * kBlock;
    switch (script_.Below(8)) {
      case 0:
      case 1:
        disk_.FlipBit(file.path, block + script_.Number(2) % kBlock, script_.Byte() % 8);
        break;
      case 2: disk_.Tamper(file.path, block, Bytes(kBlock)); break;
      case 3: CopyBlock(file, block); break;
      case 4:
        disk_.Tamper(file.path, block + script_.Number(2) % kBlock, script_.Take(script_.Byte()));
        break;
      case 5: Forge(file, block); break;
      case 6: ForgeEverywhere(file, block); break;
      default:
        if (script_.Chance(64)) disk_.Destroy(file.path);
    }
  }

 private:
  Bytes BlockAt(const std::string& path, uint64_t at) const {
    auto contents = disk_.Contents(path);
    Bytes block(kBlock);
    if (contents.has_value() && at < contents->size()) {
      std::memcpy(block.data(), contents->data() + at,
                  std::min<uint64_t>(kBlock, contents->size() - at));
    }
    return block;
  }
  // A misdirected write.
  void CopyBlock(const File& file, uint64_t at) {
    const File& other = Files()[script_.Below(Files().size())];
    disk_.Tamper(file.path, at,
                 BlockAt(other.path, script_.Byte() % (other.size / kBlock) * kBlock));
  }
  // A number in the block is another one, and the checksum says so.
  Bytes Forged(const File& file, uint64_t at) {
    forged_ = true;
    Bytes block = BlockAt(file.path, at);
    size_t offset = script_.Byte();
    uint64_t value = script_.Odd();
    std::memcpy(block.data() + offset, &value, size_t{1} << script_.Below(4));
    std::memset(block.data() + kCrcOffset, 0, sizeof(uint32_t));
    uint32_t crc = Crc32c(block);
    std::memcpy(block.data() + kCrcOffset, &crc, sizeof(crc));
    return block;
  }
  void Forge(const File& file, uint64_t at) { disk_.Tamper(file.path, at, Forged(file, at)); }
  // The same in all copies of a superblock, and in both of a journal slot.
  void ForgeEverywhere(const File& file, uint64_t at) {
    Bytes block = Forged(file, at);
    if (file.path.ends_with("SUPER")) {
      for (size_t copy = 0; copy < file.size / kBlock; ++copy) {
        disk_.Tamper(file.path, copy * kBlock, block);
      }
      return;
    }
    for (const File& other : Files()) {
      bool is_journal = other.path.find("JOURNAL") != std::string::npos;
      if (is_journal && file.path.find("JOURNAL") != std::string::npos) {
        if (disk_.Exists(other.path)) disk_.Tamper(other.path, at, block);
      }
    }
  }

  Script& script_;
  SimDisk& disk_;
  bool forged_ = false;
};

// Reads everything that the store says it has.
void ReadAll(StoreHost& host, bool forged) {
  const StoreBase& base = BaseOfStore();
  auto list = host.Run(host.store().ListCheckpoints("team", base.run.job, /*all=*/true));
  if (!list.has_value()) {
    CheckRefusal(list.error());
    return;
  }
  for (const lifecycle::CheckpointInfo& info : *list) {
    if (info.state == lifecycle::CheckpointState::kSaving) continue;
    auto seed = base.seeds.find(info.key);
    REPRISE_CHECK(forged || seed != base.seeds.end(), "a checkpoint that was never saved");
    Status read = lifecycle::CheckBytes(host, base.run.answer.job, info.key, base.run.world,
                                        seed == base.seeds.end() ? 0 : seed->second);
    if (read.ok()) continue;
    CheckRefusal(read);
    REPRISE_CHECK(forged || read.code() != Code::kInternal, read.message());
  }
}

// The job goes on: a new run, a new checkpoint.
void GoOn(StoreHost& host) {
  lifecycle::TestRun run = BaseOfStore().run;
  run.launch = 9;
  Status started = run.Start(host);
  if (!started.ok()) {
    CheckRefusal(started);
    return;
  }
  Status saved = run.Save(host, 50, 50);
  if (!saved.ok()) CheckRefusal(saved);
  if (saved.ok()) {
    Status read =
        lifecycle::CheckBytes(host, run.answer.job, {run.answer.epoch, 50}, run.world, 50);
    REPRISE_CHECK(read.ok(), read.message());
  }
}

void RunInput(ByteView input) {
  const StoreBase& base = BaseOfStore();
  Script script(input);
  SimDisk disk = base.disk;
  catalog::MemoryCatalogDisk index = base.index;
  uint8_t mode = script.Byte();
  if (mode % 8 == 0) index.Erase();
  Vandal vandal(script, disk);
  for (size_t steps = script.Below(7); steps > 0 && !script.AtEnd(); --steps) vandal.Hurt();
  StoreHost host(disk, index, 5);
  Status opened = host.Open();
  if (!opened.ok()) {
    CheckRefusal(opened);
    return;
  }
  ReadAll(host, vandal.forged());
  if (mode & 0x10) GoOn(host);
  host.Close();
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds = {{1, 0}, {0, 0}, {0x11, 0}};
  Rng rng(14);
  for (int i = 0; i < 40; ++i) {
    Bytes seed(40);
    for (uint8_t& byte : seed) byte = static_cast<uint8_t>(rng.Next());
    seeds.push_back(std::move(seed));
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::fuzz

REPRISE_FUZZ_TARGET(store_image) = {.name = "store_image",
                                    .run = reprise::fuzz::RunInput,
                                    .seeds = reprise::fuzz::Seeds,
                                    .input_bytes_max = 256};
