// Every object here belongs to one of the two loops: Upload and Checkpoint to the node's, StorePut
// and StoreRead (with the sessions in them) to the store's. The node's side holds the store's by
// shared_ptr, uses them inside CallOn only, and lets go of them by a post to the store's loop.
#include "server/dataplane/local_store_link.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::dataplane {

struct LocalStoreLink::Shared {
  Loop& node;
  Loop& store_loop;
  lifecycle::ShardStore& store;
  BufferPool& buffers;
  const LocalStoreLinkOptions options;
  Gate gate;  // on the store's loop: every operation there
  // One chunk is copied to a reader in each turn of the loop: where a disk ends many reads at once,
  // the next ones go to it before all of these are copied.
  Semaphore copying;
  // Readers never hold more than half of the pool: a restore must not keep uploads from it.
  Semaphore reading;

  Shared(Loop& node_loop, Loop& loop, lifecycle::ShardStore& shard_store, BufferPool& pool,
         LocalStoreLinkOptions link_options)
      : node(node_loop),
        store_loop(loop),
        store(shard_store),
        buffers(pool),
        options(link_options),
        gate(loop),
        copying(loop, 1),
        reading(loop, std::max<size_t>(1, pool.buffer_count() / 2)) {}

  static Status Closed() { return Status(Code::kCancelled, "the link to the store is closed"); }
};

// A chunk on its way across; the slab keeps its bytes until Seal or Abandon returns.
struct ChunkInSlab {
  uint64_t index = 0;
  ByteView bytes;
  Digest digest;
};

// --- one upload, on the store's loop

class LocalStoreLink::StorePut : public std::enable_shared_from_this<StorePut> {
 public:
  StorePut(std::shared_ptr<Shared> shared, const wire::PutOpen& open,
           std::unique_ptr<lifecycle::PutSession> session)
      : shared_(std::move(shared)),
        session_(std::move(session)),
        length_(open.length),
        chunk_bytes_(open.chunk_bytes),
        name_(fmt::format("rank {} of step {} (epoch {})", open.shard.rank, open.shard.key.step,
                          open.shard.key.epoch)),
        received_(format::ChunkCount(open.length, open.chunk_bytes)),
        changed_(shared_->store_loop) {}

  StorePut(const StorePut&) = delete;
  StorePut& operator=(const StorePut&) = delete;
  // A failure after the last question of an upload that is dropped has nobody left to hear it.
  ~StorePut() { failure_.IgnoreError(); }

  bool needs_layout() const { return session_->needs_layout(); }

  // The chunks of one crossing, in order, up to the first that is refused.
  Task<Status> TakeAll(std::vector<ChunkInSlab> chunks) {
    for (const ChunkInSlab& chunk : chunks) {
      REPRISE_CO_RETURN_IF_ERROR(co_await Take(chunk.index, chunk.bytes, chunk.digest));
    }
    co_return OkStatus();
  }

  // Copies, hashes and compares; the write goes on after the return.
  Task<Status> Take(uint64_t index, ByteView chunk, Digest announced) {
    Gate::Hold hold = shared_->gate.Enter();
    if (!hold) co_return Shared::Closed();
    if (index >= received_.size() || received_[index] ||
        chunk.size() != format::ChunkLength(length_, chunk_bytes_, index)) {
      co_return FailStatus(Code::kInvalidArgument,
                           "chunk {} ({} bytes) of {} is sent twice, or does not fit its {} bytes",
                           index, chunk.size(), name_, length_);
    }
    TimePoint deadline = shared_->store_loop.Now() + shared_->options.progress_timeout;
    bool room = co_await changed_.WaitFor(
        [this] { return writing_ < shared_->options.write_depth || !failure_.ok(); }, deadline);
    REPRISE_CO_RETURN_IF_ERROR(failure_);
    BufferPool::Buffer buffer;
    if (room) buffer = co_await shared_->buffers.Acquire(deadline);
    if (!buffer) {
      co_return FailStatus(Code::kDeadlineExceeded,
                           "sending chunk {} of {}: the store freed no buffer for {:.1f} s "
                           "({} writes in flight); its disk is slow or hangs, or raise "
                           "node.store_timeout",
                           index, name_, SecondsOf(shared_->options.progress_timeout), writing_);
    }
    MutableByteView copy = buffer.first(AlignUp(chunk.size(), limits::kIoAlignment));
    std::ranges::fill(copy.subspan(chunk.size()), uint8_t{0});
    Digest actual = CopyAndDigest(copy.first(chunk.size()), chunk);
    if (actual != announced) {
      failure_ = FailStatus(Code::kDataLoss,
                            "chunk {} of {} has digest {}, announced was {}: it changed after it "
                            "was hashed; upload the shard again",
                            index, name_, actual.ToHex(), announced.ToHex());
      co_return failure_;
    }
    received_[index] = true;
    ++writing_;
    shared_->store_loop.Spawn(
        Write(shared_from_this(), index, copy, actual, std::move(buffer), std::move(hold)));
    co_return OkStatus();
  }

  Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) {
    Gate::Hold hold = shared_->gate.Enter();
    if (!hold) co_return Shared::Closed();
    co_await changed_.WaitFor([this] { return writing_ == 0; });
    Status status = failure_;
    if (status.ok() && std::ranges::find(received_, false) != received_.end()) {
      status = FailStatus(Code::kFailedPrecondition, "{} is sealed before all its chunks were sent",
                          name_);
    }
    if (status.ok()) {
      if (!session_->needs_layout()) layout.clear();
      status = co_await session_->Seal(std::move(piece_digests), std::move(layout), root);
    }
    session_.reset();
    co_return status;
  }

  Task<Status> Abandon() {
    Gate::Hold hold = shared_->gate.Enter();
    co_await changed_.WaitFor([this] { return writing_ == 0; });
    session_.reset();
    co_return OkStatus();
  }

 private:
  static Task<void> Write(std::shared_ptr<StorePut> self, uint64_t index, ByteView data,
                          Digest digest, BufferPool::Buffer buffer,
                          [[maybe_unused]] Gate::Hold hold) {
    Status status = self->failure_;
    if (status.ok()) status = co_await self->session_->WriteChunk(index, data, digest);
    buffer = {};
    --self->writing_;
    if (!status.ok() && self->failure_.ok()) self->failure_ = std::move(status);
    self->changed_.Notify();
  }

  const std::shared_ptr<Shared> shared_;
  std::unique_ptr<lifecycle::PutSession> session_;
  const uint64_t length_;
  const uint32_t chunk_bytes_;
  const std::string name_;
  std::vector<bool> received_;
  uint32_t writing_ = 0;
  Status failure_;
  Notifier changed_;
};

// --- one upload, on the node's loop

// What an upload and its crossing share. Chunks cross in groups: while the store works on one, the
// next gathers. A crossing for each chunk would cost two wake-ups of a thread, and the store's writes
// would reach the disk one by one.
class LocalStoreLink::Crossing {
 public:
  Crossing(std::shared_ptr<Shared> shared, std::shared_ptr<StorePut> put)
      : shared_(std::move(shared)), put_(std::move(put)), changed_(shared_->node) {}
  Crossing(const Crossing&) = delete;
  Crossing& operator=(const Crossing&) = delete;
  // The session must die on the store's loop.
  ~Crossing() {
    failure_.IgnoreError();
    shared_->store_loop.Post([put = std::move(put_)]() mutable { put.reset(); });
  }

  static Task<Status> Send(std::shared_ptr<Crossing> self, ChunkInSlab chunk) {
    co_await self->changed_.WaitFor(
        [&] { return self->waiting_.size() < kChunksMax || !self->failure_.ok(); });
    REPRISE_CO_RETURN_IF_ERROR(self->failure_);
    self->waiting_.push_back(chunk);
    if (self->running_ < kGroupsMax) {
      ++self->running_;
      self->shared_->node.Spawn(Run(self));
    }
    co_return OkStatus();
  }
  // Resumes when nothing is on its way; the first refusal, if any.
  static Task<Status> Finish(std::shared_ptr<Crossing> self) {
    co_await self->changed_.WaitFor([&] { return self->running_ == 0; });
    co_return self->failure_;
  }
  static Task<void> Drop(std::shared_ptr<Crossing> self) {
    self->waiting_.clear();
    co_await self->changed_.WaitFor([&] { return self->running_ == 0; });
  }
  // On the store's loop; the crossing is kept until it returns.
  static Task<Status> OnStore(std::shared_ptr<Crossing> self,
                              std::function<Task<Status>(StorePut&)> work) {
    co_return co_await CallOn<Status>(self->shared_->node, self->shared_->store_loop,
                                      [&work, put = self->put_.get()] { return work(*put); });
  }

 private:
  static constexpr size_t kChunksMax = 4;  // of one group
  static constexpr int kGroupsMax = 2;     // the store finds the next one when it is done with one

  static Task<void> Run(std::shared_ptr<Crossing> self) {
    while (!self->waiting_.empty() && self->failure_.ok()) {
      std::vector<ChunkInSlab> group = std::exchange(self->waiting_, {});
      self->changed_.Notify();
      Status status =
          co_await OnStore(self, [&group](StorePut& put) { return put.TakeAll(std::move(group)); });
      if (!status.ok() && self->failure_.ok()) self->failure_ = std::move(status);
    }
    --self->running_;
    self->changed_.Notify();
  }

  const std::shared_ptr<Shared> shared_;
  std::shared_ptr<StorePut> put_;
  std::vector<ChunkInSlab> waiting_;
  int running_ = 0;
  Status failure_;
  Notifier changed_;
};

class LocalStoreLink::Upload final : public ShardUpload {
 public:
  // No `crossing`: the store has the shard already.
  explicit Upload(std::shared_ptr<Crossing> crossing)
      : already_sealed_(crossing == nullptr), crossing_(std::move(crossing)) {}

  bool already_sealed() const override { return already_sealed_; }

  Task<Status> Send(uint64_t index, ByteView chunk, Digest digest) override {
    if (crossing_ == nullptr) co_return Ended();
    co_return co_await Crossing::Send(crossing_, {index, chunk, digest});
  }

  Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) override {
    if (crossing_ == nullptr) co_return Ended();
    std::shared_ptr<Crossing> crossing = crossing_;
    Status status = co_await Crossing::Finish(crossing);
    if (!status.ok()) {
      co_await Abandon();
      co_return status;
    }
    status = co_await Crossing::OnStore(crossing, [&](StorePut& put) {
      return put.Seal(std::move(piece_digests), std::move(layout), root);
    });
    crossing_ = nullptr;
    co_return status;
  }

  Task<void> Abandon() override {
    if (crossing_ == nullptr) co_return;
    std::shared_ptr<Crossing> crossing = std::exchange(crossing_, nullptr);
    co_await Crossing::Drop(crossing);
    Status status =
        co_await Crossing::OnStore(crossing, [](StorePut& put) { return put.Abandon(); });
    if (!status.ok()) LogDebug("abandoning an upload: {}", status.message());
  }

 private:
  static Status Ended() {
    return Status(Code::kFailedPrecondition, "this upload is sealed or abandoned");
  }

  const bool already_sealed_;
  std::shared_ptr<Crossing> crossing_;
};

// --- one open checkpoint, on the store's loop

class LocalStoreLink::StoreRead {
 public:
  StoreRead(std::shared_ptr<Shared> shared, std::unique_ptr<lifecycle::ReadSession> session)
      : shared_(std::move(shared)), session_(std::move(session)) {}

  const format::CheckpointManifest& manifest() const { return session_->manifest(); }

  Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) {
    Gate::Hold hold = shared_->gate.Enter();
    if (!hold) co_return Error(Shared::Closed());
    co_return co_await session_->ShardManifest(rank);
  }
  Task<Result<Bytes>> Layout(Digest layout) {
    Gate::Hold hold = shared_->gate.Enter();
    if (!hold) co_return Error(Shared::Closed());
    co_return co_await session_->Layout(layout);
  }
  // `shard` and `buffers` stay valid until the call returns; so it waits for every read it began.
  Task<Status> ReadChunks(const format::ShardManifest* shard, uint64_t first,
                          const std::vector<MutableByteView>* buffers) {
    Gate::Hold hold = shared_->gate.Enter();
    if (!hold) co_return Shared::Closed();
    std::deque<std::unique_ptr<OneShot<Status>>> window;
    Status status;
    size_t next = 0;
    while (!window.empty() || (status.ok() && next < buffers->size())) {
      while (status.ok() && next < buffers->size() && window.size() < shared_->options.read_depth) {
        window.push_back(std::make_unique<OneShot<Status>>(shared_->store_loop));
        shared_->store_loop.Spawn(Read(window.back().get(), shard, first + next, (*buffers)[next]));
        ++next;
      }
      std::optional<Status> read = co_await window.front()->Wait();
      window.pop_front();
      if (status.ok()) status = *read;
    }
    co_return status;
  }

 private:
  // Through a buffer of the pool: its huge pages are few segments for the disk, where the 4 KiB pages
  // of shared memory that `buffer` lies in cost half the rate or more (docs/performance.md).
  Task<void> Read(OneShot<Status>* done, const format::ShardManifest* shard, uint64_t index,
                  MutableByteView buffer) {
    uint64_t length = format::ChunkLength(shard->length, shard->chunk_bytes, index);
    // Waits for other readers, as long as the disk takes for them.
    co_await shared_->reading.Acquire();
    BufferPool::Buffer pages = co_await shared_->buffers.Acquire();
    MutableByteView read = pages.first(AlignUp(length, limits::kIoAlignment));
    Status status = co_await session_->ReadChunk(*shard, index, read);
    if (status.ok()) {
      co_await shared_->copying.Acquire();
      co_await shared_->store_loop.Yield();
      std::memcpy(buffer.data(), read.data(), length);
      shared_->copying.Release();
      // As over TCP: the reader finds zeros behind a short chunk.
      std::ranges::fill(buffer.subspan(length), uint8_t{0});
    }
    pages = {};
    shared_->reading.Release();
    done->Set(std::move(status));
  }

  const std::shared_ptr<Shared> shared_;
  const std::unique_ptr<lifecycle::ReadSession> session_;
};

// --- one open checkpoint, on the node's loop

class LocalStoreLink::Checkpoint final : public CheckpointSource {
 public:
  Checkpoint(std::shared_ptr<Shared> shared, std::shared_ptr<StoreRead> read,
             format::CheckpointManifest manifest)
      : shared_(std::move(shared)), read_(std::move(read)), manifest_(std::move(manifest)) {}
  ~Checkpoint() override { Release(); }

  const format::CheckpointManifest& manifest() const override { return manifest_; }

  Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) override {
    if (read_ == nullptr) co_return Error(Closed());
    co_return co_await CallOn<Result<format::ShardManifest>>(
        shared_->node, shared_->store_loop,
        [read = read_.get(), rank] { return read->ShardManifest(rank); });
  }
  Task<Result<Bytes>> Layout(Digest layout) override {
    if (read_ == nullptr) co_return Error(Closed());
    co_return co_await CallOn<Result<Bytes>>(
        shared_->node, shared_->store_loop,
        [read = read_.get(), layout] { return read->Layout(layout); });
  }
  Task<Status> ReadChunks(const format::ShardManifest& shard, uint64_t first,
                          std::vector<MutableByteView> buffers) override {
    if (read_ == nullptr) co_return Closed();
    uint64_t count = format::ChunkCount(shard.length, shard.chunk_bytes);
    if (first > count || buffers.size() > count - first) {
      co_return FailStatus(Code::kOutOfRange, "chunks [{}, +{}) of rank {}, which has {}", first,
                           buffers.size(), shard.identity.rank, count);
    }
    co_return co_await CallOn<Status>(
        shared_->node, shared_->store_loop,
        [read = read_.get(), manifest = &shard, first, wanted = &buffers] {
          return read->ReadChunks(manifest, first, wanted);
        });
  }
  Task<void> Close() override {
    if (read_ == nullptr) co_return;
    // Returns when the store has let go of the checkpoint.
    std::shared_ptr<StoreRead> read = std::exchange(read_, nullptr);
    Status status = co_await CallOn<Status>(shared_->node, shared_->store_loop, [&read]() {
      return [](std::shared_ptr<StoreRead> last) -> Task<Status> {
        last.reset();
        co_return OkStatus();
      }(std::move(read));
    });
    REPRISE_CHECK(status.ok());
  }

 private:
  static Status Closed() { return Status(Code::kFailedPrecondition, "this checkpoint is closed"); }
  void Release() {
    if (read_ == nullptr) return;
    Loop& loop = shared_->store_loop;
    loop.Post([read = std::move(read_)]() mutable { read.reset(); });
    read_ = nullptr;
  }

  const std::shared_ptr<Shared> shared_;
  std::shared_ptr<StoreRead> read_;
  const format::CheckpointManifest manifest_;
};

// --- the link

LocalStoreLink::LocalStoreLink(Loop& node_loop, Loop& store_loop, lifecycle::ShardStore& store,
                               BufferPool& buffers, LocalStoreLinkOptions options)
    : shared_(std::make_shared<Shared>(node_loop, store_loop, store, buffers, options)),
      chunk_bytes_(store.chunk_bytes()) {
  REPRISE_CHECK(options.write_depth > 0 && options.read_depth > 0);
  REPRISE_CHECK(buffers.buffer_bytes() >= chunk_bytes_);
}

LocalStoreLink::~LocalStoreLink() = default;

Task<Result<std::unique_ptr<ShardUpload>>> LocalStoreLink::OpenUpload(wire::PutOpen request) {
  using Opened = Result<std::shared_ptr<StorePut>>;
  std::shared_ptr<Shared> shared = shared_;
  Opened put = co_await CallOn<Opened>(
      shared->node, shared->store_loop, [shared, &request]() -> Task<Opened> {
        return [](std::shared_ptr<Shared> state, const wire::PutOpen& open) -> Task<Opened> {
          Gate::Hold hold = state->gate.Enter();
          if (!hold) co_return Error(Shared::Closed());
          if (open.chunk_bytes != state->store.chunk_bytes()) {
            co_return Fail(Code::kInvalidArgument, "chunks of {} bytes; this store takes {}",
                           open.chunk_bytes, state->store.chunk_bytes());
          }
          lifecycle::PutRequest wanted{open.shard, open.length, open.chunk_bytes, open.layout};
          auto session = co_await state->store.OpenPut(wanted, open.root_if_sealed);
          if (session.has_value()) {
            co_return std::make_shared<StorePut>(state, open, *std::move(session));
          }
          if (session.error().code() == Code::kAlreadyExists) co_return nullptr;
          co_return Error(session.error());
        }(shared, request);
      });
  if (!put.has_value()) co_return Error(put.error());
  if (*put == nullptr) co_return std::make_unique<Upload>(nullptr);
  co_return std::make_unique<Upload>(std::make_shared<Crossing>(shared, *std::move(put)));
}

Task<Result<std::unique_ptr<CheckpointSource>>> LocalStoreLink::OpenRead(Id job,
                                                                         CheckpointKey key) {
  struct Opening {
    std::shared_ptr<StoreRead> read;
    format::CheckpointManifest manifest;
  };
  using Opened = Result<Opening>;
  std::shared_ptr<Shared> shared = shared_;
  Opened opened = co_await CallOn<Opened>(
      shared->node, shared->store_loop, [shared, job, key]() -> Task<Opened> {
        return [](std::shared_ptr<Shared> state, Id id, CheckpointKey which) -> Task<Opened> {
          Gate::Hold hold = state->gate.Enter();
          if (!hold) co_return Error(Shared::Closed());
          auto session = co_await state->store.OpenRead(id, which);
          if (!session.has_value()) co_return Error(session.error());
          auto read = std::make_shared<StoreRead>(state, *std::move(session));
          co_return Opening{read, read->manifest()};
        }(shared, job, key);
      });
  if (!opened.has_value()) co_return Error(opened.error());
  co_return std::make_unique<Checkpoint>(shared, std::move(opened->read),
                                         std::move(opened->manifest));
}

Task<void> LocalStoreLink::Close() {
  std::shared_ptr<Shared> shared = shared_;
  Status status =
      co_await CallOn<Status>(shared->node, shared->store_loop, [shared]() -> Task<Status> {
        return [](std::shared_ptr<Shared> state) -> Task<Status> {
          co_await state->gate.Close();
          co_return OkStatus();
        }(shared);
      });
  REPRISE_CHECK(status.ok());
}

}  // namespace reprise::dataplane
