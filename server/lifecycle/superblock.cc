#include "server/lifecycle/superblock.h"

#include <chrono>
#include <utility>

#include "core/base/aligned_buffer.h"
#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::lifecycle {

using format::kSuperblockBytes;
using format::kSuperblockCopies;

namespace {

constexpr Nanos kLockRetry = std::chrono::milliseconds(20);
constexpr Nanos kLockWaitMax = std::chrono::seconds(2);

// Waits a little: the kernel gives up the lock of a killed process only when its last request on the
// file has ended, which with io_uring may be after the process is gone.
Task<Status> LockWhenFree(Io& io, FileId file) {
  TimePoint give_up = io.loop().Now() + kLockWaitMax;
  while (true) {
    Status locked = co_await io.Lock(file);
    bool held = locked.code() == Code::kFailedPrecondition;
    if (!held || io.loop().Now() >= give_up) co_return locked;
    co_await io.loop().Sleep(kLockRetry);
  }
}

}  // namespace

Task<Result<SuperblockFile>> SuperblockFile::Open(Io& io, std::string directory, bool create) {
  if (create) REPRISE_CO_TRY(co_await io.MakeDirectory(directory));
  OpenOptions options;
  options.create = create;
  Result<FileId> file = co_await io.Open(directory + "/SUPER", options);
  if (!file.has_value() && !create && file.error().code() == Code::kNotFound) {
    co_return Fail(Code::kNotFound,
                   "there is no store in {}: is its volume mounted? store.create would make one",
                   directory);
  }
  if (!file.has_value()) co_return Error(file.error().Annotate("store directory"));
  Status locked = co_await LockWhenFree(io, *file);
  if (!locked.ok()) {
    Status closed = co_await io.Close(*file);
    if (!closed.ok()) LogWarn("closing SUPER: {}", closed.ToString());
    co_return Error(locked.Annotate("another daemon serves " + directory));
  }
  co_return SuperblockFile(io, std::move(directory), *file);
}

Task<Result<SuperblockImage>> SuperblockFile::Read() {
  SuperblockImage image;
  std::vector<std::optional<format::Superblock>> copies(kSuperblockCopies);
  REPRISE_CO_ASSIGN(uint64_t size, co_await io_->Size(file_));
  if (size == 0) co_return image;
  AlignedBuffer buffer(kSuperblockBytes);
  bool any_intact = false;
  for (size_t i = 0; i < kSuperblockCopies; ++i) {
    if (size < (i + 1) * kSuperblockBytes) continue;
    Status read = co_await ReadFully(*io_, file_, buffer.span(), i * kSuperblockBytes);
    Result<format::Superblock> copy = read.ok() ? format::DecodeSuperblock(buffer.view())
                                                : Result<format::Superblock>(Error(read));
    if (!copy.has_value()) {
      if (copy.error().code() == Code::kUnimplemented) co_return Error(copy.error());
      continue;
    }
    copies[i] = *copy;
    any_intact = true;
  }
  for (size_t i = 0; i < kSuperblockCopies; ++i) {
    for (size_t j = i + 1; j < kSuperblockCopies; ++j) {
      if (!copies[i].has_value() || copies[i] != copies[j]) continue;
      if (!image.agreed.has_value() || copies[i]->incarnation > image.agreed->incarnation) {
        image.agreed = copies[i];
      }
    }
  }
  for (size_t i = 0; i < kSuperblockCopies && any_intact; ++i) {
    if (copies[i] != image.agreed) {
      image.repairs.push_back(fmt::format("SUPER copy {} was damaged or older: rewritten", i));
    }
  }
  co_return image;
}

Task<Status> SuperblockFile::Write(format::Superblock superblock) {
  AlignedBuffer block = AlignedBuffer::CopyOf(format::EncodeSuperblock(superblock));
  for (size_t pair = 0; pair < kSuperblockCopies; pair += 2) {
    for (size_t i = pair; i < pair + 2; ++i) {
      REPRISE_CO_RETURN_IF_ERROR(
          co_await WriteFully(*io_, file_, block.view(), i * kSuperblockBytes));
    }
    REPRISE_CO_RETURN_IF_ERROR(co_await FlushFile(*io_, file_));
  }
  co_return co_await io_->SyncDirectory(directory_);
}

Task<Status> SuperblockFile::Close() { return io_->Close(file_); }

}  // namespace reprise::lifecycle
