// SimIo: the simulated I/O engine of one host in a SimWorld.
//
// The same contract as the real engines (core/io/io.h), only stricter: completions take simulated
// time and come in any order the faults allow; the buffer of a write must not change while it is in
// flight (checked), that of a read is scribbled over at submission; closing a file or socket with
// requests in flight is a failed CHECK. Disk faults are set on world.disk(host), network faults on
// world.net(). How to crash a host: core/io/sim_world.h.
//
// Owner: the test. It outlives the product's objects and is destroyed before the world; at that
// moment nothing may be in flight, unless CrashHost() was called.
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/io/io.h"
#include "core/io/sim_world.h"

namespace reprise {

class SimIo final : public Io {
 public:
  // Brings `host` up. `loop` must use the world's clock.
  SimIo(Loop& loop, SimWorld& world, std::string host);
  ~SimIo() override;

  // The host dies now: requests in flight are forgotten and never resume. The caller then destroys
  // the coroutines (Loop::DestroyAll); nothing but the destructor may be called on this object, and
  // Shutdown and CloseSocket by destructors: they do nothing then.
  void CrashHost(SimCrash crash = SimCrash::kPowerLoss);

  const std::string& host() const { return host_; }
  // Names this life of the process; what Credentials() calls its pid.
  uint64_t process() const { return owner_; }
  SimDisk& disk() { return disk_; }
  // Requests and metadata calls in flight.
  size_t in_flight() const;

  void Poll(std::optional<Nanos> timeout) override { world_.Poll(loop_, timeout); }
  void Wake() override { world_.Wake(loop_); }

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
  // The peer's process(), user and group 1000.
  Result<PeerCredentials> Credentials(SocketId socket) override;
  void Shutdown(SocketId socket) override;
  void CloseSocket(SocketId socket) override;

  // Counts, registers nothing.
  uint64_t RegisterBuffers(std::vector<MutableByteView> regions) override;
  std::string Name() const override { return "simulated (host " + host_ + ")"; }

  // --- for SimNet
  void FinishSocketRequest(IoRequest& request, int64_t result);

 protected:
  void Submit(IoRequest& request) override;
  void Cancel(IoRequest& request) override;

 private:
  struct OpenFile {
    SimDisk::InodeId inode;
    OpenOptions options;
    std::string path;
    uint64_t lock_owner;
    uint64_t in_flight = 0;
  };
  // co_await Pause(span): resumes in simulated time, unless the host crashes first.
  auto Pause(Nanos span) {
    struct Awaiter {
      SimIo& io;
      Nanos span;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) {
        io.world_.At(io.loop_.Now() + span, io.owner_,
                     [&io = io, handle] { io.loop_.Schedule(handle); });
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this, span};
  }
  Task<void> DiskDelay();
  void SubmitFile(IoRequest& request);
  void CompleteFile(IoRequest* request, uint64_t token);
  int64_t FinishFile(IoRequest& request, OpenFile& file, uint64_t token);
  TimePoint NextDiskCompletion();
  OpenFile& FileOf(int handle);
  Status StatusOf(int64_t result, std::string_view operation, const std::string& path);

  SimWorld& world_;
  const std::string host_;
  SimDisk& disk_;
  const SimWorld::Owner owner_;
  bool crashed_ = false;
  size_t socket_requests_ = 0;
  std::map<int, OpenFile> files_;
  int next_file_ = 3;
  TimePoint last_completion_{};
};

}  // namespace reprise
