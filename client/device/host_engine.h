// HostEngine: the copy engine for state in host memory.
//
// Threads take one chunk after the other, so that the daemon gets a growing prefix and no two threads
// write one cache line of a chunk boundary. Large blocks bypass the cache (stream_copy.h).
//
// Thread rule and blocking rule: copy_engine.h.
#pragma once

#include "client/device/copy_engine.h"
#include "client/device/worker_pool.h"

namespace reprise::client {

class HostEngine final : public CopyEngine {
 public:
  // `threads` 0: two, or one on a single core. The copy thread is one of them.
  explicit HostEngine(uint32_t threads);

  std::unique_ptr<CopyEvent> Record() override { return nullptr; }
  Status Clone(void* target, const void* source, uint64_t bytes) override;
  Status Copy(const CopyRequest& request) override;
  Status Deliver(void* target, const uint8_t* source, uint64_t bytes) override;
  Status Flush() override { return OkStatus(); }
  uint32_t threads() const override { return pool_.threads(); }

 private:
  WorkerPool pool_;
};

}  // namespace reprise::client
