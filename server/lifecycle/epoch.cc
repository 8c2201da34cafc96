// Start of a run, step by step; what a crash after each step leaves is said behind the arrow:
//
//   E1  ranks 0..world-1 register (RAM)                         -> they register again
//   E2  under the job's lock: EPOCH journalled. The fence: trainers of older epochs are FENCED
//         -> an epoch without an answer; E1 again
//   E3  kFenced to every node
//   E4  settle (settle.cc), ending in RESUME                    -> the answer is recorded
//   E5  every waiting rank gets the answer; later calls of the same processes get it again
//
// The fence is raised at the grant, not when the new epoch first saves: between the two a straggler
// of the old epoch could commit what the new one has not resumed from.
#include "server/lifecycle/epoch.h"

#include <algorithm>
#include <utility>

#include "core/base/text.h"

namespace reprise::lifecycle {
namespace {

Status ClosedStatus() { return Status(Code::kUnavailable, "the store is going down: try again"); }

Status CheckIdentity(const RankIdentity& who) {
  if (!IsValidName(who.tenant) || !IsValidName(who.job)) {
    return FailStatus(Code::kInvalidArgument,
                      "tenant '{}' or job '{}' is no valid name: use [A-Za-z0-9._-], at most 128, "
                      "no leading dot",
                      CutText(who.tenant, 128), CutText(who.job, 128));
  }
  if (who.world == 0 || who.world > limits::kWorldMax || who.rank >= who.world) {
    return FailStatus(Code::kInvalidArgument, "rank {} of a world of {}", who.rank, who.world);
  }
  if (who.process.IsZero() || who.launcher.size() > limits::kNameLengthMax) {
    return Status(Code::kInvalidArgument,
                  "a process id is needed, and a launcher id of at most "
                  "128 bytes");
  }
  return OkStatus();
}

}  // namespace

bool Epochs::JobLaunches::IsOver(const Id& process) const {
  return std::any_of(over.begin(), over.end(),
                     [&](const std::set<Id>& processes) { return processes.contains(process); });
}

Epochs::JobLaunches& Epochs::LaunchesOf(const Id& job) {
  std::unique_ptr<JobLaunches>& launches = jobs_[job];
  if (launches == nullptr) launches = std::make_unique<JobLaunches>(core_.loop);
  return *launches;
}

Task<Result<Id>> Epochs::FindOrMakeJob(std::string tenant, std::string name) {
  AsyncMutex::Hold lock = co_await jobs_lock_.Lock();
  if (const JobState* job = core_.state.FindJob(tenant, name)) co_return job->entry.job;
  Id id = core_.rng.NewId();
  REPRISE_CO_TRY(co_await core_.log.Append({format::JobEntry{id, tenant, name}}));
  co_return id;
}

Task<Result<RegisterAnswer>> Epochs::Register(RegisterRequest request, TimePoint deadline) {
  if (closed_) co_return Error(ClosedStatus());
  REPRISE_CO_TRY(CheckIdentity(request.who));
  REPRISE_CO_ASSIGN(Id job, co_await FindOrMakeJob(request.who.tenant, request.who.job));
  JobLaunches& launches = LaunchesOf(job);
  if (launches.IsOver(request.who.process)) {
    co_return Fail(Code::kFenced, "rank {}: a newer run of job {} has registered", request.who.rank,
                   request.who.job);
  }
  LaunchPtr launch = FindLaunch(launches, request.who);
  if (launch == nullptr) {
    REPRISE_CO_ASSIGN(
        launch, request.epoch == 0 ? Join(launches, job, request) : Rejoin(launches, job, request));
  }
  co_return co_await AwaitAnswer(job, std::move(launch), request.who, deadline);
}

Epochs::LaunchPtr Epochs::FindLaunch(JobLaunches& launches, const RankIdentity& who) const {
  for (const LaunchPtr& launch : {launches.current, launches.gathering}) {
    if (launch == nullptr) continue;
    auto found = launch->ranks.find(who.rank);
    if (found != launch->ranks.end() && found->second.who.process == who.process) return launch;
  }
  return nullptr;
}

const Epochs::Registration* Epochs::SomebodyAlive(const Launch& launch) const {
  for (const auto& [rank, registration] : launch.ranks) {
    if (!registration.gone && core_.events.IsAlive(registration.node)) return &registration;
  }
  return nullptr;
}

Status Epochs::CheckRivals(JobLaunches& launches, const RegisterRequest& request) {
  for (const LaunchPtr& launch : {launches.current, launches.gathering}) {
    if (launch == nullptr || launch->launcher == request.who.launcher || request.takeover) continue;
    const Registration* alive = SomebodyAlive(*launch);
    if (alive == nullptr) continue;
    return FailStatus(
        Code::kAlreadyExists,
        "job {} is alive under another launcher ('{}'; rank {} is pid {} on host {}, at "
        "step {}): stop it, or pass takeover to fence it",
        request.who.job, launch->launcher, alive->who.rank, alive->who.pid, alive->who.host,
        alive->last_step);
  }
  const LaunchPtr& gathering = launches.gathering;
  if (gathering != nullptr && gathering->launcher == request.who.launcher &&
      gathering->world != request.who.world) {
    if (const Registration* alive = SomebodyAlive(*gathering)) {
      return FailStatus(Code::kInvalidArgument,
                        "rank {} says the world is {}, rank {} on host {} says {}: start all ranks "
                        "with one world size",
                        request.who.rank, request.who.world, alive->who.rank, alive->who.host,
                        gathering->world);
    }
  }
  return OkStatus();
}

Result<Epochs::LaunchPtr> Epochs::Join(JobLaunches& launches, const Id& job,
                                       const RegisterRequest& request) {
  REPRISE_TRY(CheckRivals(launches, request));
  LaunchPtr launch = launches.gathering;
  if (launch != nullptr &&
      (launch->launcher != request.who.launcher || launch->world != request.who.world)) {
    EndLaunch(launches, launch, Status(Code::kFenced, "another launch of this job has registered"));
    launch = nullptr;
  }
  if (launch == nullptr) {
    launch = std::make_shared<Launch>(core_.loop);
    launch->world = request.who.world;
    launch->launcher = request.who.launcher;
    launches.gathering = launch;
  }
  auto [place, fresh] = launch->ranks.try_emplace(request.who.rank);
  if (!fresh) {
    // The rank died and came again before the others arrived: its first process is over.
    if (launches.over.empty()) launches.over.emplace_back();
    launches.over.back().insert(place->second.who.process);
  }
  place->second = {request.who, request.node, false, 0};
  if (launch->ranks.size() == launch->world) {
    launches.gathering = nullptr;
    core_.Spawn(Open(job, launch));
  }
  launch->changed.Notify();
  return launch;
}

Result<Epochs::LaunchPtr> Epochs::Rejoin(JobLaunches& launches, const Id& job_id,
                                         const RegisterRequest& request) {
  const JobState& job = *core_.state.FindJob(job_id);
  auto epoch = job.epochs.find(request.epoch);
  bool current = request.epoch == job.epoch() && epoch != job.epochs.end() &&
                 epoch->second.resume.has_value() && epoch->second.grant.world == request.who.world;
  if (!current) {
    return Fail(Code::kFenced, "rank {}: epoch {} of job {} is over, epoch {} runs now",
                request.who.rank, request.epoch, request.who.job, job.epoch());
  }
  if (launches.current == nullptr) {
    auto launch = std::make_shared<Launch>(core_.loop);
    launch->world = epoch->second.grant.world;
    launch->launcher = epoch->second.grant.launcher;
    launch->epoch = request.epoch;
    const format::ResumeEntry& resume = *epoch->second.resume;
    launch->answer = RegisterAnswer{job_id, request.epoch, resume.parent, resume.skipped};
    launches.current = std::move(launch);
  }
  Registration& place = launches.current->ranks[request.who.rank];
  if (!place.who.process.IsZero() && place.who.process != request.who.process) {
    return Fail(Code::kFenced, "rank {} of epoch {} of job {} is another process", request.who.rank,
                request.epoch, request.who.job);
  }
  place = {request.who, request.node, false, place.last_step};
  LogInfo("rank {} is back in epoch {} of job {}", request.who.rank, request.epoch,
          request.who.job);
  return launches.current;
}

Task<Result<RegisterAnswer>> Epochs::AwaitAnswer(Id job, LaunchPtr launch, RankIdentity who,
                                                 TimePoint deadline) {
  JobLaunches& launches = LaunchesOf(job);
  auto replaced = [launch, who] {
    auto found = launch->ranks.find(who.rank);
    return found == launch->ranks.end() || found->second.who.process != who.process;
  };
  if (!replaced()) ++launch->ranks.at(who.rank).waiters;
  co_await launch->changed.WaitFor(
      [this, launch, replaced] {
        return closed_ || core_.log.failed() || launch->answer.has_value() || replaced();
      },
      deadline);
  if (launch->answer.has_value()) co_return *launch->answer;
  if (closed_ || core_.log.failed()) co_return Error(ClosedStatus());
  if (replaced()) {
    co_return Fail(Code::kFenced, "rank {} of job {} was registered again by a newer process",
                   who.rank, who.job);
  }
  if (launch->epoch != 0 || launches.gathering != launch) {
    co_return Fail(Code::kDeadlineExceeded,
                   "all {} ranks have registered, but the epoch has not settled yet: call again",
                   launch->world);
  }
  std::string missing = Missing(*launch);
  // The call that this one repeats, or that repeats this one, may still be waiting.
  uint32_t& waiters = launch->ranks.at(who.rank).waiters;
  if (waiters > 1) {
    --waiters;
    co_return Fail(Code::kDeadlineExceeded, "missing: ranks {}", missing);
  }
  launch->ranks.erase(who.rank);
  if (launch->ranks.empty()) launches.gathering = nullptr;
  co_return Fail(Code::kDeadlineExceeded,
                 "{} of {} ranks of job {} had registered in time; missing: ranks {}",
                 launch->ranks.size() + 1, launch->world, who.job, missing);
}

std::string Epochs::Missing(const Launch& launch) {
  std::set<uint32_t> missing;
  for (uint32_t rank = 0; rank < launch.world; ++rank) {
    if (!launch.ranks.contains(rank)) missing.insert(missing.end(), rank);
  }
  return RankList(missing);
}

// --- E2 to E5

Task<void> Epochs::Open(Id job, LaunchPtr launch) {
  JobLaunches& launches = LaunchesOf(job);
  AsyncMutex::Hold opening = co_await launches.opening.Lock();
  launch->answer = co_await Grant(job, launch);
  if (!launch->answer->has_value()) {
    // Not granted, or not settled: the same processes may try again with a fresh gathering.
    if (launches.current == launch) launches.current = nullptr;
  }
  launch->changed.Notify();
}

Task<Result<RegisterAnswer>> Epochs::Grant(Id job, LaunchPtr launch) {
  if (core_.ending()) co_return Error(ClosedStatus());
  JobLaunches& launches = LaunchesOf(job);
  uint64_t epoch = 0;
  {
    AsyncMutex::Hold lock = co_await core_.JobLock(job).Lock();
    epoch = core_.state.FindJob(job)->epoch() + 1;
    Status granted = co_await core_.log.Append(
        {format::EpochEntry{job, epoch, launch->world, launch->launcher}});
    if (!granted.ok()) co_return Error(ClosedStatus());
    launch->epoch = epoch;
    if (launches.current != nullptr) {
      EndLaunch(launches, launches.current, Status(Code::kFenced, "a newer run has registered"));
    }
    launches.current = launch;
  }
  LogInfo("epoch {} of job {} granted to launcher '{}', world {}", epoch,
          core_.state.FindJob(job)->entry.name, launch->launcher, launch->world);
  if (epoch > 1) {
    NodeEvent fenced;
    fenced.kind = NodeEvent::Kind::kFenced;
    fenced.job = job;
    fenced.key = {epoch - 1, 0};
    fenced.reason = "a newer run of the job has registered";
    core_.events.Publish(fenced);
  }
  REPRISE_CO_ASSIGN(format::ResumeEntry resume, co_await settler_.Settle(job, epoch));
  co_return RegisterAnswer{job, epoch, resume.parent, resume.skipped};
}

void Epochs::EndLaunch(JobLaunches& launches, const LaunchPtr& launch, Status why) {
  std::set<Id> processes;
  for (const auto& [rank, registration] : launch->ranks) {
    processes.insert(registration.who.process);
  }
  launches.over.push_back(std::move(processes));
  if (launches.over.size() > kRunsRememberedMax) launches.over.pop_front();
  if (launch->answer.has_value()) {
    why.IgnoreError();  // its ranks have their answer; the next call of each is FENCED
  } else {
    launch->answer = Error(std::move(why));
  }
  if (launches.gathering == launch) launches.gathering = nullptr;
  launch->changed.Notify();
}

// --- while it runs

Result<uint32_t> Epochs::CheckRank(const BeginRequest& request) {
  const JobState* job = core_.state.FindJob(request.job);
  if (job == nullptr) return Fail(Code::kNotFound, "no such job: register first");
  if (request.epoch < core_.FenceOf(*job)) {
    return Fail(Code::kFenced, "epoch {} is over: epoch {} of job {} runs now", request.epoch,
                job->epoch(), job->entry.name);
  }
  auto epoch = job->epochs.find(request.epoch);
  if (epoch == job->epochs.end() || request.rank >= epoch->second.grant.world) {
    return Fail(Code::kInvalidArgument, "rank {} of epoch {} was never registered", request.rank,
                request.epoch);
  }
  if (!epoch->second.resume.has_value()) {
    return Fail(Code::kFailedPrecondition, "epoch {} has not settled: register first",
                request.epoch);
  }
  const LaunchPtr& current = LaunchesOf(request.job).current;
  if (current != nullptr && current->epoch == request.epoch) {
    Registration& registration = current->ranks[request.rank];
    // After a restart of the store: a rank whose node daemon lived on has not registered again.
    if (registration.who.process.IsZero()) registration.who.process = request.process;
    if (!request.process.IsZero() && registration.who.process != request.process) {
      return Fail(Code::kFenced, "rank {} of epoch {} is another process", request.rank,
                  request.epoch);
    }
    registration.last_step = std::max(registration.last_step, request.step);
  }
  core_.first_saves.insert({request.job, request.epoch});
  return epoch->second.grant.world;
}

void Epochs::RankGone(const lifecycle::RankGone& gone) {
  auto found = jobs_.find(gone.job);
  if (found == jobs_.end()) return;
  JobLaunches& launches = *found->second;
  if (launches.current != nullptr) {
    auto rank = launches.current->ranks.find(gone.rank);
    if (rank != launches.current->ranks.end() && rank->second.who.process == gone.process) {
      rank->second.gone = true;
    }
  }
  if (launches.gathering != nullptr) {
    auto rank = launches.gathering->ranks.find(gone.rank);
    if (rank != launches.gathering->ranks.end() && rank->second.who.process == gone.process) {
      launches.gathering->ranks.erase(rank);
      launches.gathering->changed.Notify();
    }
  }
}

bool Epochs::IsAlive(const Id& job) const {
  auto found = jobs_.find(job);
  return found != jobs_.end() && found->second->current != nullptr &&
         SomebodyAlive(*found->second->current) != nullptr;
}

std::vector<RankInfo> Epochs::Ranks(const Id& job) const {
  std::vector<RankInfo> ranks;
  auto found = jobs_.find(job);
  if (found == jobs_.end() || found->second->current == nullptr) return ranks;
  for (const auto& [rank, registration] : found->second->current->ranks) {
    ranks.push_back({rank, registration.who.host, registration.who.pid,
                     !registration.gone && core_.events.IsAlive(registration.node),
                     registration.last_step});
  }
  return ranks;
}

std::string Epochs::WhereIs(const Id& job, uint32_t rank) const {
  auto found = jobs_.find(job);
  if (found == jobs_.end() || found->second->current == nullptr) return {};
  auto place = found->second->current->ranks.find(rank);
  if (place == found->second->current->ranks.end()) return {};
  const Registration& registration = place->second;
  return fmt::format("rank {} on host {} {} step {}", rank, registration.who.host,
                     registration.gone ? "is gone, after" : "is at", registration.last_step);
}

void Epochs::Close() {
  closed_ = true;
  for (auto& [job, launches] : jobs_) {
    for (const LaunchPtr& launch : {launches->current, launches->gathering}) {
      if (launch != nullptr) launch->changed.Notify();
    }
  }
}

}  // namespace reprise::lifecycle
