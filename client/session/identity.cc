#include "client/session/identity.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/base/log.h"
#include "core/base/random.h"

namespace reprise::client {
namespace {

std::string HostName() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0) return "localhost";
  return name;
}

std::string LauncherFromEnvironment(const std::string& host) {
  if (std::string job = Environment("SLURM_JOB_ID"); !job.empty()) return "slurm:" + job;
  std::string run = Environment("TORCHELASTIC_RUN_ID");
  if (!run.empty() && run != "none") return "torchelastic:" + run;
  std::string address = Environment("MASTER_ADDR");
  bool local = address.empty() || address == "localhost" || address.starts_with("127.");
  if (!local) return "master:" + address + ":" + Environment("MASTER_PORT");
  return "parent:" + host + ":" + std::to_string(::getppid());
}

Id RandomId() {
  Id id;
  uint64_t words[2] = {RandomSeed(), RandomSeed()};
  std::memcpy(id.bytes.data(), words, sizeof(words));
  return id;
}

uint64_t NumberFromEnvironment(const char* name) {
  return std::strtoull(Environment(name).c_str(), nullptr, 10);
}

Result<Target> ParseFile(std::string_view path) {
  std::filesystem::path directory = std::filesystem::path(path).lexically_normal();
  if (!directory.has_filename()) directory = directory.parent_path();
  Target target{.embedded = true,
                .directory = directory.string(),
                .tenant = "local",
                .job = directory.filename().string()};
  if (!directory.is_absolute()) {
    return Fail(Code::kInvalidArgument, "\"file://{}\": give an absolute path, file:///DIR", path);
  }
  if (!IsValidName(target.job)) {
    return Fail(Code::kInvalidArgument,
                "\"file://{}\": the last part of the path is the job's name and may hold letters, "
                "digits, '.', '_' and '-' only (at most 128, no leading dot)",
                path);
  }
  return target;
}

}  // namespace

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Result<Target> ParseUri(std::string_view uri) {
  constexpr std::string_view kFile = "file://";
  constexpr std::string_view kService = "reprise://";
  if (uri.starts_with(kFile)) return ParseFile(uri.substr(kFile.size()));
  if (!uri.starts_with(kService)) {
    return Fail(Code::kInvalidArgument,
                "\"{}\" is no checkpoint URI: use reprise://TENANT/JOB or file:///DIR", uri);
  }
  std::string_view rest = uri.substr(kService.size());
  size_t slash = rest.find('/');
  Target target;
  if (slash != std::string_view::npos) {
    target.tenant = rest.substr(0, slash);
    target.job = rest.substr(slash + 1);
  }
  if (!IsValidName(target.tenant) || !IsValidName(target.job)) {
    return Fail(
        Code::kInvalidArgument,
        "\"{}\": use reprise://TENANT/JOB, both of letters, digits, '.', '_' and '-' (at most "
        "128, no leading dot)",
        uri);
  }
  return target;
}

Identity MakeIdentity(std::string_view launcher, uint32_t rank, uint32_t world) {
  Identity identity;
  identity.process = RandomId();
  identity.host = HostName();
  identity.launcher =
      launcher.empty() ? LauncherFromEnvironment(identity.host) : std::string(launcher);
  identity.description =
      fmt::format("rank {} of {} on {} (pid {})", rank, world, identity.host, ::getpid());
  return identity;
}

bool SpansHosts(uint32_t world) {
  uint64_t local_world = NumberFromEnvironment("LOCAL_WORLD_SIZE");
  if (local_world != 0 && local_world < world) return true;
  return world > 1 && (NumberFromEnvironment("GROUP_WORLD_SIZE") > 1 ||
                       NumberFromEnvironment("SLURM_STEP_NUM_NODES") > 1);
}

}  // namespace reprise::client
