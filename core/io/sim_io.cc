#include "core/io/sim_io.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/digest.h"
#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

constexpr Nanos kHangRetry = std::chrono::milliseconds(10);
constexpr Nanos kConnectRetry = std::chrono::milliseconds(5);

std::string_view OpName(IoOp op) {
  switch (op) {
    case IoOp::kRead: return "read";
    case IoOp::kWrite: return "write";
    case IoOp::kFlush: return "flush";
    case IoOp::kRecv: return "recv";
    case IoOp::kSend: return "send";
    case IoOp::kAccept: return "accept";
  }
  return "";
}

// "/a//b/" -> "/a/b".
std::string Normalize(const std::string& path) {
  std::string clean;
  for (char letter : path) {
    if (letter != '/' || clean.empty() || clean.back() != '/') clean += letter;
  }
  if (clean.size() > 1 && clean.back() == '/') clean.pop_back();
  return clean;
}

}  // namespace

SimIo::SimIo(Loop& loop, SimWorld& world, std::string host)
    : Io(loop),
      world_(world),
      host_(std::move(host)),
      disk_(world.disk(host_)),
      owner_(world.NewOwner()) {
  world_.Attach(loop_);
  world_.net().HostUp(*this);
}

SimIo::~SimIo() {
  if (!crashed_) {
    REPRISE_CHECK(in_flight() == 0, "an I/O engine is destroyed with requests in flight");
    CrashHost(SimCrash::kProcessDeath);
  }
  world_.Detach(loop_);
}

void SimIo::CrashHost(SimCrash crash) {
  REPRISE_CHECK(!crashed_);
  crashed_ = true;
  world_.Trace(host_, "crash", static_cast<uint64_t>(crash));
  world_.DropEvents(owner_);
  world_.net().HostDown(*this, crash);
  socket_requests_ = 0;
  for (auto& [handle, file] : files_) disk_.Release(file.inode, file.lock_owner);
  files_.clear();
}

size_t SimIo::in_flight() const { return socket_requests_ + (world_.HasEvents(owner_) ? 1 : 0); }

Status SimIo::StatusOf(int64_t result, std::string_view operation, const std::string& path) {
  if (result >= 0) return OkStatus();
  return StatusFromErrno(static_cast<int>(-result), operation).Annotate(path);
}

SimIo::OpenFile& SimIo::FileOf(int handle) {
  auto found = files_.find(handle);
  REPRISE_CHECK(found != files_.end(), "request on a file that is not open");
  return found->second;
}

// --- data requests ---

TimePoint SimIo::NextDiskCompletion() {
  TimePoint when = loop_.Now() + disk_.DrawLatency();
  if (disk_.faults.reorder) return when + Nanos{world_.rng().Below(200'000)};
  last_completion_ = std::max(when, last_completion_);
  return last_completion_;
}

void SimIo::Submit(IoRequest& request) {
  REPRISE_CHECK(!crashed_);
  bool is_file =
      request.op == IoOp::kRead || request.op == IoOp::kWrite || request.op == IoOp::kFlush;
  if (is_file) return SubmitFile(request);
  ++socket_requests_;
  world_.net().Submit(*this, request);
}

void SimIo::SubmitFile(IoRequest& request) {
  OpenFile& file = FileOf(request.handle);
  ++file.in_flight;
  uint64_t token = 0;
  uint64_t content = 0;
  if (request.op == IoOp::kWrite) {
    ByteView data(request.data, request.size);
    content = Crc32c(data);
    token = disk_.BeginWrite(file.inode, request.offset, data, file.options);
  } else if (request.op == IoOp::kFlush) {
    token = disk_.BeginFlush(file.inode);
  } else if (request.size > 0) {
    std::memset(request.data, 0xa5, request.size);  // a read promises nothing about old content
  }
  world_.Trace(host_, OpName(request.op), request.offset, request.size, content);
  world_.At(NextDiskCompletion(), owner_,
            [this, target = &request, token] { CompleteFile(target, token); });
}

void SimIo::CompleteFile(IoRequest* request, uint64_t token) {
  if (disk_.faults.hang) {
    world_.At(loop_.Now() + kHangRetry, owner_,
              [this, request, token] { CompleteFile(request, token); });
    return;
  }
  OpenFile& file = FileOf(request->handle);
  --file.in_flight;
  request->result = FinishFile(*request, file, token);
  world_.Trace(host_, "done", static_cast<uint64_t>(request->op), request->offset,
               static_cast<uint64_t>(request->result));
  loop_.Schedule(request->waiter);
}

int64_t SimIo::FinishFile(IoRequest& request, OpenFile& file, uint64_t token) {
  switch (request.op) {
    case IoOp::kWrite: return disk_.FinishWrite(token, ByteView(request.data, request.size));
    case IoOp::kFlush: return disk_.FinishFlush(token);
    default:
      return disk_.Read(file.inode, request.offset, MutableByteView(request.data, request.size),
                        file.options);
  }
}

void SimIo::FinishSocketRequest(IoRequest& request, int64_t result) {
  --socket_requests_;
  request.result = result;
  world_.Trace(host_, OpName(request.op), static_cast<uint64_t>(request.handle), request.size,
               static_cast<uint64_t>(result));
  loop_.Schedule(request.waiter);
}

void SimIo::Cancel(IoRequest& request) { world_.net().Cancel(request); }

// --- files and directories ---

Task<void> SimIo::DiskDelay() {
  TimePoint when = NextDiskCompletion();
  co_await Pause(when - loop_.Now());
  while (disk_.faults.hang) co_await Pause(kHangRetry);
}

Task<Result<FileId>> SimIo::Open(std::string path, OpenOptions options) {
  std::string name = Normalize(path);
  world_.Trace(host_, "open " + name);
  int64_t inode = disk_.Open(name, options);
  co_await DiskDelay();
  if (inode < 0) co_return Error(StatusOf(inode, "open", name));
  int handle = next_file_++;
  files_.emplace(handle, OpenFile{static_cast<SimDisk::InodeId>(inode), options, name,
                                  (owner_ << 32) + static_cast<uint64_t>(handle)});
  co_return FileId{handle};
}

Task<Status> SimIo::Close(FileId file) {
  OpenFile& open = FileOf(file.value);
  REPRISE_CHECK(open.in_flight == 0, "a file is closed while requests on it are in flight");
  disk_.Release(open.inode, open.lock_owner);
  files_.erase(file.value);
  co_await DiskDelay();
  co_return OkStatus();
}

Task<Result<uint64_t>> SimIo::Size(FileId file) {
  co_await DiskDelay();
  co_return disk_.Size(FileOf(file.value).inode);
}

Task<Status> SimIo::Allocate(FileId file, uint64_t offset, uint64_t length) {
  OpenFile& open = FileOf(file.value);
  int64_t result = disk_.Allocate(open.inode, offset, length);
  Status status = StatusOf(result, "fallocate", open.path);
  world_.Trace(host_, "allocate", offset, length, static_cast<uint64_t>(result));
  co_await DiskDelay();
  co_return status;
}

Task<Status> SimIo::Truncate(FileId file, uint64_t size) {
  OpenFile& open = FileOf(file.value);
  Status status = StatusOf(disk_.Truncate(open.inode, size), "ftruncate", open.path);
  world_.Trace(host_, "truncate", size);
  co_await DiskDelay();
  co_return status;
}

Task<Status> SimIo::Lock(FileId file) {
  OpenFile& open = FileOf(file.value);
  bool locked = disk_.Lock(open.inode, open.lock_owner);
  std::string path = open.path;
  co_await DiskDelay();
  if (!locked)
    co_return FailStatus(Code::kFailedPrecondition, "{}: locked by another process", path);
  co_return OkStatus();
}

Task<Status> SimIo::MakeDirectory(std::string path) {
  std::string name = Normalize(path);
  Status status = StatusOf(disk_.MakeDirectory(name), "mkdir", name);
  world_.Trace(host_, "mkdir " + name);
  co_await DiskDelay();
  co_return status;
}

Task<Result<std::vector<std::string>>> SimIo::List(std::string path) {
  co_await DiskDelay();
  std::string name = Normalize(path);
  auto names = disk_.List(name);
  if (!names.has_value()) co_return Error(StatusOf(-ENOENT, "opendir", name));
  co_return std::move(*names);
}

Task<Status> SimIo::Remove(std::string path) {
  std::string name = Normalize(path);
  Status status = StatusOf(disk_.Remove(name), "unlink", name);
  world_.Trace(host_, "remove " + name);
  co_await DiskDelay();
  co_return status;
}

Task<Status> SimIo::SyncDirectory(std::string path) {
  std::string name = Normalize(path);
  uint64_t token = disk_.BeginSyncDirectory(name);
  co_await DiskDelay();
  int64_t result = disk_.FinishSyncDirectory(name, token);
  world_.Trace(host_, "syncdir " + name, static_cast<uint64_t>(result));
  co_return StatusOf(result, "fsync directory", name);
}

Task<Result<uint64_t>> SimIo::FreeBytes(std::string) {
  co_await DiskDelay();
  co_return disk_.FreeBytes();
}

// --- sockets ---

Task<Result<SocketId>> SimIo::Listen(std::string address) {
  Result<int> socket = world_.net().Listen(*this, address);
  co_await Pause(std::chrono::microseconds(10));
  if (!socket.has_value()) co_return Error(socket.error());
  co_return SocketId{*socket};
}

Task<Result<SocketId>> SimIo::Connect(std::string address, TimePoint deadline) {
  co_await Pause(world_.net().faults.latency_min);
  while (true) {
    std::optional<Result<int>> answer = world_.net().TryConnect(*this, address);
    if (answer.has_value() && answer->has_value()) co_return SocketId{**answer};
    if (answer.has_value()) co_return Error(answer->error());
    Nanos left = deadline - loop_.Now();
    if (left <= Nanos{0}) {
      co_return Fail(Code::kDeadlineExceeded, "connect {}: no answer before the deadline", address);
    }
    co_await Pause(std::min(left, kConnectRetry));
  }
}

Result<std::string> SimIo::LocalAddress(SocketId socket) {
  if (!world_.net().Has(*this, socket.value)) {
    return Fail(Code::kInvalidArgument, "getsockname: not an open socket");
  }
  return world_.net().LocalAddress(socket.value);
}

Result<PeerCredentials> SimIo::Credentials(SocketId socket) {
  if (!world_.net().Has(*this, socket.value) || !world_.net().IsUnix(socket.value)) {
    return Fail(Code::kInvalidArgument, "SO_PEERCRED: not a Unix socket");
  }
  return PeerCredentials{static_cast<pid_t>(world_.net().PeerProcess(socket.value)), 1000, 1000};
}

void SimIo::Shutdown(SocketId socket) {
  if (!crashed_) world_.net().Shutdown(socket.value);
}

void SimIo::CloseSocket(SocketId socket) {
  if (!crashed_) world_.net().Close(socket.value);
}

uint64_t SimIo::RegisterBuffers(std::vector<MutableByteView> regions) {
  uint64_t total = 0;
  for (MutableByteView region : regions) total += region.size();
  return total;
}

}  // namespace reprise
