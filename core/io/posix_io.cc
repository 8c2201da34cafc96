#include "core/io/posix_io.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/io/posix_address.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

constexpr uint32_t kConnectThreads = 8;

// OK when `result` is 0, else the errno of "<operation> <path>".
Status StatusOfCall(int result, std::string_view operation, std::string_view path) {
  if (result == 0) return OkStatus();
  return StatusFromErrno(errno, fmt::format("{} {}", operation, path));
}

// The path behind a descriptor, for error messages.
std::string NameOf(int fd) {
  char target[512];
  std::string link = fmt::format("/proc/self/fd/{}", fd);
  ssize_t size = readlink(link.c_str(), target, sizeof(target));
  return size > 0 ? std::string(target, static_cast<size_t>(size)) : link;
}

Result<FileId> OpenFile(const std::string& path, const OpenOptions& options) {
  int flags = O_CLOEXEC | O_NOFOLLOW | (options.write ? O_RDWR : O_RDONLY);
  if (options.create) flags |= O_CREAT;
  if (options.create && options.exclusive) flags |= O_EXCL;
  if (options.direct) flags |= O_DIRECT;
  if (options.dsync) flags |= O_DSYNC;
  int fd;
  do {
    fd = open(path.c_str(), flags, 0600);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return Error(StatusFromErrno(errno, "open " + path));
  return FileId{fd};
}

Status LockFile(int fd) {
  struct flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return OkStatus();
  if (errno != EAGAIN && errno != EACCES) return StatusFromErrno(errno, "lock " + NameOf(fd));
  struct flock holder{};
  holder.l_type = F_WRLCK;
  holder.l_whence = SEEK_SET;
  std::string who = "another process";
  // The kernel knows the process only for classic locks; for OFD locks it answers -1.
  if (fcntl(fd, F_OFD_GETLK, &holder) == 0 && holder.l_pid > 0) {
    who = fmt::format("process {}", holder.l_pid);
  }
  return FailStatus(Code::kFailedPrecondition, "{}: locked by {}", NameOf(fd), who);
}

Result<std::vector<std::string>> ListDirectory(const std::string& path) {
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return Error(StatusFromErrno(errno, "opendir " + path));
  std::vector<std::string> names;
  errno = 0;
  while (dirent* entry = readdir(directory)) {
    std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  int error = errno;
  closedir(directory);
  // A listing that failed half way is not a short listing.
  if (error != 0) return Error(StatusFromErrno(error, "readdir " + path));
  std::sort(names.begin(), names.end());
  return names;
}

Status RemovePath(const std::string& path) {
  if (unlink(path.c_str()) == 0) return OkStatus();
  if (errno != EISDIR && errno != EPERM) return StatusFromErrno(errno, "unlink " + path);
  return StatusOfCall(rmdir(path.c_str()), "rmdir", path);
}

Status SyncPath(const std::string& path) {
  int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return StatusFromErrno(errno, "open directory " + path);
  Status status = StatusOfCall(fsync(fd), "fsync directory", path);
  close(fd);
  return status;
}

// None for sockets.
std::optional<DiskOperation> OperationOf(IoOp op) {
  switch (op) {
    case IoOp::kRead: return DiskOperation::kRead;
    case IoOp::kWrite: return DiskOperation::kWrite;
    case IoOp::kFlush: return DiskOperation::kFlush;
    default: return std::nullopt;
  }
}

}  // namespace

PosixIo::PosixIo(Loop& loop, uint32_t file_threads, bool nonblocking)
    : Io(loop),
      file_pool_(std::max(file_threads, 1u)),
      connect_pool_(kConnectThreads),
      nonblocking_(nonblocking),
      faults_(FaultPoints::FromEnvironment()) {}

PosixIo::~PosixIo() = default;

void PosixIo::Stop() {
  REPRISE_CHECK(in_flight_ == 0, "an I/O engine is destroyed with requests in flight");
  file_pool_.Stop();
  connect_pool_.Stop();
  loop_.SetReactor(nullptr);
}

// --- fault points ---

bool PosixIo::AnsweredByFault(IoRequest& request) {
  if (faults_ == nullptr) return false;
  std::optional<DiskOperation> operation = OperationOf(request.op);
  if (!operation.has_value()) return false;
  FaultPoints::Point point = faults_->Begin(*operation);
  if (point.error == 0) {
    points_[&request] = point;
    return false;
  }
  request.result = -point.error;
  loop_.Schedule(request.waiter);
  return true;
}

void PosixIo::PassFaultPoint(const IoRequest& request) {
  if (points_.empty()) return;
  if (auto found = points_.find(&request); found != points_.end()) {
    faults_->End(found->second);
    points_.erase(found);
  }
}

// --- files and directories ---

Task<Result<FileId>> PosixIo::Open(std::string path, OpenOptions options) {
  std::function<Result<FileId>()> work = [path, options] { return OpenFile(path, options); };
  if (!options.create) co_return co_await OnPool<Result<FileId>>(file_pool_, std::move(work));
  co_return co_await OnDisk<Result<FileId>>(DiskOperation::kCreate, "open " + path,
                                            std::move(work));
}

Task<Status> PosixIo::Close(FileId file) {
  co_return co_await OnPool<Status>(file_pool_, [fd = file.value] {
    // After EINTR the descriptor is closed on Linux: never again.
    return close(fd) == 0 || errno == EINTR ? OkStatus() : StatusFromErrno(errno, "close");
  });
}

Task<Result<uint64_t>> PosixIo::Size(FileId file) {
  co_return co_await OnPool<Result<uint64_t>>(file_pool_, [fd = file.value]() -> Result<uint64_t> {
    struct stat info;
    if (fstat(fd, &info) != 0) return Error(StatusFromErrno(errno, "fstat " + NameOf(fd)));
    return static_cast<uint64_t>(info.st_size);
  });
}

Task<Status> PosixIo::Allocate(FileId file, uint64_t offset, uint64_t length) {
  auto work = [fd = file.value, offset, length] {
    int result;
    do {
      result = fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(length));
    } while (result != 0 && errno == EINTR);
    return result == 0 ? OkStatus() : StatusFromErrno(errno, "fallocate " + NameOf(fd));
  };
  co_return co_await OnDisk<Status>(DiskOperation::kAllocate, "fallocate", work);
}

Task<Status> PosixIo::Truncate(FileId file, uint64_t size) {
  auto work = [fd = file.value, size] {
    int result = ftruncate(fd, static_cast<off_t>(size));
    return result == 0 ? OkStatus() : StatusFromErrno(errno, "ftruncate " + NameOf(fd));
  };
  co_return co_await OnDisk<Status>(DiskOperation::kTruncate, "ftruncate", work);
}

Task<Status> PosixIo::Lock(FileId file) {
  co_return co_await OnPool<Status>(file_pool_, [fd = file.value] { return LockFile(fd); });
}

Task<Status> PosixIo::MakeDirectory(std::string path) {
  auto work = [path] {
    if (mkdir(path.c_str(), 0700) == 0) return OkStatus();
    int error = errno;
    struct stat info;
    bool exists = error == EEXIST && stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
    return exists ? OkStatus() : StatusFromErrno(error, "mkdir " + path);
  };
  co_return co_await OnDisk<Status>(DiskOperation::kMakeDirectory, "mkdir " + path, work);
}

Task<Result<std::vector<std::string>>> PosixIo::List(std::string path) {
  co_return co_await OnPool<Result<std::vector<std::string>>>(
      file_pool_, [path = std::move(path)] { return ListDirectory(path); });
}

Task<Status> PosixIo::Remove(std::string path) {
  co_return co_await OnDisk<Status>(DiskOperation::kRemove, "unlink " + path,
                                    [path] { return RemovePath(path); });
}

Task<Status> PosixIo::SyncDirectory(std::string path) {
  co_return co_await OnDisk<Status>(DiskOperation::kSyncDirectory, "fsync directory " + path,
                                    [path] { return SyncPath(path); });
}

Task<Result<uint64_t>> PosixIo::FreeBytes(std::string path) {
  co_return co_await OnPool<Result<uint64_t>>(
      file_pool_, [path = std::move(path)]() -> Result<uint64_t> {
        struct statvfs info;
        if (statvfs(path.c_str(), &info) != 0) {
          return Error(StatusFromErrno(errno, "statvfs " + path));
        }
        return uint64_t{info.f_bavail} * info.f_frsize;
      });
}

// --- sockets ---

Task<Result<SocketId>> PosixIo::Listen(std::string address) {
  int flags = nonblocking_ ? SOCK_NONBLOCK : 0;
  Result<int> fd = co_await OnPool<Result<int>>(
      connect_pool_, [address = std::move(address), flags] { return ListenOn(address, flags); });
  if (!fd.has_value()) co_return Error(fd.error());
  co_return SocketId{*fd};
}

Task<Result<SocketId>> PosixIo::Connect(std::string address, TimePoint deadline) {
  Result<int> fd = co_await OnPool<Result<int>>(
      connect_pool_,
      [address = std::move(address), &clock = loop_.clock(), deadline, nonblocking = nonblocking_] {
        return ConnectTo(address, clock, deadline, nonblocking);
      });
  if (!fd.has_value()) co_return Error(fd.error());
  TuneConnection(*fd);
  co_return SocketId{*fd};
}

void PosixIo::TuneConnection(int socket) {
  int domain = 0;
  socklen_t size = sizeof(domain);
  if (getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain == AF_UNIX) return;
  auto set = [socket](int level, int option, int value) {
    setsockopt(socket, level, option, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  // A dead peer is found within 60 s even where the protocol is silent.
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

int64_t PosixIo::AcceptResult(int64_t result) {
  if (result >= 0) TuneConnection(static_cast<int>(result));
  return result == -EINVAL ? -ECANCELED : result;
}

Result<std::string> PosixIo::LocalAddress(SocketId socket) { return AddressOf(socket.value); }

Result<PeerCredentials> PosixIo::Credentials(SocketId socket) {
  int domain = 0;
  socklen_t size = sizeof(domain);
  if (getsockopt(socket.value, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0) {
    return Error(StatusFromErrno(errno, "SO_DOMAIN"));
  }
  if (domain != AF_UNIX) return Fail(Code::kInvalidArgument, "SO_PEERCRED: not a Unix socket");
  ucred peer{};
  size = sizeof(peer);
  if (getsockopt(socket.value, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return Error(StatusFromErrno(errno, "SO_PEERCRED"));
  }
  return PeerCredentials{peer.pid, peer.uid, peer.gid};
}

void PosixIo::Shutdown(SocketId socket) { shutdown(socket.value, SHUT_RDWR); }

}  // namespace reprise
