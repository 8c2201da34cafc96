// Epochs: runs of jobs. Who registered, which epoch they got, who is alive.
//
// Ranks gather until 0..world-1 have registered anew; then the epoch is granted (EPOCH journalled:
// the fence), settled, and every rank is handed the one RESUME answer, also those that ask late or
// again. Registrations are soft state, epochs are not: after a restart of the store, ranks that name
// the current epoch are taken back into it (a training process outlives daemons, and holds state that
// nobody else has); ranks that name none gather for a new one.
//
//   gathering --(complete)--> granted --(settled)--> answered --(next grant)--> over (FENCED)
//
// Thread rule: the store's loop.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "server/lifecycle/attempt.h"
#include "server/lifecycle/core.h"
#include "server/lifecycle/settle.h"

namespace reprise::lifecycle {

// Runs whose processes are remembered, so that their late calls are answered FENCED.
inline constexpr size_t kRunsRememberedMax = 8;

class Epochs {
 public:
  Epochs(Core& core, Settler& settler) : core_(core), settler_(settler), jobs_lock_(core.loop) {}

  // CoordinatorApi::Register and ReportRankGone.
  Task<Result<RegisterAnswer>> Register(RegisterRequest request, TimePoint deadline);
  void RankGone(const RankGone& gone);

  // May this process save in this epoch? The world on success, and its step is noted. FENCED,
  // NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION (not settled yet).
  Result<uint32_t> CheckRank(const BeginRequest& request);

  // For listings.
  bool IsAlive(const Id& job) const;
  std::vector<RankInfo> Ranks(const Id& job) const;
  // "rank 3 is at step 20 on host a" or "" when nothing is known.
  std::string WhereIs(const Id& job, uint32_t rank) const;
  // Ends all waits with UNAVAILABLE.
  void Close();

 private:
  struct Registration {
    RankIdentity who;
    Id node;
    bool gone = false;
    uint64_t last_step = 0;
    uint32_t waiters = 0;  // calls that wait for the answer: a retry joins the call it repeats
  };
  // One launch, from its first registration on.
  struct Launch {
    explicit Launch(Loop& loop) : changed(loop) {}
    uint32_t world = 0;
    std::string launcher;
    std::map<uint32_t, Registration> ranks;
    uint64_t epoch = 0;  // once granted
    std::optional<Result<RegisterAnswer>> answer;
    Notifier changed;
  };
  using LaunchPtr = std::shared_ptr<Launch>;
  struct JobLaunches {
    explicit JobLaunches(Loop& loop) : opening(loop) {}
    LaunchPtr gathering;
    LaunchPtr current;
    AsyncMutex opening;             // one epoch of a job is opened at a time
    std::deque<std::set<Id>> over;  // processes of launches that are over
    bool IsOver(const Id& process) const;
  };

  Task<Result<Id>> FindOrMakeJob(std::string tenant, std::string name);
  JobLaunches& LaunchesOf(const Id& job);
  LaunchPtr FindLaunch(JobLaunches& launches, const RankIdentity& who) const;
  Result<LaunchPtr> Join(JobLaunches& launches, const Id& job, const RegisterRequest& request);
  Result<LaunchPtr> Rejoin(JobLaunches& launches, const Id& job, const RegisterRequest& request);
  Status CheckRivals(JobLaunches& launches, const RegisterRequest& request);
  Task<Result<RegisterAnswer>> AwaitAnswer(Id job, LaunchPtr launch, RankIdentity who,
                                           TimePoint deadline);
  Task<void> Open(Id job, LaunchPtr launch);
  Task<Result<RegisterAnswer>> Grant(Id job, LaunchPtr launch);
  void EndLaunch(JobLaunches& launches, const LaunchPtr& launch, Status why);
  const Registration* SomebodyAlive(const Launch& launch) const;
  static std::string Missing(const Launch& launch);

  Core& core_;
  Settler& settler_;
  AsyncMutex jobs_lock_;
  std::map<Id, std::unique_ptr<JobLaunches>> jobs_;
  bool closed_ = false;
};

}  // namespace reprise::lifecycle
