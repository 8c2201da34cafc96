// The journal's protocol.
//
// Append
//   A1  entries are queued; the writer takes as many whole appends as fit one slot, in order
//   A2  wait until the slot to be overwritten (seq - slot_count) is durable in the index
//   A3  write the slot to both copies at once, O_DIRECT | O_DSYNC          <- linearisation point:
//   A4  reap both, each must have moved 4096 bytes                            both are complete
//   A5  last := seq; on_durable calls in order; callers resume
//   A crash before A3 leaves nothing; during A3 the slot may be whole, torn or absent in each copy;
//   recovery takes the group when either copy holds it whole (nobody was told either way) and it is
//   durable before anybody sees it (R6). Failure in A4: outcome unknown, the journal is failed.
//
// Recovery (recovery.cc decides, Open carries out)
//   R1  lock both files (waits out writes of a killed predecessor), read both rings whole
//   R2  newest slot > applied + slot_count: the ring no longer reaches back        -> DATA_LOSS
//   R3  applied must be in the ring, or overwritten: newest < applied is a device
//       that lies, another chain value at `applied` is another store's index       -> DATA_LOSS
//   R4  from applied on take seq+1 while either copy has an intact slot whose `previous` is the chain
//       value so far. Two different ones: the one with a successor; none or both   -> DATA_LOSS
//       W is the last one taken
//   R5  an intact slot beyond W: damage in the middle                              -> DATA_LOSS
//       a damaged slot W+1 with nothing beyond is the tail that A3 left
//   R6  make the copies alike, one slot at a time through O_DSYNC, the weaker copy first; then write
//       W again in both: it may have been read from a volatile cache
//   R7  hand out (applied, W]; serve
//   A crash during R6 leaves every group of (applied, W] whole in at least one copy.
#include "server/journal/journal.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <utility>

#include "core/base/aligned_buffer.h"
#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/io/transfer.h"
#include "server/journal/recovery.h"
#include "server/journal/ring.h"

namespace reprise::journal {
namespace {

constexpr size_t kStoreIdOffset = 16;  // of a slot; docs/format.md, "Journal"

Status CheckOptions(const Options& options) {
  if (options.slot_count < 2 || options.slot_count > kSlotCountMax) {
    return FailStatus(Code::kInvalidArgument, "a journal has 2 to {} slots, not {}", kSlotCountMax,
                      options.slot_count);
  }
  if (options.path_a.empty() || options.path_b.empty() || options.path_a == options.path_b) {
    return Status(Code::kInvalidArgument, "a journal needs two different files");
  }
  return OkStatus();
}

// True when `slot` is an intact slot of whatever store, or of a newer version.
bool IsAnyStoresSlot(ByteView slot) {
  Id store;
  std::memcpy(store.bytes.data(), slot.data() + kStoreIdOffset, store.bytes.size());
  Result<format::Slot> decoded = format::DecodeSlot(slot, store);
  return decoded.has_value() || decoded.error().code() == Code::kUnimplemented;
}

// ALREADY_EXISTS when `path` is a journal that holds something.
Task<Status> RefuseJournalInUse(Io& io, std::string path, uint32_t slot_count) {
  Result<FileId> file = co_await OpenRing(io, path, /*dsync=*/false);
  if (!file.has_value()) {
    if (file.error().code() == Code::kNotFound) co_return OkStatus();
    co_return file.error();
  }
  RingImage image = co_await ReadRing(io, *file, path, slot_count);
  REPRISE_CO_RETURN_IF_ERROR(co_await io.Close(*file));
  for (uint32_t position = 0; position < slot_count; ++position) {
    size_t offset = position * limits::kJournalSlotBytes;
    if (IsAnyStoresSlot(image.bytes.view().subspan(offset, limits::kJournalSlotBytes))) {
      co_return FailStatus(Code::kAlreadyExists,
                           "{} is the journal of a store: use another directory, or remove it if "
                           "what it holds is not needed",
                           path);
    }
  }
  co_return OkStatus();
}

}  // namespace

struct Journal::State {
  // One Append that has not been answered.
  struct Pending {
    explicit Pending(Loop& loop) : done(loop) {}
    std::vector<format::Entry> entries;
    size_t space_bytes = 0;
    std::function<void(const Mark&)> on_durable;
    OneShot<Result<Mark>> done;
  };
  using PendingPtr = std::shared_ptr<Pending>;
  // Two slot writes of one group.
  struct PairWrite {
    explicit PairWrite(Loop& loop) : changed(loop) {}
    int unfinished = 0;
    Status status;
    Notifier changed;
  };

  State(Io& io_in, Options options_in, std::array<FileId, 2> files_in, Mark last_in,
        Mark indexed_in)
      : io(io_in),
        options(std::move(options_in)),
        files(files_in),
        last(last_in),
        indexed(indexed_in),
        changed(io_in.loop()) {}

  void RefuseQueued(const Status& why) {
    why.IgnoreError();  // for whoever is queued; perhaps nobody
    for (const PendingPtr& pending : std::exchange(queue, {})) pending->done.Set(Error(why));
  }
  Status Refusal() const {
    if (failed) {
      return Status(Code::kUnavailable,
                    "the journal has failed (see the first error): restart the store to recover");
    }
    if (refusing) return Status(Code::kUnavailable, "the journal is closed");
    return OkStatus();
  }

  Io& io;
  const Options options;
  const std::array<FileId, 2> files;
  Mark last;
  Mark indexed;
  std::deque<PendingPtr> queue;
  bool writing = false;  // a writer coroutine exists
  bool failed = false;
  bool refusing = false;
  bool closing = false;
  Notifier changed;  // indexed moved, the writer ended, or refusing began

  static Task<void> RunWriter(std::shared_ptr<State> state);
  static Task<void> WriteOne(std::shared_ptr<State> state, size_t copy,
                             std::shared_ptr<const AlignedBuffer> slot, uint32_t position,
                             std::shared_ptr<PairWrite> pair);
  static Task<Status> WriteBoth(std::shared_ptr<State> state, AlignedBuffer slot,
                                uint32_t position);
  std::vector<PendingPtr> TakeGroup();
  format::Slot MakeSlot(const std::vector<PendingPtr>& group) const;
  static void Acknowledge(const std::vector<PendingPtr>& group, const Mark& mark);
};

// A1: the longest prefix of the queue that fits one slot.
std::vector<Journal::State::PendingPtr> Journal::State::TakeGroup() {
  std::vector<PendingPtr> group;
  size_t space = 0;
  while (!queue.empty() && space + queue.front()->space_bytes <= format::SlotCapacity()) {
    space += queue.front()->space_bytes;
    group.push_back(std::move(queue.front()));
    queue.pop_front();
  }
  REPRISE_CHECK(!group.empty());
  return group;
}

format::Slot Journal::State::MakeSlot(const std::vector<PendingPtr>& group) const {
  format::Slot slot{options.store, last.seq + 1, last.chain, {}};
  for (const PendingPtr& pending : group) {
    slot.entries.insert(slot.entries.end(), pending->entries.begin(), pending->entries.end());
  }
  return slot;
}

void Journal::State::Acknowledge(const std::vector<PendingPtr>& group, const Mark& mark) {
  for (const PendingPtr& pending : group) {
    if (pending->on_durable) pending->on_durable(mark);
    pending->done.Set(mark);
  }
}

Task<void> Journal::State::WriteOne(std::shared_ptr<State> state, size_t copy,
                                    std::shared_ptr<const AlignedBuffer> slot, uint32_t position,
                                    std::shared_ptr<PairWrite> pair) {
  Status status = co_await WriteSlot(state->io, state->files[copy], position, slot->view());
  if (!status.ok() && pair->status.ok()) {
    const Options& options = state->options;
    pair->status = status.Annotate(copy == 0 ? options.path_a : options.path_b);
  }
  --pair->unfinished;
  pair->changed.Notify();
}

// A3, A4. Both copies are reaped before the answer, whatever happens to one of them.
Task<Status> Journal::State::WriteBoth(std::shared_ptr<State> state, AlignedBuffer slot,
                                       uint32_t position) {
  auto shared = std::make_shared<const AlignedBuffer>(std::move(slot));
  auto pair = std::make_shared<PairWrite>(state->io.loop());
  for (size_t copy : {0, 1}) {
    if (copy == 1 && state->options.mutations.skip_second_copy) continue;
    ++pair->unfinished;
    state->io.loop().Spawn(WriteOne(state, copy, shared, position, pair));
  }
  co_await pair->changed.WaitFor([&pair] { return pair->unfinished == 0; });
  co_return pair->status;
}

Task<void> Journal::State::RunWriter(std::shared_ptr<State> state) {
  while (true) {
    // A2. Refusing wakes this wait too.
    co_await state->changed.WaitFor([&] {
      return state->refusing || state->queue.empty() ||
             state->last.seq + 1 <= state->indexed.seq + state->options.slot_count;
    });
    if (state->refusing) {
      state->RefuseQueued(Status(Code::kUnavailable, "the journal was closed before the write"));
    }
    if (state->queue.empty()) break;

    std::vector<PendingPtr> group = state->TakeGroup();
    Bytes encoded = format::EncodeSlot(state->MakeSlot(group));
    Mark mark{state->last.seq + 1, format::ChainValue(encoded)};
    bool early = state->options.mutations.ack_before_durable;
    if (early) Acknowledge(group, mark);
    Status status = co_await WriteBoth(state, AlignedBuffer::CopyOf(encoded),
                                       static_cast<uint32_t>(mark.seq % state->options.slot_count));
    if (!status.ok()) {
      state->failed = true;
      LogError("journal: group {} may or may not be stored ({}); stopping until restart", mark.seq,
               status.ToString());
      Status unknown =
          FailStatus(Code::kOutcomeUnknown, "journal group {}: {}", mark.seq, status.message());
      unknown.IgnoreError();  // told below, but for the mutation that has told something else
      for (const PendingPtr& pending : group) {
        if (!early) pending->done.Set(Error(unknown));
      }
      state->RefuseQueued(state->Refusal());
      break;
    }
    state->last = mark;  // A5
    if (!early) Acknowledge(group, mark);
  }
  state->writing = false;
  state->changed.Notify();
}

Journal::Journal(std::shared_ptr<State> state) : state_(std::move(state)) {}
Journal::~Journal() = default;

Task<Status> Journal::Create(Io& io, Options options) {
  REPRISE_CO_RETURN_IF_ERROR(CheckOptions(options));
  for (const std::string& path : {options.path_a, options.path_b}) {
    REPRISE_CO_RETURN_IF_ERROR(co_await RefuseJournalInUse(io, path, options.slot_count));
  }
  for (const std::string& path : {options.path_a, options.path_b}) {
    REPRISE_CO_RETURN_IF_ERROR(co_await WriteEmptyRing(io, path, options.slot_count));
  }
  co_return OkStatus();
}

namespace {

// R1: opens both copies, making a missing one anew when there is the other.
Task<Result<std::array<FileId, 2>>> OpenCopies(Io& io, Options options,
                                               std::vector<std::string>& notes) {
  std::array<std::string, 2> paths{options.path_a, options.path_b};
  std::array<FileId, 2> files;
  Status failure;
  for (size_t copy : {0, 1}) {
    Result<FileId> file = co_await OpenRing(io, paths[copy], !options.mutations.no_dsync);
    if (file.has_value()) files[copy] = *file;
    if (!file.has_value() && file.error().code() != Code::kNotFound) failure = file.error();
  }
  if (failure.ok() && !files[0].valid() && !files[1].valid()) {
    failure = FailStatus(Code::kNotFound, "there is no journal: neither {} nor {} exists", paths[0],
                         paths[1]);
  }
  for (size_t copy = 0; copy < 2 && failure.ok(); ++copy) {
    if (files[copy].valid()) continue;
    failure = co_await WriteEmptyRing(io, paths[copy], options.slot_count);
    if (!failure.ok()) break;
    Result<FileId> file = co_await OpenRing(io, paths[copy], !options.mutations.no_dsync);
    failure = StatusOf(file);
    if (file.has_value()) files[copy] = *file;
    notes.push_back("journal copy " + paths[copy] + " was missing; made anew");
  }
  if (failure.ok()) co_return files;
  for (FileId file : files) {
    if (file.valid()) (void)co_await io.Close(file);
  }
  co_return Error(failure);
}

// R2 to R6 on open files.
Task<Result<RecoveryPlan>> RecoverCopies(Io& io, Options options, std::array<FileId, 2> files,
                                         Mark applied) {
  std::array<RingImage, 2> images;
  images[0] = co_await ReadRing(io, files[0], options.path_a, options.slot_count);
  images[1] = co_await ReadRing(io, files[1], options.path_b, options.slot_count);
  Result<RecoveryPlan> plan = PlanRecovery(images, options, applied);
  if (!plan.has_value()) co_return Error(plan.error());
  for (const Rewrite& rewrite : plan->rewrites) {
    AlignedBuffer slot = AlignedBuffer::CopyOf(rewrite.slot);
    Status written = co_await WriteSlot(io, files[rewrite.copy], rewrite.position, slot.view());
    if (!written.ok()) {
      co_return Error(written.Annotate("repair of journal copy " + images[rewrite.copy].name));
    }
  }
  plan->rewrites.clear();  // they point into the images
  co_return std::move(*plan);
}

}  // namespace

Task<Result<Journal::Recovered>> Journal::Open(Io& io, Options options, Mark applied) {
  REPRISE_CO_TRY(CheckOptions(options));
  Recovered recovered;
  Result<std::array<FileId, 2>> files = co_await OpenCopies(io, options, recovered.repairs);
  if (!files.has_value()) co_return Error(files.error());
  Result<RecoveryPlan> plan = co_await RecoverCopies(io, options, *files, applied);
  if (!plan.has_value()) {
    for (FileId file : *files) (void)co_await io.Close(file);
    co_return Error(plan.error());
  }
  recovered.replay = std::move(plan->replay);
  recovered.repairs.insert(recovered.repairs.end(), plan->notes.begin(), plan->notes.end());
  recovered.journal.reset(
      new Journal(std::make_shared<State>(io, std::move(options), *files, plan->last, applied)));
  co_return std::move(recovered);
}

Task<Result<Mark>> Journal::Append(std::vector<format::Entry> entries,
                                   std::function<void(const Mark&)> on_durable) {
  std::shared_ptr<State> state = state_;
  auto pending = std::make_shared<State::Pending>(state->io.loop());
  for (const format::Entry& entry : entries) {
    pending->space_bytes += format::SlotSpaceOf(format::EncodeEntry(entry));
  }
  if (entries.empty() || pending->space_bytes > format::SlotCapacity()) {
    co_return Fail(Code::kInvalidArgument,
                   "an append of {} entries takes {} bytes: a slot holds 1 to {} bytes",
                   entries.size(), pending->space_bytes, format::SlotCapacity());
  }
  REPRISE_CO_TRY(state->Refusal());
  pending->entries = std::move(entries);
  pending->on_durable = std::move(on_durable);
  state->queue.push_back(pending);
  if (!state->writing) {
    state->writing = true;
    state->io.loop().Spawn(State::RunWriter(state));
  }
  std::optional<Result<Mark>> answer = co_await pending->done.Wait();
  co_return std::move(*answer);
}

void Journal::SetIndexed(Mark mark) {
  if (mark.seq <= state_->indexed.seq) return;
  REPRISE_CHECK(mark.seq <= state_->last.seq || state_->options.mutations.ack_before_durable,
                "the index cannot be ahead of the journal");
  state_->indexed = mark;
  state_->changed.Notify();
}

Mark Journal::last() const { return state_->last; }
uint64_t Journal::unindexed() const { return state_->last.seq - state_->indexed.seq; }
bool Journal::failed() const { return state_->failed; }

void Journal::Refuse() {
  state_->refusing = true;
  state_->changed.Notify();
}

Task<void> Journal::Close() {
  std::shared_ptr<State> state = state_;
  if (state->closing) co_return;
  state->closing = true;
  Refuse();
  co_await state->changed.WaitFor([&state] { return !state->writing; });
  for (FileId file : state->files) {
    Status closed = co_await state->io.Close(file);
    if (!closed.ok()) LogWarn("journal: {}", closed.ToString());
  }
}

}  // namespace reprise::journal
