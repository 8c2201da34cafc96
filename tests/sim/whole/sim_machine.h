// SimMachine: the memory and the process table of one simulated host, for node::Machine.
//
// Shared memory is real (anonymous files of this process), so that a simulated trainer maps and
// writes the very pages its simulated daemon reads. It outlives the daemon's death and is lost with
// the host's power. Processes are SimIos: they live from Begin to End, and End tells their watchers.
//
// Thread rule: one thread. Outlives the nodes that use it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/io/sim_world.h"
#include "server/node/machine.h"
#include "server/node/slot_format.h"

namespace reprise::sim {

// Memory of a descriptor as a training process maps it.
class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(node::OwnedFd fd, bool writable);
  SharedMemory(SharedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  SharedMemory& operator=(SharedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~SharedMemory();
  MutableByteView bytes() const { return {data_, size_}; }
  bool mapped() const { return data_ != nullptr; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Processes of all hosts, by SimIo::process().
class ProcessTable {
 public:
  void Begin(uint64_t pid) { alive_.insert(pid); }
  // Tells the watchers, each on its own loop.
  void End(uint64_t pid);

 private:
  friend class SimPidWatch;
  struct Watcher {
    Loop* loop;
    std::function<void()> on_death;
  };
  std::set<uint64_t> alive_;
  std::map<std::pair<uint64_t, uint64_t>, Watcher> watchers_;  // by (pid, watch)
  uint64_t next_watch_ = 1;
};

class SimMachine final : public node::Machine {
 public:
  SimMachine(SimWorld& world, std::string host, ProcessTable& processes)
      : world_(world), host_(std::move(host)), processes_(processes) {}

  Result<node::SlabMapping> Map(const std::string& path, uint64_t bytes_min) override;
  Result<std::unique_ptr<node::PidWatch>> WatchProcesses(Loop& loop) override;
  // Inverts one bit of a sealed snapshot; false when there is none.
  bool FlipBit(uint64_t draw);
  // Files of snapshots that are sealed and that no commit has made obsolete, as their headers say.
  std::vector<std::string> Sealed() const;
  // All memory is gone.
  void LosePower() { memory_.clear(); }

 private:
  SimWorld& world_;
  const std::string host_;
  ProcessTable& processes_;
  std::optional<node::SlotHeader> HeaderOf(const std::string& path, int fd) const;
  std::map<std::string, node::OwnedFd> memory_;  // by path
};

}  // namespace reprise::sim
