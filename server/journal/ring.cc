#include "server/journal/ring.h"

#include <algorithm>
#include <chrono>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::journal {
namespace {

constexpr uint64_t kSlot = limits::kJournalSlotBytes;
constexpr uint64_t kPieceBytes = limits::kMiB;
static_assert(kPieceBytes % kSlot == 0);
constexpr Nanos kLockRetry = std::chrono::milliseconds(20);
constexpr Nanos kLockWaitMax = std::chrono::seconds(5);

// Reads [begin, end) in one piece, or slot by slot when that fails, to find what is unreadable.
Task<void> ReadPiece(Io& io, FileId file, RingImage& image, uint64_t begin, uint64_t end) {
  MutableByteView piece = image.bytes.span().subspan(begin, end - begin);
  Status whole = co_await ReadFully(io, file, piece, begin);
  if (whole.ok()) co_return;
  for (uint64_t offset = begin; offset < end; offset += kSlot) {
    MutableByteView slot = image.bytes.span().subspan(offset, kSlot);
    Status one = co_await ReadFully(io, file, slot, offset);
    if (one.ok()) continue;
    std::fill(slot.begin(), slot.end(), 0);
    image.unreadable[offset / kSlot] = true;
  }
}

Task<Status> FillWithZeros(Io& io, FileId file, uint64_t size) {
  AlignedBuffer zeros(std::min(size, kPieceBytes));
  REPRISE_CO_RETURN_IF_ERROR(co_await io.Allocate(file, 0, size));
  for (uint64_t offset = 0; offset < size; offset += kPieceBytes) {
    ByteView piece = zeros.view().first(std::min(kPieceBytes, size - offset));
    REPRISE_CO_RETURN_IF_ERROR(co_await WriteFully(io, file, piece, offset));
  }
  co_return co_await FlushFile(io, file);
}

}  // namespace

std::string ParentOf(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Task<Status> WriteEmptyRing(Io& io, std::string path, uint32_t slot_count) {
  Result<FileId> file = co_await io.Open(path, {.write = true, .create = true, .direct = true});
  if (!file.has_value()) co_return file.error().Annotate("journal copy");
  Status filled = co_await FillWithZeros(io, *file, uint64_t{slot_count} * kSlot);
  Status closed = co_await io.Close(*file);
  if (!filled.ok()) co_return filled.Annotate("journal copy " + path);
  REPRISE_CO_RETURN_IF_ERROR(closed);
  co_return co_await io.SyncDirectory(ParentOf(path));
}

Task<RingImage> ReadRing(Io& io, FileId file, std::string path, uint32_t slot_count) {
  RingImage image{std::move(path), AlignedBuffer(uint64_t{slot_count} * kSlot),
                  std::vector<bool>(slot_count, false)};
  for (uint64_t begin = 0; begin < image.bytes.size(); begin += kPieceBytes) {
    uint64_t end = std::min<uint64_t>(begin + kPieceBytes, image.bytes.size());
    co_await ReadPiece(io, file, image, begin, end);
  }
  co_return image;
}

Task<Result<FileId>> OpenRing(Io& io, std::string path, bool dsync) {
  Result<FileId> file = co_await io.Open(path, {.write = true, .direct = true, .dsync = dsync});
  if (!file.has_value()) co_return Error(file.error().Annotate("journal copy"));
  TimePoint give_up = io.loop().Now() + kLockWaitMax;
  while (true) {
    Status locked = co_await io.Lock(*file);
    if (locked.ok()) co_return *file;
    if (locked.code() != Code::kFailedPrecondition || io.loop().Now() >= give_up) {
      (void)co_await io.Close(*file);
      co_return Error(
          locked.Annotate("journal copy " + path + ": is another daemon serving this directory?"));
    }
    co_await io.loop().Sleep(kLockRetry);
  }
}

Task<Status> WriteSlot(Io& io, FileId file, uint32_t position, ByteView slot) {
  REPRISE_CHECK(slot.size() == kSlot);
  int64_t moved = co_await io.Write(file, slot, uint64_t{position} * kSlot);
  if (moved < 0) co_return StatusFromErrno(static_cast<int>(-moved), "write of a journal slot");
  if (moved != static_cast<int64_t>(kSlot)) {
    co_return FailStatus(Code::kUnavailable, "write of a journal slot ended after {} of {} bytes",
                         moved, kSlot);
  }
  co_return OkStatus();
}

}  // namespace reprise::journal
