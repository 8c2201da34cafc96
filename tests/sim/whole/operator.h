// Operator: a person with the CLI, on a host of its own that never fails: deletes, pins, and reads
// checkpoints from the store to compare every byte.
//
// Thread rule: the world's own loop.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "server/dataplane/tcp_store_link.h"
#include "tests/sim/whole/hosts.h"

namespace reprise::sim {

class Operator {
 public:
  explicit Operator(HostParts parts);
  ~Operator();

  // Each reports to the model what it asked and heard; the Status is what the product said.
  Task<Status> Delete(std::string job, CheckpointKey key);
  Task<Status> Pin(std::string job, CheckpointKey key, bool pinned);
  // DATA_LOSS and the like as said by the product; wrong bytes are violations.
  Task<Status> Verify(std::string job, CheckpointKey key);
  // Unpins and deletes until only the newest is left.
  Task<Status> DeleteAllButNewest(std::string job);
  Task<Result<std::vector<lifecycle::CheckpointInfo>>> List(std::string job);

 private:
  Task<Status> VerifyOpen(std::string job, dataplane::CheckpointSource& source, uint32_t rank);

  HostParts parts_;
  Loop& loop_;
  std::unique_ptr<SimIo> io_;
  SimCoordinator coordinator_;
  std::unique_ptr<dataplane::TcpStoreLink> link_;
};

}  // namespace reprise::sim
