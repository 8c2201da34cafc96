// ControlServer: the gRPC face of a coordinator. Decodes, posts to the coordinator's loop, answers.
//
// Callback API: no gRPC thread ever waits for a coordinator. A call's deadline is handed on; a call
// without one gets kDefaultDeadline. Messages over 4 MiB are refused by gRPC itself (inventories of
// very many slots stay far below).
//
// Thread rule: Start and Stop from one thread that is not the coordinator's loop.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/async/loop.h"
#include "reprise/status.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise::rpc {

// What GetStore answers; asked on the coordinator's loop.
struct StoreDescription {
  Id store;
  std::string version;
  std::string data_address;
  uint32_t chunk_bytes = 0;
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;
  uint64_t suspect_bytes = 0;
  std::string io_engine;
  std::vector<std::string> recovery;
};

class ControlServer {
 public:
  // Serves `coordinator` (living on `loop`) at `address`: "host:port" (port 0 picks one) or
  // "unix:/path". UNAVAILABLE when the address cannot be bound.
  static Result<std::unique_ptr<ControlServer>> Start(Loop& loop,
                                                      lifecycle::CoordinatorApi& coordinator,
                                                      std::string address,
                                                      std::function<StoreDescription()> describe);
  virtual ~ControlServer() = default;
  // Where it listens ("host:port" with the real port, or "unix:/path").
  virtual std::string address() const = 0;
  // Refuses new calls and returns when no call refers to the coordinator any more. The coordinator
  // must have ended its waits (Store::Close) and its loop must still be running.
  virtual void Stop() = 0;
};

}  // namespace reprise::rpc
