#include "tests/sim/whole/plan.h"

#include <array>

#include "core/base/log.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

constexpr std::array<std::string_view, static_cast<size_t>(Act::kCount)> kActNames = {
    "kill a rank",
    "kill the run",
    "kill the store",
    "cut the store's power",
    "restart the store",
    "kill a node",
    "cut a node's power",
    "restart a node",
    "pause the store",
    "pause a node",
    "partition",
    "reset connections",
    "hang the disk",
    "fill the disk",
    "jump the clock",
    "flip a bit",
    "flip a bit of a slab",
    "delete",
    "pin",
    "unpin",
    "verify",
    "wait",
};

// An action and how often it is drawn, when its fault exists in this world at all.
struct Weight {
  Act act;
  uint32_t weight;
  uint32_t exists_percent;
};
constexpr Weight kWeights[] = {
    {Act::kKillRank, 10, 60},       {Act::kKillRun, 8, 60},   {Act::kCrashStore, 10, 50},
    {Act::kPowerLossStore, 10, 50}, {Act::kStopStore, 3, 30}, {Act::kCrashNode, 8, 50},
    {Act::kPowerLossNode, 4, 40},   {Act::kStopNode, 3, 30},  {Act::kPauseStore, 3, 25},
    {Act::kPauseNode, 4, 25},       {Act::kPartition, 6, 40}, {Act::kReset, 6, 40},
    {Act::kHangDisk, 3, 25},        {Act::kFillDisk, 3, 25},  {Act::kJumpClock, 2, 25},
    {Act::kDelete, 6, 60},          {Act::kPin, 4, 50},       {Act::kUnpin, 2, 50},
    {Act::kVerify, 5, 60},          {Act::kRotSlab, 4, 30},   {Act::kWait, 4, 100},
};

RunPlan MakeRun(Rng& rng, uint32_t world) {
  RunPlan run;
  run.world = world;
  run.steps = 2 + rng.Below(4);
  run.shape.row_bytes = 500 + rng.Below(9000);
  run.shape.shared_bytes = 64 + rng.Below(2500);
  run.shape.own_bytes = 16 + rng.Below(1500);
  if (rng.Chance(1, 4)) run.keep = {static_cast<uint32_t>(1 + rng.Below(3)), rng.Below(2) * 4};
  if (rng.Chance(1, 4)) run.skip_ppm = 150'000;
  run.step_time = Nanos{1'000'000 + rng.Below(40'000'000)};
  run.wait_each = rng.Chance(1, 2);
  run.zombie = rng.Chance(1, 4);
  run.takeover = rng.Chance(1, 3);
  return run;
}

void DrawDisk(Rng& rng, Plan& plan) {
  SimDiskFaults& disk = plan.disk;
  if (rng.Chance(2, 3)) {
    disk.reorder = true;
    disk.latency_max = Nanos{100'000 + rng.Below(900'000)};
  }
  if (rng.Chance(4, 5)) disk.short_ppm = 50'000 + static_cast<uint32_t>(rng.Below(450'000));
  if (rng.Chance(1, 2)) disk.slow_ppm = 10'000 + static_cast<uint32_t>(rng.Below(80'000));
  if (rng.Chance(1, 4)) disk.read_error_ppm = static_cast<uint32_t>(rng.Below(5'000));
  if (rng.Chance(1, 4)) disk.write_error_ppm = static_cast<uint32_t>(rng.Below(4'000));
  if (rng.Chance(1, 4)) disk.flush_error_ppm = static_cast<uint32_t>(rng.Below(6'000));
  if (!plan.lossy) return;
  if (rng.Chance(1, 3)) disk.misdirect_ppm = static_cast<uint32_t>(rng.Below(4'000));
  if (rng.Chance(1, 3)) disk.stale_read_ppm = static_cast<uint32_t>(rng.Below(4'000));
}

void DrawNetwork(Rng& rng, Plan& plan) {
  if (rng.Chance(2, 3)) {
    plan.net.latency_max = Nanos{100'000 + rng.Below(3'000'000)};
    plan.net.segment = rng.Chance(1, 4);
  }
  if (rng.Chance(1, 2)) plan.net.slow_ppm = 5'000 + static_cast<uint32_t>(rng.Below(40'000));
  if (rng.Chance(1, 3)) plan.net.reset_ppm = static_cast<uint32_t>(rng.Below(4'000));
  if (rng.Chance(1, 2)) plan.rpc.delay_max = Nanos{500'000 + rng.Below(20'000'000)};
  if (rng.Chance(1, 2)) plan.rpc.lost_request_ppm = static_cast<uint32_t>(rng.Below(90'000));
  if (rng.Chance(1, 2)) plan.rpc.lost_reply_ppm = static_cast<uint32_t>(rng.Below(60'000));
  if (rng.Chance(1, 2)) plan.rpc.duplicate_ppm = static_cast<uint32_t>(rng.Below(200'000));
  if (rng.Chance(1, 4)) plan.rpc.late_ppm = static_cast<uint32_t>(rng.Below(20'000));
}

void DrawTape(Rng& rng, Plan& plan) {
  std::vector<Weight> existing;
  uint32_t total = 0;
  for (const Weight& weight : kWeights) {
    if (!rng.Chance(weight.exists_percent, 100)) continue;
    existing.push_back(weight);
    total += weight.weight;
  }
  if (plan.lossy) {
    existing.push_back({Act::kRot, 8, 100});
    total += 8;
  }
  uint64_t actions = 4 + rng.Below(20);
  for (uint64_t i = 0; i < actions && total > 0; ++i) {
    uint64_t draw = rng.Below(total);
    const Weight* chosen = existing.data();
    while (draw >= chosen->weight) draw -= (chosen++)->weight;
    // Often close together: the second fault inside the recovery from the first.
    uint64_t gap = rng.Chance(1, 3) ? rng.Below(60) : rng.Below(900);
    plan.tape.push_back(
        {chosen->act, gap, static_cast<uint32_t>(rng.Next()), static_cast<uint32_t>(rng.Next())});
  }
}

}  // namespace

std::string_view ActName(Act act) { return kActNames[static_cast<size_t>(act)]; }

Plan MakePlan(uint64_t seed) {
  Rng rng(seed * 0x9e3779b97f4a7c15 + 17);
  Plan plan;
  plan.seed = seed;
  plan.nodes = static_cast<uint32_t>(2 + rng.Below(3));
  auto world = static_cast<uint32_t>(1 + rng.Below(4));
  plan.upload_streams = static_cast<uint32_t>(1 + Rng(seed * 31 + 5).Below(3));
  plan.prewrite = rng.Chance(1, 4);
  plan.lossy = rng.Chance(1, 5);
  plan.inventory_grace = Nanos{200'000'000 + rng.Below(1'800'000'000)};
  uint64_t runs = 2 + rng.Below(3);
  for (uint64_t i = 0; i < runs; ++i) {
    if (i > 0 && rng.Chance(1, 5)) world = static_cast<uint32_t>(1 + rng.Below(4));
    plan.runs.push_back(MakeRun(rng, world));
  }
  // Room for a few checkpoints of the largest kind, now and then hardly enough.
  uint64_t largest = 0;
  for (const RunPlan& run : plan.runs) {
    uint64_t shard = LayoutOf(run.shape, 0, run.world).shard_bytes + 2 * kChunkBytes;
    largest = std::max(largest, run.world * AlignUp(shard, kChunkBytes) + 3 * kChunkBytes);
  }
  plan.segments = static_cast<uint32_t>(2 + (4 + rng.Below(5)) * largest / (64 * 1024));
  if (rng.Chance(9, 10)) {
    DrawDisk(rng, plan);
    DrawNetwork(rng, plan);
    DrawTape(rng, plan);
  }
  return plan;
}

std::string Describe(const Plan& plan) {
  std::string text = fmt::format("seed {}: {} nodes, {} segments{}\n", plan.seed, plan.nodes,
                                 plan.segments, plan.lossy ? ", lossy" : "");
  for (const RunPlan& run : plan.runs) {
    text += fmt::format("  run: world {}, {} steps, keep {}/{}, skip {} ppm{}{}\n", run.world,
                        run.steps, run.keep.last, run.keep.every, run.skip_ppm,
                        run.wait_each ? ", waits for each commit" : "",
                        run.zombie ? ", beside a zombie" : "");
  }
  const SimDiskFaults& disk = plan.disk;
  text += fmt::format(
      "  disk: reorder {}, ppm: short {} slow {} read {} write {} flush {} misdirect {} stale {}\n",
      disk.reorder, disk.short_ppm, disk.slow_ppm, disk.read_error_ppm, disk.write_error_ppm,
      disk.flush_error_ppm, disk.misdirect_ppm, disk.stale_read_ppm);
  text += fmt::format("  net: latency {} us, segment {}, ppm: reset {} slow {}\n",
                      plan.net.latency_max.count() / 1000, plan.net.segment, plan.net.reset_ppm,
                      plan.net.slow_ppm);
  text += fmt::format("  rpc: delay {} us, ppm: request {} reply {} twice {} late {}\n",
                      plan.rpc.delay_max.count() / 1000, plan.rpc.lost_request_ppm,
                      plan.rpc.lost_reply_ppm, plan.rpc.duplicate_ppm, plan.rpc.late_ppm);
  for (const Action& action : plan.tape) {
    text += fmt::format("  after {} events: {} ({:#x}, {:#x})\n", action.gap_events,
                        ActName(action.act), action.a, action.b);
  }
  return text;
}

}  // namespace reprise::sim
