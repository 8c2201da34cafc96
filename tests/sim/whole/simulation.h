// Simulation: one seed's world from its first event to its verdict.
//
// A store, nodes and training processes run the product's code in one thread. The safety phase runs
// the plan: launches of a job one after another while the tape of actions injects faults. Then
// everything is healed and liveness is demanded: the store serves, deletes work, a new run registers,
// resumes, restores byte for byte, saves and commits; nothing is left over; daemons end in good order;
// and the directory opens again to the same rows.
//
// Thread rule: one thread; worlds are independent of each other.
#pragma once

#include <string>
#include <vector>

#include "tests/sim/whole/plan.h"

namespace reprise::sim {

struct SimResult {
  std::vector<std::string> violations;
  uint64_t trace_hash = 0;
  uint64_t events = 0;
  Nanos simulated{};
  // Ended early, honestly: the store said that its directory is damaged beyond repair.
  bool beyond_bound = false;
  Counts counts;
  std::vector<std::string> timeline;  // what was done when; only when asked for
};

struct SimOptions {
  bool timeline = false;
  bool verbose = false;           // every event to stderr
  uint64_t events_max = 600'000;  // more is a violation: the world does not come to rest
};

SimResult Simulate(const Plan& plan, const SimOptions& options = {});

}  // namespace reprise::sim
