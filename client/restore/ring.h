// RestoreRing: memory of the daemon into which it puts chunks for this process; read-only here.
//
// One per connection, made on first use and kept for further restores. A buffer is ours from kChunkAt
// until kRingFree names it. Its size, not the state's, is what a restore costs in host memory.
//
// Thread rule: any thread. Blocking rule: Ensure for one round trip.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>

#include "client/session/mapping.h"
#include "client/session/session.h"

namespace reprise::client {

class RestoreRing {
 public:
  explicit RestoreRing(Session& session) : session_(session) {}

  struct View {
    std::shared_ptr<const Mapping> mapping;
    uint32_t chunks = 0;
    uint64_t stride_bytes = 0;
    // The first `length` bytes of buffer `index`; empty when the ring has no such bytes.
    ByteView Buffer(uint32_t index, uint64_t length) const;
  };
  // The ring of connection `generation`. RESOURCE_EXHAUSTED: the daemon's budget is full.
  Result<View> Ensure(uint64_t generation, Deadline deadline);

 private:
  Session& session_;
  std::mutex mutex_;
  uint64_t generation_ = 0;
  View view_;
};

}  // namespace reprise::client
