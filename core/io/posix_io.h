// PosixIo: what the two real engines have in common: every call of Io that is not a data request.
//
// Calls that may block (open, fallocate, fsync of a directory, name resolution, connect) run on a
// small pool of threads and resume on the loop. Connects have a pool of their own, so that a silent
// peer cannot hold up file operations. A FileId or SocketId is the kernel's descriptor number.
//
// Security: files are opened O_CLOEXEC | O_NOFOLLOW and created 0600, directories 0700; descriptors
// are never inherited by children.
//
// Thread rule: as Io. A derived engine calls Stop() first in its destructor.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/base/fault_points.h"
#include "core/io/io.h"
#include "core/io/transfer.h"
#include "core/io/worker_pool.h"

namespace reprise {

class PosixIo : public Io {
 public:
  Task<Result<FileId>> Open(std::string path, OpenOptions options) override;
  Task<Status> Close(FileId file) override;
  Task<Result<uint64_t>> Size(FileId file) override;
  Task<Status> Allocate(FileId file, uint64_t offset, uint64_t length) override;
  Task<Status> Truncate(FileId file, uint64_t size) override;
  Task<Status> Lock(FileId file) override;
  Task<Status> MakeDirectory(std::string path) override;
  Task<Result<std::vector<std::string>>> List(std::string path) override;
  Task<Status> Remove(std::string path) override;
  Task<Status> SyncDirectory(std::string path) override;
  Task<Result<uint64_t>> FreeBytes(std::string path) override;

  Task<Result<SocketId>> Listen(std::string address) override;
  Task<Result<SocketId>> Connect(std::string address, TimePoint deadline) override;
  Result<std::string> LocalAddress(SocketId socket) override;
  Result<PeerCredentials> Credentials(SocketId socket) override;
  void Shutdown(SocketId socket) override;

  // Requests and calls that have not resumed yet.
  uint64_t in_flight() const { return in_flight_; }

 protected:
  // `nonblocking`: whether sockets are made so.
  PosixIo(Loop& loop, uint32_t file_threads, bool nonblocking);
  ~PosixIo() override;

  // Checks that nothing is in flight, joins the pools and leaves the loop.
  void Stop();

  // Runs `work` on `pool`; resumes on the loop with its value.
  template <typename T>
  Task<T> OnPool(WorkerPool& pool, std::function<T()> work) {
    struct Call {
      PosixIo& io;
      WorkerPool& pool;
      std::function<T()> work;
      std::optional<T> value;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> caller) {
        ++io.in_flight_;
        pool.Run([this, caller] {
          value.emplace(work());
          io.loop_.Post([owner = &io, caller] {
            --owner->in_flight_;
            owner->loop_.Schedule(caller);
          });
        });
      }
      T await_resume() { return std::move(*value); }
    };
    Call call{*this, pool, std::move(work), std::nullopt};
    co_return co_await call;
  }

  // OnPool for an operation on a disk, which fault points may fail or take as their moment.
  template <typename T>
  Task<T> OnDisk(DiskOperation operation, std::string what, std::function<T()> work) {
    if (faults_ == nullptr) return OnPool<T>(file_pool_, std::move(work));
    return OnPool<T>(file_pool_,
                     [this, operation, what = std::move(what), work = std::move(work)]() -> T {
                       FaultPoints::Point point = faults_->Begin(operation);
                       if (point.error == 0) {
                         T result = work();
                         faults_->End(point);
                         return result;
                       }
                       Status failure = StatusFromErrno(point.error, what);
                       if constexpr (std::is_same_v<T, Status>) {
                         return failure;
                       } else {
                         return Error(std::move(failure));
                       }
                     });
  }
  // For Submit and Complete of the engines: both do nothing unless this process is here to be
  // broken. True when a fault point has answered the request, which must not be submitted then.
  bool AnsweredByFault(IoRequest& request);
  void PassFaultPoint(const IoRequest& request);

  // Sets the options every TCP connection has. No effect on Unix sockets.
  static void TuneConnection(int socket);
  // The descriptor's kind of result for a request: maps EINVAL of a shut down listener.
  static int64_t AcceptResult(int64_t result);

  WorkerPool file_pool_;
  WorkerPool connect_pool_;
  const bool nonblocking_;
  uint64_t in_flight_ = 0;
  FaultPoints* const faults_;
  std::map<const IoRequest*, FaultPoints::Point> points_;  // of file requests in flight
};

}  // namespace reprise
