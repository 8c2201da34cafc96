#include "tests/sim/whole/sim_rpc.h"

namespace reprise::sim {
namespace {

// gRPC's keepalive of the stub: 10 s of silence, 5 s for the answer to its ping.
constexpr Nanos kKeepalive = std::chrono::seconds(15);

}  // namespace

void SimRpc::Up(lifecycle::CoordinatorApi& api, Loop& loop) {
  api_ = &api;
  loop_ = &loop;
  powered_ = true;
}

void SimRpc::Down(SimCrash crash) {
  api_ = nullptr;
  ++life_;
  powered_ = crash == SimCrash::kProcessDeath;
  auto running = std::move(running_);
  running_.clear();
  Nanos delay = powered_ ? Delay() : kKeepalive;
  for (auto& [ticket, fail] : running) {
    world_.At(world_.clock().Now() + delay, 0, std::move(fail));
  }
}

Nanos SimRpc::Delay() {
  Nanos span = faults.delay_max - faults.delay_min;
  if (span <= Nanos{0}) return faults.delay_min;
  return faults.delay_min + Nanos{world_.rng().Below(static_cast<uint64_t>(span.count()) + 1)};
}

bool SimRpc::Draws(uint32_t ppm, FaultKind kind) {
  if (ppm == 0 || !world_.rng().Chance(ppm, 1'000'000)) return false;
  counts_.Fault(kind);
  return true;
}

}  // namespace reprise::sim
