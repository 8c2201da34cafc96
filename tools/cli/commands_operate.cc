#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "tools/cli/commands.h"
#include "tools/cli/output.h"

namespace reprise::cli {
namespace {

// One finding of doctor: "ok", "note" or "bad", and what to do.
struct Finding {
  std::string_view level;
  std::string subject;
  std::string text;
};

std::string FirstLineOf(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

Finding CheckMemlock() {
  rlimit limit{};
  getrlimit(RLIMIT_MEMLOCK, &limit);
  if (limit.rlim_cur == RLIM_INFINITY || geteuid() == 0) {
    return {"ok", "memlock", "unlimited for this user"};
  }
  return {limit.rlim_cur < 64 * 1024 * 1024 ? "note" : "ok", "memlock",
          fmt::format("{}: registered I/O buffers are kept below it; raise with LimitMEMLOCK= or "
                      "ulimit -l",
                      HumanBytes(limit.rlim_cur))};
}

Finding CheckIoUring() {
  std::string disabled = FirstLineOf("/proc/sys/kernel/io_uring_disabled");
  if (disabled.empty() || disabled == "0") {
    return {"ok", "io_uring",
            "not disabled by sysctl; a seccomp profile may still refuse it "
            "(reprised logs the engine it chose)"};
  }
  return {"note", "io_uring",
          fmt::format("kernel.io_uring_disabled is {}: reprised uses its thread pool", disabled)};
}

Finding CheckShm() {
  struct statvfs info{};
  if (statvfs("/dev/shm", &info) != 0) {
    return {"bad", "/dev/shm", "missing: set node.slab_directory to a tmpfs"};
  }
  uint64_t total = uint64_t{info.f_blocks} * info.f_frsize;
  uint64_t free = uint64_t{info.f_bavail} * info.f_frsize;
  if (total <= 64 * 1024 * 1024) {
    return {"bad", "/dev/shm",
            fmt::format("{} in all: too small for snapshots; mount a larger tmpfs (containers: "
                        "--shm-size, or an emptyDir with medium Memory)",
                        HumanBytes(total))};
  }
  return {"ok", "/dev/shm", fmt::format("{} free of {}", HumanBytes(free), HumanBytes(total))};
}

std::vector<Finding> CheckStore(const GlobalOptions& options) {
  std::vector<Finding> findings;
  Result<Connection> connection = Connect(options);
  if (!connection.has_value()) return {{"bad", "store", connection.error().message()}};
  Result<v1::StoreInfo> info = connection->control->GetStore();
  if (!info.has_value()) return {{"bad", "store", info.error().message()}};
  findings.push_back({"ok", "store",
                      fmt::format("version {} at {}, I/O engine: {}", info->version(),
                                  connection->control->address(), info->io_engine())});
  uint64_t percent = info->used_bytes() * 100 / std::max<uint64_t>(1, info->capacity_bytes());
  findings.push_back(
      {percent > 85 ? "bad" : "ok", "capacity",
       fmt::format("{} of {} used ({} %){}", HumanBytes(info->used_bytes()),
                   HumanBytes(info->capacity_bytes()), percent,
                   percent > 85 ? ": delete checkpoints or raise store.capacity" : "")});
  if (info->suspect_bytes() > 0) {
    findings.push_back({"bad", "disk",
                        fmt::format("{} in segments that failed a write or flush: check the "
                                    "device (dmesg, smartctl)",
                                    HumanBytes(info->suspect_bytes()))});
  }
  for (const std::string& line : info->recovery()) findings.push_back({"note", "recovery", line});
  return findings;
}

}  // namespace

Status RunDoctor(const GlobalOptions& options) {
  std::vector<Finding> findings = {CheckMemlock(), CheckIoUring(), CheckShm()};
  for (Finding& finding : CheckStore(options)) findings.push_back(std::move(finding));
  size_t bad = 0;
  nlohmann::json rows = nlohmann::json::array();
  Table table({"", "WHAT", "FOUND"});
  for (const Finding& finding : findings) {
    bad += finding.level == "bad";
    table.Add({std::string(finding.level), finding.subject, finding.text});
    rows.push_back({{"level", finding.level}, {"what", finding.subject}, {"found", finding.text}});
  }
  if (options.json()) {
    PrintJson({{"findings", rows}, {"bad", bad}});
  } else {
    table.Print();
  }
  if (bad == 0) return OkStatus();
  return FailStatus(Code::kFailedPrecondition, "{} thing(s) to mend", bad);
}

Status RunVersion(const GlobalOptions& options) {
  if (options.json()) {
    PrintJson({{"version", REPRISE_VERSION}});
  } else {
    std::cout << "reprise " REPRISE_VERSION "\n";
  }
  return OkStatus();
}

}  // namespace reprise::cli
