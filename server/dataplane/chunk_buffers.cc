#include "server/dataplane/chunk_buffers.h"

#include <new>

#include "core/base/check.h"
#include "core/base/limits.h"

namespace reprise::dataplane {
namespace {
constexpr std::align_val_t kAlignment{limits::kIoAlignment};
}  // namespace

ChunkBuffers::ChunkBuffers(Io& io, uint32_t count, uint32_t bytes)
    : count_(count), bytes_(bytes), waiters_(io.loop()) {
  REPRISE_CHECK(count > 0 && bytes > 0 && IsAligned(bytes, limits::kIoAlignment));
  size_t total = size_t{count} * bytes;
  memory_ = static_cast<uint8_t*>(::operator new(total, kAlignment));
  for (uint32_t i = count; i > 0; --i) free_.push_back(memory_ + size_t{i - 1} * bytes);
  io.RegisterBuffers({MutableByteView(memory_, total)});
}

ChunkBuffers::~ChunkBuffers() {
  REPRISE_CHECK(free_.size() == count_, "a lent chunk buffer outlives its set");
  ::operator delete(memory_, kAlignment);
}

MutableByteView ChunkBuffers::Lease::Padded(size_t size) const {
  size_t padded = AlignUp(size, limits::kIoAlignment);
  REPRISE_CHECK(padded <= view().size());
  std::memset(data_ + size, 0, padded - size);
  return view().first(padded);
}

void ChunkBuffers::Lease::Release() {
  if (data_ == nullptr) return;
  owner_->free_.push_back(std::exchange(data_, nullptr));
  std::exchange(owner_, nullptr)->waiters_.WakeOne();
}

ChunkBuffers::Lease ChunkBuffers::TryTake() {
  if (free_.empty() || !waiters_.empty()) return {};
  uint8_t* data = free_.back();
  free_.pop_back();
  return Lease(this, data);
}

Task<ChunkBuffers::Lease> ChunkBuffers::Take(std::optional<TimePoint> deadline) {
  while (free_.empty()) {
    if (!co_await waiters_.Wait(deadline) && free_.empty()) co_return Lease();
  }
  uint8_t* data = free_.back();
  free_.pop_back();
  co_return Lease(this, data);
}

}  // namespace reprise::dataplane
