// LoopCoordinator: a coordinator that lives on another loop of the same process.
//
// Each call hops to the coordinator's loop and back (CallOn). Used by a daemon that holds both roles.
//
// Thread rule: the home loop. The coordinator and its loop outlive this object and its calls.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise {

class LoopCoordinator final : public lifecycle::CoordinatorApi {
 public:
  LoopCoordinator(Loop& home, Loop& target, lifecycle::CoordinatorApi& coordinator)
      : home_(home), target_(target), coordinator_(coordinator) {}

  Task<Result<lifecycle::RegisterAnswer>> Register(lifecycle::RegisterRequest request,
                                                   TimePoint deadline) override {
    return Hop<Result<lifecycle::RegisterAnswer>>(
        [=](auto& api) { return api.Register(request, deadline); });
  }
  Task<Result<lifecycle::BeginAnswer>> Begin(lifecycle::BeginRequest request) override {
    return Hop<Result<lifecycle::BeginAnswer>>([=](auto& api) { return api.Begin(request); });
  }
  Task<Status> Skip(lifecycle::SkipRequest request) override {
    return Hop<Status>([=](auto& api) { return api.Skip(request); });
  }
  Task<Status> ReportInventory(lifecycle::InventoryReport report) override {
    return Hop<Status>([=](auto& api) { return api.ReportInventory(report); });
  }
  Task<Status> ReportRankGone(lifecycle::RankGone gone) override {
    return Hop<Status>([=](auto& api) { return api.ReportRankGone(gone); });
  }
  Task<Result<lifecycle::PollAnswer>> PollEvents(lifecycle::PollRequest request,
                                                 TimePoint deadline) override {
    return Hop<Result<lifecycle::PollAnswer>>(
        [=](auto& api) { return api.PollEvents(request, deadline); });
  }
  Task<Result<std::vector<lifecycle::JobInfo>>> ListJobs(std::string tenant) override {
    return Hop<Result<std::vector<lifecycle::JobInfo>>>(
        [=](auto& api) { return api.ListJobs(tenant); });
  }
  Task<Result<lifecycle::JobInfo>> GetJob(std::string tenant, std::string job) override {
    return Hop<Result<lifecycle::JobInfo>>([=](auto& api) { return api.GetJob(tenant, job); });
  }
  Task<Result<std::vector<lifecycle::CheckpointInfo>>> ListCheckpoints(std::string tenant,
                                                                       std::string job,
                                                                       bool all) override {
    return Hop<Result<std::vector<lifecycle::CheckpointInfo>>>(
        [=](auto& api) { return api.ListCheckpoints(tenant, job, all); });
  }
  Task<Result<lifecycle::CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                                  lifecycle::Selector selector) override {
    return Hop<Result<lifecycle::CheckpointInfo>>(
        [=](auto& api) { return api.Resolve(tenant, job, selector); });
  }
  Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) override {
    return Hop<Status>([=](auto& api) { return api.Delete(tenant, job, key); });
  }
  Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                   std::string reason) override {
    return Hop<Status>([=](auto& api) { return api.Pin(tenant, job, key, pinned, reason); });
  }
  Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key, format::Mark mark,
                       std::string reason) override {
    return Hop<Status>([=](auto& api) { return api.SetMark(tenant, job, key, mark, reason); });
  }

 private:
  template <typename T, typename Call>
  Task<T> Hop(Call call) {
    return CallOn<T>(home_, target_,
                     [call = std::move(call), &api = coordinator_]() { return call(api); });
  }

  Loop& home_;
  Loop& target_;
  lifecycle::CoordinatorApi& coordinator_;
};

}  // namespace reprise
