#include "server/node/slab_mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::node {

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) ::close(fd_);
}

SlabMapping::SlabMapping(SlabMapping&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      guard_(std::move(other.guard_)) {}

SlabMapping& SlabMapping::operator=(SlabMapping&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(guard_, other.guard_);
  return *this;
}

SlabMapping::~SlabMapping() {
  guard_ = TruncationGuard();
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<SlabMapping> SlabMapping::Map(const std::string& path, uint64_t bytes_min) {
  OwnedFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return Error(StatusFromErrno(errno, "open " + path));
  return MapOpen(std::move(fd), path, bytes_min);
}

Result<SlabMapping> SlabMapping::MapOpen(OwnedFd fd, const std::string& path, uint64_t bytes_min) {
  SlabMapping mapping;
  mapping.fd_ = std::move(fd);
  struct stat info{};
  if (::fstat(mapping.fd_.get(), &info) != 0) return Error(StatusFromErrno(errno, "stat " + path));
  auto size = static_cast<uint64_t>(info.st_size);
  if (size < bytes_min || size == 0) {
    return Fail(Code::kDataLoss, "{} has {} bytes where at least {} are expected", path, size,
                bytes_min);
  }
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, mapping.fd_.get(), 0);
  if (address == MAP_FAILED) return Error(StatusFromErrno(errno, "map " + path));
  mapping.data_ = static_cast<uint8_t*>(address);
  mapping.size_ = size;
  mapping.guard_ = TruncationGuard(address, size);
  // A child of the daemon has no business with trainers' memory; core dumps would be huge.
  ::madvise(address, size, MADV_DONTFORK);
  ::madvise(address, size, MADV_DONTDUMP);
  return mapping;
}

Result<OwnedFd> SlabMapping::Duplicate() const {
  OwnedFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) return Error(StatusFromErrno(errno, "duplicate a slot's descriptor"));
  return copy;
}

Result<OwnedFd> SlabMapping::OpenReadOnly() const {
  // Through /proc, because the file may have lost its name already.
  std::string path = "/proc/self/fd/" + std::to_string(fd_.get());
  OwnedFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reopened.valid()) return Error(StatusFromErrno(errno, "reopen a slot read-only"));
  return reopened;
}

}  // namespace reprise::node
