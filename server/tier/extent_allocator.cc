#include "server/tier/extent_allocator.h"

#include <algorithm>
#include <limits>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::tier {
namespace {

constexpr uint64_t kUnit = limits::kIoAlignment;
constexpr uint64_t kMaxLength = std::numeric_limits<uint64_t>::max();
// Gaps looked at for an aligned start before a longer gap, which surely has one, is taken.
constexpr int kGapsTriedMax = 8;

}  // namespace

uint64_t CommitReserveOf(uint64_t capacity_bytes) {
  uint64_t wanted = std::max(256 * limits::kMiB, capacity_bytes / 50);
  return std::min(wanted, capacity_bytes / 8) / kUnit * kUnit;
}

ExtentAllocator::ExtentAllocator(Options options)
    : options_(options), segments_(options.segment_count) {
  REPRISE_CHECK(options_.segment_bytes > 0 && IsAligned(options_.segment_bytes, kUnit));
  REPRISE_CHECK(options_.chunk_bytes >= kUnit);
  REPRISE_CHECK((options_.chunk_bytes & (options_.chunk_bytes - 1)) == 0);
  preferences_[options_.preference] = options_.segment_count;
  for (uint32_t segment = 0; segment < options_.segment_count; ++segment) {
    segments_[segment].preference = options_.preference;
    InsertFree({segment, 0, options_.segment_bytes});
  }
}

void ExtentAllocator::Index(uint32_t segment, uint64_t offset, uint64_t length) {
  if (segments_[segment].excluded) return;
  gaps_.emplace(segments_[segment].preference, length, segment, offset);
  free_bytes_ += length;
}

void ExtentAllocator::Unindex(uint32_t segment, uint64_t offset, uint64_t length) {
  if (segments_[segment].excluded) return;
  gaps_.erase({segments_[segment].preference, length, segment, offset});
  free_bytes_ -= length;
}

// Adds a free run and merges it with its neighbours.
void ExtentAllocator::InsertFree(const Run& run) {
  std::map<uint64_t, uint64_t>& free = segments_[run.segment].free;
  uint64_t begin = run.offset;
  uint64_t end = run.offset + run.length;
  auto next = free.lower_bound(begin);
  REPRISE_CHECK(next == free.end() || next->first >= end, "extent is freed twice");
  if (next != free.begin()) {
    auto previous = std::prev(next);
    uint64_t previous_end = previous->first + previous->second;
    REPRISE_CHECK(previous_end <= begin, "extent is freed twice");
    if (previous_end == begin) {
      begin = previous->first;
      Unindex(run.segment, previous->first, previous->second);
      free.erase(previous);
    }
  }
  if (next != free.end() && next->first == end) {
    end += next->second;
    Unindex(run.segment, next->first, next->second);
    free.erase(next);
  }
  free.emplace(begin, end - begin);
  Index(run.segment, begin, end - begin);
}

bool ExtentAllocator::TakeFree(const Run& run) {
  std::map<uint64_t, uint64_t>& free = segments_[run.segment].free;
  auto gap = free.upper_bound(run.offset);
  if (gap == free.begin()) return false;
  --gap;
  uint64_t gap_begin = gap->first;
  uint64_t gap_end = gap->first + gap->second;
  uint64_t end = run.offset + run.length;
  if (run.offset < gap_begin || end > gap_end) return false;
  Unindex(run.segment, gap_begin, gap->second);
  free.erase(gap);
  if (gap_begin < run.offset) {
    free.emplace(gap_begin, run.offset - gap_begin);
    Index(run.segment, gap_begin, run.offset - gap_begin);
  }
  if (end < gap_end) {
    free.emplace(end, gap_end - end);
    Index(run.segment, end, gap_end - end);
  }
  segments_[run.segment].used_bytes += run.length;
  used_bytes_ += run.length;
  return true;
}

Status ExtentAllocator::CheckShape(const Run& run) const {
  bool fits = run.segment < options_.segment_count && run.length > 0 &&
              IsAligned(run.offset, kUnit) && IsAligned(run.length, kUnit) &&
              run.offset < options_.segment_bytes &&
              run.length <= options_.segment_bytes - run.offset;
  if (fits) return OkStatus();
  return FailStatus(
      Code::kDataLoss,
      "extent (segment {}, offset {}, length {}) lies outside {} segments of {} bytes", run.segment,
      run.offset, run.length, options_.segment_count, options_.segment_bytes);
}

uint64_t ExtentAllocator::AlignmentFor(uint64_t bytes) const {
  return bytes >= options_.chunk_bytes ? options_.chunk_bytes : kUnit;
}

// One gap that holds `bytes` from an aligned start; the tightest of the best preference that has one.
std::optional<Run> ExtentAllocator::FindContiguous(uint64_t bytes, uint64_t alignment) const {
  for (const auto& [preference, segment_count] : preferences_) {
    auto gap = gaps_.lower_bound({preference, bytes, 0, 0});
    for (int tried = 0; gap != gaps_.end() && std::get<0>(*gap) == preference; ++tried) {
      const auto& [gap_preference, length, segment, offset] = *gap;
      uint64_t begin = AlignUp(offset, alignment);
      if (begin + bytes <= offset + length) return Run{segment, begin, bytes};
      if (tried == kGapsTriedMax && length < bytes + alignment) {
        gap = gaps_.lower_bound({preference, bytes + alignment, 0, 0});
      } else {
        ++gap;
      }
    }
  }
  return std::nullopt;
}

// The most that the largest gap of `preference` gives from an aligned start, in whole alignment
// units unless that is all that is needed; nothing when it has not even one unit.
std::optional<Run> ExtentAllocator::FindLargest(uint8_t preference, uint64_t bytes,
                                                uint64_t alignment) const {
  auto gap = gaps_.lower_bound({preference, kMaxLength, 0, 0});
  for (int tried = 0; tried <= kGapsTriedMax && gap != gaps_.begin(); ++tried) {
    --gap;
    const auto& [gap_preference, length, segment, offset] = *gap;
    if (gap_preference != preference || length < alignment) break;
    uint64_t begin = AlignUp(offset, alignment);
    uint64_t end = offset + length;
    if (begin >= end) continue;
    if (end - begin >= bytes) return Run{segment, begin, bytes};
    uint64_t whole = (end - begin) / alignment * alignment;
    if (whole > 0) return Run{segment, begin, whole};
  }
  return std::nullopt;
}

// The next piece of a reservation that no single gap holds.
std::optional<Run> ExtentAllocator::FindPiece(uint64_t bytes) const {
  for (uint64_t alignment : {AlignmentFor(bytes), kUnit}) {
    for (const auto& [preference, segment_count] : preferences_) {
      if (std::optional<Run> run = FindLargest(preference, bytes, alignment)) return run;
    }
  }
  return std::nullopt;
}

Result<std::vector<Run>> ExtentAllocator::Reserve(uint64_t bytes, bool for_commit) {
  if (bytes == 0 || bytes > limits::kShardBytesMax + limits::kMessageBytesMax * uint64_t{1024}) {
    return Fail(Code::kInvalidArgument, "cannot reserve {} bytes", bytes);
  }
  uint64_t need = AlignUp(bytes, kUnit);
  uint64_t kept_back = for_commit ? 0 : std::min(options_.reserve_bytes, free_bytes_);
  if (need > free_bytes_ - kept_back) {
    return Fail(
        Code::kResourceExhausted,
        "{} wanted, {} free for data of {}: delete checkpoints (`reprise delete`, retention) "
        "or add capacity",
        HumanBytes(need), HumanBytes(free_bytes_ - kept_back),
        HumanBytes(options_.segment_bytes * options_.segment_count));
  }
  std::vector<Run> runs;
  if (std::optional<Run> run = FindContiguous(need, AlignmentFor(need))) runs.push_back(*run);
  if (runs.empty() && AlignmentFor(need) != kUnit) {
    if (std::optional<Run> run = FindContiguous(need, kUnit)) runs.push_back(*run);
  }
  if (!runs.empty()) {
    REPRISE_CHECK(TakeFree(runs.front()));
    return runs;
  }
  uint64_t left = need;
  while (left > 0 && runs.size() < limits::kRunsPerShardMax) {
    std::optional<Run> run = FindPiece(left);
    REPRISE_CHECK(run.has_value() && TakeFree(*run));
    runs.push_back(*run);
    left -= run->length;
  }
  if (left == 0) return runs;
  Free(runs);
  return Fail(Code::kResourceExhausted,
              "free space is too fragmented: {} do not fit into {} extents although {} are free. "
              "Delete a few whole checkpoints to make room",
              HumanBytes(need), limits::kRunsPerShardMax, HumanBytes(free_bytes_));
}

void ExtentAllocator::Free(const std::vector<Run>& runs) {
  for (const Run& run : runs) {
    Status shape = CheckShape(run);
    REPRISE_CHECK(shape.ok(), shape.message());
    InsertFree(run);
    segments_[run.segment].used_bytes -= run.length;
    used_bytes_ -= run.length;
  }
}

Status ExtentAllocator::Adopt(const std::vector<Run>& runs) {
  std::vector<Run> taken;
  Status status;
  for (const Run& run : runs) {
    status = CheckShape(run);
    if (status.ok() && !TakeFree(run)) {
      status = FailStatus(Code::kDataLoss,
                          "extent (segment {}, offset {}, length {}) belongs to something else too",
                          run.segment, run.offset, run.length);
    }
    if (!status.ok()) break;
    taken.push_back(run);
  }
  if (!status.ok()) Free(taken);
  return status;
}

void ExtentAllocator::SetPreference(uint32_t segment, uint8_t preference) {
  Segment& target = segments_[segment];
  if (target.preference == preference) return;
  for (const auto& [offset, length] : target.free) Unindex(segment, offset, length);
  auto count = preferences_.find(target.preference);
  if (--count->second == 0) preferences_.erase(count);
  target.preference = preference;
  ++preferences_[preference];
  for (const auto& [offset, length] : target.free) Index(segment, offset, length);
}

void ExtentAllocator::Exclude(uint32_t segment) {
  Segment& target = segments_[segment];
  if (target.excluded) return;
  for (const auto& [offset, length] : target.free) Unindex(segment, offset, length);
  target.excluded = true;
}

}  // namespace reprise::tier
