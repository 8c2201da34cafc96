// Segments on a disk. What must have happened before what:
//
// A segment's life
//   N1  create, allocate segment_bytes, flush the file, sync seg/: before the first byte is written
//       there. A crash before the end leaves a short or nameless file that nothing refers to.
//   N2  in the background, only while nothing is alive in it: zeros, flush, then the marker block
//       behind the last byte, flush. A marker therefore means "every block was written once".
//   N3  a segment found without a marker may hold live data until the ledger has adopted what is
//       alive: it is not zeroed before the first Reserve.
//   N4  a failed write or flush makes it suspect.
//
// Durability
//   W1  every write is reaped and full before the caller learns of it
//   F1  Flush joins the segment's *next* fdatasync: one that is submitted after this call
//   F2  one fdatasync at a time per segment; its result is that of everybody who waited for it
//   F3  after a failed one, all later ones of this segment fail without being tried
#include "server/tier/nvme_tier.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/base/aligned_buffer.h"
#include "core/base/check.h"
#include "core/base/digest.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/io/transfer.h"
#include "server/tier/extent_allocator.h"
#include "server/tier/pieces.h"

namespace reprise::tier {
namespace {

constexpr uint64_t kMarkerBytes = limits::kIoAlignment;
constexpr uint64_t kMarkerMagic = 0x4b52414d47455352;  // "RSEGMARK"
constexpr uint64_t kPieceBytes = limits::kMiB;         // one write or read
constexpr uint64_t kPrewriteBytes = 2 * limits::kMiB;
constexpr int kPiecesInFlightMax = 32;  // of one call
constexpr size_t kSegmentNameDigits = 8;

// Where new extents go first.
enum Preference : uint8_t { kWrittenFirst = 0, kThenFresh, kThenMissing, kThenBeingPrewritten };

std::string SegmentName(uint32_t segment) { return fmt::format("{:08}", segment); }

std::optional<uint32_t> SegmentOfName(const std::string& name) {
  uint32_t segment = 0;
  const char* end = name.data() + name.size();
  auto [rest, error] = std::from_chars(name.data(), end, segment);
  if (name.size() != kSegmentNameDigits || error != std::errc() || rest != end) return std::nullopt;
  return segment;
}

AlignedBuffer MarkerOf(uint32_t segment, uint64_t segment_bytes) {
  ByteWriter writer;
  writer.U64(kMarkerMagic);
  writer.U64(segment_bytes);
  writer.U32(segment);
  writer.U32(Crc32c(writer.view()));
  return AlignedBuffer::CopyOf(writer.view());
}

class NvmeTierImpl final : public Tier {
 public:
  NvmeTierImpl(Io& io, NvmeOptions options);

  Task<Status> OpenSegments();
  void StartPrewriter();

  Result<std::vector<Run>> Reserve(uint64_t bytes, bool for_commit) override;
  void Free(const std::vector<Run>& runs) override;
  Status Adopt(const std::vector<Run>& runs) override;
  Task<Status> Write(const std::vector<Run>& runs, uint64_t position, ByteView data) override;
  Task<Status> Read(const std::vector<Run>& runs, uint64_t position,
                    MutableByteView buffer) override;
  Task<Status> Flush(const std::vector<Run>& runs) override;
  Task<Status> Erase(Run run) override;
  TierUsage usage() const override;
  Task<void> Close() override;

 private:
  enum class State : uint8_t { kMissing, kFresh, kWritten };
  // Everybody who waits for one fdatasync.
  struct FlushBatch {
    explicit FlushBatch(Loop& loop) : done(loop) {}
    OneShot<Status> done;
  };
  struct Segment {
    State state = State::kMissing;
    FileId file;
    bool existed = false;    // a file of that name was found at Open
    bool preparing = false;  // being created or prewritten: no other write now
    bool wanted = false;     // a write waits for the end of that
    bool suspect = false;
    bool flush_failed = false;
    bool flushing = false;
    uint32_t erasers = 0;  // erasures that wait for their turn to flush
    std::shared_ptr<FlushBatch> next_flush;
  };
  // Pieces of one call.
  struct Parts {
    explicit Parts(Loop& loop) : changed(loop) {}
    int unfinished = 0;
    Status status;
    Notifier changed;
  };
  using PieceTask = std::function<Task<Status>(Piece)>;

  std::string PathOf(uint32_t segment) const {
    return options_.directory + "/" + SegmentName(segment);
  }
  Task<Status> OpenSegment(uint32_t index);
  Task<bool> HasMarker(FileId file, uint32_t index);
  Task<Status> CreateSegment(uint32_t index);
  Task<Status> EnsureUsable(uint32_t index);
  void UpdatePreference(uint32_t index);
  void MarkSuspect(uint32_t index, const Status& why);
  Status SuspectStatus(uint32_t index) const;

  Task<void> RunPrewriter();
  std::optional<uint32_t> NextToPrewrite() const;
  Task<Status> Prewrite(uint32_t index);
  Task<Status> PrewriteZeros(uint32_t index);
  bool MustGiveUp(uint32_t index) const {
    return closing_ || segments_[index].wanted || allocator_.used_bytes(index) != 0;
  }

  Task<Status> RunPieces(std::vector<Piece> pieces, PieceTask run);
  Task<void> RunPiece(Piece piece, PieceTask run, std::shared_ptr<Parts> parts);
  Task<Status> WritePiece(Piece piece, ByteView data);
  Task<Status> ReadPiece(Piece piece, MutableByteView buffer);
  Task<Status> FlushSegments(std::set<uint32_t> indices);
  Task<void> RunFlushes(uint32_t index);
  Task<Status> FlushOnce(uint32_t index);

  void BeginCall() { ++calls_; }
  void EndCall() {
    if (--calls_ == 0) changed_.Notify();
  }

  Io& io_;
  const NvmeOptions options_;
  ExtentAllocator allocator_;
  std::vector<Segment> segments_;
  uint64_t calls_ = 0;         // Write, Read and Flush in progress
  bool has_reserved_ = false;  // recovery is over
  bool prewriting_ = false;    // the background coroutine runs
  bool closing_ = false;
  Notifier changed_;  // any of: idle, prepared, freed, reserved, closing
};

NvmeTierImpl::NvmeTierImpl(Io& io, NvmeOptions options)
    : io_(io),
      options_(std::move(options)),
      allocator_({.segment_bytes = options_.segment_bytes,
                  .segment_count = options_.segment_count,
                  .reserve_bytes = CommitReserveOf(options_.segment_bytes * options_.segment_count),
                  .preference = kThenMissing}),
      segments_(options_.segment_count),
      changed_(io.loop()) {}

// --- opening and making segments

Task<Status> NvmeTierImpl::OpenSegments() {
  REPRISE_CO_RETURN_IF_ERROR(co_await io_.MakeDirectory(options_.directory));
  size_t slash = options_.directory.rfind('/');
  if (slash != std::string::npos && slash != 0) {
    REPRISE_CO_RETURN_IF_ERROR(co_await io_.SyncDirectory(options_.directory.substr(0, slash)));
  }
  REPRISE_CO_ASSIGN_STATUS(std::vector<std::string> names, co_await io_.List(options_.directory));
  for (const std::string& name : names) {
    std::optional<uint32_t> index = SegmentOfName(name);
    if (!index.has_value() || *index >= options_.segment_count) {
      LogWarn("{}/{} is no segment of this store; it is left alone", options_.directory, name);
      continue;
    }
    REPRISE_CO_RETURN_IF_ERROR(co_await OpenSegment(*index));
  }
  // A predecessor may have been killed between making a segment and syncing its name.
  co_return co_await io_.SyncDirectory(options_.directory);
}

Task<Status> NvmeTierImpl::OpenSegment(uint32_t index) {
  Segment& segment = segments_[index];
  REPRISE_CO_ASSIGN_STATUS(segment.file, co_await io_.Open(PathOf(index), {}));
  segment.existed = true;
  REPRISE_CO_ASSIGN_STATUS(uint64_t size, co_await io_.Size(segment.file));
  if (size >= options_.segment_bytes) {
    bool written =
        size >= options_.segment_bytes + kMarkerBytes && co_await HasMarker(segment.file, index);
    segment.state = written ? State::kWritten : State::kFresh;
  }
  UpdatePreference(index);
  co_return OkStatus();
}

Task<bool> NvmeTierImpl::HasMarker(FileId file, uint32_t index) {
  AlignedBuffer found(kMarkerBytes);
  Status read = co_await ReadFully(io_, file, found.span(), options_.segment_bytes);
  AlignedBuffer expected = MarkerOf(index, options_.segment_bytes);
  co_return read.ok() && std::ranges::equal(found.view(), expected.view());
}

// N1
Task<Status> NvmeTierImpl::CreateSegment(uint32_t index) {
  Segment& segment = segments_[index];
  if (!segment.file.valid()) {
    REPRISE_CO_ASSIGN_STATUS(segment.file, co_await io_.Open(PathOf(index), {.create = true}));
  }
  Status allocated = co_await io_.Allocate(segment.file, 0, options_.segment_bytes);
  if (!allocated.ok()) co_return allocated.Annotate("new segment " + PathOf(index));
  if (!options_.mutations.skip_creation_sync) {
    REPRISE_CO_RETURN_IF_ERROR(co_await FlushFile(io_, segment.file));
    REPRISE_CO_RETURN_IF_ERROR(co_await io_.SyncDirectory(options_.directory));
  }
  segment.state = State::kFresh;
  co_return OkStatus();
}

// Waits until nobody else prepares the segment, and makes it when it is missing.
Task<Status> NvmeTierImpl::EnsureUsable(uint32_t index) {
  Segment& segment = segments_[index];
  while (segment.preparing) {
    segment.wanted = true;
    changed_.Notify();
    co_await changed_.WaitFor([&segment] { return !segment.preparing; });
  }
  if (segment.suspect) co_return SuspectStatus(index);
  if (segment.state != State::kMissing) co_return OkStatus();
  segment.preparing = true;
  Status created = co_await CreateSegment(index);
  segment.preparing = false;
  // Full is not broken: the next attempt may find room.
  if (!created.ok() && created.code() != Code::kResourceExhausted) MarkSuspect(index, created);
  UpdatePreference(index);
  changed_.Notify();
  if (created.ok() || created.code() == Code::kResourceExhausted) co_return created;
  co_return SuspectStatus(index);
}

void NvmeTierImpl::UpdatePreference(uint32_t index) {
  const Segment& segment = segments_[index];
  Preference preference = segment.preparing                  ? kThenBeingPrewritten
                          : segment.state == State::kWritten ? kWrittenFirst
                          : segment.state == State::kFresh   ? kThenFresh
                                                             : kThenMissing;
  allocator_.SetPreference(index, preference);
}

void NvmeTierImpl::MarkSuspect(uint32_t index, const Status& why) {
  if (!segments_[index].suspect) {
    LogError(
        "segment {} is suspect until restart, nothing new is placed there: {}. Check the "
        "device's health",
        PathOf(index), why.ToString());
  }
  segments_[index].suspect = true;
  allocator_.Exclude(index);
}

Status NvmeTierImpl::SuspectStatus(uint32_t index) const {
  return FailStatus(Code::kUnavailable,
                    "segment {} failed a write or a flush before: reserve elsewhere",
                    PathOf(index));
}

// --- prewriting

void NvmeTierImpl::StartPrewriter() {
  prewriting_ = true;
  io_.loop().Spawn(RunPrewriter());
}

// N3: segments that were found are left alone until recovery is over.
std::optional<uint32_t> NvmeTierImpl::NextToPrewrite() const {
  for (uint32_t index = 0; index < segments_.size(); ++index) {
    const Segment& segment = segments_[index];
    bool eligible = segment.state != State::kWritten && !segment.suspect && !segment.preparing &&
                    allocator_.used_bytes(index) == 0 && (!segment.existed || has_reserved_);
    if (eligible) return index;
  }
  return std::nullopt;
}

Task<void> NvmeTierImpl::RunPrewriter() {
  while (true) {
    co_await changed_.WaitFor(
        [this] { return closing_ || (calls_ == 0 && NextToPrewrite().has_value()); });
    if (closing_) break;
    uint32_t index = *NextToPrewrite();
    segments_[index].preparing = true;
    segments_[index].wanted = false;
    UpdatePreference(index);
    Status status = co_await Prewrite(index);
    segments_[index].preparing = false;
    UpdatePreference(index);
    changed_.Notify();
    if (status.code() == Code::kResourceExhausted) {
      LogWarn("segments are no longer made ahead of need: {}", status.ToString());
      break;
    }
    if (!status.ok()) MarkSuspect(index, status);
  }
  prewriting_ = false;
  changed_.Notify();
}

// N2. OK also when it was given up because the segment is needed or the tier closes.
Task<Status> NvmeTierImpl::Prewrite(uint32_t index) {
  Segment& segment = segments_[index];
  if (segment.state == State::kMissing) REPRISE_CO_RETURN_IF_ERROR(co_await CreateSegment(index));
  REPRISE_CO_RETURN_IF_ERROR(co_await PrewriteZeros(index));
  if (MustGiveUp(index)) co_return OkStatus();
  REPRISE_CO_RETURN_IF_ERROR(co_await FlushFile(io_, segment.file));
  AlignedBuffer marker = MarkerOf(index, options_.segment_bytes);
  REPRISE_CO_RETURN_IF_ERROR(
      co_await WriteFully(io_, segment.file, marker.view(), options_.segment_bytes));
  REPRISE_CO_RETURN_IF_ERROR(co_await FlushFile(io_, segment.file));
  segment.state = State::kWritten;
  co_return OkStatus();
}

Task<Status> NvmeTierImpl::PrewriteZeros(uint32_t index) {
  AlignedBuffer zeros(std::min(kPrewriteBytes, options_.segment_bytes));
  for (uint64_t offset = 0; offset < options_.segment_bytes; offset += zeros.size()) {
    co_await changed_.WaitFor([&] { return calls_ == 0 || MustGiveUp(index); });
    if (MustGiveUp(index)) break;
    uint64_t length = std::min<uint64_t>(zeros.size(), options_.segment_bytes - offset);
    REPRISE_CO_RETURN_IF_ERROR(
        co_await WriteFully(io_, segments_[index].file, zeros.view().first(length), offset));
  }
  co_return OkStatus();
}

// --- space

Result<std::vector<Run>> NvmeTierImpl::Reserve(uint64_t bytes, bool for_commit) {
  has_reserved_ = true;
  Result<std::vector<Run>> runs = allocator_.Reserve(bytes, for_commit);
  changed_.Notify();
  return runs;
}

void NvmeTierImpl::Free(const std::vector<Run>& runs) {
  allocator_.Free(runs);
  changed_.Notify();
}

Status NvmeTierImpl::Adopt(const std::vector<Run>& runs) {
  REPRISE_CHECK(!has_reserved_, "Adopt comes before the first Reserve");
  for (const Run& run : runs) {
    if (run.segment >= segments_.size()) continue;  // the allocator says what is wrong
    const Segment& segment = segments_[run.segment];
    if (segment.existed && segment.state != State::kMissing) continue;
    return FailStatus(Code::kDataLoss,
                      "segment {}, which holds live data, is missing or cut short: put the file "
                      "back, or restore what it held from another copy",
                      PathOf(run.segment));
  }
  return allocator_.Adopt(runs);
}

TierUsage NvmeTierImpl::usage() const {
  uint64_t capacity = options_.segment_bytes * options_.segment_count;
  auto suspects = std::ranges::count_if(segments_, [](const Segment& s) { return s.suspect; });
  return {.capacity_bytes = capacity - allocator_.options().reserve_bytes,
          .used_bytes = allocator_.used_bytes(),
          .suspect_bytes = static_cast<uint64_t>(suspects) * options_.segment_bytes};
}

// --- bytes

Task<void> NvmeTierImpl::RunPiece(Piece piece, PieceTask run, std::shared_ptr<Parts> parts) {
  Status status = co_await run(piece);
  if (!status.ok() && parts->status.ok()) parts->status = std::move(status);
  --parts->unfinished;
  parts->changed.Notify();
}

// All pieces are reaped before the answer, whatever happens to one of them.
Task<Status> NvmeTierImpl::RunPieces(std::vector<Piece> pieces, PieceTask run) {
  BeginCall();
  Status status;
  if (pieces.size() == 1) {
    status = co_await run(pieces.front());
  } else {
    auto parts = std::make_shared<Parts>(io_.loop());
    for (const Piece& piece : pieces) {
      co_await parts->changed.WaitFor([&parts] { return parts->unfinished < kPiecesInFlightMax; });
      if (!parts->status.ok()) break;
      ++parts->unfinished;
      io_.loop().Spawn(RunPiece(piece, run, parts));
    }
    co_await parts->changed.WaitFor([&parts] { return parts->unfinished == 0; });
    status = parts->status;
  }
  EndCall();
  co_return status;
}

Task<Status> NvmeTierImpl::Write(const std::vector<Run>& runs, uint64_t position, ByteView data) {
  return RunPieces(CutIntoPieces(runs, position, data.size(), kPieceBytes),
                   [this, data](Piece piece) {
                     return WritePiece(piece, data.subspan(piece.begin, piece.length));
                   });
}

Task<Status> NvmeTierImpl::WritePiece(Piece piece, ByteView data) {
  REPRISE_CO_RETURN_IF_ERROR(co_await EnsureUsable(piece.segment));
  Status written = co_await WriteFully(io_, segments_[piece.segment].file, data, piece.offset);
  if (written.ok()) co_return written;
  if (written.code() == Code::kResourceExhausted) co_return written.Annotate(PathOf(piece.segment));
  MarkSuspect(piece.segment, written);
  co_return FailStatus(Code::kUnavailable, "segment {}: {}", PathOf(piece.segment),
                       written.message());
}

Task<Status> NvmeTierImpl::Read(const std::vector<Run>& runs, uint64_t position,
                                MutableByteView buffer) {
  return RunPieces(CutIntoPieces(runs, position, buffer.size(), kPieceBytes),
                   [this, buffer](Piece piece) {
                     return ReadPiece(piece, buffer.subspan(piece.begin, piece.length));
                   });
}

Task<Status> NvmeTierImpl::ReadPiece(Piece piece, MutableByteView buffer) {
  Segment& segment = segments_[piece.segment];
  if (segment.state == State::kMissing) {
    co_return FailStatus(Code::kDataLoss, "segment {} does not exist", PathOf(piece.segment));
  }
  Status read = co_await ReadFully(io_, segment.file, buffer, piece.offset);
  if (read.ok()) co_return read;
  Code code = read.code() == Code::kOutOfRange ? Code::kDataLoss : Code::kUnavailable;
  co_return FailStatus(code, "segment {}: {}", PathOf(piece.segment), read.message());
}

// --- flushing

Task<Status> NvmeTierImpl::Flush(const std::vector<Run>& runs) {
  std::set<uint32_t> indices;
  for (const Run& run : runs) indices.insert(run.segment);
  return FlushSegments(std::move(indices));
}

Task<Status> NvmeTierImpl::FlushSegments(std::set<uint32_t> indices) {
  BeginCall();
  std::vector<std::shared_ptr<FlushBatch>> batches;
  for (uint32_t index : indices) {
    Segment& segment = segments_[index];
    if (segment.next_flush == nullptr) {
      segment.next_flush = std::make_shared<FlushBatch>(io_.loop());
    }
    batches.push_back(segment.next_flush);
    if (segment.flushing || segment.erasers > 0) continue;
    segment.flushing = true;
    io_.loop().Spawn(RunFlushes(index));
  }
  Status status;
  for (const std::shared_ptr<FlushBatch>& batch : batches) {
    std::optional<Status> done = co_await batch->done.Wait();
    if (status.ok()) status = *done;
  }
  EndCall();
  co_return status;
}

// F1, F2
Task<void> NvmeTierImpl::RunFlushes(uint32_t index) {
  Segment& segment = segments_[index];
  while (segment.next_flush != nullptr && segment.erasers == 0) {
    std::shared_ptr<FlushBatch> batch = std::exchange(segment.next_flush, nullptr);
    Status status = co_await FlushOnce(index);
    batch->done.Set(status);
  }
  segment.flushing = false;
  changed_.Notify();
}

Task<Status> NvmeTierImpl::FlushOnce(uint32_t index) {
  Segment& segment = segments_[index];
  if (options_.mutations.skip_flush || !segment.file.valid()) co_return OkStatus();
  if (segment.flush_failed && !options_.mutations.trust_second_flush) {
    co_return SuspectStatus(index);  // F3
  }
  Status flushed = co_await FlushFile(io_, segment.file);
  if (flushed.ok()) co_return flushed;
  segment.flush_failed = true;
  MarkSuspect(index, flushed);
  co_return FailStatus(
      Code::kUnavailable,
      "segment {}: {}: nothing written since the last flush is safe; write it again "
      "elsewhere",
      PathOf(index), flushed.message());
}

// An overwritten block that a later flush covers is durable whatever failed before (F3 is about blocks
// that were not written again). Its flush is the only one under way (F2): the kernel tells a failure
// once for each open file, so that of two at once one would take what the other has to hear.
Task<Status> NvmeTierImpl::Erase(Run run) {
  Segment& segment = segments_[run.segment];
  if (segment.state == State::kMissing || !segment.file.valid()) co_return OkStatus();
  BeginCall();
  AlignedBuffer zeros(run.length);
  std::memset(zeros.data(), 0, zeros.size());
  Status status = co_await WriteFully(io_, segment.file, zeros.view(), run.offset);
  if (status.ok() && !options_.mutations.skip_flush) {
    ++segment.erasers;
    co_await changed_.WaitFor([&segment] { return !segment.flushing; });
    --segment.erasers;
    segment.flushing = true;
    status = co_await FlushFile(io_, segment.file);
    // Those who wrote before must hear of it as well.
    if (!status.ok()) segment.flush_failed = true;
    if (segment.next_flush != nullptr && segment.erasers == 0) {
      io_.loop().Spawn(RunFlushes(run.segment));  // who came meanwhile; it ends `flushing`
    } else {
      segment.flushing = false;
      changed_.Notify();
    }
  }
  if (!status.ok() && status.code() != Code::kResourceExhausted) MarkSuspect(run.segment, status);
  EndCall();
  co_return status.Annotate(PathOf(run.segment));
}

Task<void> NvmeTierImpl::Close() {
  closing_ = true;
  changed_.Notify();
  co_await changed_.WaitFor([this] { return !prewriting_ && calls_ == 0; });
  for (Segment& segment : segments_) {
    if (!segment.file.valid()) continue;
    Status closed = co_await io_.Close(std::exchange(segment.file, {}));
    if (!closed.ok()) LogWarn("tier: {}", closed.ToString());
  }
}

}  // namespace

Task<Result<std::unique_ptr<Tier>>> NvmeTier::Open(Io& io, NvmeOptions options) {
  bool sound = options.segment_bytes > 0 && options.segment_count > 0 &&
               IsAligned(options.segment_bytes, limits::kIoAlignment);
  if (!sound) {
    co_return Fail(Code::kInvalidArgument,
                   "{} segments of {} bytes: both must be positive, bytes a multiple of {}",
                   options.segment_count, options.segment_bytes, limits::kIoAlignment);
  }
  bool prewrite = options.prewrite;
  auto tier = std::make_unique<NvmeTierImpl>(io, std::move(options));
  Status opened = co_await tier->OpenSegments();
  if (!opened.ok()) {
    co_await tier->Close();
    co_return Error(opened.Annotate("NVMe tier"));
  }
  if (prewrite) tier->StartPrewriter();
  co_return std::unique_ptr<Tier>(std::move(tier));
}

}  // namespace reprise::tier
