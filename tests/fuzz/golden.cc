#include "tests/fuzz/golden.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

namespace reprise::fuzz {
namespace {

constexpr std::string_view kFolder = "tests/golden/v1";

Bytes BytesOfHex(const std::filesystem::path& path) {
  std::ifstream file(path);
  Bytes bytes;
  std::string word;
  while (file >> word) {
    for (size_t i = 0; i + 1 < word.size(); i += 2) {
      bytes.push_back(static_cast<uint8_t>(std::stoul(word.substr(i, 2), nullptr, 16)));
    }
  }
  return bytes;
}

}  // namespace

Bytes Golden(std::string_view name) {
  return BytesOfHex(std::filesystem::path(kFolder) / (std::string(name) + ".hex"));
}

std::vector<Bytes> GoldenWithPrefix(std::string_view prefix) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder, error)) {
    if (entry.path().filename().string().starts_with(prefix)) paths.push_back(entry.path());
  }
  std::ranges::sort(paths);
  std::vector<Bytes> all;
  for (const auto& path : paths) all.push_back(BytesOfHex(path));
  return all;
}

}  // namespace reprise::fuzz
