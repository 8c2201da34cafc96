#include "server/node/slab.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::node {
namespace {

constexpr std::string_view kSlotSuffix = ".slot";
constexpr std::string_view kMetaSuffix = ".meta";
constexpr std::string_view kScratchSuffix = ".ring";
constexpr std::string_view kNodeIdName = "node.id";
constexpr size_t kJobsRemembered = 1024;

constexpr OpenOptions kPlainFile = {.write = true, .create = true, .direct = false};

std::string MetaName(const std::string& slot_name) {
  return slot_name.substr(0, slot_name.size() - kSlotSuffix.size()) + std::string(kMetaSuffix);
}

// Opens, works, closes; the first failure counts.
Task<Status> WriteWholeFile(Io& io, std::string path, Bytes content) {
  REPRISE_CO_ASSIGN_STATUS(FileId file, co_await io.Open(path, kPlainFile));
  Status status = co_await WriteFully(io, file, content, 0);
  if (status.ok()) status = co_await io.Truncate(file, content.size());
  Status closed = co_await io.Close(file);
  co_return status.ok() ? closed : status.Annotate(path);
}

Task<Result<Bytes>> ReadWholeFile(Io& io, std::string path, uint64_t bytes_max) {
  REPRISE_CO_ASSIGN(FileId file, co_await io.Open(path, {.write = false, .direct = false}));
  Result<uint64_t> size = co_await io.Size(file);
  Status status = StatusOf(size);
  if (status.ok() && *size > bytes_max) {
    status = FailStatus(Code::kDataLoss, "{} bytes, at most {} are expected", *size, bytes_max);
  }
  Bytes content(status.ok() ? *size : 0);
  if (status.ok()) status = co_await ReadFully(io, file, content, 0);
  Status closed = co_await io.Close(file);
  if (status.ok()) status = closed;
  REPRISE_CO_TRY(status.Annotate(path));
  co_return content;
}

Task<Status> AllocateFile(Io& io, std::string path, uint64_t data_offset, uint64_t data_bytes,
                          Bytes head) {
  REPRISE_CO_ASSIGN_STATUS(
      FileId file, co_await io.Open(path, {.create = true, .exclusive = true, .direct = false}));
  Status status = co_await io.Allocate(file, data_offset, data_bytes);
  if (status.ok() && !head.empty()) status = co_await WriteFully(io, file, head, 0);
  Status closed = co_await io.Close(file);
  co_return status.ok() ? closed : status;
}

}  // namespace

uint64_t SlotCost(uint64_t slot_bytes) { return slot_bytes + kSlotHeaderBytes; }

BudgetHold::BudgetHold(std::shared_ptr<uint64_t> used, uint64_t bytes)
    : used_(std::move(used)), bytes_(bytes) {
  *used_ += bytes_;
}
BudgetHold::BudgetHold(BudgetHold&& other) noexcept
    : used_(std::move(other.used_)), bytes_(std::exchange(other.bytes_, 0)) {}
BudgetHold& BudgetHold::operator=(BudgetHold&& other) noexcept {
  std::swap(used_, other.used_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
BudgetHold::~BudgetHold() {
  if (used_ != nullptr) *used_ -= bytes_;
}

ByteView Slot::Chunk(uint64_t index) const {
  uint64_t length = format::ChunkLength(manifest_->length, manifest_->chunk_bytes, index);
  return ByteView(data()).subspan(index * manifest_->chunk_bytes, length);
}

bool Slot::Holds(const Id& attempt, uint32_t rank) const {
  return state() == SlotState::kSealed && !quarantined_ && !removed_ &&
         manifest_->identity.attempt == attempt && manifest_->identity.rank == rank;
}

void Slot::WriteHeader() {
  Bytes block = EncodeSlotHeader(header_);
  std::memcpy(mapping_.bytes().data(), block.data(), block.size());
}

Slab::Slab(Io& io, Rng& rng, SlabOptions options)
    : io_(io), rng_(rng), options_(std::move(options)), gate_(io.loop()) {}

Task<Result<std::unique_ptr<Slab>>> Slab::Open(Io& io, Rng& rng, SlabOptions options) {
  auto slab = std::unique_ptr<Slab>(new Slab(io, rng, std::move(options)));
  const std::string& directory = slab->options_.directory;
  REPRISE_CO_TRY(co_await io.MakeDirectory(directory));
  REPRISE_CO_ASSIGN(slab->lock_,
                    co_await io.Open(slab->PathOf(std::string(kNodeIdName)), kPlainFile));
  Status status = co_await io.Lock(slab->lock_);
  if (status.ok()) status = co_await slab->LoadNodeId();
  if (status.ok()) status = co_await slab->Adopt();
  slab->budget_bytes_ = slab->options_.bytes_max;
  if (status.ok() && slab->budget_bytes_ == 0) {
    Result<uint64_t> free = co_await io.FreeBytes(directory);
    status = StatusOf(free);
    if (status.ok()) slab->budget_bytes_ = (*free + slab->used_bytes()) / 2;
  }
  if (!status.ok()) {
    co_await slab->Close();
    co_return Error(status.Annotate("slab directory " + directory));
  }
  co_return slab;
}

Task<void> Slab::Close() {
  co_await gate_.Close();
  if (lock_.valid()) {
    Status closed = co_await io_.Close(lock_);
    if (!closed.ok()) LogWarn("slab: {}", closed.ToString());
    lock_ = {};
  }
}

Task<Status> Slab::LoadNodeId() {
  std::string path = PathOf(std::string(kNodeIdName));
  Result<Bytes> content = co_await ReadWholeFile(io_, path, 4096);
  std::optional<Id> id;
  if (content.has_value()) id = Id::FromHex(TextOf(*content).substr(0, 32));
  if (id.has_value()) {
    node_id_ = *id;
    co_return OkStatus();
  }
  node_id_ = rng_.NewId();
  std::string text = node_id_.ToHex() + "\n";
  ByteView view = ViewOf(text);
  // Through the locked descriptor: opening the name again to write would race nobody, but closing a
  // second descriptor must not be able to touch the lock.
  Status written = co_await WriteFully(io_, lock_, view, 0);
  co_return written.Annotate(path);
}

Task<Status> Slab::Adopt() {
  REPRISE_CO_ASSIGN_STATUS(std::vector<std::string> names, co_await io_.List(options_.directory));
  for (const std::string& name : names) {
    if (name.ends_with(kScratchSuffix)) RemoveFile(name);
    if (!name.ends_with(kSlotSuffix)) continue;
    Status adopted = co_await AdoptOne(name);
    if (adopted.ok()) continue;
    // FAILED_PRECONDITION is the normal case of a slot that was not sealed.
    LogLevel level =
        adopted.code() == Code::kFailedPrecondition ? LogLevel::kInfo : LogLevel::kWarn;
    Log(level, "slab: slot file {} is dropped: {}", name, adopted.message());
    RemoveFile(MetaName(name));
    RemoveFile(name);
  }
  for (const std::string& name : names) {
    if (!name.ends_with(kMetaSuffix)) continue;
    bool known = std::ranges::any_of(
        slots_, [&](const std::shared_ptr<Slot>& slot) { return MetaName(slot->name_) == name; });
    if (!known) RemoveFile(name);
  }
  DropSuperseded();
  co_return OkStatus();
}

Task<Status> Slab::AdoptOne(std::string name) {
  REPRISE_CO_ASSIGN_STATUS(SlabMapping mapping,
                           options_.machine->Map(PathOf(name), kSlotDataOffset));
  REPRISE_CO_ASSIGN_STATUS(SlotHeader header,
                           DecodeSlotHeader(mapping.bytes().first(kSlotHeaderBytes)));
  if (header.state != SlotState::kSealed) {
    co_return Status(Code::kFailedPrecondition, "it holds no sealed snapshot");
  }
  if (mapping.size() < kSlotDataOffset + header.capacity) {
    co_return Status(Code::kDataLoss, "it is shorter than its header says");
  }
  REPRISE_CO_ASSIGN_STATUS(Bytes companion,
                           co_await ReadWholeFile(io_, PathOf(MetaName(name)), header.meta_bytes));
  REPRISE_CO_ASSIGN_STATUS(SlotMeta meta, DecodeSlotMeta(companion, header));

  auto slot = std::make_shared<Slot>();
  slot->name_ = name;
  slot->header_ = header;
  slot->budget_ = BudgetHold(used_, SlotCost(header.capacity));
  slot->mapping_ = std::move(mapping);
  slot->manifest_ = std::make_shared<const format::ShardManifest>(std::move(meta.manifest));
  slot->layout_ = std::make_shared<const Bytes>(std::move(meta.layout));
  slots_.push_back(slot);
  if (header.committed) {
    CheckpointKey& newest = newest_committed_[header.identity.job];
    newest = std::max(newest, header.identity.key);
  }
  LogInfo("slab: adopted the snapshot of rank {}, epoch {}, step {} ({}{})", header.identity.rank,
          header.identity.key.epoch, header.identity.key.step, HumanBytes(header.length),
          header.committed ? "" : ", not yet committed");
  co_return OkStatus();
}

Status Slab::Refusal(const GrantRequest& request) const {
  return FailStatus(Code::kResourceExhausted,
                    "needs {} x {} for rank {}, slab budget {}, {} in use: raise node.slab_bytes, "
                    "use fewer ranks per node, or save a smaller state",
                    request.slots, HumanBytes(request.slot_bytes), request.rank,
                    HumanBytes(budget_bytes_), HumanBytes(used_bytes()));
}

Task<Result<std::vector<std::shared_ptr<Slot>>>> Slab::Grant(GrantRequest request) {
  Gate::Hold hold = gate_.Enter();
  if (!hold) co_return Error(Code::kCancelled, "the node daemon is shutting down");
  // No overflow: slot_bytes and slots are limited by the caller's checks against limits.h.
  uint64_t cost = request.slots * SlotCost(request.slot_bytes);
  MakeRoom(cost);
  if (used_bytes() + cost > budget_bytes_) co_return Error(Refusal(request));
  std::vector<BudgetHold> budgets;
  for (uint32_t i = 0; i < request.slots; ++i) {
    budgets.emplace_back(used_, SlotCost(request.slot_bytes));
  }
  std::vector<std::shared_ptr<Slot>> granted;
  for (uint32_t i = 0; i < request.slots; ++i) {
    Result<std::shared_ptr<Slot>> slot = co_await MakeSlot(request, i, std::move(budgets[i]));
    if (!slot.has_value()) {
      for (const std::shared_ptr<Slot>& made : granted) Remove(made);
      co_return Error(slot.error().Annotate("slab"));
    }
    granted.push_back(*slot);
  }
  co_return granted;
}

Task<Result<std::shared_ptr<Slot>>> Slab::MakeSlot(GrantRequest request, uint32_t index,
                                                   BudgetHold budget) {
  auto slot = std::make_shared<Slot>();
  slot->name_ = fmt::format("{}-{}-{}{}", request.owner.ToHex(), request.rank, index, kSlotSuffix);
  slot->owner_ = request.owner;
  slot->budget_ = std::move(budget);
  slot->header_.index = index;
  slot->header_.process = request.process;
  slot->header_.capacity = request.slot_bytes;
  slot->header_.identity.rank = request.rank;
  std::string path = PathOf(slot->name_);
  Status made = co_await AllocateFile(io_, path, kSlotDataOffset, request.slot_bytes,
                                      EncodeSlotHeader(slot->header_));
  if (made.ok()) {
    Result<SlabMapping> mapping = options_.machine->Map(path, kSlotDataOffset + request.slot_bytes);
    made = StatusOf(mapping);
    if (made.ok()) slot->mapping_ = std::move(*mapping);
  }
  if (!made.ok()) {
    RemoveFile(slot->name_);
    co_return Error(made);
  }
  slots_.push_back(slot);
  co_return slot;
}

Task<Result<Slab::Scratch>> Slab::GrantScratch(uint64_t bytes, std::string purpose) {
  Gate::Hold hold = gate_.Enter();
  if (!hold) co_return Error(Code::kCancelled, "the node daemon is shutting down");
  MakeRoom(bytes);
  if (used_bytes() + bytes > budget_bytes_) {
    co_return Fail(Code::kResourceExhausted,
                   "needs {} for {}, slab budget {}, {} in use: raise node.slab_bytes, or lower "
                   "node.restore_ring_chunks",
                   HumanBytes(bytes), purpose, HumanBytes(budget_bytes_), HumanBytes(used_bytes()));
  }
  Scratch scratch;
  scratch.budget = BudgetHold(used_, bytes);
  std::string name = rng_.NewId().ToHex() + std::string(kScratchSuffix);
  Status made = co_await AllocateFile(io_, PathOf(name), 0, bytes, {});
  if (made.ok()) {
    Result<SlabMapping> mapping = options_.machine->Map(PathOf(name), bytes);
    made = StatusOf(mapping);
    if (made.ok()) scratch.mapping = std::move(*mapping);
  }
  // Nameless from here on: it ends with its last descriptor.
  RemoveFile(name);
  REPRISE_CO_TRY(made.Annotate("slab"));
  co_return scratch;
}

void Slab::MakeRoom(uint64_t bytes) {
  while (used_bytes() + bytes > budget_bytes_) {
    std::shared_ptr<Slot> oldest;
    for (const std::shared_ptr<Slot>& slot : slots_) {
      if (!slot->released() || slot->uses_ > 0 || slot->state() != SlotState::kSealed) continue;
      if (!slot->committed() && !IsSuperseded(*slot)) continue;
      if (oldest == nullptr || slot->identity().key < oldest->identity().key) oldest = slot;
    }
    if (oldest == nullptr) return;
    LogInfo("slab: giving up the local copy of rank {}, step {} to make room; the store has it",
            oldest->identity().rank, oldest->identity().key.step);
    Remove(oldest);
  }
}

bool Slab::IsSuperseded(const Slot& slot) const {
  if (slot.state() != SlotState::kSealed) return false;
  auto newest = newest_committed_.find(slot.identity().job);
  return newest != newest_committed_.end() && slot.identity().key < newest->second;
}

Result<std::shared_ptr<Slot>> Slab::Take(const Id& owner, const format::ShardIdentity& shard) {
  std::shared_ptr<Slot> best;
  std::string contents;
  bool all_uncommitted = true;
  for (const std::shared_ptr<Slot>& slot : slots_) {
    if (slot->owner_ != owner) continue;
    if (slot->uses_ == 0 && (slot->state() == SlotState::kFree || IsSuperseded(*slot) ||
                             options_.mutations.reuse_uncommitted)) {
      // A free slot first; else the one with the oldest content.
      bool better =
          best == nullptr ||
          (best->state() != SlotState::kFree &&
           (slot->state() == SlotState::kFree || slot->identity().key < best->identity().key));
      if (better) best = slot;
      continue;
    }
    all_uncommitted = all_uncommitted && !slot->committed();
    if (!contents.empty()) contents += ", ";
    contents += slot->state() == SlotState::kFree
                    ? "an aborted step still being let go"
                    : fmt::format("{}{}", slot->header_.identity.key.step,
                                  slot->committed() ? " (committed, the newest local copy)" : "");
  }
  if (best == nullptr) {
    if (contents.empty()) return Error(Code::kFailedPrecondition, "no slots: attach first");
    return Fail(Code::kResourceExhausted, "{} (steps {})",
                all_uncommitted ? "every slot holds a snapshot that is not yet committed"
                                : "no slot can be reused before the newer snapshot is committed",
                contents);
  }
  ++best->takes_;
  best->header_.identity = shard;
  best->header_.state = SlotState::kFilling;
  best->header_.committed = false;
  best->manifest_ = nullptr;
  best->layout_ = nullptr;
  best->quarantined_ = false;
  best->WriteHeader();
  return best;
}

Task<Status> Slab::Seal(std::shared_ptr<Slot> slot,
                        std::shared_ptr<const format::ShardManifest> manifest,
                        std::shared_ptr<const Bytes> layout) {
  REPRISE_CHECK(slot->state() == SlotState::kFilling);
  Gate::Hold hold = gate_.Enter();
  if (!hold) co_return Status(Code::kCancelled, "the node daemon is shutting down");
  Bytes companion = EncodeSlotMeta(*manifest, *layout);
  uint64_t meta_bytes = companion.size();
  Digest meta_digest = DigestOf(companion);
  if (!options_.mutations.skip_companion) {
    REPRISE_CO_RETURN_IF_ERROR(
        co_await WriteWholeFile(io_, PathOf(MetaName(slot->name_)), std::move(companion)));
  }
  // Discarded, or its process died, while the companion was being written.
  if (slot->removed_ || slot->state() != SlotState::kFilling) {
    if (slot->removed_) RemoveFile(MetaName(slot->name_));
    co_return Status(Code::kAborted, "the snapshot was given up while it was being sealed");
  }
  SlotHeader& header = slot->header_;
  header.state = SlotState::kSealed;
  header.identity = manifest->identity;
  header.length = manifest->length;
  header.chunk_bytes = manifest->chunk_bytes;
  header.layout = manifest->layout;
  header.root = manifest->root;
  header.meta_bytes = meta_bytes;
  header.meta_digest = meta_digest;
  slot->manifest_ = std::move(manifest);
  slot->layout_ = std::move(layout);
  slot->WriteHeader();
  co_return OkStatus();
}

void Slab::Discard(const std::shared_ptr<Slot>& slot) {
  if (slot->removed_) return;
  if (slot->released() || slot->mapping().damaged()) {
    Remove(slot);
    return;
  }
  slot->header_.state = SlotState::kFree;
  slot->header_.committed = false;
  slot->WriteHeader();
}

void Slab::Release(const Id& owner) {
  std::vector<std::shared_ptr<Slot>> all = slots_;
  for (const std::shared_ptr<Slot>& slot : all) {
    if (slot->owner_ != owner) continue;
    slot->owner_ = {};
    // A filling slot in use is being sealed: its process had copied everything.
    bool sealing = slot->state() == SlotState::kFilling && slot->uses_ > 0;
    if ((slot->state() != SlotState::kSealed && !sealing) || slot->quarantined_) Remove(slot);
  }
  DropSuperseded();
}

void Slab::Quarantine(const std::shared_ptr<Slot>& slot) {
  slot->quarantined_ = true;
  if (slot->released()) Remove(slot);
}

void Slab::OnCommitted(const Id& job, CheckpointKey key, const Id& attempt) {
  if (newest_committed_.size() >= kJobsRemembered && !newest_committed_.contains(job)) {
    newest_committed_.erase(newest_committed_.begin());
  }
  CheckpointKey& newest = newest_committed_[job];
  newest = std::max(newest, key);
  for (const std::shared_ptr<Slot>& slot : slots_) {
    if (slot->state() != SlotState::kSealed || slot->identity().attempt != attempt) continue;
    slot->header_.committed = true;
    slot->WriteHeader();
  }
  DropSuperseded();
}

void Slab::OnAborted(const Id& job, CheckpointKey key, const Id& attempt) {
  std::vector<std::shared_ptr<Slot>> all = slots_;
  for (const std::shared_ptr<Slot>& slot : all) {
    if (slot->state() != SlotState::kSealed || slot->committed()) continue;
    const format::ShardIdentity& shard = slot->identity();
    if (shard.job == job && shard.key == key && shard.attempt == attempt) Discard(slot);
  }
}

void Slab::DropSuperseded() {
  std::vector<std::shared_ptr<Slot>> all = slots_;
  for (const std::shared_ptr<Slot>& slot : all) {
    if (slot->released() && slot->uses_ == 0 && IsSuperseded(*slot)) Remove(slot);
  }
}

void Slab::Remove(const std::shared_ptr<Slot>& slot) {
  if (slot->removed_) return;
  slot->removed_ = true;
  slot->owner_ = {};
  std::erase(slots_, slot);
  RemoveFile(MetaName(slot->name_));
  RemoveFile(slot->name_);
  // Nobody may write it now; readers that still hold it keep its memory, not its claim on the
  // budget.
  slot->budget_ = BudgetHold();
}

void Slab::RemoveFile(std::string name) {
  Gate::Hold hold = gate_.Enter();
  if (!hold) return;
  io_.loop().Spawn(RemoveFileTask(this, PathOf(name), std::move(hold)));
}

Task<void> Slab::RemoveFileTask(Slab* slab, std::string path, Gate::Hold) {
  Status removed = co_await slab->io_.Remove(path);
  if (!removed.ok() && removed.code() != Code::kNotFound) {
    LogWarn("slab: {}", removed.ToString());
  }
}

std::shared_ptr<Slot> Slab::Find(const Id& attempt, uint32_t rank) const {
  for (const std::shared_ptr<Slot>& slot : slots_) {
    if (slot->Holds(attempt, rank)) return slot;
  }
  return nullptr;
}

std::vector<lifecycle::InventoryItem> Slab::Inventory() const {
  std::vector<lifecycle::InventoryItem> items;
  for (const std::shared_ptr<Slot>& slot : slots_) {
    if (slot->state() != SlotState::kSealed || slot->quarantined_) continue;
    items.push_back({slot->identity(), slot->manifest_->root, slot->manifest_->length});
  }
  return items;
}

}  // namespace reprise::node
