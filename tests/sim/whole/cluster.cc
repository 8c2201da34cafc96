#include "tests/sim/whole/cluster.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

constexpr uint64_t kInspectEvents = 48;
constexpr Nanos kSupervise = 50ms;
constexpr uint64_t kSlabBytes = 40 * 64 * 1024;

lifecycle::StoreOptions StoreOptionsOf(const Plan& plan) {
  lifecycle::StoreOptions options;
  options.directory = "/data";
  options.geometry.chunk_bytes = kChunkBytes;
  options.geometry.segment_bytes = 64 * 1024;
  options.geometry.segment_count = plan.segments;
  options.geometry.journal_slots = 16;
  options.prewrite_segments = plan.prewrite;
  options.coordinator.begin_window = 5s;
  options.coordinator.attempt_timeout = 30s;
  options.coordinator.settle_timeout = 4s;
  options.coordinator.node_timeout = 2s;
  options.coordinator.inventory_grace = plan.inventory_grace;
  options.mutations = plan.mutations;
  options.journal_mutations = plan.journal_mutations;
  options.tier_mutations = plan.tier_mutations;
  return options;
}

node::NodeOptions NodeOptionsOf(const Plan& plan) {
  node::NodeOptions options;
  options.slab_mutations = plan.slab_mutations;
  options.upload_streams_max = plan.upload_streams;
  options.socket_path = kNodeSocket;
  options.slab_directory = "/slab";
  options.slab_bytes_max = kSlabBytes;
  options.restore_ring_chunks = 2;
  options.store_timeout = 5s;
  options.upload_retry_max = 30s;
  options.poll_slice = 1s;
  return options;
}

}  // namespace

Cluster::Cluster(const Plan& plan, const SimOptions& options)
    : plan_(plan),
      options_(options),
      model_(counts_),
      world_(plan.seed),
      rpc_(world_, std::string(kStoreHost), counts_),
      changed_(world_.loop()) {
  world_.set_verbose(options.verbose);
  store_ = std::make_unique<StoreProcess>(Parts(), StoreOptionsOf(plan_));
  for (uint32_t i = 0; i < plan_.nodes; ++i) {
    nodes_.push_back(
        std::make_unique<NodeProcess>(Parts(), fmt::format("node{}", i), NodeOptionsOf(plan_)));
  }
  operator_ = std::make_unique<Operator>(Parts());
  model_.may_lose = plan_.lossy;
}

Cluster::~Cluster() {
  finished_ = true;
  ranks_.clear();
  zombies_.clear();
  nodes_.clear();
  store_ = nullptr;
  operator_ = nullptr;
}

void Cluster::Start() {
  store_->disk().faults = plan_.disk;
  world_.net().faults = plan_.net;
  rpc_.faults = plan_.rpc;
  world_.OnStuck([this] {
    model_.Violate("nothing can happen any more: every coroutine waits");
    changed_.Notify();
  });
  StartAll();
  InspectLater();
  SuperviseLater();
}

SimResult Cluster::Finish() {
  store_->CountFaults();
  counts_.Fault(FaultKind::kNetReset, world_.net().resets());
  counts_.Fault(FaultKind::kNetDelay, world_.net().slow_segments());
  SimResult result;
  result.violations = model_.violations;
  result.trace_hash = world_.TraceHash();
  result.events = world_.trace_count();
  result.simulated = world_.clock().Now().since_start;
  result.beyond_bound = beyond_bound_;
  result.counts = counts_;
  result.timeline = timeline_;
  return result;
}

void Cluster::Note(std::string what) {
  if (!options_.timeline) return;
  timeline_.push_back(fmt::format("{:10.6f} s, event {}: {}",
                                  SecondsOf(world_.clock().Now().since_start), world_.trace_count(),
                                  what));
}

// --- launches

Loop& Cluster::TakeLoop() {
  if (free_loops_.empty()) return world_.NewLoop();
  Loop* loop = free_loops_.back();
  free_loops_.pop_back();
  return *loop;
}

uint64_t Cluster::Launch(const RunPlan& plan) {
  sim::Launch launch{++launches_, job_, plan.world, plan.shape, plan.keep};
  run_ = std::make_shared<Run>(launch);
  run_->steps = plan.steps;
  run_->skip_ppm = plan.skip_ppm;
  run_->step_time = plan.step_time;
  run_->wait_each = plan.wait_each;
  run_->takeover = plan.takeover || !zombies_.empty();
  run_->launcher = fmt::format("launch-{}", launch.number);
  auto shift = static_cast<uint32_t>(world_.rng().Below(nodes_.size()));
  for (uint32_t rank = 0; rank < plan.world; ++rank) {
    uint32_t node = (rank + shift) % static_cast<uint32_t>(nodes_.size());
    TrainerParts parts{world_, TakeLoop(), processes_,
                       model_, counts_,    [this] { changed_.Notify(); }};
    ranks_.push_back({std::make_unique<Trainer>(parts, nodes_[node]->host(), run_, rank), node});
  }
  Note(fmt::format("launch {}: {} ranks, {} steps", launch.number, plan.world, plan.steps));
  return launch.number;
}

bool Cluster::RunEnded() const {
  bool all = true;
  for (const Rank& rank : ranks_) {
    Exit exit = rank.trainer->exit();
    if (exit != Exit::kRunning && exit != Exit::kFinished) return true;
    all = all && exit == Exit::kFinished;
  }
  return all;
}

std::string Cluster::WhyRunFailed() const {
  for (const Rank& rank : ranks_) {
    Exit exit = rank.trainer->exit();
    if (exit == Exit::kFinished || exit == Exit::kRunning) continue;
    return fmt::format("rank {}: {}", rank.trainer->rank(), rank.trainer->why());
  }
  return RunEnded() ? "" : "still running";
}

uint64_t Cluster::CommitsOf(uint64_t launch) const {
  uint64_t commits = 0;
  for (const CheckpointKey& key : model_.Visible(job_)) {
    const sim::Launch* of = model_.LaunchOf(job_, key);
    commits += of != nullptr && of->number == launch ? 1 : 0;
  }
  return commits;
}

void Cluster::EndRun(bool leave_zombie) {
  ReapZombies(false);
  for (Rank& rank : ranks_) {
    bool zombie = leave_zombie && rank.trainer->exit() == Exit::kRunning &&
                  rank.trainer->registered() && zombies_.size() < 2;
    if (zombie) {
      SOMETIMES(counts_, Path::kZombieLived);
      Note(fmt::format("rank {} of launch {} lives on", rank.trainer->rank(), launches_));
      rank.trainer->BecomeZombie();
      zombies_.push_back(std::move(rank));
      leave_zombie = false;
      continue;
    }
    rank.trainer->Kill(SimCrash::kProcessDeath);
    free_loops_.push_back(&rank.trainer->loop());
  }
  ranks_.clear();
  if (zombies_.empty()) model_.LaunchEnded(launches_);
  Note(fmt::format("launch {} has ended", launches_));
}

void Cluster::ReapZombies(bool all) {
  for (auto zombie = zombies_.begin(); zombie != zombies_.end();) {
    if (!all && zombie->trainer->exit() == Exit::kRunning) {
      ++zombie;
      continue;
    }
    zombie->trainer->Kill(SimCrash::kProcessDeath);
    free_loops_.push_back(&zombie->trainer->loop());
    zombie = zombies_.erase(zombie);
  }
}

void Cluster::KillRanksOn(uint32_t node, SimCrash how) {
  for (Rank& rank : ranks_) {
    if (rank.node == node) rank.trainer->Kill(how);
  }
  for (Rank& rank : zombies_) {
    if (rank.node == node) rank.trainer->Kill(how);
  }
  changed_.Notify();
}

// --- what is checked all the time

void Cluster::InspectLater() {
  world_.AtTrace(world_.trace_count() + kInspectEvents, [this] {
    if (finished_) return;
    Inspect();
    InspectLater();
  });
}

void Cluster::SuperviseLater() {
  After(kSupervise, [this] {
    if (finished_) return;
    store_->Supervise();
    for (auto& node : nodes_) node->Supervise();
    changed_.Notify();
    SuperviseLater();
  });
}

void Cluster::Inspect() {
  if (lifecycle::Store* store = store_->store()) {
    model_.Inspect(store->state());
    if (store_->index().visible_mark().seq > 16) SOMETIMES(counts_, Path::kJournalWrapped);
    for (const auto& [id, job] : store->state().jobs()) {
      if (job.epochs.size() >= 2 && !std::prev(job.epochs.end(), 2)->second.resume.has_value()) {
        SOMETIMES(counts_, Path::kEpochWithoutResume);
      }
    }
  }
  CheckBounds();
  if (world_.trace_count() > options_.events_max) {
    model_.Violate(
        fmt::format("the world does not come to rest after {} events", world_.trace_count()));
  }
  if (over()) changed_.Notify();
}

void Cluster::CheckBounds() {
  for (auto& process : nodes_) {
    node::Node* node = process->node();
    if (node == nullptr) continue;
    node::NodeStats stats = node->stats();
    if (stats.slab_used_bytes > stats.slab_budget_bytes) {
      model_.Violate(fmt::format("{} uses {} bytes of slab, its budget is {}", process->host(),
                                 stats.slab_used_bytes, stats.slab_budget_bytes));
    }
    if (stats.uploads_pending > 64) {
      model_.Violate(
          fmt::format("{} has {} uploads pending", process->host(), stats.uploads_pending));
    }
  }
  size_t sockets = world_.net().OpenSockets(std::string(kStoreHost));
  if (sockets > 512) model_.Violate(fmt::format("the store has {} sockets open", sockets));
}

void Cluster::StartAll() {
  store_->Start();
  for (auto& node : nodes_) node->Start();
}

std::string Cluster::WhoIsUp() const {
  std::string who = store_->down() ? "" : "the store";
  for (const auto& node : nodes_) {
    if (!node->down()) who += (who.empty() ? "" : ", ") + node->host();
  }
  return "still there: " + who;
}

bool Cluster::NodesUp() const {
  return std::ranges::all_of(nodes_, [](const auto& node) { return node->up(); });
}

bool Cluster::AllDown() const {
  return store_->down() &&
         std::ranges::all_of(nodes_, [](const auto& node) { return node->down(); });
}

void Cluster::StopAll() {
  for (auto& node : nodes_) node->Stop();
  store_->Stop();
}

bool Cluster::Quiet() {
  if (!NodesUp()) return false;
  return std::ranges::all_of(nodes_, [](const auto& process) {
    node::NodeStats stats = process->node()->stats();
    return stats.uploads_pending == 0 && stats.clients == 0;
  });
}

bool Cluster::HasNoStraySpace() {
  if (!store_->up()) return false;
  uint64_t live = 0;
  for (const format::Run& run : store_->store()->state().LiveRuns()) live += run.length;
  return store_->store()->usage().used_bytes == live;
}

// Everything that is reserved at the store, or granted in a slab, has an owner.
void Cluster::CheckSpace() {
  const lifecycle::Store& store = *store_->store();
  uint64_t live = 0;
  for (const format::Run& run : store.state().LiveRuns()) live += run.length;
  uint64_t used = store.usage().used_bytes;
  if (used != live) {
    model_.Violate(fmt::format("{} bytes of segments are used, {} have an owner", used, live));
  }
  for (const auto& [id, attempt] : store.state().attempts()) {
    if (attempt.committed) continue;
    model_.Violate(fmt::format("the attempt of step {} is prepared, and nobody works on it",
                               attempt.key.step));
  }
  for (auto& process : nodes_) {
    uint64_t bytes = process->node()->stats().slab_used_bytes;
    // What may stay is the newest copy of each rank of the last run.
    uint64_t most = 0;
    const RunPlan& last = plan_.runs.back();
    for (uint32_t rank = 0; rank < 4; ++rank) {
      most += AlignUp(LayoutOf(last.shape, rank, 4).shard_bytes, kChunkBytes) + kChunkBytes;
    }
    if (bytes > most) {
      model_.Violate(fmt::format("{} still holds {} bytes of slab after every process left",
                                 process->host(), bytes));
    }
  }
}

void Cluster::CheckSockets() {
  for (const auto& node : nodes_) {
    size_t open = world_.net().OpenSockets(node->host());
    if (open != 0) model_.Violate(fmt::format("{} leaves {} sockets", node->host(), open));
  }
}

}  // namespace reprise::sim
