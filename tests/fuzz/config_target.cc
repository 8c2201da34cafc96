// The daemon's configuration: a YAML file, then --set overrides, separated by zero bytes.
//
// Loading ends with a configuration within its limits or a message that says what is wrong; what
// --print-config prints loads to the same configuration.
#include "server/config.h"

#include <sys/mman.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/text.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"

namespace reprise {
namespace {

// A file in memory, with a path.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("config", MFD_CLOEXEC)) { REPRISE_CHECK(fd_ >= 0); }
  ~MemoryFile() { ::close(fd_); }
  std::string path() const { return fmt::format("/proc/self/fd/{}", fd_); }
  void Write(std::string_view text) {
    REPRISE_CHECK(::ftruncate(fd_, 0) == 0);
    auto written = ::pwrite(fd_, text.data(), text.size(), 0);
    REPRISE_CHECK(written == static_cast<ssize_t>(text.size()));
  }

 private:
  int fd_;
};

void CheckLimits(const Config& config) {
  REPRISE_CHECK(config.HasStore() || config.HasNode());
  REPRISE_CHECK(config.store.chunk_bytes >= limits::kChunkBytesMin);
  REPRISE_CHECK(config.store.chunk_bytes <= limits::kChunkBytesMax);
  REPRISE_CHECK(config.store.segment_bytes >= 4 * uint64_t{config.store.chunk_bytes});
  REPRISE_CHECK(config.io.threads >= 1 && config.io.queue_depth >= 8);
  REPRISE_CHECK(config.store.begin_window >= Nanos{0} && config.node.idle_exit >= Nanos{0});
}

void RunInput(ByteView input) {
  std::string_view text = TextOf(input);
  std::vector<std::string> parts;
  while (parts.size() < 8) {
    size_t zero = text.find('\0');
    parts.emplace_back(text.substr(0, zero));
    if (zero == std::string_view::npos) break;
    text.remove_prefix(zero + 1);
  }
  MemoryFile file;
  file.Write(parts[0]);
  std::vector<std::string> overrides(parts.begin() + 1, parts.end());
  Result<Config> config = LoadConfig(file.path(), overrides);
  if (!config.has_value()) {
    fuzz::CheckRefusal(config.error());
    return;
  }
  CheckLimits(*config);
  std::string printed = PrintConfig(*config);
  if (!IsUtf8(printed)) return;
  file.Write(printed);
  Result<Config> again = LoadConfig(file.path(), {});
  REPRISE_CHECK(again.has_value(), again.has_value() ? "" : again.error().message());
  REPRISE_CHECK(PrintConfig(*again) == printed, printed);
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  auto add = [&](std::string_view text) { seeds.emplace_back(text.begin(), text.end()); };
  using namespace std::literals;
  add(PrintConfig(Config{}));
  add("role: node\nnode:\n  socket: /tmp/s\n  slab_bytes: 64GiB\n"sv);
  add("store: {directory: /d, chunk_size: 4MiB, segment_size: 16MiB, prewrite: false}\n"sv);
  add("\0role=store\0store.settle_timeout=10s\0web.listen=[::1]:80"sv);
  add("# comment\nlog: \"debug\"\nio: {engine: threads, threads: 2}\n\0log=warn"sv);
  add("a: &x {b: 1}\nc: *x\n"sv);
  add("store: !!map\n  ? directory\n  : 'quoted '' text'\n"sv);
  add("shutdown_timeout: 500ms\nstore:\n  capacity: 1TiB\n  attempt_timeout: 1h\n"sv);
  return seeds;
}

}  // namespace
}  // namespace reprise

REPRISE_FUZZ_TARGET(config) = {
    .name = "config", .run = reprise::RunInput, .seeds = reprise::Seeds, .input_bytes_max = 4096};
