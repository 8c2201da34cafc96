#include "core/io/posix_address.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";
constexpr int kBacklog = 512;

Result<std::vector<SocketAddress>> ResolveUnix(const std::string& path) {
  SocketAddress result;
  auto* address = reinterpret_cast<sockaddr_un*>(&result.storage);
  if (path.empty() || path.size() >= sizeof(address->sun_path)) {
    return Fail(Code::kInvalidArgument, "unix:{}: the path must have 1 to {} bytes", path,
                sizeof(address->sun_path) - 1);
  }
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path, path.data(), path.size());
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return std::vector{result};
}

// Removes the socket file of a daemon that is gone.
Status RemoveStale(const std::string& path, const SocketAddress& address) {
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) return OkStatus();
  if (!S_ISSOCK(info.st_mode)) {
    return FailStatus(Code::kFailedPrecondition,
                      "listen unix:{}: a file that is no socket is there", path);
  }
  int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return StatusFromErrno(errno, "socket");
  int result = connect(probe, address.raw(), address.length);
  int error = errno;
  close(probe);
  if (result == 0 || error != ECONNREFUSED) {
    return FailStatus(Code::kAlreadyExists, "listen unix:{}: another process listens there", path);
  }
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return StatusFromErrno(errno, "unlink " + path);
  return OkStatus();
}

// Connects a non-blocking socket; 0 or an errno.
int ConnectUntil(int fd, const SocketAddress& address, const Clock& clock, TimePoint until) {
  if (connect(fd, address.raw(), address.length) == 0) return 0;
  // A full Unix backlog answers EAGAIN: as good as refused.
  if (errno != EINPROGRESS && errno != EINTR) return errno;
  while (true) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(until - clock.Now());
    if (left.count() <= 0) return ETIMEDOUT;
    pollfd waiting{fd, POLLOUT, 0};
    int ready = poll(&waiting, 1, static_cast<int>(std::min<int64_t>(left.count(), 60'000)));
    if (ready < 0 && errno != EINTR) return errno;
    if (ready <= 0) continue;
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
    return error;
  }
}

}  // namespace

Result<std::vector<SocketAddress>> ResolveAddress(const std::string& address, bool passive) {
  if (address.starts_with(kUnixPrefix)) return ResolveUnix(address.substr(kUnixPrefix.size()));
  size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon + 1 == address.size()) {
    return Fail(Code::kInvalidArgument, "address '{}': want host:port or unix:/path", address);
  }
  std::string host = address.substr(0, colon);
  std::string port = address.substr(colon + 1);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    return Fail(Code::kUnavailable, "address '{}': {}", address, gai_strerror(error));
  }
  std::vector<SocketAddress> result;
  for (addrinfo* item = found; item != nullptr; item = item->ai_next) {
    SocketAddress& next = result.emplace_back();
    std::memcpy(&next.storage, item->ai_addr, item->ai_addrlen);
    next.length = item->ai_addrlen;
  }
  freeaddrinfo(found);
  return result;
}

Result<std::string> AddressOf(int socket) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0) {
    return Error(StatusFromErrno(errno, "getsockname"));
  }
  char text[INET6_ADDRSTRLEN] = "";
  if (address.family() == AF_UNIX) {
    const auto* name = reinterpret_cast<const sockaddr_un*>(&address.storage);
    size_t size = address.length - offsetof(sockaddr_un, sun_path);
    return std::string(kUnixPrefix) + std::string(name->sun_path, strnlen(name->sun_path, size));
  }
  if (address.family() == AF_INET6) {
    const auto* name = reinterpret_cast<const sockaddr_in6*>(&address.storage);
    inet_ntop(AF_INET6, &name->sin6_addr, text, sizeof(text));
    return fmt::format("[{}]:{}", text, ntohs(name->sin6_port));
  }
  const auto* name = reinterpret_cast<const sockaddr_in*>(&address.storage);
  inet_ntop(AF_INET, &name->sin_addr, text, sizeof(text));
  return fmt::format("{}:{}", text, ntohs(name->sin_port));
}

Result<int> ListenOn(const std::string& address, int extra_flags) {
  REPRISE_ASSIGN(std::vector<SocketAddress> choices, ResolveAddress(address, true));
  const SocketAddress& chosen = choices.front();
  if (chosen.family() == AF_UNIX) {
    REPRISE_TRY(RemoveStale(address.substr(kUnixPrefix.size()), chosen));
  }
  int fd = socket(chosen.family(), SOCK_STREAM | SOCK_CLOEXEC | extra_flags, 0);
  if (fd < 0) return Error(StatusFromErrno(errno, "socket for " + address));
  int on = 1;
  if (chosen.family() != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const char* failed = nullptr;
  if (bind(fd, chosen.raw(), chosen.length) != 0) {
    failed = "bind ";
  } else if (listen(fd, kBacklog) != 0) {
    failed = "listen ";
  }
  if (failed == nullptr) return fd;
  int error = errno;
  close(fd);
  if (error == EADDRINUSE) {
    return Fail(Code::kAlreadyExists, "{}{}: the address is in use", failed, address);
  }
  return Error(StatusFromErrno(error, failed + address));
}

Result<int> ConnectTo(const std::string& address, const Clock& clock, TimePoint until,
                      bool nonblocking) {
  REPRISE_ASSIGN(std::vector<SocketAddress> choices, ResolveAddress(address, false));
  int error = 0;
  for (const SocketAddress& choice : choices) {
    int fd = socket(choice.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return Error(StatusFromErrno(errno, "socket for " + address));
    error = ConnectUntil(fd, choice, clock, until);
    if (error == 0) {
      // io_uring answers -EAGAIN at once on a non-blocking socket instead of waiting.
      if (!nonblocking) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
      return fd;
    }
    close(fd);
    if (error == ETIMEDOUT) break;
  }
  if (error == ETIMEDOUT) {
    return Fail(Code::kDeadlineExceeded, "connect {}: no answer before the deadline", address);
  }
  char text[128];
  return Fail(Code::kUnavailable, "connect {}: {}", address, strerror_r(error, text, sizeof(text)));
}

}  // namespace reprise
