// reprised: the daemon of Reprise. Command line, signals, exit code; the rest is Daemon.

#include <CLI/CLI.hpp>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "core/base/digest.h"
#include "core/base/log.h"
#include "server/config.h"
#include "server/daemon.h"

namespace reprise {
namespace {

struct Arguments {
  std::string config_path;
  std::vector<std::string> overrides;
  std::string role;
  std::string embedded_directory;
  std::string socket;
  std::string ready_file;
  bool print_config = false;
  bool check_config = false;
};

// Settings of a private daemon for one directory (docs/architecture.md, embedded mode).
std::vector<std::string> EmbeddedSettings(const std::string& directory, std::string socket) {
  namespace fs = std::filesystem;
  fs::path root = fs::absolute(directory);
  if (socket.empty()) socket = root / ".reprise" / "node.sock";
  fs::path run = fs::path(socket).parent_path();
  std::string key = DigestOf(ViewOf(root.string())).ToHex().substr(0, 16);
  fs::path ram = fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
  return {
      "role=both",
      "store.directory=" + (root / "store").string(),
      "store.control_listen=unix:" + (run / "control.sock").string(),
      "store.data_listen=unix:" + (run / "data.sock").string(),
      "store.prewrite=false",  // a laptop's disk is not ours to fill
      "store.inventory_grace=200ms",
      "node.socket=" + socket,
      "node.slab_directory=" + (ram / fmt::format("reprise-{}-{}", getuid(), key)).string(),
      "node.idle_exit=60s",
  };
}

Status WriteReadyFile(const std::string& path, const DaemonAddresses& addresses) {
  if (path.empty()) return OkStatus();
  std::string temporary = path + ".tmp";
  std::ofstream out(temporary);
  out << fmt::format(R"({{"pid": {}, "control": "{}", "data": "{}", "socket": "{}", "web": "{}"}})"
                     "\n",
                     getpid(), addresses.control, addresses.data, addresses.socket, addresses.web);
  out.close();
  if (!out || std::rename(temporary.c_str(), path.c_str()) != 0) {
    return FailStatus(
        Code::kUnavailable,
        "cannot write {}: {}; the daemon can serve, but who waits for this file would "
        "not know: make room, or name another one with --ready-file",
        path, std::strerror(errno));
  }
  return OkStatus();
}

sigset_t EndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Waits for a signal, a failure that needs a restart, or (embedded) idleness. Returns the exit code.
int WaitForEnd(Daemon& daemon, const sigset_t& signals, bool may_idle) {
  constexpr timespec kCheckInterval{0, 500'000'000};
  while (true) {
    int signal = sigtimedwait(&signals, nullptr, &kCheckInterval);
    if (signal > 0) {
      LogInfo("signal {}: draining and stopping", signal);
      return 0;
    }
    Status health = daemon.Health();
    if (!health.ok()) {
      LogError("{}", health.message());
      return 1;
    }
    if (may_idle && daemon.IsIdle()) {
      LogInfo("no training process for a while: stopping");
      return 0;
    }
  }
}

LogLevel LevelNamed(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warn") return LogLevel::kWarn;
  return name == "error" ? LogLevel::kError : LogLevel::kInfo;
}

int Run(const Arguments& arguments) {
  std::vector<std::string> overrides;
  if (!arguments.embedded_directory.empty()) {
    overrides = EmbeddedSettings(arguments.embedded_directory, arguments.socket);
  }
  if (!arguments.role.empty()) overrides.push_back("role=" + arguments.role);
  overrides.insert(overrides.end(), arguments.overrides.begin(), arguments.overrides.end());
  Result<Config> config = LoadConfig(arguments.config_path, overrides);
  if (!config.has_value()) {
    LogError("configuration: {}", config.error().message());
    return 2;
  }
  if (arguments.print_config) {
    std::cout << PrintConfig(*config);
    return 0;
  }
  if (arguments.check_config) return 0;

  // Threads started from here on inherit the mask, so that only WaitForEnd sees the signals.
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals = EndSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  SetLogLevel(LevelNamed(config->log));
  SetLogName("reprised " + config->role);
  Result<std::unique_ptr<Daemon>> daemon = Daemon::Start(*config);
  if (!daemon.has_value()) {
    LogError("cannot start: {}", daemon.error().ToString());
    return 1;
  }
  Status ready = WriteReadyFile(arguments.ready_file, (*daemon)->addresses());
  if (!ready.ok()) {
    LogError("{}", ready.message());
    return 1;
  }
  int code = WaitForEnd(**daemon, signals, config->node.idle_exit > Nanos{0});
  (*daemon)->Stop();
  return code;
}

}  // namespace
}  // namespace reprise

int main(int argc, char** argv) {
  reprise::Arguments arguments;
  CLI::App app{"reprised: keeps checkpoints of training jobs (node, store, or both)"};
  app.set_version_flag("--version", "reprised " REPRISE_VERSION);
  app.add_option("--config", arguments.config_path, "YAML file; see --print-config");
  app.add_option("--set", arguments.overrides, "Override one key: --set node.slab_bytes=64GiB");
  app.add_option("--role", arguments.role, "node, store or both");
  app.add_option("--embedded", arguments.embedded_directory,
                 "Private daemon for one directory on this host");
  app.add_option("--socket", arguments.socket, "With --embedded: the Unix socket to serve");
  app.add_option("--ready-file", arguments.ready_file,
                 "Written as JSON with the addresses once the daemon serves");
  app.add_flag("--print-config", arguments.print_config, "Print every key with its value and stop");
  app.add_flag("--check-config", arguments.check_config, "Check the configuration and stop");
  CLI11_PARSE(app, argc, argv);
  return reprise::Run(arguments);
}
