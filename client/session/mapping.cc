#include "client/session/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/log.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace reprise::client {

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      generation_(other.generation_) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    Reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    generation_ = other.generation_;
  }
  return *this;
}

void Mapping::Reset() {
  // In a child the range was never mapped and may hold something else by now.
  if (data_ != nullptr && !IsForkChild(generation_)) ::munmap(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

Result<Mapping> Mapping::Map(const Descriptor& file, uint64_t bytes, Access access) {
  struct stat facts{};
  if (::fstat(file.get(), &facts) != 0) {
    return Fail(Code::kInternal, "fstat of a descriptor from the daemon: {}", strerror(errno));
  }
  if (bytes == 0 || static_cast<uint64_t>(facts.st_size) < bytes) {
    return Fail(Code::kInvalidArgument, "the daemon passed a file of {} bytes and announced {}",
                facts.st_size, bytes);
  }
  bool write = access == Access::kWrite;
  void* data =
      ::mmap(nullptr, bytes, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) {
    return Fail(Code::kResourceExhausted, "mmap of {} shared with the daemon: {}",
                HumanBytes(bytes), strerror(errno));
  }
  Mapping mapping;
  mapping.data_ = static_cast<uint8_t*>(data);
  mapping.size_ = bytes;
  mapping.generation_ = ForkGeneration();
  ::madvise(data, bytes, MADV_DONTFORK);
  if (access == Access::kReadSparse) return mapping;
  // Older kernels refuse this advice: then the first touch of each page costs a fault, nothing else.
  ::madvise(data, bytes, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  return mapping;
}

void Mapping::Populate(ByteView part) {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  uintptr_t begin = reinterpret_cast<uintptr_t>(part.data()) & ~(page - 1);
  uintptr_t end = reinterpret_cast<uintptr_t>(part.data()) + part.size();
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_READ);
}

}  // namespace reprise::client
