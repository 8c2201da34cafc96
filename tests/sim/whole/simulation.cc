#include "tests/sim/whole/simulation.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "tests/sim/whole/cluster.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

class Simulation {
 public:
  Simulation(const Plan& plan, const SimOptions& options) : cluster_(plan, options), plan_(plan) {}
  SimResult Go();

 private:
  Task<void> Scenario();
  // One launch, until its processes have ended or been killed.
  Task<void> Play(RunPlan plan);
  Task<bool> PlayFinal(RunPlan plan, uint64_t commits_expected);
  Task<void> Liveness();
  Task<bool> AwaitServices();
  Task<void> MakeRoom();
  Task<void> CheckEverything();
  Task<void> CheckLeaks();
  Task<void> CheckReopen();
  Task<bool> Until(std::function<bool()> condition, Nanos timeout, std::string_view what);

  void NextAction();
  void Do(const Action& action);

  Cluster cluster_;
  const Plan& plan_;
  size_t next_action_ = 0;
  bool tape_done_ = false;
  bool safety_ = true;
};

SimResult Simulation::Go() {
  cluster_.Start();
  NextAction();
  cluster_.world().loop().RunTask(Scenario());
  return cluster_.Finish();
}

Task<bool> Simulation::Until(std::function<bool()> condition, Nanos timeout,
                             std::string_view what) {
  Loop& loop = cluster_.world().loop();
  bool met = co_await cluster_.changed().WaitFor([&] { return cluster_.over() || condition(); },
                                                 loop.Now() + timeout);
  if (!met && !cluster_.over()) {
    cluster_.model().Violate(
        fmt::format("after {:.0f} s without faults: {}", SecondsOf(timeout), what));
  }
  co_return met && !cluster_.over();
}

Task<void> Simulation::Scenario() {
  size_t launches = 0;
  while (!cluster_.over() && launches < 10 &&
         (launches < plan_.runs.size() || (!tape_done_ && !plan_.runs.empty()))) {
    co_await Play(plan_.runs[std::min(launches, plan_.runs.size() - 1)]);
    ++launches;
  }
  safety_ = false;
  if (!cluster_.over()) co_await Liveness();
}

Task<void> Simulation::Play(RunPlan run) {
  Loop& loop = cluster_.world().loop();
  Rng& rng = cluster_.world().rng();
  cluster_.Launch(run);
  co_await cluster_.changed().WaitFor([this] { return cluster_.over() || cluster_.RunEnded(); },
                                      loop.Now() + 100s);
  // The launcher has seen a death and ends the rest, not quite at once.
  co_await loop.Sleep(Nanos{rng.Below(30'000'000)});
  if (!cluster_.over()) cluster_.EndRun(run.zombie);
  co_await loop.Sleep(Nanos{rng.Below(rng.Chance(1, 4) ? 3'000'000'000 : 20'000'000)});
}

// --- faults

void Simulation::NextAction() {
  if (next_action_ == plan_.tape.size()) {
    tape_done_ = true;
    return;
  }
  const Action& action = plan_.tape[next_action_++];
  // At that event; in a quiet world not for ever.
  auto fired = std::make_shared<bool>(false);
  auto fire = [this, fired, &action] {
    if (std::exchange(*fired, true) || !safety_ || cluster_.over()) return;
    cluster_.Do(action);
    NextAction();
  };
  SimWorld& world = cluster_.world();
  world.AtTrace(world.trace_count() + action.gap_events, fire);
  world.At(world.clock().Now() + 8s, 0, fire);
}

// --- liveness

Task<bool> Simulation::AwaitServices() {
  bool ready = co_await Until(
      [this] { return cluster_.store().lost() || (cluster_.store().up() && cluster_.NodesUp()); },
      60s, "not every daemon is up; the store: " + cluster_.store().why_down());
  if (!ready) co_return false;
  if (cluster_.store().lost()) {
    if (cluster_.model().may_lose) {
      cluster_.SetBeyondBound();
    } else {
      cluster_.model().Violate("the store does not open: " + cluster_.store().why_down());
    }
    co_return false;
  }
  co_return true;
}

Task<void> Simulation::Liveness() {
  cluster_.Heal();
  // Calls that were late still arrive, once.
  co_await cluster_.world().loop().Sleep(cluster_.rpc_late_max() + 1s);
  if (!co_await AwaitServices()) co_return;
  co_await MakeRoom();
  RunPlan last = plan_.runs.back();
  last.steps = 2;
  last.keep = {};
  last.skip_ppm = 0;
  last.wait_each = true;
  last.takeover = true;
  if (!co_await PlayFinal(last, 2)) co_return;
  co_await MakeRoom();
  if (!co_await PlayFinal(last, 2)) co_return;
  co_await CheckEverything();
  if (!cluster_.over()) co_await CheckLeaks();
  if (!cluster_.over()) co_await CheckReopen();
}

Task<void> Simulation::MakeRoom() {
  // An operator's clean-up: all but the newest, pinned or not. Must work on a full store, too.
  Status freed = co_await cluster_.op().DeleteAllButNewest(cluster_.job());
  if (!freed.ok()) cluster_.model().Violate("deletes fail without faults: " + freed.ToString());
}

Task<bool> Simulation::PlayFinal(RunPlan run, uint64_t commits_expected) {
  uint64_t launch = cluster_.Launch(run);
  co_await Until([this] { return cluster_.RunEnded(); }, 150s, "the last run has not ended");
  std::string failure = cluster_.WhyRunFailed();
  uint64_t commits = cluster_.CommitsOf(launch);
  cluster_.EndRun(false);
  if (cluster_.over()) co_return false;
  if (!failure.empty()) {
    bool honest = cluster_.model().may_lose && failure.find("DATA_LOSS") != std::string::npos;
    if (honest) {
      cluster_.SetBeyondBound();
    } else {
      cluster_.model().Violate("a run without faults fails: " + failure);
    }
    co_return false;
  }
  if (commits < commits_expected) {
    cluster_.model().Violate(
        fmt::format("a run without faults committed {} of {} steps", commits, commits_expected));
    co_return false;
  }
  co_return true;
}

Task<void> Simulation::CheckEverything() {
  for (const CheckpointKey& key : cluster_.model().Visible(cluster_.job())) {
    Status read = co_await cluster_.op().Verify(cluster_.job(), key);
    if (read.ok() || read.code() == Code::kNotFound) continue;
    if (cluster_.model().may_lose && read.code() == Code::kDataLoss) {
      SOMETIMES(cluster_.counts(), Path::kDamageReported);
      continue;
    }
    cluster_.model().Violate(NameOf(cluster_.job(), key) +
                             " cannot be read without faults: " + read.ToString());
  }
}

Task<void> Simulation::CheckLeaks() {
  co_await Until([this] { return cluster_.Quiet(); }, 90s, "uploads or saves are still open");
  // Uploads of machines that lost their power are given up after the store's idle timeout.
  Loop& loop = cluster_.world().loop();
  TimePoint give_up = loop.Now() + 30s;
  do {
    co_await loop.Sleep(200ms);
  } while (!cluster_.over() && loop.Now() < give_up && !cluster_.HasNoStraySpace());
  if (!cluster_.over()) cluster_.CheckSpace();
}

Task<void> Simulation::CheckReopen() {
  cluster_.Inspect();
  auto before = cluster_.store().store()->state().Rows();
  cluster_.StopAll();
  bool ended = co_await Until([this] { return cluster_.AllDown(); }, 60s, "daemons do not end");
  if (!ended) {
    cluster_.model().Violate(cluster_.WhoIsUp());
    co_return;
  }
  cluster_.CheckSockets();
  cluster_.StartAll();
  if (!co_await AwaitServices()) co_return;
  auto after = cluster_.store().store()->state().Rows();
  if (before != after) cluster_.model().Violate("the store opens again with other rows");
  cluster_.Inspect();
}

}  // namespace

SimResult Simulate(const Plan& plan, const SimOptions& options) {
  return Simulation(plan, options).Go();
}

}  // namespace reprise::sim
