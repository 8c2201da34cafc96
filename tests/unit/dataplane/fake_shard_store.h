// FakeShardStore: a ShardStore in memory that trusts nobody: it checks alignment, padding, digests,
// that each chunk comes once, and that a buffer does not change while it is being written.
//
// Rules broken by the data plane are recorded in violations(), which tests expect to be empty.
// Knobs hold writes back, fail operations, and count what is in flight.
//
// Thread rule: its loop, knobs included.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "server/lifecycle/shard_store.h"

namespace reprise::dataplane {

class FakeShardStore final : public lifecycle::ShardStore {
 public:
  FakeShardStore(Loop& loop, uint32_t chunk_bytes)
      : loop_(loop), chunk_bytes_(chunk_bytes), changed_(loop) {}
  ~FakeShardStore() override { Expect(sessions == 0, "a session outlives the store"); }

  // --- knobs
  bool needs_layout = false;
  bool hold_writes = false;  // writes begin, and end only after Release()
  bool hold_reads = false;
  bool hold_seals = false;
  Status open_status;
  Status seal_status;
  uint64_t fail_write_index = UINT64_MAX;
  uint64_t fail_read_index = UINT64_MAX;
  uint64_t corrupt_read_index = UINT64_MAX;  // read with one bit flipped
  void Release() {
    hold_writes = hold_reads = hold_seals = false;
    changed_.Notify();
  }

  // --- what happened
  int sessions = 0;  // put and read sessions alive
  uint32_t writes_in_flight = 0;
  uint32_t writes_in_flight_max = 0;
  uint32_t reads_in_flight = 0;
  uint32_t reads_in_flight_max = 0;
  uint64_t chunks_written = 0;
  const std::vector<std::string>& violations() const { return violations_; }
  size_t sealed_count() const { return shards_.size(); }

  Task<Result<std::unique_ptr<lifecycle::PutSession>>> OpenPut(lifecycle::PutRequest request,
                                                               Digest root_if_sealed) override {
    co_await loop_.Yield();
    if (!open_status.ok()) co_return Error(open_status);
    auto sealed = shards_.find({request.shard.attempt, request.shard.rank});
    if (sealed != shards_.end()) {
      if (sealed->second.manifest.root == root_if_sealed) {
        co_return Fail(Code::kAlreadyExists, "sealed already");
      }
      co_return Fail(Code::kFailedPrecondition, "sealed with another root");
    }
    co_return std::make_unique<FakePut>(*this, std::move(request));
  }

  Task<Result<std::unique_ptr<lifecycle::ReadSession>>> OpenRead(Id job,
                                                                 CheckpointKey key) override {
    co_await loop_.Yield();
    if (!open_status.ok()) co_return Error(open_status);
    format::CheckpointManifest manifest;
    manifest.job = job;
    manifest.key = key;
    for (const auto& [name, shard] : shards_) {
      const format::ShardManifest& found = shard.manifest;
      if (found.identity.job != job || found.identity.key != key) continue;
      manifest.attempt = found.identity.attempt;
      manifest.world = found.identity.world;
      format::ObjectRef object{{0, 0, 4096}, 100, found.root};
      manifest.shards.push_back(
          {found.identity.rank, found.root, found.length, found.layout, object});
      manifest.layouts.emplace_back(found.layout, object);
    }
    if (manifest.shards.empty()) co_return Fail(Code::kNotFound, "no such checkpoint");
    std::ranges::sort(manifest.shards, {}, &format::CheckpointShard::rank);
    std::ranges::sort(manifest.layouts, {}, [](const auto& item) { return item.first; });
    auto repeated =
        std::ranges::unique(manifest.layouts, {}, [](const auto& i) { return i.first; });
    manifest.layouts.erase(repeated.begin(), repeated.end());
    co_return std::make_unique<FakeRead>(*this, std::move(manifest));
  }

  uint32_t chunk_bytes() const override { return chunk_bytes_; }

 private:
  struct Shard {
    format::ShardManifest manifest;
    Bytes data;
  };

  void Expect(bool holds, std::string what) {
    if (!holds) violations_.push_back(std::move(what));
  }
  static bool Aligned(const void* data) {
    return IsAligned(reinterpret_cast<uintptr_t>(data), limits::kIoAlignment);
  }

  class FakePut final : public lifecycle::PutSession {
   public:
    FakePut(FakeShardStore& store, lifecycle::PutRequest request) : store_(store) {
      ++store_.sessions;
      shard_.manifest.identity = request.shard;
      shard_.manifest.layout = request.layout;
      shard_.manifest.length = request.length;
      shard_.manifest.chunk_bytes = request.chunk_bytes;
      shard_.manifest.chunk_digests.resize(format::ChunkCount(request.length, request.chunk_bytes));
      shard_.data.resize(request.length);
      written_.resize(shard_.manifest.chunk_digests.size());
      needs_layout_ = store.needs_layout;
    }
    ~FakePut() override {
      store_.Expect(in_flight_ == 0, "a put session is destroyed with writes in flight");
      --store_.sessions;
      store_.changed_.Notify();
    }
    bool needs_layout() const override { return needs_layout_; }

    Task<Status> WriteChunk(uint64_t index, ByteView data, Digest digest) override {
      format::ShardManifest& manifest = shard_.manifest;
      store_.Expect(index < written_.size() && !written_[index], "a chunk twice, or outside");
      uint64_t length = format::ChunkLength(manifest.length, manifest.chunk_bytes, index);
      store_.Expect(Aligned(data.data()) && data.size() == AlignUp(length, limits::kIoAlignment),
                    "a chunk is not aligned or padded");
      ByteView plain = data.first(length);
      store_.Expect(DigestOf(plain) == digest, "a digest is not that of the chunk");
      ByteView padding = data.subspan(length);
      store_.Expect(std::ranges::all_of(padding, [](uint8_t byte) { return byte == 0; }),
                    "padding is not zero");
      Bytes before(data.begin(), data.end());
      written_[index] = true;
      ++in_flight_;
      store_.writes_in_flight_max =
          std::max(store_.writes_in_flight_max, ++store_.writes_in_flight);
      co_await store_.loop_.Yield();
      co_await store_.changed_.WaitFor([this] { return !store_.hold_writes; });
      store_.Expect(std::ranges::equal(before, data), "a chunk changed while it was written");
      --in_flight_;
      --store_.writes_in_flight;
      if (index == store_.fail_write_index) {
        co_return Status(Code::kUnavailable, "the disk has failed");
      }
      ++store_.chunks_written;
      manifest.chunk_digests[index] = digest;
      std::ranges::copy(plain, shard_.data.begin() + index * manifest.chunk_bytes);
      co_return OkStatus();
    }

    Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) override {
      store_.Expect(in_flight_ == 0, "sealed with writes in flight");
      store_.Expect(std::ranges::find(written_, false) == written_.end(), "sealed incomplete");
      store_.Expect(layout.empty() != needs_layout_, "a layout comes when it is asked for");
      co_await store_.changed_.WaitFor([this] { return !store_.hold_seals; });
      if (!store_.seal_status.ok()) co_return store_.seal_status;
      if (needs_layout_ && DigestOf(layout) != shard_.manifest.layout) {
        co_return Status(Code::kDataLoss, "the layout is not the announced one");
      }
      shard_.manifest.piece_digests = std::move(piece_digests);
      shard_.manifest.root = format::ShardRoot(shard_.manifest);
      if (shard_.manifest.root != root) co_return Status(Code::kDataLoss, "another root");
      if (needs_layout_) store_.layouts_[shard_.manifest.layout] = std::move(layout);
      const format::ShardIdentity& identity = shard_.manifest.identity;
      store_.shards_[{identity.attempt, identity.rank}] = std::move(shard_);
      co_return OkStatus();
    }

   private:
    FakeShardStore& store_;
    Shard shard_;
    std::vector<bool> written_;
    bool needs_layout_ = false;
    int in_flight_ = 0;
  };

  class FakeRead final : public lifecycle::ReadSession {
   public:
    FakeRead(FakeShardStore& store, format::CheckpointManifest manifest)
        : store_(store), manifest_(std::move(manifest)) {
      ++store_.sessions;
    }
    ~FakeRead() override {
      store_.Expect(in_flight_ == 0, "a read session is destroyed with reads in flight");
      --store_.sessions;
      store_.changed_.Notify();
    }
    const format::CheckpointManifest& manifest() const override { return manifest_; }
    Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) override {
      co_await store_.loop_.Yield();
      auto shard = store_.shards_.find({manifest_.attempt, rank});
      if (shard == store_.shards_.end()) co_return Fail(Code::kNotFound, "no rank {}", rank);
      co_return shard->second.manifest;
    }
    Task<Result<Bytes>> Layout(Digest layout) override {
      co_await store_.loop_.Yield();
      auto found = store_.layouts_.find(layout);
      if (found == store_.layouts_.end()) co_return Fail(Code::kNotFound, "no such layout");
      co_return found->second;
    }
    Task<Status> ReadChunk(const format::ShardManifest& shard, uint64_t index,
                           MutableByteView buffer) override {
      uint64_t length = format::ChunkLength(shard.length, shard.chunk_bytes, index);
      store_.Expect(
          Aligned(buffer.data()) && buffer.size() >= AlignUp(length, limits::kIoAlignment),
          "a read buffer is not aligned or too short");
      ++in_flight_;
      store_.reads_in_flight_max = std::max(store_.reads_in_flight_max, ++store_.reads_in_flight);
      co_await store_.loop_.Yield();
      co_await store_.changed_.WaitFor([this] { return !store_.hold_reads; });
      --in_flight_;
      --store_.reads_in_flight;
      if (index == store_.fail_read_index) co_return Status(Code::kDataLoss, "an unreadable block");
      const Bytes& data = store_.shards_.at({manifest_.attempt, shard.identity.rank}).data;
      std::copy_n(data.begin() + index * shard.chunk_bytes, length, buffer.begin());
      if (index == store_.corrupt_read_index) buffer[0] ^= 1;
      co_return OkStatus();
    }

   private:
    FakeShardStore& store_;
    const format::CheckpointManifest manifest_;
    int in_flight_ = 0;
  };

  Loop& loop_;
  const uint32_t chunk_bytes_;
  std::map<std::pair<Id, uint32_t>, Shard> shards_;
  std::map<Digest, Bytes> layouts_;
  std::vector<std::string> violations_;
  Notifier changed_;
};

}  // namespace reprise::dataplane
