// Node: the node role of the daemon. Owns the RAM slab, serves training processes over a Unix
// socket, seals shards locally, uploads them, serves restores, and keeps the coordinator informed.
//
// Parts: slab.h (slot files and their budget), endpoint.h and connection.h (the local socket; which
// message does what), save_service.h and uploader.h (trainer to slab to store), restore_service.h
// (chunks into a process's ring), membership.h (events and inventory), pid_watch.h (trainers'
// deaths). Everything about the slab, adoption after a restart of the daemon and the death of
// trainers: docs/architecture.md, "The node side".
//
// Thread rule: everything on the loop of `io`. Close before destruction.
#pragma once

#include <memory>
#include <string>

#include "core/base/random.h"
#include "core/io/io.h"
#include "server/dataplane/store_link.h"
#include "server/lifecycle/coordinator_api.h"
#include "server/node/machine.h"
#include "server/node/slab_mutations.h"

namespace reprise::node {

struct NodeOptions {
  std::string socket_path;             // where training processes connect
  std::string slab_directory;          // in a tmpfs: slot files outlive the daemon process
  uint64_t slab_bytes_max = 0;         // hard budget for all slot files; 0: half of what is free
  uint32_t restore_ring_chunks = 128;  // per restoring process, at most
  uint32_t upload_streams_max = 4;     // shards uploaded at once
  Nanos store_timeout = std::chrono::seconds(30);  // no progress towards a store: retry, then abort
  Nanos upload_retry_max = std::chrono::minutes(10);  // how long a sealed shard is retried
  // One long poll for events; also about how long Close may wait for a call under way.
  Nanos poll_slice = std::chrono::seconds(2);
  SlabMutations slab_mutations;          // test only
  Machine* machine = &Machine::Local();  // shared memory and processes; another in the simulator
  Nanos idle_exit{0};  // embedded mode: exit this long after the last client (0: never)
};

struct NodeStats {
  uint64_t slab_used_bytes = 0;
  uint64_t slab_budget_bytes = 0;
  uint64_t clients = 0;
  uint64_t uploads_pending = 0;
  uint64_t bytes_hashed = 0;
  uint64_t bytes_uploaded = 0;
  uint64_t bytes_restored_slab = 0;
  uint64_t bytes_restored_store = 0;
  uint64_t chunks_corrupt = 0;
};

class Node {
 public:
  // Adopts sealed slots found in the slab directory, listens, and begins polling the coordinator.
  // `coordinator` and `store` outlive the node and its calls to them: a Register for a process that
  // has left may still be under way after Close, until `coordinator` ends it. A store that is away
  // is not an error: the node serves its processes and retries.
  static Task<Result<std::unique_ptr<Node>>> Start(Io& io, Rng& rng, NodeOptions options,
                                                   lifecycle::CoordinatorApi& coordinator,
                                                   dataplane::StoreLink& store);
  virtual ~Node() = default;
  // Stops accepting, lets sealed shards drain until `drain_deadline`, then closes everything. Slots
  // that could not be drained stay in the slab directory for the next daemon.
  virtual Task<void> Close(TimePoint drain_deadline) = 0;
  virtual NodeStats stats() const = 0;
  virtual const Id& id() const = 0;
  // Embedded mode: set when idle_exit has passed with no client and nothing to drain.
  virtual bool idle() const = 0;
};

}  // namespace reprise::node
