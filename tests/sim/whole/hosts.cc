#include "tests/sim/whole/hosts.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

constexpr Nanos kRestartDelay = 100ms;

}  // namespace

// --- store

StoreProcess::StoreProcess(HostParts parts, lifecycle::StoreOptions options)
    : parts_(parts), options_(std::move(options)), loop_(parts.world.NewLoop()) {}

StoreProcess::~StoreProcess() {
  if (io_ != nullptr) Discard(SimCrash::kProcessDeath);
}

void StoreProcess::Start() {
  wanted_ = true;
  if (phase_ != Phase::kDown) return;
  phase_ = Phase::kBooting;
  parts_.world.SetStopped(loop_, false);
  std::string host(kStoreHost);
  if (machine_ == nullptr) {
    machine_ = std::make_unique<SimIo>(parts_.world.loop(), parts_.world, host);
  }
  rng_ = std::make_unique<Rng>(parts_.world.rng().Next());
  io_ = std::make_unique<SimIo>(loop_, parts_.world, host);
  loop_.Spawn(Boot(this));
}

lifecycle::CatalogFactory StoreProcess::Factory() {
  return [this](std::string, bool fresh) -> Task<Result<std::unique_ptr<catalog::Catalog>>> {
    if (fresh) index_.Erase();
    co_return catalog::MemoryCatalog::Open(loop_, index_);
  };
}

Task<void> StoreProcess::Boot(StoreProcess* self) {
  auto opened =
      co_await lifecycle::Store::Open(*self->io_, *self->rng_, self->options_, self->Factory());
  Status status = StatusOf(opened);
  if (status.ok()) {
    self->store_ = std::move(*opened);
    dataplane::StoreServerOptions options;
    options.address = "0.0.0.0:7000";
    options.self = self->store_->id();
    options.description = "simulated store";
    options.credits = 4;
    options.receive_buffers = 8;
    options.send_buffers = 4;
    options.read_depth = 2;
    options.idle_timeout = 10s;
    self->server_ =
        std::make_unique<dataplane::StoreServer>(*self->io_, *self->store_, std::move(options));
    status = co_await self->server_->Start();
  }
  if (status.ok()) {
    self->boots_failed_ = 0;
    self->phase_ = Phase::kUp;
    self->parts_.rpc.Up(*self->store_, self->loop_);
    co_return;
  }
  self->why_down_ = status.ToString();
  bool final = status.code() == Code::kDataLoss || status.code() == Code::kFailedPrecondition ||
               status.code() == Code::kInternal;
  if (final && ++self->boots_failed_ >= 3) self->lost_ = true;
  self->phase_ = Phase::kStopping;  // Supervise discards it
  self->retry_at_ = self->loop_.Now() + kRestartDelay;
}

void StoreProcess::Stop() {
  wanted_ = false;
  if (phase_ != Phase::kUp) return;
  phase_ = Phase::kStopping;
  retry_at_ = TimePoint{Nanos::max()};
  parts_.rpc.Down(SimCrash::kProcessDeath);
  loop_.Spawn(Close(this));
}

Task<void> StoreProcess::Close(StoreProcess* self) {
  if (self->server_ != nullptr) co_await self->server_->Close();
  co_await self->store_->Close();
  self->retry_at_ = self->loop_.Now();
}

SimOutcome StoreProcess::Decide(const SimUndecided& undecided, const SimChooser& chooser) {
  SimOutcome outcome = chooser(undecided);
  if (outcome.newer != undecided.newest) parts_.counts.Fault(FaultKind::kLostWrite);
  if (outcome.newer_sectors != kSimSectorsPerCell) parts_.counts.Fault(FaultKind::kTornWrite);
  return outcome;
}

// The process is gone; its media keep what the way of its death leaves.
void StoreProcess::Discard(SimCrash how) {
  CountFaults();
  parts_.rpc.Down(how);
  io_->CrashHost(how);
  loop_.DestroyAll();
  server_ = nullptr;
  store_ = nullptr;
  loop_.DestroyAll();  // what destructors have spawned
  io_ = nullptr;
  phase_ = Phase::kDown;
  Rng& rng = parts_.world.rng();
  SimChooser random = RandomOutcome(rng.Next());
  SimChooser chooser = [&](const SimUndecided& undecided) { return Decide(undecided, random); };
  if (how == SimCrash::kPowerLoss) {
    machine_ = nullptr;
    disk().Crash(chooser);
  } else {
    disk().SettleInFlight(chooser);
  }
  // The index has no log of its own: what it had not flushed may be gone either way.
  index_.Crash(rng.Below(index_.unflushed_count() + 1));
}

void StoreProcess::Kill(SimCrash how) {
  if (io_ != nullptr) Discard(how);
  wanted_ = true;
  retry_at_ = parts_.world.clock().Now() + kRestartDelay;
}

void StoreProcess::Supervise() {
  TimePoint now = parts_.world.clock().Now();
  if (phase_ == Phase::kUp && store_->failed()) {
    SOMETIMES(parts_.counts, Path::kStoreFailStopped);
    Kill(SimCrash::kProcessDeath);
  }
  if (phase_ == Phase::kStopping && now >= retry_at_) {
    Discard(SimCrash::kProcessDeath);
    retry_at_ = now + kRestartDelay;
  }
  if (phase_ == Phase::kDown && wanted_ && now >= retry_at_) Start();
}

void StoreProcess::CountFaults() {
  const SimDiskCounters& now = disk().counters();
  Counts& counts = parts_.counts;
  counts.Fault(FaultKind::kDiskShort, now.short_transfers - counted_.short_transfers);
  counts.Fault(FaultKind::kDiskReadError, now.read_errors - counted_.read_errors);
  counts.Fault(FaultKind::kDiskWriteError, now.write_errors - counted_.write_errors);
  counts.Fault(FaultKind::kDiskFlushError, now.flush_errors - counted_.flush_errors);
  counts.Fault(FaultKind::kDiskMisdirected, now.misdirected - counted_.misdirected);
  counts.Fault(FaultKind::kDiskStaleRead, now.stale_reads - counted_.stale_reads);
  counts.Fault(FaultKind::kDiskSlow, now.slow - counted_.slow);
  counts.Fault(FaultKind::kDiskFull, now.refused_space - counted_.refused_space);
  if (now.refused_space != counted_.refused_space) SOMETIMES(counts, Path::kDiskFullSeen);
  counted_ = now;
}

// --- node

NodeProcess::NodeProcess(HostParts parts, std::string host, node::NodeOptions options)
    : parts_(parts),
      host_(std::move(host)),
      loop_(parts.world.NewLoop()),
      machine_(parts.world, host_, parts.processes),
      options_(std::move(options)) {
  options_.machine = &machine_;
}

NodeProcess::~NodeProcess() {
  if (io_ != nullptr) Discard(SimCrash::kProcessDeath);
}

void NodeProcess::Start() {
  wanted_ = true;
  if (phase_ != Phase::kDown) return;
  phase_ = Phase::kBooting;
  parts_.world.SetStopped(loop_, false);
  SimDisk& disk = parts_.world.disk(host_);
  disk.MakeDirectory("/run");
  for (const std::string& file : disk.Files()) {
    if (file.ends_with(".slot")) {
      SOMETIMES(parts_.counts, Path::kSlotAdoptedAtRestart);
      break;
    }
  }
  rng_ = std::make_unique<Rng>(parts_.world.rng().Next());
  io_ = std::make_unique<SimIo>(loop_, parts_.world, host_);
  coordinator_ = std::make_unique<SimCoordinator>(parts_.rpc, loop_, host_);
  dataplane::TcpStoreLinkOptions link;
  link.address = kStoreAddress;
  link.self = rng_->NewId();
  link.description = host_;
  link.connect_timeout = 1s;
  link.progress_timeout = 5s;
  link.seal_timeout = 10s;
  link_ = std::make_unique<dataplane::TcpStoreLink>(*io_, std::move(link));
  loop_.Spawn(Boot(this));
}

Task<void> NodeProcess::Boot(NodeProcess* self) {
  auto started = co_await node::Node::Start(*self->io_, *self->rng_, self->options_,
                                            *self->coordinator_, *self->link_);
  if (started.has_value()) {
    self->node_ = std::move(*started);
    self->phase_ = Phase::kUp;
    self->CheckAdopted();
    co_return;
  }
  self->parts_.model.Violate(self->host_ + " does not start: " + started.error().ToString());
}

void NodeProcess::Stop() {
  wanted_ = false;
  if (phase_ != Phase::kUp) return;
  phase_ = Phase::kStopping;
  retry_at_ = TimePoint{Nanos::max()};
  loop_.Spawn(Close(this));
}

Task<void> NodeProcess::Close(NodeProcess* self) {
  co_await self->node_->Close(self->loop_.Now() + 2s);
  co_await self->link_->Close();
  self->retry_at_ = self->loop_.Now();
}

// What was sealed when the daemon before it died is still here.
void NodeProcess::CheckAdopted() {
  SimDisk& disk = parts_.world.disk(host_);
  for (const std::string& path : std::exchange(sealed_, {})) {
    if (disk.Exists(path)) continue;
    parts_.model.Violate(host_ + " lost a sealed snapshot over a restart: " + path);
  }
}

void NodeProcess::Discard(SimCrash how) {
  sealed_ = phase_ == Phase::kUp ? machine_.Sealed() : std::vector<std::string>();
  io_->CrashHost(how);
  loop_.DestroyAll();
  node_ = nullptr;
  link_ = nullptr;
  coordinator_ = nullptr;
  loop_.DestroyAll();  // what destructors have spawned
  io_ = nullptr;
  phase_ = Phase::kDown;
  SimDisk& disk = parts_.world.disk(host_);
  if (how == SimCrash::kPowerLoss) {
    // Its RAM was all it had: an empty machine takes its place.
    machine_.LosePower();
    disk = SimDisk(parts_.world.rng().Next());
    sealed_.clear();
    SOMETIMES(parts_.counts, Path::kEmptyReplacement);
  } else {
    disk.SettleInFlight(RandomOutcome(parts_.world.rng().Next()));
  }
}

void NodeProcess::Kill(SimCrash how) {
  if (io_ != nullptr) Discard(how);
  wanted_ = true;
  retry_at_ = parts_.world.clock().Now() + kRestartDelay;
}

void NodeProcess::Supervise() {
  TimePoint now = parts_.world.clock().Now();
  if (phase_ == Phase::kStopping && now >= retry_at_) {
    Discard(SimCrash::kProcessDeath);
    retry_at_ = now + kRestartDelay;
  }
  if (phase_ == Phase::kDown && wanted_ && now >= retry_at_) Start();
}

}  // namespace reprise::sim
