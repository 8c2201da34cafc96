// CopyEngine: moves state between the trainer's memory and memory shared with the daemon.
//
// Saving: Copy fills a slot from a list of parts, chunk by chunk, and reports how far the finished
// prefix of chunks has come, so that the daemon hashes and sends while later chunks are still copied.
// Restoring: workers scatter verified chunks with Deliver. HostEngine copies with the processor; a
// CUDA engine has the same contract (tests/unit/client/copy_engine_test.cc is for both).
//
// Order of one save: Record on the caller's thread (marks the point in the device's work that the
// snapshot stands for), Clone of volatile parts, then Copy on the copy thread. When Copy returns, or
// has been cancelled and returns, no part's source is read any more.
//
// Thread rule: Record and Clone on callers' threads, Copy on one thread at a time, Deliver on any.
// Blocking rule: Copy until done or cancelled, Clone and Deliver for the length of the copy.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "core/base/bytes.h"
#include "reprise/status.h"

namespace reprise::client {

// `bytes` bytes to offset `target_offset` of the slot; zeros when `source` is null.
struct CopyPart {
  const void* source = nullptr;
  uint64_t target_offset = 0;
  uint64_t bytes = 0;
};

// A point in the device's work; the host engine needs none.
class CopyEvent {
 public:
  virtual ~CopyEvent() = default;
};

struct CopyRequest {
  std::span<const CopyPart> parts;  // ascending, disjoint; gaps between them are left alone
  MutableByteView target;           // the slot's shard bytes
  uint32_t chunk_bytes = 0;
  const CopyEvent* event = nullptr;              // from Record, or null
  const std::atomic<bool>* cancelled = nullptr;  // looked at once per chunk at least
  // Called with the number of leading chunks that are complete and visible to other processors:
  // ascending, ends with all. From any thread of the engine, one call at a time.
  std::function<void(uint64_t chunks_done)> on_progress;
};

class CopyEngine {
 public:
  virtual ~CopyEngine() = default;

  // Marks where the training stream stands now. Null: the sources may be read at once.
  virtual std::unique_ptr<CopyEvent> Record() = 0;
  // Copies `bytes` of volatile state to host memory before it returns.
  virtual Status Clone(void* target, const void* source, uint64_t bytes) = 0;
  // CANCELLED: `cancelled` became true; a part of the target was written.
  virtual Status Copy(const CopyRequest& request) = 0;
  // Copies host bytes to a restore target (device memory in a device engine).
  virtual Status Deliver(void* target, const uint8_t* source, uint64_t bytes) = 0;
  // Returns when everything given to Deliver has arrived.
  virtual Status Flush() = 0;

  // Threads a copy uses, the calling one included.
  virtual uint32_t threads() const = 0;
};

}  // namespace reprise::client
