// libFuzzer's entry points for the target that CMake names in REPRISE_FUZZ_TARGET_NAME.
//
//   fuzz_<target> --seeds=DIR    writes the seed corpus into DIR and ends
//   fuzz_<target> <libFuzzer's arguments>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/fuzz/target.h"

#define REPRISE_FUZZ_NAME(name) target_##name
#define REPRISE_FUZZ_NAMED(name) REPRISE_FUZZ_NAME(name)

namespace reprise::fuzz {
extern const Target REPRISE_FUZZ_NAMED(REPRISE_FUZZ_TARGET_NAME);
}  // namespace reprise::fuzz

extern "C" {
size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);
int LLVMFuzzerInitialize(int* argument_count, char*** arguments);
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max, unsigned int seed);
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
}

namespace {

constexpr std::string_view kSeedsFlag = "--seeds=";
const reprise::fuzz::Target& kTarget = reprise::fuzz::REPRISE_FUZZ_NAMED(REPRISE_FUZZ_TARGET_NAME);

// One file per seed, named by its number: written again, they replace each other.
void WriteSeeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  size_t number = 0;
  for (const reprise::Bytes& seed : kTarget.seeds()) {
    std::ofstream file(folder / ("seed-" + std::to_string(number++)), std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.data()),
               static_cast<std::streamsize>(seed.size()));
  }
}

}  // namespace

int LLVMFuzzerInitialize(int* argument_count, char*** arguments) {
  for (int i = 1; i < *argument_count; ++i) {
    std::string_view argument = (*arguments)[i];
    if (!argument.starts_with(kSeedsFlag)) continue;
    WriteSeeds(argument.substr(kSeedsFlag.size()));
    std::exit(0);
  }
  return 0;
}

// One mutation in eight keeps its wrong checksums.
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max, unsigned int seed) {
  size_t mutated_size = LLVMFuzzerMutate(data, size, size_max);
  if (kTarget.repair == nullptr || seed % 8 == 0) return mutated_size;
  reprise::Bytes input(data, data + mutated_size);
  kTarget.repair(input);
  size_t repaired_size = std::min(input.size(), size_max);
  if (repaired_size != 0) std::memcpy(data, input.data(), repaired_size);
  return repaired_size;
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kTarget.run({data, size});
  return 0;
}
