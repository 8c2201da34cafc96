// Mapping: a shared mapping of a file the daemon passed over the socket (a slot, a ring).
//
// Not inherited by fork() children. Reading or writing a mapping whose file shrank would be SIGBUS:
// Map compares the file's size with what the daemon announced first, and the daemon never shrinks.
//
// Thread rule: a movable value with one owner; the bytes are shared with the daemon. Map blocks while
// page tables are filled (about 30 ms per GiB), the destructor while they are taken down.
#pragma once

#include <cstdint>

#include "client/session/descriptor.h"
#include "core/base/bytes.h"
#include "reprise/status.h"

namespace reprise::client {

class Mapping {
 public:
  enum class Access {
    kRead,
    kReadSparse,  // page tables are left to fill themselves, or by Populate, part by part
    kWrite,
  };

  Mapping() = default;
  ~Mapping() { Reset(); }
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;

  // Maps the first `bytes` of `file` and fills the page tables. INVALID_ARGUMENT: the file is shorter.
  // RESOURCE_EXHAUSTED: mmap refused.
  static Result<Mapping> Map(const Descriptor& file, uint64_t bytes, Access access);
  // Fills the page tables of a part of a kReadSparse mapping, which is cheaper than touching it first and,
  // unlike one call for the whole of it, can be done by several threads. Best effort.
  static void Populate(ByteView part);

  bool valid() const { return data_ != nullptr; }
  MutableByteView span() const { return {data_, size_}; }
  ByteView view() const { return {data_, size_}; }
  void Reset();

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  uint64_t generation_ = 0;
};

}  // namespace reprise::client
