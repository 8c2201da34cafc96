// Every input that is known to a fuzz target, without libFuzzer: its seeds, its corpus in the tree,
// and every input that ever broke something (regressions/<target>/).
//
//   build/release/tests/fuzz_replay                      as ctest runs it
//   REPRISE_FUZZ_INPUT=FILE build/.../fuzz_replay --gtest_filter='*/wire_frame'
//       that file only; a folder stands for all files in it
//   REPRISE_FUZZ_CORPUS=DIR                              DIR/<target> too (tools/dev fuzz --coverage)
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/target.h"

namespace reprise::fuzz {
namespace {

namespace fs = std::filesystem;

Bytes ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<fs::path> FilesOf(const fs::path& path) {
  std::vector<fs::path> files;
  if (fs::is_regular_file(path)) files.push_back(path);
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path)) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

class FuzzReplay : public testing::TestWithParam<const Target*> {
 protected:
  // The last line before a crash says what was being run.
  void RunFile(const fs::path& path) {
    SCOPED_TRACE(path.string());
    std::fprintf(stderr, "replaying %s\n", path.c_str());
    GetParam()->run(ReadAll(path));
    ++inputs_;
  }
  void TearDown() override { RecordProperty("inputs", inputs_); }

  int inputs_ = 0;
};

TEST_P(FuzzReplay, NoKnownInputBreaksAProperty) {
  const Target& target = *GetParam();
  if (const char* input = std::getenv("REPRISE_FUZZ_INPUT")) {
    for (const fs::path& file : FilesOf(input)) RunFile(file);
    ASSERT_GT(inputs_, 0) << "no file at " << input;
    return;
  }
  std::vector<Bytes> seeds = target.seeds();
  EXPECT_FALSE(seeds.empty());
  for (const Bytes& seed : seeds) {
    target.run(seed);
    ++inputs_;
  }
  std::vector<fs::path> folders = {"tests/fuzz/corpus", "tests/fuzz/regressions"};
  if (const char* found = std::getenv("REPRISE_FUZZ_CORPUS")) folders.emplace_back(found);
  for (const fs::path& folder : folders) {
    for (const fs::path& file : FilesOf(folder / target.name)) RunFile(file);
  }
  target.run({});
}

// A repaired seed is the seed: the repair agrees with the encoders on every checksum.
TEST_P(FuzzReplay, RepairLeavesWellFormedInputsAlone) {
  const Target& target = *GetParam();
  if (target.repair == nullptr) return;
  size_t number = 0;
  for (const Bytes& seed : target.seeds()) {
    Bytes repaired = seed;
    target.repair(repaired);
    EXPECT_TRUE(repaired == seed) << "seed " << number;
    ++number;
  }
}

INSTANTIATE_TEST_SUITE_P(All, FuzzReplay, testing::ValuesIn(AllTargets()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace reprise::fuzz
