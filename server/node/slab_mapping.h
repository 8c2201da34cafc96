// SlabMapping: one shared-memory file of the slab, open and mapped. The only place of the node role
// that touches descriptors and mmap; everything else works on byte views.
//
// Files are made and given their pages through Io (Allocate runs on its pool); Map then never
// faults pages in and takes microseconds. The mapping is shared: a trainer that holds the
// descriptor writes the same pages, so bytes read here may change under the reader's hands until
// the writer is gone.
//
// Thread rule: a movable value with one owner. Unmaps and closes on destruction.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/bytes.h"
#include "reprise/status.h"
#include "server/node/truncation_guard.h"

namespace reprise::node {

// A descriptor with one owner.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.Take()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  ~OwnedFd();
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // Gives the descriptor away.
  int Take() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

class SlabMapping {
 public:
  SlabMapping() = default;
  SlabMapping(SlabMapping&& other) noexcept;
  SlabMapping& operator=(SlabMapping&& other) noexcept;
  ~SlabMapping();

  // Opens the existing file at `path` and maps all of it for reading and writing. DATA_LOSS when it
  // has fewer than `bytes_min` bytes: an access behind the end would be fatal.
  static Result<SlabMapping> Map(const std::string& path, uint64_t bytes_min);
  // The same of an open file; `path` is for messages.
  static Result<SlabMapping> MapOpen(OwnedFd fd, const std::string& path, uint64_t bytes_min);

  MutableByteView bytes() const { return {data_, size_}; }
  uint64_t size() const { return size_; }
  // The file was made shorter under the daemon's hands: some of bytes() is zeros (TruncationGuard).
  bool damaged() const { return guard_.damaged(); }
  // Another descriptor of the same file, writable: for the process the slot is granted to.
  Result<OwnedFd> Duplicate() const;
  // A new descriptor of the same file that cannot be written or mapped writable.
  Result<OwnedFd> OpenReadOnly() const;

 private:
  OwnedFd fd_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  TruncationGuard guard_;
};

}  // namespace reprise::node
