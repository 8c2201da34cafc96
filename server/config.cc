#include "server/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <functional>
#include <map>
#include <numeric>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise {
namespace {

// One key: how to read it, how to print it, and what it means.
struct Key {
  std::string_view path;
  std::string_view doc;
  std::function<Status(Config&, const std::string&)> set;
  std::function<std::string(const Config&)> print;
};

std::string PrintSize(uint64_t bytes) {
  static constexpr std::pair<uint64_t, std::string_view> kUnits[] = {
      {limits::kGiB, "GiB"}, {limits::kMiB, "MiB"}, {limits::kKiB, "KiB"}};
  for (const auto& [unit, name] : kUnits) {
    if (bytes != 0 && bytes % unit == 0) return fmt::format("{}{}", bytes / unit, name);
  }
  return fmt::format("{}", bytes);
}

std::string PrintDuration(Nanos span) {
  int64_t ms = std::chrono::duration_cast<std::chrono::milliseconds>(span).count();
  if (ms % 60000 == 0 && ms != 0) return fmt::format("{}m", ms / 60000);
  if (ms % 1000 == 0) return fmt::format("{}s", ms / 1000);
  return fmt::format("{}ms", ms);
}

// `text` as YAML: plain where that reads back as the same text, else in double quotes.
std::string PrintText(const std::string& text) {
  static constexpr std::string_view kPlain = "_./:-";
  auto is_plain = [](char letter) {
    return std::isalnum(static_cast<unsigned char>(letter)) || kPlain.contains(letter);
  };
  bool plain = !text.empty() && std::ranges::all_of(text, is_plain) && text.back() != ':' &&
               (text[0] == '/' || std::isalnum(static_cast<unsigned char>(text[0]))) &&
               !YAML::IsNullString(text);
  if (plain) return text;
  std::string quoted = "\"";
  for (char letter : text) {
    if (letter == '"' || letter == '\\') quoted += '\\';
    quoted += letter;
  }
  return quoted + '"';
}

Key Text(std::string_view path, std::function<std::string&(Config&)> field, std::string_view doc) {
  return {path, doc,
          [field](Config& config, const std::string& text) {
            auto is_control = [](char letter) {
              return std::iscntrl(static_cast<unsigned char>(letter));
            };
            if (std::ranges::any_of(text, is_control)) {
              return Status(Code::kInvalidArgument, "the value has a control character in it");
            }
            field(config) = text;
            return OkStatus();
          },
          [field](const Config& config) { return PrintText(field(const_cast<Config&>(config))); }};
}

Key Choice(std::string_view path, std::function<std::string&(Config&)> field,
           std::vector<std::string> allowed, std::string_view doc) {
  Key key = Text(path, field, doc);
  key.set = [field, allowed](Config& config, const std::string& text) -> Status {
    if (std::ranges::find(allowed, text) == allowed.end()) {
      return FailStatus(Code::kInvalidArgument, "'{}' is not one of {}", text,
                        fmt::join(allowed, ", "));
    }
    field(config) = text;
    return OkStatus();
  };
  return key;
}

Key Size(std::string_view path, std::function<uint64_t&(Config&)> field, std::string_view doc) {
  return {path, doc,
          [field](Config& config, const std::string& text) -> Status {
            REPRISE_ASSIGN_STATUS(field(config), ParseSize(text));
            return OkStatus();
          },
          [field](const Config& config) { return PrintSize(field(const_cast<Config&>(config))); }};
}

enum class Zero { kAllowed, kRefused };

Key Duration(std::string_view path, std::function<Nanos&(Config&)> field, std::string_view doc,
             Zero zero = Zero::kRefused) {
  return {
      path, doc,
      [field, zero](Config& config, const std::string& text) -> Status {
        REPRISE_ASSIGN_STATUS(Nanos span, ParseDuration(text));
        if (span == Nanos{0} && zero == Zero::kRefused) {
          return FailStatus(Code::kInvalidArgument, "'{}': a timeout here must be above zero",
                            text);
        }
        field(config) = span;
        return OkStatus();
      },
      [field](const Config& config) { return PrintDuration(field(const_cast<Config&>(config))); }};
}

Key Number(std::string_view path, std::function<uint32_t&(Config&)> field, uint32_t min,
           uint32_t max, std::string_view doc) {
  return {path, doc,
          [field, min, max](Config& config, const std::string& text) -> Status {
            uint32_t value = 0;
            auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (error != std::errc() || end != text.data() + text.size() || value < min ||
                value > max) {
              return FailStatus(Code::kInvalidArgument, "'{}' is not a number from {} to {}", text,
                                min, max);
            }
            field(config) = value;
            return OkStatus();
          },
          [field](const Config& config) {
            return fmt::format("{}", field(const_cast<Config&>(config)));
          }};
}

Key Flag(std::string_view path, std::function<bool&(Config&)> field, std::string_view doc) {
  return {path, doc,
          [field](Config& config, const std::string& text) -> Status {
            if (text != "true" && text != "false") {
              return FailStatus(Code::kInvalidArgument, "'{}' is not true or false", text);
            }
            field(config) = text == "true";
            return OkStatus();
          },
          [field](const Config& config) {
            return std::string(field(const_cast<Config&>(config)) ? "true" : "false");
          }};
}

Status SetChunkSize(Config& config, const std::string& text) {
  REPRISE_ASSIGN_STATUS(uint64_t bytes, ParseSize(text));
  bool power_of_two = (bytes & (bytes - 1)) == 0;
  if (bytes < limits::kChunkBytesMin || bytes > limits::kChunkBytesMax || !power_of_two) {
    return FailStatus(Code::kInvalidArgument, "'{}' is not a power of two from {} to {}", text,
                      HumanBytes(limits::kChunkBytesMin), HumanBytes(limits::kChunkBytesMax));
  }
  config.store.chunk_bytes = static_cast<uint32_t>(bytes);
  return OkStatus();
}

Key ChunkSize() {
  return {"store.chunk_size",
          "Unit of transfer, digest and repair. Fixed when the store directory is made.",
          SetChunkSize, [](const Config& config) { return PrintSize(config.store.chunk_bytes); }};
}

std::vector<Key> ProcessKeys() {
  return {
      Choice(
          "role", [](Config& c) -> std::string& { return c.role; }, {"node", "store", "both"},
          "What this daemon is: node (RAM slab and training processes of this host), store "
          "(disk, catalog, coordinator), or both."),
      Choice(
          "log", [](Config& c) -> std::string& { return c.log; },
          {"debug", "info", "warn", "error"}, "Least important log lines to print."),
      Duration(
          "shutdown_timeout", [](Config& c) -> Nanos& { return c.shutdown_timeout; },
          "How long SIGTERM waits for sealed snapshots to reach the store.", Zero::kAllowed),
      Choice(
          "io.engine", [](Config& c) -> std::string& { return c.io.engine; },
          {"auto", "uring", "threads"},
          "auto probes for io_uring and falls back to threads; the log says which and why."),
      Number(
          "io.queue_depth", [](Config& c) -> uint32_t& { return c.io.queue_depth; }, 8, 4096,
          "Requests in flight per loop."),
      Number(
          "io.threads", [](Config& c) -> uint32_t& { return c.io.threads; }, 1, 64,
          "Threads for blocking file calls."),
      Text(
          "web.listen", [](Config& c) -> std::string& { return c.web.listen; },
          "host:port for /healthz, /readyz and /metrics. Empty: off."),
  };
}

std::vector<Key> StoreKeys() {
  return {
      Text(
          "store.directory", [](Config& c) -> std::string& { return c.store.directory; },
          "Where the store lives; on the NVMe file system (XFS or ext4)."),
      Text(
          "store.journal_mirror_directory",
          [](Config& c) -> std::string& { return c.store.journal_mirror_directory; },
          "Directory on a second device for the journal's second copy. Empty: same directory."),
      Text(
          "store.control_listen", [](Config& c) -> std::string& { return c.store.control_listen; },
          "Where the control API listens: host:port or unix:/path."),
      Text(
          "store.data_listen", [](Config& c) -> std::string& { return c.store.data_listen; },
          "Where the data plane listens: host:port or unix:/path."),
      Text(
          "store.data_advertise", [](Config& c) -> std::string& { return c.store.data_advertise; },
          "Data plane address that nodes are told. Empty: where it listens."),
      Flag(
          "store.create", [](Config& c) -> bool& { return c.store.create; },
          "Make a store where there is none. false: refuse, as when a volume is not mounted."),
      Size(
          "store.capacity", [](Config& c) -> uint64_t& { return c.store.capacity_bytes; },
          "Bytes for checkpoints. 0: 80 % of the free space when the directory is made."),
      Size(
          "store.segment_size", [](Config& c) -> uint64_t& { return c.store.segment_bytes; },
          "Size of one segment file. Fixed when the store directory is made."),
      ChunkSize(),
      Number(
          "store.journal_slots", [](Config& c) -> uint32_t& { return c.store.journal_slots; }, 16,
          1 << 20, "Slots of 4 KiB in the journal ring. Fixed when the directory is made."),
      Flag(
          "store.prewrite", [](Config& c) -> bool& { return c.store.prewrite; },
          "Write new segments with zeros while idle: overwriting is twice as fast."),
      Number(
          "store.receive_buffers", [](Config& c) -> uint32_t& { return c.store.receive_buffers; },
          8, 4096, "Chunk buffers for receiving and reading; bounds the data plane's memory."),
      Number(
          "store.connections", [](Config& c) -> uint32_t& { return c.store.connections; }, 1, 65536,
          "Connections of nodes to the data plane, at most."),
      Duration(
          "store.idle_timeout", [](Config& c) -> Nanos& { return c.store.idle_timeout; },
          "A node that is silent for this long with an upload open is disconnected."),
      Duration(
          "store.read_idle_timeout", [](Config& c) -> Nanos& { return c.store.read_idle_timeout; },
          "Likewise with only checkpoints open for reading."),
      Duration(
          "store.begin_window", [](Config& c) -> Nanos& { return c.store.begin_window; },
          "All ranks must have begun a step within this time of the first one."),
      Duration(
          "store.attempt_timeout", [](Config& c) -> Nanos& { return c.store.attempt_timeout; },
          "A save without progress for this long is aborted."),
      Duration(
          "store.settle_timeout", [](Config& c) -> Nanos& { return c.store.settle_timeout; },
          "At the start of a run: how long snapshots that all ranks had sealed may take to "
          "commit."),
      Duration(
          "store.node_timeout", [](Config& c) -> Nanos& { return c.store.node_timeout; },
          "A node daemon that is silent for this long counts as gone."),
      Duration(
          "store.inventory_grace", [](Config& c) -> Nanos& { return c.store.inventory_grace; },
          "After a restart: how long to collect inventories before the first resume.",
          Zero::kAllowed),
  };
}

std::vector<Key> NodeKeys() {
  return {
      Text(
          "node.store", [](Config& c) -> std::string& { return c.node.store; },
          "Control address of the store (role node only)."),
      Text(
          "node.socket", [](Config& c) -> std::string& { return c.node.socket; },
          "Unix socket of training processes on this host."),
      Text(
          "node.slab_directory", [](Config& c) -> std::string& { return c.node.slab_directory; },
          "Directory in a tmpfs for snapshots in RAM; they outlive trainer and daemon."),
      Size(
          "node.slab_bytes", [](Config& c) -> uint64_t& { return c.node.slab_bytes; },
          "Hard budget for snapshots in RAM; two slots per rank. 0: half of the free tmpfs."),
      Number(
          "node.restore_ring_chunks",
          [](Config& c) -> uint32_t& { return c.node.restore_ring_chunks; }, 4, 4096,
          "Chunks in the ring through which a process restores; fewer where slab_bytes lacks the "
          "room."),
      Number(
          "node.upload_streams", [](Config& c) -> uint32_t& { return c.node.upload_streams; }, 1,
          64, "Shards uploaded at the same time."),
      Duration(
          "node.store_timeout", [](Config& c) -> Nanos& { return c.node.store_timeout; },
          "No progress towards the store for this long: drop the connection and retry."),
      Duration(
          "node.connect_timeout", [](Config& c) -> Nanos& { return c.node.connect_timeout; },
          "How long connecting to the store's data plane is tried before it counts as away."),
      Duration(
          "node.seal_timeout", [](Config& c) -> Nanos& { return c.node.seal_timeout; },
          "How long the store may take to make an uploaded shard durable."),
      Duration(
          "node.upload_retry", [](Config& c) -> Nanos& { return c.node.upload_retry; },
          "How long a sealed snapshot is retried before the save is reported as failed."),
      Duration(
          "node.idle_exit", [](Config& c) -> Nanos& { return c.node.idle_exit; },
          "Exit this long after the last training process left. 0s: never.", Zero::kAllowed),
  };
}

const std::vector<Key>& Keys() {
  static const std::vector<Key> keys = [] {
    std::vector<Key> all = ProcessKeys();
    for (auto part : {StoreKeys(), NodeKeys()}) all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return keys;
}

// Levenshtein distance, for "did you mean".
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t next = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = std::exchange(row[j], next);
    }
  }
  return row[b.size()];
}

Status SetKey(Config& config, std::string_view path, const std::string& value) {
  const Key* nearest = nullptr;
  size_t nearest_distance = SIZE_MAX;
  for (const Key& key : Keys()) {
    if (key.path == path) return key.set(config, value).Annotate(path);
    size_t distance = EditDistance(key.path, path);
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = &key;
    }
  }
  return FailStatus(Code::kInvalidArgument,
                    "unknown key '{}' (did you mean '{}'? `reprised --print-config` lists all)",
                    path, nearest->path);
}

// A map deeper than any key is refused where it begins: an alias may stand for the map it lies in.
constexpr ptrdiff_t kKeyPartsMax = 2;

Status ReadNode(Config& config, const std::string& prefix, const YAML::Node& node) {
  for (const auto& item : node) {
    std::string path = prefix + item.first.as<std::string>();
    std::string place = fmt::format("line {}", item.first.Mark().line + 1);
    bool is_section = std::ranges::count(path, '.') + 1 < kKeyPartsMax;
    if (item.second.IsMap() && is_section) {
      REPRISE_RETURN_IF_ERROR(ReadNode(config, path + ".", item.second));
    } else if (item.second.IsScalar()) {
      REPRISE_RETURN_IF_ERROR(SetKey(config, path, item.second.as<std::string>()).Annotate(place));
    } else {
      return FailStatus(Code::kInvalidArgument, "{}: {} must be one value", place, path);
    }
  }
  return OkStatus();
}

Status ReadFile(Config& config, const std::string& path) {
  // yaml-cpp reports by exceptions; they end here.
  try {
    YAML::Node root = YAML::LoadFile(path);
    if (root.IsNull()) return OkStatus();
    if (!root.IsMap()) return Status(Code::kInvalidArgument, "the file must be a map of keys");
    return ReadNode(config, "", root);
  } catch (const YAML::BadFile&) {
    return Status(Code::kNotFound, "cannot be read");
  } catch (const YAML::Exception& error) {
    return Status(Code::kInvalidArgument, error.what());
  }
}

Status CheckWhole(const Config& config) {
  const auto& store = config.store;
  if (store.segment_bytes < 4 * uint64_t{store.chunk_bytes} ||
      !IsAligned(store.segment_bytes, limits::kIoAlignment)) {
    return FailStatus(Code::kInvalidArgument,
                      "store.segment_size ({}) must be a multiple of 4 KiB and hold at least four "
                      "chunks of {}",
                      HumanBytes(store.segment_bytes), HumanBytes(store.chunk_bytes));
  }
  if (store.capacity_bytes != 0 && store.capacity_bytes < 2 * store.segment_bytes) {
    return FailStatus(Code::kInvalidArgument,
                      "store.capacity ({}) must hold at least two segments of {}: raise it or "
                      "lower store.segment_size",
                      HumanBytes(store.capacity_bytes), HumanBytes(store.segment_bytes));
  }
  if (config.HasStore() && store.directory.empty()) {
    return Status(Code::kInvalidArgument, "store.directory must be set");
  }
  if (config.HasNode() && config.node.socket.empty()) {
    return Status(Code::kInvalidArgument, "node.socket must be set");
  }
  return OkStatus();
}

}  // namespace

Result<uint64_t> ParseSize(std::string_view text) {
  static constexpr std::pair<std::string_view, uint64_t> kUnits[] = {{"KiB", limits::kKiB},
                                                                     {"MiB", limits::kMiB},
                                                                     {"GiB", limits::kGiB},
                                                                     {"TiB", 1024 * limits::kGiB},
                                                                     {"", 1}};
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string_view unit(end, text.data() + text.size() - end);
  for (const auto& [name, factor] : kUnits) {
    if (error == std::errc() && unit == name && value <= UINT64_MAX / factor) return value * factor;
  }
  return Fail(Code::kInvalidArgument, "'{}' is not a size like 64GiB, 512MiB, 4KiB or 1048576",
              text);
}

Result<Nanos> ParseDuration(std::string_view text) {
  static constexpr Nanos kTenYears = std::chrono::hours(24 * 3650);
  static constexpr std::pair<std::string_view, int64_t> kUnits[] = {
      {"ms", 1'000'000}, {"s", 1'000'000'000}, {"m", 60'000'000'000}, {"h", 3600'000'000'000}};
  int64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string_view unit(end, text.data() + text.size() - end);
  for (const auto& [name, factor] : kUnits) {
    // Ten years at most: a deadline that far away still adds up.
    if (error == std::errc() && unit == name && value >= 0 && value <= kTenYears.count() / factor) {
      return Nanos(value * factor);
    }
  }
  return Fail(Code::kInvalidArgument, "'{}' is not a duration like 500ms, 10s, 5m or 1h", text);
}

Result<Config> LoadConfig(const std::string& path, const std::vector<std::string>& overrides) {
  Config config;
  if (!path.empty()) REPRISE_TRY(ReadFile(config, path).Annotate(path));
  for (const std::string& item : overrides) {
    size_t equals = item.find('=');
    if (equals == std::string::npos) {
      return Fail(Code::kInvalidArgument, "--set {}: write it as key=value", item);
    }
    REPRISE_TRY(SetKey(config, item.substr(0, equals), item.substr(equals + 1)).Annotate("--set"));
  }
  REPRISE_TRY(CheckWhole(config));
  return config;
}

std::string PrintConfig(const Config& config) {
  std::string out;
  std::string section;
  for (const Key& key : Keys()) {
    size_t dot = key.path.find('.');
    std::string_view in = dot == std::string_view::npos ? "" : key.path.substr(0, dot);
    if (in != section) {
      section = in;
      out += fmt::format("{}:\n", section);
    }
    std::string_view indent = section.empty() ? "" : "  ";
    std::string_view name = section.empty() ? key.path : key.path.substr(dot + 1);
    out += fmt::format("{}# {}\n{}{}: {}\n", indent, key.doc, indent, name, key.print(config));
  }
  return out;
}

}  // namespace reprise
