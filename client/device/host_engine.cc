#include "client/device/host_engine.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "client/device/stream_copy.h"
#include "core/base/check.h"

namespace reprise::client {
namespace {

uint32_t ThreadsOrDefault(uint32_t threads) {
  if (threads != 0) return std::min(threads, 64u);
  return std::clamp(std::thread::hardware_concurrency(), 1u, 2u);
}

// One Copy in progress, shared by the threads that work on it.
class CopyJob {
 public:
  explicit CopyJob(const CopyRequest& request)
      : request_(request), chunks_(CeilDiv(request.target.size(), request.chunk_bytes)) {
    done_.resize(chunks_);
  }

  // Takes chunks until none is left.
  void Work() {
    while (!stopped()) {
      uint64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks_) return;
      CopyChunk(chunk);
      CopyFence();
      Finish(chunk);
    }
  }
  bool stopped() const {
    return request_.cancelled != nullptr && request_.cancelled->load(std::memory_order_relaxed);
  }
  bool complete() const { return prefix_ == chunks_; }

 private:
  void CopyChunk(uint64_t chunk) {
    uint64_t begin = chunk * request_.chunk_bytes;
    uint64_t end = std::min<uint64_t>(begin + request_.chunk_bytes, request_.target.size());
    auto part = std::ranges::upper_bound(request_.parts, begin, {}, &CopyPart::target_offset);
    if (part != request_.parts.begin()) --part;
    for (; part != request_.parts.end() && part->target_offset < end; ++part) {
      uint64_t from = std::max(begin, part->target_offset);
      uint64_t to = std::min(end, part->target_offset + part->bytes);
      if (from >= to) continue;
      uint8_t* target = request_.target.data() + from;
      if (part->source == nullptr) {
        std::memset(target, 0, to - from);
      } else {
        const auto* source = static_cast<const uint8_t*>(part->source);
        StreamCopy(target, source + (from - part->target_offset), to - from);
      }
    }
  }

  void Finish(uint64_t chunk) {
    std::lock_guard lock(mutex_);
    done_[chunk] = true;
    uint64_t before = prefix_;
    while (prefix_ < chunks_ && done_[prefix_]) ++prefix_;
    if (prefix_ != before && request_.on_progress) request_.on_progress(prefix_);
  }

  const CopyRequest& request_;
  const uint64_t chunks_;
  std::atomic<uint64_t> next_{0};
  std::mutex mutex_;
  std::vector<bool> done_;
  uint64_t prefix_ = 0;
};

}  // namespace

HostEngine::HostEngine(uint32_t threads) : pool_(ThreadsOrDefault(threads)) {}

Status HostEngine::Clone(void* target, const void* source, uint64_t bytes) {
  if (bytes != 0) std::memcpy(target, source, bytes);
  return OkStatus();
}

Status HostEngine::Copy(const CopyRequest& request) {
  REPRISE_CHECK(request.chunk_bytes != 0);
  CopyJob job(request);
  pool_.Run(pool_.threads(), [&](uint32_t) { job.Work(); });
  if (job.complete()) return OkStatus();
  return Status(Code::kCancelled, "the copy was given up");
}

Status HostEngine::Deliver(void* target, const uint8_t* source, uint64_t bytes) {
  StreamCopy(target, source, bytes);
  if (bytes >= kStreamBytesMin) CopyFence();
  return OkStatus();
}

}  // namespace reprise::client
