// Plan: what a seed decides before its world begins: sizes, workload, which faults exist (the swarm)
// and a tape of actions. A failing plan is shrunk by dropping actions and faults from it.
//
// Chances that are drawn along the way (a short read, a lost reply) come from the world's own
// generator, seeded by the same seed, so that a plan with fewer actions is still one exact history.
//
// Thread rule: a value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/io/sim_disk.h"
#include "core/io/sim_net.h"
#include "server/journal/journal.h"
#include "server/lifecycle/store.h"
#include "server/node/slab_mutations.h"
#include "tests/sim/whole/model.h"
#include "tests/sim/whole/sim_rpc.h"

namespace reprise::sim {

enum class Act : uint8_t {
  kKillRank,
  kKillRun,     // every process of a run, and nothing else: settle must save what was sealed
  kCrashStore,  // SIGKILL
  kPowerLossStore,
  kStopStore,  // SIGTERM and start again
  kCrashNode,
  kPowerLossNode,  // with its trainers; an empty machine replaces it
  kStopNode,
  kPauseStore,  // SIGSTOP for a while
  kPauseNode,
  kPartition,  // one way, or both
  kReset,      // every connection between a node and the store
  kHangDisk,
  kFillDisk,
  kJumpClock,
  kRot,      // one bit of the store's disk
  kRotSlab,  // one bit of a sealed snapshot in a node's memory
  kDelete,
  kPin,
  kUnpin,
  kVerify,  // an operator reads a checkpoint and compares
  kWait,
  kCount,
};
std::string_view ActName(Act act);

struct Action {
  Act act = Act::kWait;
  uint64_t gap_events = 100;  // after the action before it
  uint32_t a = 0;             // which node, rank, checkpoint ...
  uint32_t b = 0;             // how long, which way ...
};

struct RunPlan {
  uint32_t world = 1;
  uint64_t steps = 3;
  ContentShape shape;
  Keep keep;
  uint32_t skip_ppm = 0;
  Nanos step_time = std::chrono::milliseconds(5);
  bool wait_each = false;
  bool takeover = true;
  bool zombie = false;  // one process of the run before lives on
};

struct Plan {
  uint64_t seed = 0;
  uint32_t nodes = 2;
  uint32_t segments = 6;
  uint32_t upload_streams = 4;
  bool prewrite = false;
  bool mirrored = true;
  std::vector<RunPlan> runs;
  SimDiskFaults disk;
  SimNetFaults net;
  RpcFaults rpc;
  std::vector<Action> tape;
  Nanos inventory_grace = std::chrono::milliseconds(500);
  bool lossy = false;  // faults that may leave no good copy

  lifecycle::Mutations mutations;
  journal::Mutations journal_mutations;
  tier::NvmeMutations tier_mutations;
  node::SlabMutations slab_mutations;
};

Plan MakePlan(uint64_t seed);
// One line an action, for people.
std::string Describe(const Plan& plan);

}  // namespace reprise::sim
