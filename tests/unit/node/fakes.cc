#include "tests/unit/node/fakes.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"

namespace reprise::node {

class FakeUpload final : public dataplane::ShardUpload {
 public:
  FakeUpload(FakeStore& store, wire::PutOpen request, bool sealed)
      : store_(store), request_(std::move(request)), sealed_(sealed) {
    ++store_.uploads_open_;
    shard_.chunks.resize(format::ChunkCount(request_.length, request_.chunk_bytes));
    shard_.manifest.chunk_digests.resize(shard_.chunks.size());
  }
  ~FakeUpload() override {
    --store_.uploads_open_;
    if (!ended_) store_.violations.push_back("upload destroyed without Seal or Abandon");
  }
  bool already_sealed() const override { return sealed_; }

  Task<Status> Send(uint64_t index, ByteView chunk, Digest digest) override {
    ++store_.sends;
    co_await store_.changed_.WaitFor([&] { return !store_.hold_; });
    if (store_.away_) co_return Status(Code::kUnavailable, "store is away");
    if (index >= shard_.chunks.size() || !shard_.chunks[index].empty()) {
      store_.violations.push_back(fmt::format("chunk {} out of range or twice", index));
      co_return Status(Code::kInvalidArgument, "chunk index");
    }
    shard_.chunks[index].assign(chunk.begin(), chunk.end());
    shard_.manifest.chunk_digests[index] = DigestOf(chunk);
    if (DigestOf(chunk) != digest) co_return Status(Code::kDataLoss, "digest of a chunk");
    co_return OkStatus();
  }

  Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) override {
    ended_ = true;
    co_await store_.changed_.WaitFor([&] { return !store_.hold_; });
    if (store_.away_) co_return Status(Code::kUnavailable, "store is away");
    if (store_.seal_failures > 0) {
      --store_.seal_failures;
      co_return Status(store_.seal_failure, "seal is made to fail");
    }
    format::ShardManifest& manifest = shard_.manifest;
    manifest.identity = request_.shard;
    manifest.layout = request_.layout;
    manifest.length = request_.length;
    manifest.chunk_bytes = request_.chunk_bytes;
    manifest.piece_digests = std::move(piece_digests);
    manifest.root = format::ShardRoot(manifest);
    if (DigestOf(layout) != request_.layout) store_.violations.push_back("layout digest");
    if (manifest.root != root) co_return Status(Code::kDataLoss, "root differs");
    shard_.layout = std::move(layout);
    shard_.sealed = true;
    store_.shards_[{request_.shard.attempt, request_.shard.rank}] = shard_;
    store_.changed_.Notify();
    co_return OkStatus();
  }

  Task<void> Abandon() override {
    ended_ = true;
    co_return;
  }

 private:
  FakeStore& store_;
  wire::PutOpen request_;
  bool sealed_;
  bool ended_ = false;
  FakeStore::Shard shard_;
};

class FakeSource final : public dataplane::CheckpointSource {
 public:
  FakeSource(FakeStore& store, format::CheckpointManifest manifest)
      : store_(store), manifest_(std::move(manifest)) {
    ++store_.reads_open;
  }
  ~FakeSource() override {
    if (!closed_) store_.violations.push_back("source destroyed without Close");
  }
  const format::CheckpointManifest& manifest() const override { return manifest_; }
  Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) override {
    co_return store_.Find(manifest_.attempt, rank)->manifest;
  }
  Task<Result<Bytes>> Layout(Digest layout) override {
    for (const auto& [key, shard] : store_.shards_) {
      if (shard.manifest.layout == layout) co_return shard.layout;
    }
    co_return Error(Code::kNotFound, "no such layout");
  }
  Task<Status> ReadChunks(const format::ShardManifest& shard, uint64_t first,
                          std::vector<MutableByteView> buffers) override {
    if (closed_) store_.violations.push_back("read after Close");
    if (store_.away_) co_return Status(Code::kUnavailable, "store is away");
    const FakeStore::Shard* stored = store_.Find(manifest_.attempt, shard.identity.rank);
    for (size_t i = 0; i < buffers.size(); ++i) {
      ++store_.chunk_reads;
      const Bytes& chunk = stored->chunks[first + i];
      if (buffers[i].size() != AlignUp(chunk.size(), 4096) ||
          reinterpret_cast<uintptr_t>(buffers[i].data()) % 4096 != 0) {
        store_.violations.push_back("buffer of a chunk is not aligned or padded");
      }
      std::copy(chunk.begin(), chunk.end(), buffers[i].begin());
      if (store_.damaged_chunk == first + i) buffers[i][0] ^= 1;
    }
    co_return OkStatus();
  }
  Task<void> Close() override {
    if (!closed_) --store_.reads_open;
    closed_ = true;
    co_return;
  }

 private:
  FakeStore& store_;
  format::CheckpointManifest manifest_;
  bool closed_ = false;
};

Task<Result<std::unique_ptr<dataplane::ShardUpload>>> FakeStore::OpenUpload(wire::PutOpen request) {
  ++opens;
  if (away_) co_return Error(Code::kUnavailable, "store is away");
  if (open_failure != Code::kOk) co_return Error(open_failure, "open is made to fail");
  const Shard* known = Find(request.shard.attempt, request.shard.rank);
  bool sealed = known != nullptr && known->manifest.root == request.root_if_sealed;
  co_return std::make_unique<FakeUpload>(*this, std::move(request), sealed);
}

Task<Result<std::unique_ptr<dataplane::CheckpointSource>>> FakeStore::OpenRead(Id job,
                                                                               CheckpointKey key) {
  if (away_) co_return Error(Code::kUnavailable, "store is away");
  auto found = checkpoints_.find({job, key});
  if (found == checkpoints_.end()) co_return Error(Code::kNotFound, "no such checkpoint");
  co_return std::make_unique<FakeSource>(*this, found->second);
}

format::CheckpointManifest FakeStore::Publish(Id job, CheckpointKey key, Id attempt,
                                              uint32_t world) {
  format::CheckpointManifest manifest;
  manifest.job = job;
  manifest.key = key;
  manifest.attempt = attempt;
  manifest.world = world;
  manifest.metadata = "{}";
  std::set<Digest> layouts;
  for (uint32_t rank = 0; rank < world; ++rank) {
    const Shard* shard = Find(attempt, rank);
    if (shard == nullptr) {
      violations.push_back("published before all ranks sealed");
      return manifest;
    }
    const format::ShardManifest& sealed = shard->manifest;
    manifest.shards.push_back({rank, sealed.root, sealed.length, sealed.layout, {}});
    layouts.insert(sealed.layout);
  }
  for (const Digest& layout : layouts) manifest.layouts.push_back({layout, {}});
  checkpoints_[{job, key}] = manifest;
  return manifest;
}

const FakeStore::Shard* FakeStore::Find(const Id& attempt, uint32_t rank) const {
  auto found = shards_.find({attempt, rank});
  return found == shards_.end() ? nullptr : &found->second;
}

size_t FakeStore::sealed_count() const { return shards_.size(); }

Task<Result<lifecycle::RegisterAnswer>> FakeCoordinator::Register(
    lifecycle::RegisterRequest request, TimePoint deadline) {
  ++registers;
  bool open = co_await changed_.WaitFor([&] { return away_ || !hold_register_; }, deadline);
  if (away_) co_return Error(Code::kUnavailable, "coordinator is away");
  if (!open) co_return Error(Code::kDeadlineExceeded, "ranks 1 to 3 are missing");
  registered.push_back(request);
  co_return lifecycle::RegisterAnswer{job, epoch, resume, {}};
}

Task<Result<lifecycle::BeginAnswer>> FakeCoordinator::Begin(lifecycle::BeginRequest request) {
  co_await changed_.WaitFor([&] { return !hold_begin_; });
  if (away_) co_return Error(Code::kUnavailable, "coordinator is away");
  if (begin_failure != Code::kOk) co_return Error(begin_failure, "begin is made to fail");
  auto [attempt, made] = attempts_.try_emplace({request.epoch, request.step});
  if (made) attempt->second = rng_.NewId();
  co_return lifecycle::BeginAnswer{attempt->second};
}

Task<Status> FakeCoordinator::Skip(lifecycle::SkipRequest request) {
  if (away_) co_return Status(Code::kUnavailable, "coordinator is away");
  skips.push_back(request);
  changed_.Notify();
  co_return OkStatus();
}

Task<Status> FakeCoordinator::ReportInventory(lifecycle::InventoryReport report) {
  if (away_) co_return Status(Code::kUnavailable, "coordinator is away");
  reports.push_back(std::move(report));
  co_return OkStatus();
}

Task<Status> FakeCoordinator::ReportRankGone(lifecycle::RankGone who) {
  if (away_) co_return Status(Code::kUnavailable, "coordinator is away");
  gone.push_back(std::move(who));
  co_return OkStatus();
}

Task<Result<lifecycle::PollAnswer>> FakeCoordinator::PollEvents(lifecycle::PollRequest request,
                                                                TimePoint deadline) {
  ++polls;
  co_await changed_.WaitFor([&] { return away_ || events_.size() > request.after; }, deadline);
  if (away_) co_return Error(Code::kUnavailable, "coordinator is away");
  lifecycle::PollAnswer answer;
  answer.lost = request.after > events_.size();
  if (!answer.lost) answer.events.assign(events_.begin() + request.after, events_.end());
  answer.cursor = events_.size();
  co_return answer;
}

Task<Result<std::vector<lifecycle::JobInfo>>> FakeCoordinator::ListJobs(std::string) {
  co_return std::vector<lifecycle::JobInfo>{};
}

Task<Result<lifecycle::JobInfo>> FakeCoordinator::GetJob(std::string tenant, std::string name) {
  lifecycle::JobInfo info;
  info.tenant = tenant;
  info.name = name;
  info.job = job;
  co_return info;
}

Task<Result<std::vector<lifecycle::CheckpointInfo>>> FakeCoordinator::ListCheckpoints(std::string,
                                                                                      std::string,
                                                                                      bool) {
  co_return std::vector<lifecycle::CheckpointInfo>{};
}

Task<Result<lifecycle::CheckpointInfo>> FakeCoordinator::Resolve(std::string, std::string,
                                                                 lifecycle::Selector selector) {
  lifecycle::CheckpointInfo info;
  if (attempts_.empty()) co_return Error(Code::kNotFound, "the job has no checkpoint");
  info.key = attempts_.rbegin()->first;
  if (selector.step.has_value()) info.key = {epoch, *selector.step};
  co_return info;
}

Task<Status> FakeCoordinator::Delete(std::string, std::string, CheckpointKey) {
  co_return OkStatus();
}

Task<Status> FakeCoordinator::Pin(std::string, std::string, CheckpointKey, bool, std::string) {
  co_return OkStatus();
}

Task<Status> FakeCoordinator::SetMark(std::string, std::string, CheckpointKey key, format::Mark,
                                      std::string reason) {
  marks.push_back({key, std::move(reason)});
  co_return OkStatus();
}

void FakeCoordinator::Push(lifecycle::NodeEvent event) {
  events_.push_back(std::move(event));
  changed_.Notify();
}

void FakeCoordinator::PushFor(lifecycle::NodeEvent::Kind kind, CheckpointKey key,
                              std::string reason) {
  lifecycle::NodeEvent event;
  event.kind = kind;
  event.job = job;
  event.key = key;
  event.attempt = attempt_of(key);
  event.reason = std::move(reason);
  Push(std::move(event));
}

Id FakeCoordinator::attempt_of(CheckpointKey key) const {
  auto found = attempts_.find(key);
  return found == attempts_.end() ? Id{} : found->second;
}

}  // namespace reprise::node
