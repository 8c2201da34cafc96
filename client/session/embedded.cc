#include "client/session/embedded.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "client/session/descriptor.h"
#include "client/session/identity.h"
#include "core/base/check.h"
#include "core/base/digest.h"
#include "core/base/log.h"

extern char** environ;

namespace reprise::client {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSocketPathMax = sizeof(sockaddr_un::sun_path) - 1;
constexpr size_t kLogLinesShown = 12;

bool IsProgram(const fs::path& path) { return ::access(path.c_str(), X_OK) == 0; }

Result<std::string> FindDaemon(const std::string& asked) {
  std::string named = asked.empty() ? Environment("REPRISE_DAEMON") : asked;
  if (!named.empty()) {
    if (IsProgram(named)) return named;
    return Fail(Code::kNotFound, "the daemon {} is not a program that can be run", named);
  }
  std::vector<fs::path> places;
  Dl_info library{};
  if (::dladdr(reinterpret_cast<const void*>(&EnsureEmbeddedDaemon), &library) != 0) {
    fs::path folder = fs::absolute(library.dli_fname).parent_path();
    places = {folder / "reprised", folder / ".." / "bin" / "reprised"};
  }
  std::string path = Environment("PATH");
  for (size_t begin = 0; begin <= path.size();) {
    size_t end = std::min(path.find(':', begin), path.size());
    if (end > begin) places.push_back(fs::path(path.substr(begin, end - begin)) / "reprised");
    begin = end + 1;
  }
  for (const fs::path& place : places) {
    if (IsProgram(place)) return place.lexically_normal().string();
  }
  return Fail(
      Code::kNotFound,
      "file:// needs the program `reprised`: install it, put it on PATH, or name it with the "
      "option `daemon` or REPRISE_DAEMON");
}

bool Answers(const std::string& socket_path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_path.data(), std::min(socket_path.size(), kSocketPathMax));
  Descriptor probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return ::connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 ||
         errno == EAGAIN;
}

std::string LastLines(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(line);
    if (lines.size() > kLogLinesShown) lines.erase(lines.begin());
  }
  std::string text;
  for (const std::string& line : lines) text += "\n  " + line;
  return text.empty() ? " (its log is empty)" : text;
}

// Sets up and frees what posix_spawn takes.
class SpawnPlan {
 public:
  explicit SpawnPlan(const std::string& log) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
    posix_spawn_file_actions_addopen(&actions_, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions_, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions_, 1, 2);
    posix_spawn_file_actions_addclosefrom_np(&actions_, 3);
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setflags(&attributes_,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  Result<pid_t> Start(std::vector<std::string> words) {
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_t child = 0;
    int error =
        ::posix_spawn(&child, words[0].c_str(), &actions_, &attributes_, arguments.data(), environ);
    if (error != 0) return Fail(Code::kUnavailable, "starting {}: {}", words[0], strerror(error));
    return child;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

// Waits until the daemon listens; tells how it ended when it does not get there.
Status AwaitDaemon(pid_t child, const std::string& socket, const std::string& log,
                   Deadline deadline) {
  while (!Answers(socket)) {
    int how = 0;
    if (::waitpid(child, &how, WNOHANG) == child) {
      // It lost a race against a daemon that somebody else started on this directory.
      if (Answers(socket)) return OkStatus();
      return FailStatus(Code::kUnavailable, "the embedded daemon ended at once ({} {}); {} says:{}",
                        WIFSIGNALED(how) ? "signal" : "exit code",
                        WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how), log, LastLines(log));
    }
    if (deadline.expired()) {
      return FailStatus(Code::kDeadlineExceeded,
                        "the embedded daemon (pid {}) does not listen at {} yet; raise "
                        "connect_timeout_s if it is still recovering; {} says:{}",
                        child, socket, log, LastLines(log));
    }
    ::poll(nullptr, 0, 5);
  }
  return OkStatus();
}

// The start lock, or nothing when a daemon answered while it was waited for.
Result<Descriptor> LockStart(const std::string& path, const std::string& socket,
                             Deadline deadline) {
  Descriptor lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) return Fail(Code::kUnavailable, "open {}: {}", path, strerror(errno));
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return Fail(Code::kUnavailable, "flock {}: {}", path, strerror(errno));
    }
    if (Answers(socket)) return Descriptor();
    if (deadline.expired()) {
      return Fail(Code::kDeadlineExceeded,
                  "another process has been starting the daemon of {} for too long", path);
    }
    ::poll(nullptr, 0, 5);
  }
  return lock;
}

}  // namespace

std::string EmbeddedSocketPath(const std::string& directory) {
  std::string path = directory + "/.reprise/node.sock";
  if (path.size() <= kSocketPathMax) return path;
  std::string runtime = Environment("XDG_RUNTIME_DIR");
  std::string folder = runtime.empty() || runtime.size() > 40
                           ? "/tmp/reprise-" + std::to_string(::getuid())
                           : runtime + "/reprise";
  return folder + "/" + DigestOf(ViewOf(directory)).ToHex() + ".sock";
}

Result<std::string> EnsureEmbeddedDaemon(const EmbeddedOptions& options, Deadline deadline) {
  if (SpansHosts(options.world)) {
    return Fail(
        Code::kFailedPrecondition,
        "file://{} keeps checkpoints on one host, but this job of {} ranks spans several: run "
        "`reprised` on each host and use reprise://TENANT/JOB",
        options.directory, options.world);
  }
  std::string folder = options.directory + "/.reprise";
  std::string socket = EmbeddedSocketPath(options.directory);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return Fail(Code::kUnavailable, "making {}: {}", folder, error.message());
  fs::path socket_folder = fs::path(socket).parent_path();
  if (socket_folder != folder) {
    ::mkdir(socket_folder.c_str(), 0700);
    struct stat facts{};
    if (::lstat(socket_folder.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode) ||
        facts.st_uid != ::getuid()) {
      return Fail(Code::kPermissionDenied, "{} is not a directory of this user",
                  socket_folder.string());
    }
  }
  if (Answers(socket)) return socket;
  REPRISE_ASSIGN(Descriptor lock, LockStart(folder + "/start.lock", socket, deadline));
  if (Answers(socket)) return socket;
  REPRISE_ASSIGN(std::string daemon, FindDaemon(options.daemon));
  std::string log = folder + "/daemon.log";
  SpawnPlan plan(log);
  REPRISE_ASSIGN(pid_t child, plan.Start({daemon, "--role", "both", "--embedded", options.directory,
                                          "--socket", socket}));
  REPRISE_TRY(AwaitDaemon(child, socket, log, deadline));
  return socket;
}

}  // namespace reprise::client
