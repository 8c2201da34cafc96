#include "tests/crash/disk/disk_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/random.h"

namespace reprise::crash {
namespace {

constexpr uint64_t kSector = 512;

uint8_t* Map(uint64_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REPRISE_CHECK(memory != MAP_FAILED, "no memory for the disk");
  return static_cast<uint8_t*>(memory);
}

uint64_t SectorsOf(uint64_t bytes) { return (bytes + kSector - 1) / kSector; }

}  // namespace

DiskCache::DiskCache(uint64_t size_bytes, std::function<void()> on_cut)
    : size_(size_bytes),
      on_cut_(std::move(on_cut)),
      durable_(Map(size_bytes)),
      visible_(Map(size_bytes)) {}

DiskCache::~DiskCache() {
  munmap(durable_, size_);
  munmap(visible_, size_);
}

bool DiskCache::PowerFails() {
  if (fail_in_ == 0 || --fail_in_ != 0) return false;
  counters_.on = false;
  return true;
}

int64_t DiskCache::Read(uint64_t offset, uint8_t* data, uint64_t size) {
  std::lock_guard lock(mutex_);
  if (!counters_.on) return -EIO;
  if (offset >= size_) return 0;
  size = std::min(size, size_ - offset);
  std::memcpy(data, visible_ + offset, size);
  return static_cast<int64_t>(size);
}

int64_t DiskCache::Write(uint64_t offset, const uint8_t* data, uint64_t size) {
  bool cut = false;
  {
    std::lock_guard lock(mutex_);
    if (!counters_.on) return -EIO;
    if (offset > size_ || size > size_ - offset) return -ENOSPC;
    ++counters_.writes;
    pending_.push_back({offset, std::vector<uint8_t>(data, data + size)});
    std::memcpy(visible_ + offset, data, size);
    cut = PowerFails();
  }
  if (!cut) return static_cast<int64_t>(size);
  on_cut_();
  return -EIO;
}

int DiskCache::Flush() {
  bool cut = false;
  {
    std::lock_guard lock(mutex_);
    if (!counters_.on) return -EIO;
    ++counters_.flushes;
    cut = PowerFails();
    if (!cut) {
      for (const PendingWrite& write : pending_) Settle(write, 0, SectorsOf(write.data.size()));
      pending_.clear();
    }
  }
  if (!cut) return 0;
  on_cut_();
  return -EIO;
}

void DiskCache::Arm(uint64_t operations) {
  std::lock_guard lock(mutex_);
  fail_in_ = operations;
}

void DiskCache::Cut() {
  std::unique_lock lock(mutex_);
  bool was_on = std::exchange(counters_.on, false);
  lock.unlock();
  if (was_on) on_cut_();
}

// Sectors [first, last) of a write reach the medium.
void DiskCache::Settle(const PendingWrite& write, uint64_t first_sector, uint64_t last_sector) {
  uint64_t begin = std::min<uint64_t>(first_sector * kSector, write.data.size());
  uint64_t end = std::min<uint64_t>(last_sector * kSector, write.data.size());
  std::memcpy(durable_ + write.offset + begin, write.data.data() + begin, end - begin);
}

std::string DiskCache::PowerOn(uint64_t seed) {
  std::lock_guard lock(mutex_);
  Rng rng(seed);
  static constexpr const char* kModes[] = {"lost",   "kept", "sectors",
                                           "writes", "torn", "reordered"};
  uint64_t mode = seed == 0 ? 0 : rng.Below(std::size(kModes));
  uint64_t percent = 10 + 40 * rng.Below(3);
  uint64_t torn_at = pending_.empty() ? 0 : rng.Below(pending_.size());
  uint64_t kept = 0;
  for (uint64_t i = 0; i < pending_.size(); ++i) {
    const PendingWrite& write = pending_[i];
    uint64_t sectors = SectorsOf(write.data.size());
    bool whole = mode == 1 || (mode == 3 && rng.Below(100) < percent) ||
                 (mode >= 4 && i < torn_at) || (mode == 5 && i > torn_at && rng.Below(2) == 0);
    if (whole) {
      Settle(write, 0, sectors);
      kept += sectors;
    } else if (mode == 2) {
      for (uint64_t sector = 0; sector < sectors; ++sector) {
        if (rng.Below(100) >= percent) continue;
        Settle(write, sector, sector + 1);
        ++kept;
      }
    } else if (mode >= 4 && i == torn_at) {
      uint64_t middle = rng.Below(sectors + 1);
      bool tail = rng.Below(2) == 0;
      Settle(write, tail ? middle : 0, tail ? sectors : middle);
      kept += tail ? sectors - middle : middle;
    }
  }
  std::string what = kModes[mode] + std::string(" ") + std::to_string(pending_.size()) +
                     " writes, kept " + std::to_string(kept) + " sectors";
  for (const PendingWrite& write : pending_) {
    std::memcpy(visible_ + write.offset, durable_ + write.offset, write.data.size());
  }
  pending_.clear();
  fail_in_ = 0;
  counters_.on = true;
  return what;
}

DiskCache::Counters DiskCache::counters() {
  std::lock_guard lock(mutex_);
  Counters counters = counters_;
  counters.pending = pending_.size();
  return counters;
}

}  // namespace reprise::crash
