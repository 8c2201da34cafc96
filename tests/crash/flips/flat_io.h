// FlatIo: files as plain bytes in memory, for sweeps that open a store a million times.
//
// Every operation takes effect at submission and completes in the next turn of the loop. Nothing is
// ever lost and nothing takes time: crashes and latency are the business of SimIo, damage is that of
// whoever holds this object. Changes since Mark can be taken back.
//
// Thread rule: the loop's thread. No sockets.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/io/io.h"

namespace reprise::crash {

class FlatIo final : public Io {
 public:
  using Files = std::map<std::string, Bytes>;

  explicit FlatIo(Loop& loop) : Io(loop) {}

  Bytes& file(const std::string& path) { return files_.at(path); }
  const Files& files() const { return files_; }
  // From here on changes are remembered, until Rollback takes them back. No file may be open.
  void Mark();
  void Rollback();

  void Poll(std::optional<Nanos>) override {}
  void Wake() override {}
  Task<Result<FileId>> Open(std::string path, OpenOptions options) override;
  Task<Status> Close(FileId file) override;
  Task<Result<uint64_t>> Size(FileId file) override;
  Task<Status> Allocate(FileId file, uint64_t offset, uint64_t length) override;
  Task<Status> Truncate(FileId file, uint64_t size) override;
  Task<Status> Lock(FileId) override { co_return OkStatus(); }
  Task<Status> MakeDirectory(std::string) override { co_return OkStatus(); }
  Task<Result<std::vector<std::string>>> List(std::string path) override;
  Task<Status> Remove(std::string path) override;
  Task<Status> SyncDirectory(std::string) override { co_return OkStatus(); }
  Task<Result<uint64_t>> FreeBytes(std::string) override { co_return uint64_t{1} << 40; }

  Task<Result<SocketId>> Listen(std::string) override { co_return NoSockets(); }
  Task<Result<SocketId>> Connect(std::string, TimePoint) override { co_return NoSockets(); }
  Result<std::string> LocalAddress(SocketId) override { return NoSockets(); }
  Result<PeerCredentials> Credentials(SocketId) override { return NoSockets(); }
  void Shutdown(SocketId) override {}
  void CloseSocket(SocketId) override {}
  uint64_t RegisterBuffers(std::vector<MutableByteView>) override { return 0; }
  std::string Name() const override { return "flat memory"; }

 protected:
  void Submit(IoRequest& request) override;
  void Cancel(IoRequest&) override {}

 private:
  struct Undo {
    std::string path;
    uint64_t offset;
    Bytes before;
  };
  static std::unexpected<Status> NoSockets() {
    return Error(Code::kUnimplemented, "no sockets here");
  }
  void Write(const std::string& path, Bytes& bytes, uint64_t offset, ByteView data);
  void Resize(Bytes& bytes, uint64_t size);

  Files files_;
  std::vector<std::string> open_;  // by handle; empty: closed
  bool marked_ = false;
  bool reshaped_ = false;  // sizes or names changed since Mark
  Files at_mark_;
  std::vector<Undo> undo_;
};

}  // namespace reprise::crash
