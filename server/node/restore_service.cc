#include "server/node/restore_service.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/log.h"
#include "core/wire/session.h"

namespace reprise::node {
namespace {

constexpr uint32_t kBatchChunks = 8;  // read from the store with one call
constexpr uint64_t kFetchesMax = 16;  // of one process at once; more wait
constexpr size_t kOpenMax = 64;       // checkpoints of one process
constexpr size_t kShardsCached = 64;  // shard manifests of one open checkpoint
constexpr uint32_t kRingChunksMax = 4096;
constexpr uint64_t kRingChunksPlain = 64;  // more only where there is room for many such rings
constexpr uint64_t kRingChunksLeast =
    16;  // for these, local copies that the store has are given up
constexpr Nanos kCopySlice = std::chrono::microseconds(500);

}  // namespace

RestoreRing::RestoreRing(Loop& loop, Slab::Scratch scratch, uint32_t chunks, uint64_t stride_bytes)
    : scratch_(std::move(scratch)), stride_bytes_(stride_bytes), taken_(chunks), changed_(loop) {
  for (uint32_t i = 0; i < chunks; ++i) free_.push_back(i);
}

Task<std::vector<uint32_t>> RestoreRing::Take(uint32_t wanted, std::function<bool()> ended) {
  co_await changed_.WaitFor([&] { return ended() || !free_.empty(); });
  std::vector<uint32_t> taken;
  while (!ended() && taken.size() < wanted && !free_.empty()) {
    taken.push_back(free_.front());
    taken_[free_.front()] = true;
    free_.pop_front();
  }
  co_return taken;
}

void RestoreRing::Free(const std::vector<uint32_t>& indices) {
  for (uint32_t index : indices) {
    if (!is_taken(index)) continue;
    taken_[index] = false;
    free_.push_back(index);
  }
  changed_.Notify();
}

MutableByteView RestoreRing::Buffer(uint32_t index) const {
  return scratch_.mapping.bytes().subspan(index * stride_bytes_, stride_bytes_);
}

class RestoreService::Use {
 public:
  Use(RestoreService& service, OpenPtr open) : service_(service), open_(std::move(open)) {
    ++open_->uses;
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  ~Use() {
    --open_->uses;
    service_.uses_changed_.Notify();
  }

 private:
  RestoreService& service_;
  OpenPtr open_;
};

struct RestoreService::FetchJob {
  OpenPtr open;
  std::shared_ptr<RestoreRing> ring;
  uint32_t rank = 0;
  Digest root;
  uint64_t request = 0;
  uint64_t stream = 0;
};

std::string RestoreService::OpenCheckpoint::name() const {
  return fmt::format("checkpoint {}/{}@{} (epoch {})", tenant, job_name, key.step, key.epoch);
}

RestoreService::RestoreService(NodeContext& context, Slab& slab,
                               std::function<void(Bytes, OwnedFd)> send,
                               std::function<void()> inventory_changed)
    : context_(context),
      slab_(slab),
      send_(std::move(send)),
      inventory_changed_(std::move(inventory_changed)),
      fetches_(context.loop, kFetchesMax),
      uses_changed_(context.loop) {}

Result<RestoreService::OpenPtr> RestoreService::FindOpen(uint64_t stream) const {
  auto found = open_.find(stream);
  if (closing_ || found == open_.end() || found->second->closing) {
    return Fail(Code::kFailedPrecondition, "no checkpoint is open as stream {}", stream);
  }
  return found->second;
}

Result<const format::CheckpointShard*> RestoreService::ShardOf(const OpenCheckpoint& open,
                                                               uint32_t rank) const {
  const auto& shards = open.source->manifest().shards;
  if (rank >= shards.size()) {
    return Fail(Code::kInvalidArgument, "{} has ranks 0 to {}, not {}", open.name(),
                shards.size() - 1, rank);
  }
  return &shards[rank];
}

std::shared_ptr<Slot> RestoreService::LocalCopy(const OpenCheckpoint& open, uint32_t rank) const {
  std::shared_ptr<Slot> slot = slab_.Find(open.source->manifest().attempt, rank);
  if (slot == nullptr) return nullptr;
  return slot->manifest()->root == open.source->manifest().shards[rank].root ? slot : nullptr;
}

Task<Result<RestoreService::OpenPtr>> RestoreService::Resolve(wire::ReadOpen message,
                                                              std::optional<Pinned> pinned,
                                                              Id* job) {
  auto open = std::make_shared<OpenCheckpoint>();
  open->tenant = message.tenant;
  open->job_name = message.job_name;
  bool own = pinned.has_value() && pinned->tenant == message.tenant &&
             pinned->job_name == message.job_name;
  if (own && !message.step.has_value() && !message.epoch.has_value()) {
    if (!pinned->resume.has_value()) {
      co_return Fail(Code::kNotFound, "job {}/{} has no checkpoint to resume from", message.tenant,
                     message.job_name);
    }
    open->key = *pinned->resume;
  } else {
    lifecycle::Selector selector{message.step, message.epoch};
    REPRISE_CO_ASSIGN(
        lifecycle::CheckpointInfo info,
        co_await context_.coordinator.Resolve(message.tenant, message.job_name, selector));
    open->key = info.key;
  }
  if (own) {
    *job = pinned->job;
  } else {
    REPRISE_CO_ASSIGN(lifecycle::JobInfo info,
                      co_await context_.coordinator.GetJob(message.tenant, message.job_name));
    *job = info.job;
  }
  co_return open;
}

Task<Status> RestoreService::ReadOpen(wire::ReadOpen message, uint64_t request, uint64_t stream,
                                      std::optional<Pinned> pinned) {
  if (closing_) co_return Status(Code::kCancelled, "the connection is closing");
  if (open_.contains(stream)) {
    co_return FailStatus(Code::kInvalidArgument, "stream {} is open already", stream);
  }
  if (open_.size() >= kOpenMax) {
    co_return FailStatus(Code::kResourceExhausted,
                         "this process has {} checkpoints open: close some", open_.size());
  }
  Id job;
  REPRISE_CO_ASSIGN_STATUS(OpenPtr open,
                           co_await Resolve(std::move(message), std::move(pinned), &job));
  REPRISE_CO_ASSIGN_STATUS(open->source, co_await context_.store.OpenRead(job, open->key));
  const format::CheckpointManifest& manifest = open->source->manifest();
  Status status;
  if (manifest.job != job || manifest.key != open->key) {
    status = Status(Code::kDataLoss, open->name() + ": the store answered with another checkpoint");
  } else if (closing_ || !open_.emplace(stream, open).second) {
    status = Status(Code::kCancelled, "the stream or the connection was closed meanwhile");
  }
  if (!status.ok()) {
    co_await open->source->Close();
    co_return status;
  }
  wire::ReadOk answer{open->key, format::EncodeCheckpointManifest(manifest)};
  send_(wire::Session::Pack(answer, request, stream), {});
  co_return OkStatus();
}

Task<Result<RestoreService::ShardPtr>> RestoreService::StoreShard(OpenPtr open, uint32_t rank) {
  for (auto shard = open->shards.begin(); shard != open->shards.end(); ++shard) {
    if ((*shard)->identity.rank != rank) continue;
    open->shards.splice(open->shards.begin(), open->shards, shard);
    co_return open->shards.front();
  }
  REPRISE_CO_ASSIGN(format::ShardManifest read, co_await open->source->ShardManifest(rank));
  const format::CheckpointManifest& manifest = open->source->manifest();
  if (read.root != manifest.shards[rank].root || read.identity.attempt != manifest.attempt ||
      read.identity.rank != rank) {
    co_return Fail(Code::kDataLoss, "{}: the manifest of rank {} is not the one it was saved with",
                   open->name(), rank);
  }
  auto shard = std::make_shared<const format::ShardManifest>(std::move(read));
  open->shards.push_front(shard);
  if (open->shards.size() > kShardsCached) open->shards.pop_back();
  co_return shard;
}

Task<Status> RestoreService::ReadShard(wire::ReadShard message, uint64_t request, uint64_t stream) {
  REPRISE_CO_ASSIGN_STATUS(OpenPtr open, FindOpen(stream));
  Use use(*this, open);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(ShardOf(*open, message.rank)));
  std::shared_ptr<Slot> slot = LocalCopy(*open, message.rank);
  ShardPtr shard = slot != nullptr ? slot->manifest() : nullptr;
  if (shard == nullptr) {
    REPRISE_CO_ASSIGN_STATUS(shard, co_await StoreShard(open, message.rank));
  }
  wire::BlobBody body{format::EncodeShardManifest(*shard)};
  send_(wire::Session::PackBody(wire::Opcode::kShardManifest, wire::Encode(body), request, stream),
        {});
  co_return OkStatus();
}

Task<Status> RestoreService::ReadLayout(wire::ReadLayout message, uint64_t request, uint64_t stream,
                                        LayoutCache& cache) {
  REPRISE_CO_ASSIGN_STATUS(OpenPtr open, FindOpen(stream));
  Use use(*this, open);
  std::shared_ptr<const Bytes> layout;
  if (LayoutCache::Entry* entry = cache.Find(message.layout)) layout = entry->encoded;
  for (const std::shared_ptr<Slot>& slot : slab_.slots()) {
    if (layout != nullptr) break;
    if (slot->state() == SlotState::kSealed && slot->manifest()->layout == message.layout) {
      layout = slot->layout();
    }
  }
  if (layout == nullptr) {
    REPRISE_CO_ASSIGN_STATUS(Bytes read, co_await open->source->Layout(message.layout));
    if (DigestOf(read) != message.layout) {
      co_return Status(Code::kDataLoss, open->name() + ": a layout fails its digest");
    }
    layout = std::make_shared<const Bytes>(std::move(read));
    cache.Add({message.layout, layout, nullptr});
  }
  wire::BlobBody body{*layout};
  send_(wire::Session::PackBody(wire::Opcode::kLayout, wire::Encode(body), request, stream), {});
  co_return OkStatus();
}

Task<Status> RestoreService::ReadClose(uint64_t stream) {
  REPRISE_CO_ASSIGN_STATUS(OpenPtr open, FindOpen(stream));
  open->closing = true;
  if (ring_ != nullptr) ring_->Wake();
  co_await uses_changed_.WaitFor([&] { return open->uses == 0; });
  co_await open->source->Close();
  open_.erase(stream);
  co_return OkStatus();
}

Task<Status> RestoreService::RingAttach(wire::RingAttach message, uint64_t request) {
  if (closing_) co_return Status(Code::kCancelled, "the connection is closing");
  if (ring_ != nullptr || attaching_ring_) {
    co_return Status(Code::kFailedPrecondition, "this connection has a restore ring already");
  }
  uint32_t chunk_bytes = context_.chunk_bytes();
  uint32_t chunks = message.chunks == 0 ? context_.options.restore_ring_chunks : message.chunks;
  chunks = std::min({chunks, context_.options.restore_ring_chunks, kRingChunksMax});
  uint64_t stride = AlignUp(chunk_bytes, limits::kIoAlignment);
  uint64_t room = slab_.budget_bytes() - std::min(slab_.used_bytes(), slab_.budget_bytes());
  // Slots are attached after a restore, and other ranks want rings too: none may take it all.
  uint64_t plenty = std::max(kRingChunksPlain, room / stride / 16);
  uint64_t most = std::max(std::min(room / stride, plenty), kRingChunksLeast);
  chunks = static_cast<uint32_t>(std::min<uint64_t>(chunks, most));
  attaching_ring_ = true;
  auto scratch = co_await slab_.GrantScratch(chunks * stride,
                                             fmt::format("a restore ring of {} chunks", chunks));
  attaching_ring_ = false;
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(scratch));
  auto ring = std::make_shared<RestoreRing>(context_.loop, std::move(*scratch), chunks, stride);
  // The process only ever reads what arrives.
  REPRISE_CO_ASSIGN_STATUS(OwnedFd fd, ring->mapping().OpenReadOnly());
  ring_ = ring;
  send_(wire::Session::PackBody(wire::Opcode::kRing, wire::Encode(ring->info()), request),
        std::move(fd));
  co_return OkStatus();
}

void RestoreService::RingFree(const wire::RingFree& message) {
  if (ring_ != nullptr) ring_->Free(message.ring_indices);
}

Status RestoreService::CheckRing() const {
  if (ring_ == nullptr) {
    return Status(Code::kFailedPrecondition, "no restore ring: send RING_ATTACH first");
  }
  // Made while the store was away, whose chunks turned out to be larger than what was assumed.
  if (context_.chunk_bytes() > ring_->stride_bytes()) {
    return FailStatus(
        Code::kFailedPrecondition,
        "the restore ring was made for chunks of {}, the store's have {}: connect again",
        HumanBytes(ring_->stride_bytes()), HumanBytes(context_.chunk_bytes()));
  }
  return OkStatus();
}

Task<Status> RestoreService::Fetch(wire::Fetch message, uint64_t request, uint64_t stream) {
  REPRISE_CO_ASSIGN_STATUS(OpenPtr open, FindOpen(stream));
  Use use(*this, open);
  REPRISE_CO_ASSIGN_STATUS(const format::CheckpointShard* shard, ShardOf(*open, message.rank));
  REPRISE_CO_RETURN_IF_ERROR(CheckRing());
  uint64_t chunks = format::ChunkCount(shard->length, context_.chunk_bytes());
  if (message.count > chunks || message.first > chunks - message.count) {
    co_return FailStatus(Code::kInvalidArgument, "chunks [{}, {} + {}) of rank {}, which has {}",
                         message.first, message.first, message.count, message.rank, chunks);
  }
  FetchJob job{open, ring_, message.rank, shard->root, request, stream};
  co_await fetches_.Acquire();
  auto ended = [&] { return closing_ || open->closing; };
  Status status;
  uint64_t next = message.first;
  uint64_t end = message.first + message.count;
  while (status.ok() && next < end) {
    auto wanted = static_cast<uint32_t>(std::min<uint64_t>(end - next, kBatchChunks));
    std::vector<uint32_t> buffers = co_await job.ring->Take(wanted, ended);
    if (ended()) {
      job.ring->Free(buffers);
      status = Status(Code::kCancelled, "the checkpoint was closed while chunks were on their way");
      break;
    }
    size_t count = buffers.size();
    status = co_await FetchBatch(job, next, std::move(buffers));
    next += count;
  }
  fetches_.Release();
  co_return status;
}

Task<Status> RestoreService::FetchBatch(const FetchJob& job, uint64_t first,
                                        std::vector<uint32_t> buffers) {
  size_t copied = co_await CopyFromSlab(job, first, buffers);
  if (copied == buffers.size()) co_return OkStatus();
  std::vector<uint32_t> rest(buffers.begin() + static_cast<ptrdiff_t>(copied), buffers.end());
  uint64_t next = first + copied;
  Result<ShardPtr> shard = co_await StoreShard(job.open, job.rank);
  Status status = StatusOf(shard);
  if (status.ok()) {
    std::vector<MutableByteView> targets;
    for (size_t i = 0; i < rest.size(); ++i) {
      uint64_t length = format::ChunkLength((*shard)->length, (*shard)->chunk_bytes, next + i);
      targets.push_back(job.ring->Buffer(rest[i]).first(AlignUp(length, limits::kIoAlignment)));
    }
    status = co_await job.open->source->ReadChunks(**shard, next, std::move(targets));
  }
  if (!status.ok()) {
    job.ring->Free(rest);
    co_return status.Annotate(fmt::format("{}: reading rank {}", job.open->name(), job.rank));
  }
  for (size_t i = 0; i < rest.size(); ++i) {
    uint64_t length = format::ChunkLength((*shard)->length, (*shard)->chunk_bytes, next + i);
    context_.stats.bytes_restored_store += length;
    SendChunkAt(job, next + i, rest[i], static_cast<uint32_t>(length), context_.store.source());
  }
  co_return OkStatus();
}

Task<size_t> RestoreService::CopyFromSlab(const FetchJob& job, uint64_t first,
                                          const std::vector<uint32_t>& buffers) {
  TimePoint slice_end = context_.loop.Now() + kCopySlice;
  size_t copied = 0;
  while (copied < buffers.size()) {
    // Looked up for each chunk: the slot may pass to a new save between two turns.
    std::shared_ptr<Slot> slot = LocalCopy(*job.open, job.rank);
    if (slot == nullptr) break;
    ByteView chunk = slot->Chunk(first + copied);
    std::memcpy(job.ring->Buffer(buffers[copied]).data(), chunk.data(), chunk.size());
    context_.stats.bytes_restored_slab += chunk.size();
    SendChunkAt(job, first + copied, buffers[copied], static_cast<uint32_t>(chunk.size()),
                wire::Source::kLocalSlab);
    ++copied;
    if (context_.loop.Now() < slice_end) continue;
    co_await context_.loop.Yield();
    slice_end = context_.loop.Now() + kCopySlice;
  }
  co_return copied;
}

void RestoreService::SendChunkAt(const FetchJob& job, uint64_t index, uint32_t buffer,
                                 uint32_t length, wire::Source source) {
  wire::ChunkAt at{job.rank, index, buffer, length, source};
  send_(wire::Session::Pack(at, job.request, job.stream), {});
}

Task<Status> RestoreService::ReadVerified(OpenPtr open, uint32_t rank, uint64_t index,
                                          MutableByteView buffer) {
  REPRISE_CO_ASSIGN_STATUS(ShardPtr shard, co_await StoreShard(open, rank));
  uint64_t length = format::ChunkLength(shard->length, shard->chunk_bytes, index);
  MutableByteView target = buffer.first(AlignUp(length, limits::kIoAlignment));
  Status status;
  // Twice: the store may find another copy, and damage on the way is not damage at rest.
  for (int attempt = 0; attempt < 2; ++attempt) {
    status = co_await open->source->ReadChunks(*shard, index, {target});
    if (!status.ok() && status.code() != Code::kDataLoss) co_return status;
    if (status.ok() && DigestOf(target.first(length)) == shard->chunk_digests[index]) {
      co_return OkStatus();
    }
  }
  std::string what =
      fmt::format("rank {}, chunk {} of {} fails its digest and no intact copy is left", rank,
                  index, open->name());
  LogError("{}", what);
  Status marked = co_await context_.coordinator.SetMark(open->tenant, open->job_name, open->key,
                                                        format::Mark::kDamaged, what);
  if (!marked.ok()) LogWarn("could not record the damage: {}", marked.ToString());
  co_return Status(Code::kDataLoss, what);
}

Task<Status> RestoreService::Corrupt(wire::Corrupt message, uint64_t request, uint64_t stream) {
  REPRISE_CO_ASSIGN_STATUS(OpenPtr open, FindOpen(stream));
  Use use(*this, open);
  REPRISE_CO_ASSIGN_STATUS(const format::CheckpointShard* shard, ShardOf(*open, message.rank));
  if (message.index >= format::ChunkCount(shard->length, context_.chunk_bytes())) {
    co_return Status(Code::kInvalidArgument, "CORRUPT names a chunk outside the shard");
  }
  ++context_.stats.chunks_corrupt;
  LogError("rank {}, chunk {} of {} came damaged from {}", message.rank, message.index,
           open->name(), wire::SourceName(message.source));
  if (message.source == wire::Source::kLocalSlab) {
    // Gone already when its slot was reused: then nothing was damaged but the reader was late.
    if (std::shared_ptr<Slot> slot = LocalCopy(*open, message.rank)) {
      slab_.Quarantine(slot);
      inventory_changed_();
    }
  }
  REPRISE_CO_RETURN_IF_ERROR(CheckRing());
  FetchJob job{open, ring_, message.rank, shard->root, request, stream};
  // A chunk read straight from a slot has no buffer of the ring yet.
  std::vector<uint32_t> taken;
  if (!job.ring->is_taken(message.ring_index)) {
    taken = co_await job.ring->Take(1, [&] { return closing_ || open->closing; });
    if (taken.empty()) co_return Status(Code::kCancelled, "the checkpoint was closed");
    message.ring_index = taken[0];
  }
  Status status = co_await ReadVerified(open, message.rank, message.index,
                                        job.ring->Buffer(message.ring_index));
  if (!status.ok()) {
    job.ring->Free(taken);
    co_return status;
  }
  uint64_t length = format::ChunkLength(shard->length, context_.chunk_bytes(), message.index);
  context_.stats.bytes_restored_store += length;
  SendChunkAt(job, message.index, message.ring_index, static_cast<uint32_t>(length),
              context_.store.source());
  co_return OkStatus();
}

Status RestoreService::SlotOf(wire::SlotOf message, uint64_t request, uint64_t stream,
                              const Id& owner) {
  REPRISE_ASSIGN_STATUS(OpenPtr open, FindOpen(stream));
  REPRISE_RETURN_IF_ERROR(StatusOf(ShardOf(*open, message.rank)));
  std::shared_ptr<Slot> slot = LocalCopy(*open, message.rank);
  // Another process may begin to overwrite its slot at any moment.
  if (slot == nullptr || (!slot->released() && slot->owner() != owner)) {
    return FailStatus(Code::kNotFound, "{}: no local copy of rank {} to map", open->name(),
                      message.rank);
  }
  REPRISE_ASSIGN_STATUS(OwnedFd fd, slot->mapping().OpenReadOnly());
  wire::SlotInfo info{slot->index(), slot->file_bytes(), kSlotDataOffset, true};
  send_(wire::Session::Pack(info, request, stream), std::move(fd));
  return OkStatus();
}

void RestoreService::BeginClosing() {
  closing_ = true;
  if (ring_ != nullptr) ring_->Wake();
}

Task<void> RestoreService::Close() {
  BeginClosing();
  for (auto& [stream, open] : open_) {
    if (!open->closing) co_await open->source->Close();
  }
  open_.clear();
  ring_ = nullptr;
}

}  // namespace reprise::node
