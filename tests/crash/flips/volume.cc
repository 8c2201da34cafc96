#include "tests/crash/flips/volume.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "server/catalog/rocksdb_catalog.h"
#include "tests/crash/store/content.h"

namespace reprise::crash {

using namespace std::chrono_literals;

namespace {

constexpr uint64_t kBlock = 4096;
constexpr char kDirectory[] = "/volume";
constexpr char kTenant[] = "crash";
constexpr char kJob[] = "job";

}  // namespace

Volume::Volume(std::string index_directory, std::string mutation)
    : index_directory_(std::move(index_directory)),
      mutation_(std::move(mutation)),
      loop_(clock_),
      io_(loop_) {}

lifecycle::StoreOptions Volume::Options() const {
  lifecycle::StoreOptions options;
  options.directory = kDirectory;
  // With a real index the ring never wraps, so that it can rebuild an index that is lost.
  options.geometry = {.chunk_bytes = kBlock,
                      .segment_bytes = 64 * 1024,
                      .segment_count = 18,
                      .journal_slots = index_directory_.empty() ? 16u : 256u};
  options.coordinator.node_timeout = 1ms;
  options.coordinator.inventory_grace = 1ms;
  options.coordinator.settle_timeout = 1ms;
  options.prewrite_segments = false;
  options.mutations.skip_manifest_verify = made_ && mutation_ == "skip_manifest_verify";
  options.journal_mutations.skip_repair = made_ && mutation_ == "skip_repair";
  return options;
}

Task<Result<std::unique_ptr<catalog::Catalog>>> Volume::OpenIndex(bool fresh) {
  if (index_directory_.empty()) {
    if (fresh) index_.Erase();
    co_return catalog::MemoryCatalog::Open(loop_, index_);
  }
  if (fresh) REPRISE_CO_TRY(catalog::RocksdbCatalog::Destroy(index_directory_));
  co_return co_await catalog::RocksdbCatalog::Open(loop_, index_directory_);
}

Status Volume::Open() {
  auto opened = Run(lifecycle::Store::Open(
      io_, rng_, Options(), [this](std::string, bool fresh) { return OpenIndex(fresh); }));
  if (!opened.has_value()) return opened.error();
  store_ = std::move(*opened);
  return OkStatus();
}

void Volume::Close() {
  Run(store_->Close());
  store_.reset();
}

void Volume::Rollback() {
  io_.Rollback();
  index_ = index_at_mark_;
}

Status Volume::Make() {
  REPRISE_RETURN_IF_ERROR(Open());
  REPRISE_RETURN_IF_ERROR(Run(Fill()));
  // The index as a process that is killed now leaves it: without the last groups.
  catalog::MemoryCatalogDisk killed = index_;
  killed.Crash(0);
  Close();
  if (index_directory_.empty()) index_ = killed;
  REPRISE_RETURN_IF_ERROR(Open());
  Learn();
  Close();
  if (index_directory_.empty()) index_ = killed;
  index_at_mark_ = index_;
  io_.Mark();
  made_ = true;
  return OkStatus();
}

Task<Status> Volume::Fill() {
  Id process[kVolumeWorld];
  std::vector<std::optional<Status>> registered(kVolumeWorld);
  for (uint32_t rank = 0; rank < kVolumeWorld; ++rank) {
    process[rank] = rng_.NewId();
    lifecycle::RegisterRequest request;
    request.who = {kTenant, kJob, rank, kVolumeWorld, process[rank], "launch", "host", 1};
    request.node = rng_.NewId();
    loop_.Spawn([](Volume& self, lifecycle::RegisterRequest request,
                   std::optional<Status>& out) -> Task<void> {
      auto answer = co_await self.store_->Register(request, self.loop_.Now() + 10s);
      if (answer.has_value()) self.job_ = answer->job;
      if (answer.has_value()) self.epoch_ = answer->epoch;
      out = StatusOf(answer);
    }(*this, request, registered[rank]));
  }
  while (!registered[0].has_value() || !registered[1].has_value()) co_await loop_.Yield();
  REPRISE_CO_RETURN_IF_ERROR(*registered[0]);
  REPRISE_CO_RETURN_IF_ERROR(*registered[1]);
  for (uint64_t step = 1; step <= kVolumeCheckpoints; ++step) {
    REPRISE_CO_RETURN_IF_ERROR(co_await SaveOne(step, process));
  }
  co_return co_await store_->Pin(kTenant, kJob, {epoch_, 2}, true, "kept");
}

Task<Status> Volume::SaveOne(uint64_t step, Id process[]) {
  CheckpointKey key{epoch_, step};
  Id attempt;
  for (uint32_t rank = 0; rank < kVolumeWorld; ++rank) {
    lifecycle::BeginRequest request{job_, epoch_, step, rank, process[rank], "{}", {}};
    REPRISE_CO_ASSIGN_STATUS(lifecycle::BeginAnswer begun, co_await store_->Begin(request));
    attempt = begun.attempt;
  }
  for (uint32_t rank = 0; rank < kVolumeWorld; ++rank) {
    format::ShardIdentity identity{job_, key, attempt, rank, kVolumeWorld};
    REPRISE_CO_RETURN_IF_ERROR(co_await UploadShard(*store_, identity, kVolumeShardBytes));
  }
  TimePoint limit = loop_.Now() + 10s;
  while (store_->state().FindCheckpoint(job_, key) == nullptr) {
    if (loop_.Now() > limit) co_return Status(Code::kDeadlineExceeded, "no commit");
    co_await loop_.Yield();
  }
  co_return OkStatus();
}

Block& Volume::At(const format::Run& run, uint64_t position) {
  std::string path = fmt::format("{}/seg/{:08}", kDirectory, run.segment);
  std::vector<Block>& blocks = blocks_[path];
  if (blocks.empty()) blocks.resize(io_.file(path).size() / kBlock);
  return blocks.at((run.offset + position) / kBlock);
}

namespace {

// How much of the block at `at` an object fills.
uint64_t ContentAt(const format::ObjectRef& object, uint64_t at) {
  return object.length <= at ? 0 : std::min(kBlock, object.length - at);
}

}  // namespace

// Which block holds what, by the ledger of the undamaged store.
void Volume::Learn() {
  const lifecycle::StoreState& state = store_->state();
  rows_ = state.Rows();
  for (const auto& [key, row] : state.FindJob(job_)->checkpoints) {
    const format::Run& manifest = row.commit.manifest.run;
    for (uint64_t at = 0; at < manifest.length; at += kBlock) {
      bool last = at + kBlock == manifest.length;
      Block& block = At(manifest, at);
      block = {last ? BlockKind::kCertificate : BlockKind::kManifest, key, 0, 0, {}};
      if (!last) block.length = ContentAt(row.commit.manifest, at);
    }
    for (const auto& [rank, shard] : state.FindAttempt(row.commit.attempt)->shards) {
      uint64_t chunk = 0;
      for (const format::Run& run : shard.runs) {
        for (uint64_t at = 0; at < run.length; at += kBlock) {
          At(run, at) = {BlockKind::kPayload, key, rank, chunk++, {}};
        }
      }
      for (uint64_t at = 0; at < shard.manifest.run.length; at += kBlock) {
        At(shard.manifest.run, at) = {BlockKind::kShardManifest,    key, rank, 0, {},
                                      ContentAt(shard.manifest, at)};
      }
      const format::ObjectRef& layout = state.FindLayout(shard.layout)->object;
      for (uint64_t at = 0; at < layout.run.length; at += kBlock) {
        At(layout.run, at) = {BlockKind::kLayout,   key, rank, 0, shard.layout,
                              ContentAt(layout, at)};
      }
    }
  }
}

}  // namespace reprise::crash
