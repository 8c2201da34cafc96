#include "server/tier/memory_tier.h"

#include <algorithm>

#include "core/base/aligned_buffer.h"
#include "server/tier/extent_allocator.h"
#include "server/tier/pieces.h"

namespace reprise::tier {
namespace {

class MemoryTierImpl final : public Tier {
 public:
  explicit MemoryTierImpl(MemoryOptions options)
      : allocator_(
            {.segment_bytes = options.segment_bytes,
             .segment_count = options.segment_count,
             .reserve_bytes = CommitReserveOf(options.segment_bytes * options.segment_count)}),
        segments_(options.segment_count) {}

  Result<std::vector<Run>> Reserve(uint64_t bytes, bool for_commit) override {
    return allocator_.Reserve(bytes, for_commit);
  }
  void Free(const std::vector<Run>& runs) override { allocator_.Free(runs); }
  Status Adopt(const std::vector<Run>& runs) override { return allocator_.Adopt(runs); }

  Task<Status> Write(const std::vector<Run>& runs, uint64_t position, ByteView data) override {
    return WritePieces(CutIntoPieces(runs, position, data.size(), data.size()), data);
  }
  Task<Status> Read(const std::vector<Run>& runs, uint64_t position,
                    MutableByteView buffer) override {
    return ReadPieces(CutIntoPieces(runs, position, buffer.size(), buffer.size()), buffer);
  }
  Task<Status> Flush(const std::vector<Run>&) override { return Done(); }
  Task<Status> Erase(Run run) override {
    AlignedBuffer zeros(run.length);
    std::memset(zeros.data(), 0, zeros.size());
    co_return co_await Write({run}, 0, zeros.view());
  }

  TierUsage usage() const override {
    const ExtentAllocator::Options& geometry = allocator_.options();
    return {
        .capacity_bytes = geometry.segment_bytes * geometry.segment_count - geometry.reserve_bytes,
        .used_bytes = allocator_.used_bytes()};
  }
  Task<void> Close() override { co_return; }

 private:
  static Task<Status> Done() { co_return OkStatus(); }

  MutableByteView Place(const Piece& piece) {
    AlignedBuffer& segment = segments_[piece.segment];
    if (segment.size() == 0) segment = AlignedBuffer(allocator_.options().segment_bytes);
    return segment.span().subspan(piece.offset, piece.length);
  }
  Task<Status> WritePieces(std::vector<Piece> pieces, ByteView data) {
    for (const Piece& piece : pieces) {
      std::ranges::copy(data.subspan(piece.begin, piece.length), Place(piece).begin());
    }
    co_return OkStatus();
  }
  Task<Status> ReadPieces(std::vector<Piece> pieces, MutableByteView buffer) {
    for (const Piece& piece : pieces) {
      std::ranges::copy(Place(piece), buffer.subspan(piece.begin, piece.length).begin());
    }
    co_return OkStatus();
  }

  ExtentAllocator allocator_;
  std::vector<AlignedBuffer> segments_;
};

}  // namespace

std::unique_ptr<Tier> MemoryTier::Make(MemoryOptions options) {
  return std::make_unique<MemoryTierImpl>(options);
}

}  // namespace reprise::tier
