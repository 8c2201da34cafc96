// Cluster: the hosts, processes and faults of one simulated world, and what is checked all the time.
//
// Inspections happen every few events: the store's state goes to the Model, daemons that died are
// restarted, bounds on memory and queues are compared.
//
// Thread rule: one thread.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/whole/hosts.h"
#include "tests/sim/whole/operator.h"
#include "tests/sim/whole/simulation.h"
#include "tests/sim/whole/trainer.h"

namespace reprise::sim {

class Cluster {
 public:
  Cluster(const Plan& plan, const SimOptions& options);
  ~Cluster();

  void Start();
  SimResult Finish();

  SimWorld& world() { return world_; }
  Model& model() { return model_; }
  Counts& counts() { return counts_; }
  StoreProcess& store() { return *store_; }
  Operator& op() { return *operator_; }
  Notifier& changed() { return changed_; }
  const std::string& job() const { return job_; }
  // A violation was found, or the fault bound passed: nothing after it counts.
  bool over() const { return !model_.violations.empty() || beyond_bound_; }
  void SetBeyondBound() { beyond_bound_ = true; }

  // --- launches. One at a time; its number.
  uint64_t Launch(const RunPlan& run);
  // All its processes have ended, or one has ended badly.
  bool RunEnded() const;
  // Why a process ended badly; empty: none did.
  std::string WhyRunFailed() const;
  uint64_t CommitsOf(uint64_t launch) const;
  // Kills what is left of it; with `leave_zombie` one process lives on, and does not know.
  void EndRun(bool leave_zombie);

  // --- faults
  void Do(const Action& action);
  // No faults from now on; everything that is down comes back.
  void Heal();

  Nanos rpc_late_max() const { return plan_.rpc.late_ppm == 0 ? Nanos{0} : plan_.rpc.late_max; }
  std::string WhoIsUp() const;
  bool NodesUp() const;
  void StartAll();
  bool AllDown() const;
  void StopAll();
  bool Quiet();
  void Inspect();
  bool HasNoStraySpace();
  void CheckSpace();
  void CheckSockets();

 private:
  struct Rank {
    std::unique_ptr<Trainer> trainer;
    uint32_t node = 0;
  };
  HostParts Parts() { return {world_, rpc_, processes_, model_, counts_}; }
  Loop& TakeLoop();
  void ReapZombies(bool all);
  void KillRanksOn(uint32_t node, SimCrash how);
  void InspectLater();
  void SuperviseLater();
  void CheckBounds();
  void Note(std::string what);
  void Disturb();
  void After(Nanos span, std::function<void()> fire) {
    world_.At(world_.clock().Now() + span, 0, std::move(fire));
  }

  void DoProcess(const Action& action);
  void DoNetwork(const Action& action);
  void DoDisk(const Action& action);
  void DoOperator(const Action& action);
  void KillRun();
  void Rot(const Action& action);
  void Pause(Loop& loop, Nanos span);
  bool IsCalm();

  const Plan plan_;
  const SimOptions options_;
  const std::string job_ = "gpt";
  Counts counts_;
  Model model_;
  SimWorld world_;
  ProcessTable processes_;
  SimRpc rpc_;
  Notifier changed_;
  std::unique_ptr<StoreProcess> store_;
  std::vector<std::unique_ptr<NodeProcess>> nodes_;
  std::unique_ptr<Operator> operator_;
  std::vector<Loop*> free_loops_;
  std::shared_ptr<Run> run_;
  std::vector<Rank> ranks_;
  std::list<Rank> zombies_;
  uint64_t launches_ = 0;
  bool beyond_bound_ = false;
  bool healed_ = false;
  bool finished_ = false;
  TimePoint last_disturbance_;
  uint64_t disk_flips_ = 0;
  std::vector<std::string> timeline_;
};

}  // namespace reprise::sim
