// Harness: a real Store on a simulated host, and ranks that save to it, for tests of the lifecycle.
//
// StoreHost owns a simulated world with one host; its disk and its index model survive Kill() and
// can be copied into another StoreHost (that is how enumerations fork). Shards are made of a seed,
// so that what a checkpoint must contain is known without keeping bytes.
//
// Thread rule: one thread.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/aligned_buffer.h"
#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "server/catalog/memory_catalog.h"
#include "server/lifecycle/store.h"

namespace reprise::lifecycle {

using namespace std::chrono_literals;

inline constexpr uint32_t kTestChunk = 4096;

inline Geometry TinyGeometry() {
  Geometry geometry;
  geometry.chunk_bytes = kTestChunk;
  geometry.segment_bytes = 64 * 1024;
  geometry.segment_count = 4;
  geometry.journal_slots = 16;
  return geometry;
}

inline StoreOptions TinyOptions() {
  StoreOptions options;
  options.directory = "/store";
  options.geometry = TinyGeometry();
  options.prewrite_segments = false;
  return options;
}

inline Id IdOf(uint64_t number) { return Rng(number * 7919 + 1).NewId(); }

// What one rank saves: a row of a tensor that all ranks share, different for each `seed`.
struct ShardContent {
  format::Layout layout;
  Bytes encoded_layout;
  Digest layout_digest;
  Bytes bytes;
  std::vector<Digest> piece_digests;
};

inline ShardContent MakeContent(uint32_t rank, uint32_t world, uint64_t seed, uint64_t length) {
  ShardContent content;
  format::Piece piece;
  piece.name = "weight";
  piece.dtype = Dtype::kU8;
  piece.global_shape = {world, length};
  piece.boxes = {Box{{rank, 0}, {1, length}}};
  piece.scope = Scope::kGlobal;
  content.layout.pieces = {piece};
  format::AssignPositions(content.layout, kTestChunk);
  content.encoded_layout = format::EncodeLayout(content.layout);
  content.layout_digest = DigestOf(content.encoded_layout);
  Rng rng(seed * 1000003 + rank);
  content.bytes.resize(content.layout.shard_bytes);
  for (uint8_t& byte : content.bytes) byte = static_cast<uint8_t>(rng.Next());
  content.piece_digests.resize(1);
  return content;
}

inline format::ShardManifest ManifestOf(const format::ShardIdentity& identity,
                                        const ShardContent& content) {
  format::ShardManifest manifest;
  manifest.identity = identity;
  manifest.layout = content.layout_digest;
  manifest.length = content.bytes.size();
  manifest.chunk_bytes = kTestChunk;
  for (uint64_t at = 0; at < content.bytes.size(); at += kTestChunk) {
    size_t length = std::min<size_t>(kTestChunk, content.bytes.size() - at);
    manifest.chunk_digests.push_back(DigestOf(ByteView(content.bytes).subspan(at, length)));
  }
  manifest.piece_digests = content.piece_digests;
  manifest.root = format::ShardRoot(manifest);
  return manifest;
}

// Uploads one shard as a node would: OpenPut, chunks, Seal. OK also when it was sealed before.
inline Task<Status> Upload(ShardStore& store, format::ShardIdentity identity,
                           ShardContent content) {
  format::ShardManifest manifest = ManifestOf(identity, content);
  PutRequest request{identity, manifest.length, kTestChunk, manifest.layout};
  auto session = co_await store.OpenPut(request, manifest.root);
  if (!session.has_value()) {
    bool sealed = session.error().code() == Code::kAlreadyExists;
    co_return sealed ? OkStatus() : session.error();
  }
  AlignedBuffer buffer(kTestChunk);
  for (size_t i = 0; i < manifest.chunk_digests.size(); ++i) {
    uint64_t length = format::ChunkLength(manifest.length, kTestChunk, i);
    std::memset(buffer.data(), 0, buffer.size());
    std::memcpy(buffer.data(), content.bytes.data() + i * kTestChunk, length);
    REPRISE_CO_RETURN_IF_ERROR(co_await (*session)->WriteChunk(
        i, buffer.view().first(AlignUp(length, limits::kIoAlignment)), manifest.chunk_digests[i]));
  }
  Bytes layout = (*session)->needs_layout() ? content.encoded_layout : Bytes();
  co_return co_await (*session)->Seal(content.piece_digests, layout, manifest.root);
}

// Reads a whole shard back and verifies every digest on the way.
inline Task<Result<Bytes>> Download(ReadSession& session, uint32_t rank) {
  REPRISE_CO_ASSIGN(format::ShardManifest shard, co_await session.ShardManifest(rank));
  Bytes bytes;
  AlignedBuffer buffer(shard.chunk_bytes);
  for (size_t i = 0; i < shard.chunk_digests.size(); ++i) {
    uint64_t length = format::ChunkLength(shard.length, shard.chunk_bytes, i);
    REPRISE_CO_TRY(co_await session.ReadChunk(shard, i, buffer.span()));
    ByteView chunk = buffer.view().first(length);
    if (DigestOf(chunk) != shard.chunk_digests[i]) {
      co_return Error(Code::kDataLoss, "chunk " + std::to_string(i) + " fails its digest");
    }
    bytes.insert(bytes.end(), chunk.begin(), chunk.end());
  }
  co_return bytes;
}

class StoreHost {
 public:
  explicit StoreHost(uint64_t seed = 1) : world_(std::make_unique<SimWorld>(seed)), rng_(seed) {}
  // A host with these media, powered off.
  StoreHost(const SimDisk& disk, const catalog::MemoryCatalogDisk& index, uint64_t seed)
      : StoreHost(seed) {
    world_->disk("store") = disk;
    index_ = index;
  }
  ~StoreHost() {
    if (io_ != nullptr) Kill();
  }

  Status Open(StoreOptions options = TinyOptions()) {
    io_ = std::make_unique<SimIo>(world_->loop(), *world_, "store");
    auto opened = Run(Store::Open(*io_, rng_, std::move(options), Factory()));
    if (!opened.has_value()) {
      io_.reset();
      return opened.error();
    }
    store_ = std::move(*opened);
    return OkStatus();
  }
  void Close() {
    Run(store_->Close());
    store_.reset();
    io_.reset();
  }
  // The host dies; media keep what they hold until somebody decides (SimDisk::Crash).
  void Kill() {
    io_->CrashHost(SimCrash::kPowerLoss);
    world_->loop().DestroyAll();
    store_.reset();
    io_.reset();
  }
  // Power cut and restart.
  Status Restart(const SimChooser& chooser = LoseUnflushed, StoreOptions options = TinyOptions()) {
    Kill();
    disk().Crash(chooser);
    index_.Crash(0);
    return Open(std::move(options));
  }

  template <typename T>
  T Run(Task<T> task) {
    return world_->loop().RunTask(std::move(task));
  }
  // Runs until nothing is left to do now, without letting time pass beyond `span`.
  void RunFor(Nanos span) { world_->RunFor(span); }

  Store& store() { return *store_; }
  Loop& loop() { return world_->loop(); }
  SimWorld& world() { return *world_; }
  SimDisk& disk() { return world_->disk("store"); }
  catalog::MemoryCatalogDisk& index() { return index_; }
  TimePoint In(Nanos span) { return loop().Now() + span; }

 private:
  CatalogFactory Factory() {
    return [this](std::string, bool fresh) -> Task<Result<std::unique_ptr<catalog::Catalog>>> {
      if (fresh) index_.Erase();
      co_return catalog::MemoryCatalog::Open(world_->loop(), index_);
    };
  }

  std::unique_ptr<SimWorld> world_;
  Rng rng_;
  catalog::MemoryCatalogDisk index_;
  std::unique_ptr<SimIo> io_;
  std::unique_ptr<Store> store_;
};

// One launch of a job: `world` ranks on one node each.
struct TestRun {
  std::string job = "gpt";
  uint32_t world = 1;
  uint64_t launch = 1;
  RegisterAnswer answer;
  Keep keep;

  RegisterRequest RequestOf(uint32_t rank) const {
    RegisterRequest request;
    request.who = {"team",
                   job,
                   rank,
                   world,
                   IdOf(launch * 1000 + rank),
                   "launch-" + std::to_string(launch),
                   "host" + std::to_string(rank),
                   static_cast<int64_t>(100 + rank)};
    request.node = IdOf(900000 + rank);
    return request;
  }
  // Registers all ranks at once; the answer is in `answer`.
  Status Start(StoreHost& host) {
    std::vector<std::optional<Result<RegisterAnswer>>> answers(world);
    for (uint32_t rank = 0; rank < world; ++rank) {
      host.loop().Spawn([](StoreHost& host, RegisterRequest request,
                           std::optional<Result<RegisterAnswer>>& out) -> Task<void> {
        out = co_await host.store().Register(std::move(request), host.In(60s));
      }(host, RequestOf(rank), answers[rank]));
    }
    host.loop().RunUntil([&] {
      return std::all_of(answers.begin(), answers.end(),
                         [](const auto& a) { return a.has_value(); });
    });
    for (const auto& each : answers) {
      if (!each->has_value()) return each->error();
      answer = **each;
    }
    return OkStatus();
  }
  BeginRequest BeginOf(uint32_t rank, uint64_t step) const {
    return {answer.job, answer.epoch, step, rank, IdOf(launch * 1000 + rank), "{}", keep};
  }
  format::ShardIdentity Identity(uint32_t rank, uint64_t step, const Id& attempt) const {
    return {answer.job, {answer.epoch, step}, attempt, rank, world};
  }
  // All ranks begin, upload and seal `step`; waits until it is committed (or aborted).
  Status Save(StoreHost& host, uint64_t step, uint64_t seed, uint64_t length = 3 * kTestChunk) {
    Id attempt;
    for (uint32_t rank = 0; rank < world; ++rank) {
      auto begun = host.Run(host.store().Begin(BeginOf(rank, step)));
      if (!begun.has_value()) return begun.error();
      attempt = begun->attempt;
    }
    for (uint32_t rank = 0; rank < world; ++rank) {
      Status sealed = host.Run(Upload(host.store(), Identity(rank, step, attempt),
                                      MakeContent(rank, world, seed, length)));
      if (!sealed.ok()) return sealed;
    }
    CheckpointKey key{answer.epoch, step};
    const StoreState& state = host.store().state();
    host.loop().RunUntil([&] {
      const JobState* job = state.FindJob(answer.job);
      return host.store().failed() || job->checkpoints.contains(key) || job->over.contains(key);
    });
    const JobState* job = state.FindJob(answer.job);
    if (job->checkpoints.contains(key)) return OkStatus();
    auto over = job->over.find(key);
    return {Code::kAborted, over == job->over.end() ? "failed" : over->second.end.reason};
  }
};

// OK when the checkpoint can be read and every byte is what `seed` says.
inline Status CheckBytes(StoreHost& host, const Id& job, CheckpointKey key, uint32_t world,
                         uint64_t seed, uint64_t length = 3 * kTestChunk) {
  auto session = host.Run(host.store().OpenRead(job, key));
  if (!session.has_value()) return session.error();
  for (uint32_t rank = 0; rank < world; ++rank) {
    auto bytes = host.Run(Download(**session, rank));
    if (!bytes.has_value()) return bytes.error();
    if (*bytes != MakeContent(rank, world, seed, length).bytes) {
      return {Code::kInternal, "rank " + std::to_string(rank) + " has other bytes than were saved"};
    }
  }
  return OkStatus();
}

}  // namespace reprise::lifecycle
