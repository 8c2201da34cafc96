// Coordinator: the parts of the lifecycle put together behind CoordinatorApi and ShardStore.
//
// Holds no state of its own: epochs, attempts, inventories and events are in their parts,
// everything durable in StoreState. Listings and selections are answered here.
//
// Thread rule: the store's loop. Owner: the store.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/lifecycle/attempt.h"
#include "server/lifecycle/commit.h"
#include "server/lifecycle/core.h"
#include "server/lifecycle/epoch.h"
#include "server/lifecycle/inventory.h"
#include "server/lifecycle/layouts.h"
#include "server/lifecycle/put.h"
#include "server/lifecycle/read.h"
#include "server/lifecycle/settle.h"

namespace reprise::lifecycle {

class Coordinator final : public CoordinatorApi, public ShardStore {
 public:
  explicit Coordinator(Core& core);

  // After recovery: revives attempts from PREPARED shards and commits those that are complete.
  void ReviveAttempts();
  Committer& committer() { return committer_; }
  Reads& reads() { return reads_; }
  // Ends all waits with UNAVAILABLE; the owner then closes the gate.
  void Close();

  Task<Result<RegisterAnswer>> Register(RegisterRequest request, TimePoint deadline) override;
  Task<Result<BeginAnswer>> Begin(BeginRequest request) override;
  Task<Status> Skip(SkipRequest request) override;
  Task<Status> ReportInventory(InventoryReport report) override;
  Task<Status> ReportRankGone(RankGone gone) override;
  Task<Result<PollAnswer>> PollEvents(PollRequest request, TimePoint deadline) override;
  Task<Result<std::vector<JobInfo>>> ListJobs(std::string tenant) override;
  Task<Result<JobInfo>> GetJob(std::string tenant, std::string job) override;
  Task<Result<std::vector<CheckpointInfo>>> ListCheckpoints(std::string tenant, std::string job,
                                                            bool all) override;
  Task<Result<CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                       Selector selector) override;
  Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) override;
  Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                   std::string reason) override;
  Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key, format::Mark mark,
                       std::string reason) override;

  Task<Result<std::unique_ptr<PutSession>>> OpenPut(PutRequest request,
                                                    Digest root_if_sealed) override;
  Task<Result<std::unique_ptr<ReadSession>>> OpenRead(Id job, CheckpointKey key) override;
  uint32_t chunk_bytes() const override { return core_.geometry.chunk_bytes; }

 private:
  Result<const JobState*> JobNamed(const std::string& tenant, const std::string& name) const;
  JobInfo InfoOf(const JobState& job) const;
  CheckpointInfo InfoOf(const JobState& job, const CheckpointRow& row) const;
  CheckpointInfo InfoOf(const Attempt& attempt) const;

  Core& core_;
  Layouts layouts_;
  Attempts attempts_;
  Committer committer_;
  Reads reads_;
  Inventories inventories_;
  Settler settler_;
  Epochs epochs_;
  Puts puts_;
};

}  // namespace reprise::lifecycle
