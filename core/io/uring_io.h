// UringIo: the I/O engine over io_uring (Linux 5.19 or later; fastest from 6.1 on).
//
// Requests become submission entries when they are awaited, and go to the kernel together at the
// next Poll. The ring is made SINGLE_ISSUER | DEFER_TASKRUN where the kernel has it, and is enabled
// by the first Poll, which binds it to that thread: a loop is run by one thread for its whole life
// (checked). Requests inside registered memory use fixed buffers. Nothing is ever linked.
//
// Calls that io_uring lacks or does badly run on the pool of PosixIo.
//
// Thread rule: the loop's thread, except Wake() and everything before the first Poll.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/io/posix_io.h"

namespace reprise {

class UringIo final : public PosixIo {
 public:
  // UNAVAILABLE, with the reason, where io_uring is forbidden or too old.
  static Result<std::unique_ptr<UringIo>> Create(Loop& loop, const IoOptions& options);
  ~UringIo() override;

  void Poll(std::optional<Nanos> timeout) override;
  void Wake() override;
  void CloseSocket(SocketId socket) override;
  uint64_t RegisterBuffers(std::vector<MutableByteView> regions) override;
  void UnregisterBuffers(std::vector<MutableByteView> regions) override;
  std::string Name() const override;

 protected:
  void Submit(IoRequest& request) override;
  void Cancel(IoRequest& request) override;

 private:
  struct Ring;
  // One slot of the ring's buffer table; null: free.
  struct Fixed {
    uint8_t* data = nullptr;
    size_t size = 0;
  };

  UringIo(Loop& loop, const IoOptions& options, std::unique_ptr<Ring> ring);
  void Enable();
  void Prepare(IoRequest& request);
  void ArmWake();
  void Reap();
  void Complete(IoRequest& request, int64_t result);
  void SubmitQueued();
  std::optional<uint16_t> FixedIndex(const IoRequest& request) const;

  std::unique_ptr<Ring> ring_;
  std::vector<Fixed> fixed_;
  std::optional<std::thread::id> thread_;
  bool wake_armed_ = false;
  std::atomic<bool> woken_{false};
};

}  // namespace reprise
