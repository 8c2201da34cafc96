// The part of Cluster that does harm, and undoes it.
#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "tests/sim/whole/cluster.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

Nanos SpanOf(const Action& action, Nanos longest) {
  return Nanos{action.b % static_cast<uint64_t>(longest.count())};
}

}  // namespace

void Cluster::Disturb() {
  last_disturbance_ = world_.clock().Now();
  model_.DropExpectations();
}

void Cluster::Do(const Action& action) {
  Note(fmt::format("{} ({:#x}, {:#x})", ActName(action.act), action.a, action.b));
  switch (action.act) {
    case Act::kKillRun: return KillRun();
    case Act::kKillRank:
    case Act::kCrashStore:
    case Act::kPowerLossStore:
    case Act::kStopStore:
    case Act::kCrashNode:
    case Act::kPowerLossNode:
    case Act::kStopNode:
    case Act::kPauseStore:
    case Act::kPauseNode: Disturb(); return DoProcess(action);
    case Act::kPartition:
    case Act::kReset: Disturb(); return DoNetwork(action);
    case Act::kHangDisk:
    case Act::kFillDisk:
    case Act::kRot:
    case Act::kRotSlab:
    case Act::kJumpClock: Disturb(); return DoDisk(action);
    case Act::kDelete: model_.DropExpectations(); return DoOperator(action);
    case Act::kPin:
    case Act::kUnpin:
    case Act::kVerify: return DoOperator(action);
    case Act::kWait:
    case Act::kCount: return;
  }
}

// --- processes

void Cluster::DoProcess(const Action& action) {
  uint32_t at = action.a % plan_.nodes;
  switch (action.act) {
    case Act::kKillRank:
      if (ranks_.empty()) return;
      counts_.Fault(FaultKind::kKillRank);
      ranks_[action.a % ranks_.size()].trainer->Kill(SimCrash::kProcessDeath);
      changed_.Notify();
      return;
    case Act::kCrashStore:
      counts_.Fault(FaultKind::kCrashStore);
      return store_->Kill(SimCrash::kProcessDeath);
    case Act::kPowerLossStore:
      counts_.Fault(FaultKind::kPowerLossStore);
      counts_.Fault(FaultKind::kNetHalfOpen, world_.net().OpenSockets(std::string(kStoreHost)));
      return store_->Kill(SimCrash::kPowerLoss);
    case Act::kStopStore:
      counts_.Fault(FaultKind::kStopStore);
      store_->Stop();
      // Whatever it still does when the manager's patience ends, it is killed.
      return After(5s, [this] {
        if (!finished_ && !healed_ && !store_->up()) store_->Kill(SimCrash::kProcessDeath);
      });
    case Act::kCrashNode:
      counts_.Fault(FaultKind::kCrashNode);
      return nodes_[at]->Kill(SimCrash::kProcessDeath);
    case Act::kPowerLossNode:
      counts_.Fault(FaultKind::kPowerLossNode);
      counts_.Fault(FaultKind::kNetHalfOpen, world_.net().OpenSockets(nodes_[at]->host()));
      KillRanksOn(at, SimCrash::kPowerLoss);
      return nodes_[at]->Kill(SimCrash::kPowerLoss);
    case Act::kStopNode:
      counts_.Fault(FaultKind::kStopNode);
      nodes_[at]->Stop();
      return After(8s, [this, at] {
        if (!finished_ && !healed_ && !nodes_[at]->up()) nodes_[at]->Kill(SimCrash::kProcessDeath);
      });
    case Act::kPauseStore: return Pause(store_->loop(), SpanOf(action, 20s));
    case Act::kPauseNode: return Pause(nodes_[at]->loop(), SpanOf(action, 20s));
    default: return;
  }
}

void Cluster::Pause(Loop& loop, Nanos span) {
  counts_.Fault(FaultKind::kPause);
  world_.SetStopped(loop, true);
  After(span, [this, &loop] {
    if (!finished_) world_.SetStopped(loop, false);
  });
}

// Nothing but the death of its processes has happened to this run, lately or by chance.
bool Cluster::IsCalm() {
  const SimDiskFaults& disk = plan_.disk;
  bool errors = disk.read_error_ppm + disk.write_error_ppm + disk.flush_error_ppm != 0;
  const RpcFaults& rpc = plan_.rpc;
  bool calls = rpc.lost_request_ppm + rpc.lost_reply_ppm + rpc.late_ppm != 0;
  bool past = world_.clock().Now() - last_disturbance_ > 25s || last_disturbance_ == TimePoint{};
  return past && !errors && !calls && !plan_.lossy && plan_.net.reset_ppm == 0 &&
         zombies_.empty() && !healed_;
}

void Cluster::KillRun() {
  if (ranks_.empty()) return;
  counts_.Fault(FaultKind::kKillRun);
  auto sealed = model_.SealedByAll(run_->launch());
  lifecycle::Store* store = store_->store();
  if (IsCalm() && store != nullptr && sealed.has_value()) {
    tier::TierUsage usage = store->usage();
    if (usage.used_bytes * 2 < usage.capacity_bytes) {
      SOMETIMES(counts_, Path::kSettleConflictFree);
      model_.ExpectResumeAtLeast(job_, *sealed);
    }
  }
  for (Rank& rank : ranks_) rank.trainer->Kill(SimCrash::kProcessDeath);
  changed_.Notify();
}

// --- network, disk, clock

void Cluster::DoNetwork(const Action& action) {
  const std::string& node = nodes_[action.a % plan_.nodes]->host();
  std::string store(kStoreHost);
  if (action.act == Act::kReset) {
    counts_.Fault(FaultKind::kNetReset);
    world_.net().Reset(node, store);
    return;
  }
  counts_.Fault(FaultKind::kNetPartition);
  bool out = action.b % 3 != 0;
  bool in = action.b % 3 != 1;
  if (out) world_.net().Partition(node, store);
  if (in) world_.net().Partition(store, node);
  After(SpanOf(action, 12s), [this, node, store, out, in] {
    if (finished_) return;
    if (out) world_.net().Heal(node, store);
    if (in) world_.net().Heal(store, node);
  });
}

void Cluster::DoDisk(const Action& action) {
  SimDisk& disk = store_->disk();
  switch (action.act) {
    case Act::kHangDisk:
      counts_.Fault(FaultKind::kDiskHang);
      disk.faults.hang = true;
      return After(SpanOf(action, 10s), [this] { store_->disk().faults.hang = false; });
    case Act::kFillDisk: {
      // Somebody else's files take what is free, but for a little.
      uint64_t used =
          plan_.disk.capacity_bytes - std::min(plan_.disk.capacity_bytes, disk.FreeBytes());
      disk.faults.capacity_bytes = used + 4096 * (action.a % 16);
      return After(SpanOf(action, 20s),
                   [this] { store_->disk().faults.capacity_bytes = plan_.disk.capacity_bytes; });
    }
    case Act::kJumpClock: {
      counts_.Fault(FaultKind::kClockJump);
      int64_t micros = static_cast<int64_t>(action.b) * 1'000'000;
      world_.clock().JumpWall(action.a % 2 == 0 ? micros : -micros);
      return;
    }
    case Act::kRotSlab:
      if (nodes_[action.a % plan_.nodes]->machine().FlipBit(action.b)) {
        counts_.Fault(FaultKind::kSlabRot);
      }
      return;
    default: return Rot(action);
  }
}

// One bit, anywhere but in both copies of what has two: at most one flip in the journals and the
// superblock of a world.
void Cluster::Rot(const Action& action) {
  SimDisk& disk = store_->disk();
  std::vector<std::string> files = disk.Files();
  if (files.empty()) return;
  const std::string& file = files[action.a % files.size()];
  bool twice = file.find("/seg") == std::string::npos;
  if (twice && disk_flips_++ > 0) return;
  auto content = disk.Contents(file);
  if (!content.has_value() || content->empty()) return;
  counts_.Fault(FaultKind::kDiskRot);
  uint64_t offset = action.b % content->size();
  // Where something was written, that is.
  for (int tries = 0; tries < 64 && (*content)[offset] == 0; ++tries) {
    offset = (offset + 4099) % content->size();
  }
  disk.FlipBit(file, offset, static_cast<int>(action.a >> 8) & 7);
}

// --- operators

void Cluster::DoOperator(const Action& action) {
  std::vector<CheckpointKey> keys = model_.Visible(job_);
  if (keys.empty()) return;
  CheckpointKey key = keys[action.a % keys.size()];
  world_.loop().Spawn([](Cluster* self, Act act, CheckpointKey key) -> Task<void> {
    Status status;
    switch (act) {
      case Act::kDelete: status = co_await self->op().Delete(self->job_, key); break;
      case Act::kPin: status = co_await self->op().Pin(self->job_, key, true); break;
      case Act::kUnpin: status = co_await self->op().Pin(self->job_, key, false); break;
      default: status = co_await self->op().Verify(self->job_, key); break;
    }
    if (status.message().find("pinned") != std::string::npos) {
      SOMETIMES(self->counts_, Path::kDeleteRefusedPinned);
    }
    if (status.code() == Code::kDataLoss) {
      SOMETIMES(self->counts_, Path::kDamageReported);
      if (!self->model_.may_lose) {
        self->model_.Violate(NameOf(self->job_, key) +
                             " is lost without damage: " + status.ToString());
      }
    }
  }(this, action.act, key));
}

void Cluster::Heal() {
  Note("everything is healed");
  healed_ = true;
  Disturb();
  SimDiskFaults none;
  store_->CountFaults();
  store_->disk().faults = none;
  world_.net().faults = SimNetFaults{};
  world_.net().HealAll();
  rpc_.faults = RpcFaults{};
  world_.SetStopped(store_->loop(), false);
  for (auto& node : nodes_) world_.SetStopped(node->loop(), false);
  ReapZombies(true);
  if (!store_->up()) store_->Kill(SimCrash::kProcessDeath);
  for (auto& node : nodes_) {
    if (!node->up()) node->Kill(SimCrash::kProcessDeath);
  }
}

}  // namespace reprise::sim
