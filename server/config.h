// Config: everything an operator can set on reprised, from one YAML file and --set overrides.
//
// Every key is in one table (config.cc) with its documentation, default and check; the table prints
// docs/configuration.md and `reprised --print-config`. Unknown keys are refused with the nearest known
// one. Sizes are "64GiB", durations "500ms", "10s", "5m".
//
// Order: --set > file > defaults. Thread rule: values; Load blocks on reading the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/clock.h"
#include "core/base/limits.h"
#include "reprise/status.h"

namespace reprise {

struct Config {
  std::string role = "both";  // node, store, both
  std::string log = "info";
  Nanos shutdown_timeout = std::chrono::seconds(20);

  struct IoKeys {
    std::string engine = "auto";
    uint32_t queue_depth = 256;
    uint32_t threads = 4;
  } io;

  struct StoreKeys {
    std::string directory = "/var/lib/reprise";
    std::string journal_mirror_directory;
    std::string control_listen = "127.0.0.1:7700";
    std::string data_listen = "127.0.0.1:7701";
    std::string data_advertise;
    bool create = true;
    uint64_t capacity_bytes = 0;
    uint64_t segment_bytes = 256 * limits::kMiB;
    uint32_t chunk_bytes = limits::kChunkBytesDefault;
    uint32_t journal_slots = 8192;
    bool prewrite = true;
    uint32_t receive_buffers = 64;
    uint32_t connections = 1024;
    Nanos idle_timeout = std::chrono::seconds(60);
    Nanos read_idle_timeout = std::chrono::minutes(10);
    Nanos begin_window = std::chrono::seconds(60);
    Nanos attempt_timeout = std::chrono::minutes(30);
    Nanos settle_timeout = std::chrono::seconds(10);
    Nanos node_timeout = std::chrono::seconds(2);
    Nanos inventory_grace = std::chrono::seconds(2);
  } store;

  struct NodeKeys {
    std::string store = "127.0.0.1:7700";
    std::string socket = "/run/reprise/node.sock";
    std::string slab_directory = "/dev/shm/reprise";
    uint64_t slab_bytes = 0;
    uint32_t restore_ring_chunks = 128;
    uint32_t upload_streams = 4;
    Nanos store_timeout = std::chrono::seconds(30);
    Nanos connect_timeout = std::chrono::seconds(5);
    Nanos seal_timeout = std::chrono::minutes(5);
    Nanos upload_retry = std::chrono::minutes(10);
    Nanos idle_exit{0};
  } node;

  struct WebKeys {
    std::string listen;
  } web;

  bool HasStore() const { return role != "node"; }
  bool HasNode() const { return role != "store"; }
};

// Reads `path` (empty: none), then applies `overrides` ("node.socket=/tmp/s"), then checks the whole.
// INVALID_ARGUMENT names file, line, key, what is wrong and what is allowed.
Result<Config> LoadConfig(const std::string& path, const std::vector<std::string>& overrides);

// A commented YAML file with every key at its value in `config`.
std::string PrintConfig(const Config& config);

Result<uint64_t> ParseSize(std::string_view text);
Result<Nanos> ParseDuration(std::string_view text);

}  // namespace reprise
