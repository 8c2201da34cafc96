// DiskCache: a disk with a volatile write cache, and what a power cut does to it.
//
// A write lands in the cache and is visible at once; a flush makes everything before it durable. When
// power is cut the disk answers nothing any more; when it comes back, a seed decides what became of
// each 512-byte sector that was written since the last flush: lost, kept, or torn within a write;
// later writes may survive earlier ones. Power can be armed to fail at the n-th write or flush.
//
// Thread rule: any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace reprise::crash {

class DiskCache {
 public:
  struct Counters {
    uint64_t writes = 0;
    uint64_t flushes = 0;
    uint64_t pending = 0;  // writes that no flush has covered
    bool on = true;
  };

  // `on_cut` is called, once for each cut, with no lock held.
  DiskCache(uint64_t size_bytes, std::function<void()> on_cut);
  ~DiskCache();
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  uint64_t size() const { return size_; }
  // Bytes moved, or -EIO without power, or -ENOSPC beyond the end.
  int64_t Read(uint64_t offset, uint8_t* data, uint64_t size);
  int64_t Write(uint64_t offset, const uint8_t* data, uint64_t size);
  int Flush();

  // Power fails at the `operations`-th write or flush from now (1 is the next). A write that meets it
  // is in the cache and shares its fate; a flush that meets it has done nothing.
  void Arm(uint64_t operations);
  void Cut();
  // Power is back; `seed` decides what the cut left (0: all of it is lost). Says what it did
  // ("torn", ...).
  std::string PowerOn(uint64_t seed);
  Counters counters();

 private:
  struct PendingWrite {
    uint64_t offset;
    std::vector<uint8_t> data;
  };
  // True when this operation is the one that power fails at.
  bool PowerFails();
  void Settle(const PendingWrite& write, uint64_t first_sector, uint64_t last_sector);

  const uint64_t size_;
  const std::function<void()> on_cut_;
  std::mutex mutex_;
  uint8_t* durable_;
  uint8_t* visible_;
  std::vector<PendingWrite> pending_;
  Counters counters_;
  uint64_t fail_in_ = 0;  // 0: not armed
};

}  // namespace reprise::crash
