// Strict in-memory stand-ins for the coordinator and the store, in the node's own loop.
//
// Thread rule: that loop. They refuse what the contracts forbid.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/base/random.h"
#include "server/dataplane/store_link.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise::node {

// A store that takes nothing on trust: digests are compared on arrival, chunks come once each, a
// seal needs all of them and the right root.
class FakeStore final : public dataplane::StoreLink {
 public:
  explicit FakeStore(Loop& loop) : changed_(loop) {}

  struct Shard {
    format::ShardManifest manifest;
    Bytes layout;
    std::vector<Bytes> chunks;
    bool sealed = false;
  };
  using ShardKey = std::pair<Id, uint32_t>;  // attempt, rank

  Task<Result<std::unique_ptr<dataplane::ShardUpload>>> OpenUpload(wire::PutOpen request) override;
  Task<Result<std::unique_ptr<dataplane::CheckpointSource>>> OpenRead(Id job,
                                                                      CheckpointKey key) override;
  uint32_t chunk_bytes() const override { return chunk_bytes_; }
  void set_chunk_bytes(uint32_t bytes) { chunk_bytes_ = bytes; }
  wire::Source source() const override { return wire::Source::kNvme; }
  Task<void> Close() override { co_return; }

  // What the coordinator would have done: makes the sealed shards of an attempt a checkpoint.
  format::CheckpointManifest Publish(Id job, CheckpointKey key, Id attempt, uint32_t world);
  const Shard* Find(const Id& attempt, uint32_t rank) const;
  size_t uploads_open() const { return uploads_open_; }
  size_t sealed_count() const;
  void SetAway(bool away) {
    away_ = away;
    changed_.Notify();
  }
  // While held, Send and Seal do not return.
  void Hold(bool hold) {
    hold_ = hold;
    changed_.Notify();
  }

  // Faults and counters.
  Code open_failure = Code::kOk;
  Code seal_failure = Code::kOk;
  int seal_failures = 0;  // how many seals fail with seal_failure
  uint64_t sends = 0;
  uint64_t opens = 0;
  uint64_t chunk_reads = 0;
  int reads_open = 0;
  std::optional<uint64_t> damaged_chunk;  // ReadChunks yields wrong bytes for it
  std::vector<std::string> violations;

 private:
  friend class FakeUpload;
  friend class FakeSource;
  uint32_t chunk_bytes_ = 4096;
  bool away_ = false;
  bool hold_ = false;
  size_t uploads_open_ = 0;
  Notifier changed_;
  std::map<ShardKey, Shard> shards_;
  std::map<std::pair<Id, CheckpointKey>, format::CheckpointManifest> checkpoints_;
};

class FakeCoordinator final : public lifecycle::CoordinatorApi {
 public:
  explicit FakeCoordinator(Loop& loop) : rng_(7), changed_(loop) {}

  Task<Result<lifecycle::RegisterAnswer>> Register(lifecycle::RegisterRequest request,
                                                   TimePoint deadline) override;
  Task<Result<lifecycle::BeginAnswer>> Begin(lifecycle::BeginRequest request) override;
  Task<Status> Skip(lifecycle::SkipRequest request) override;
  Task<Status> ReportInventory(lifecycle::InventoryReport report) override;
  Task<Status> ReportRankGone(lifecycle::RankGone gone) override;
  Task<Result<lifecycle::PollAnswer>> PollEvents(lifecycle::PollRequest request,
                                                 TimePoint deadline) override;
  Task<Result<std::vector<lifecycle::JobInfo>>> ListJobs(std::string tenant) override;
  Task<Result<lifecycle::JobInfo>> GetJob(std::string tenant, std::string job) override;
  Task<Result<std::vector<lifecycle::CheckpointInfo>>> ListCheckpoints(std::string tenant,
                                                                       std::string job,
                                                                       bool all) override;
  Task<Result<lifecycle::CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                                  lifecycle::Selector selector) override;
  Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) override;
  Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                   std::string reason) override;
  Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key, format::Mark mark,
                       std::string reason) override;

  void Push(lifecycle::NodeEvent event);
  void PushFor(lifecycle::NodeEvent::Kind kind, CheckpointKey key, std::string reason = "");
  void SetAway(bool away) {
    away_ = away;
    changed_.Notify();
  }
  void HoldRegister(bool hold) {
    hold_register_ = hold;
    changed_.Notify();
  }
  // Begin waits until this is lifted.
  void HoldBegin(bool hold) {
    hold_begin_ = hold;
    changed_.Notify();
  }
  Id attempt_of(CheckpointKey key) const;

  Id job{{1, 2, 3}};
  uint64_t epoch = 1;
  std::optional<CheckpointKey> resume;
  Code begin_failure = Code::kOk;
  std::vector<lifecycle::RegisterRequest> registered;
  std::vector<lifecycle::SkipRequest> skips;
  std::vector<lifecycle::RankGone> gone;
  std::vector<lifecycle::InventoryReport> reports;
  std::vector<std::pair<CheckpointKey, std::string>> marks;
  uint64_t polls = 0;
  uint64_t registers = 0;

 private:
  Rng rng_;
  Notifier changed_;
  bool away_ = false;
  bool hold_register_ = false;
  bool hold_begin_ = false;
  std::map<CheckpointKey, Id> attempts_;
  std::vector<lifecycle::NodeEvent> events_;
};

}  // namespace reprise::node
