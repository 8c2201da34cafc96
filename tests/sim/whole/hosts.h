// StoreProcess and NodeProcess: the product's daemons on simulated hosts, started, stopped and
// killed as a service manager (and a power cut) would.
//
// Each process has a loop of its own, which survives it. Start boots in the background and tries
// again until it is up; a store that has failed (fail-stop after a journal error) is restarted by
// Supervise. What survives a death: disks, the index on its model disk, a node's shared memory.
//
// Thread rule: one thread; everything but the product's coroutines runs on the world's own loop.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/io/sim_io.h"
#include "server/catalog/memory_catalog.h"
#include "server/dataplane/store_server.h"
#include "server/dataplane/tcp_store_link.h"
#include "server/lifecycle/store.h"
#include "server/node/node.h"
#include "tests/sim/whole/model.h"
#include "tests/sim/whole/sim_machine.h"
#include "tests/sim/whole/sim_rpc.h"

namespace reprise::sim {

inline constexpr std::string_view kStoreHost = "store";
inline constexpr std::string_view kStoreAddress = "store:7000";

struct HostParts {
  SimWorld& world;
  SimRpc& rpc;
  ProcessTable& processes;
  Model& model;
  Counts& counts;
};

class StoreProcess {
 public:
  StoreProcess(HostParts parts, lifecycle::StoreOptions options);
  ~StoreProcess();

  void Start();
  // Dies now, at whatever it was doing.
  void Kill(SimCrash how);
  // Ends in good order; `up()` is false when it has.
  void Stop();
  // Restarts what has failed or could not start. Called now and then.
  void Supervise();

  bool up() const { return phase_ == Phase::kUp; }
  bool down() const { return phase_ == Phase::kDown; }
  lifecycle::Store* store() { return up() ? store_.get() : nullptr; }
  // The directory is damaged beyond its bound, and says so.
  bool lost() const { return lost_; }
  Loop& loop() { return loop_; }
  SimDisk& disk() { return parts_.world.disk(std::string(kStoreHost)); }
  catalog::MemoryCatalogDisk& index() { return index_; }
  const std::string& why_down() const { return why_down_; }
  // Faults of its disk since the start, into the counts.
  void CountFaults();

 private:
  enum class Phase : uint8_t { kDown, kBooting, kUp, kStopping };
  static Task<void> Boot(StoreProcess* self);
  static Task<void> Close(StoreProcess* self);
  lifecycle::CatalogFactory Factory();
  void Discard(SimCrash how);
  SimOutcome Decide(const SimUndecided& undecided, const SimChooser& chooser);

  HostParts parts_;
  const lifecycle::StoreOptions options_;
  Loop& loop_;
  catalog::MemoryCatalogDisk index_;
  Phase phase_ = Phase::kDown;
  TimePoint retry_at_;
  bool wanted_ = false;
  bool lost_ = false;
  std::string why_down_;
  uint32_t boots_failed_ = 0;
  SimDiskCounters counted_;
  std::unique_ptr<SimIo> machine_;  // there while the host has power: refuses what nobody serves
  std::unique_ptr<Rng> rng_;
  std::unique_ptr<SimIo> io_;
  std::unique_ptr<lifecycle::Store> store_;
  std::unique_ptr<dataplane::StoreServer> server_;
};

class NodeProcess {
 public:
  NodeProcess(HostParts parts, std::string host, node::NodeOptions options);
  ~NodeProcess();

  void Start();
  void Kill(SimCrash how);
  void Stop();
  void Supervise();

  bool up() const { return phase_ == Phase::kUp; }
  bool down() const { return phase_ == Phase::kDown; }
  node::Node* node() { return up() ? node_.get() : nullptr; }
  const std::string& host() const { return host_; }
  Loop& loop() { return loop_; }
  SimMachine& machine() { return machine_; }

 private:
  enum class Phase : uint8_t { kDown, kBooting, kUp, kStopping };
  static Task<void> Boot(NodeProcess* self);
  static Task<void> Close(NodeProcess* self);
  void CheckAdopted();
  void Discard(SimCrash how);

  HostParts parts_;
  const std::string host_;
  Loop& loop_;
  SimMachine machine_;
  std::vector<std::string> sealed_;  // when it died
  node::NodeOptions options_;
  Phase phase_ = Phase::kDown;
  TimePoint retry_at_;
  bool wanted_ = false;
  std::unique_ptr<Rng> rng_;
  std::unique_ptr<SimIo> io_;
  std::unique_ptr<SimCoordinator> coordinator_;
  std::unique_ptr<dataplane::TcpStoreLink> link_;
  std::unique_ptr<node::Node> node_;
};

}  // namespace reprise::sim
