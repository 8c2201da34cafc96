// Machine: what the node role needs of the machine it runs on beside Io and Clock: memory that it
// shares with training processes, and news of their deaths.
//
// Local is this machine: files of a tmpfs, mapped, and pidfds. The simulator has its own, whose
// memory outlives a simulated daemon and whose processes die by its own events.
//
// Thread rule: the node's loop. Outlives the node.
#pragma once

#include <memory>
#include <string>

#include "core/async/loop.h"
#include "reprise/status.h"
#include "server/node/pid_watch.h"
#include "server/node/slab_mapping.h"

namespace reprise::node {

class Machine {
 public:
  virtual ~Machine() = default;
  // Maps the existing file at `path`, which was made through the node's Io; SlabMapping::Map.
  virtual Result<SlabMapping> Map(const std::string& path, uint64_t bytes_min) = 0;
  virtual Result<std::unique_ptr<PidWatch>> WatchProcesses(Loop& loop) = 0;

  static Machine& Local();
};

}  // namespace reprise::node
