// CoordinatorStub: CoordinatorApi over gRPC, for daemons whose coordinator is in another process.
//
// Every call carries a deadline: the caller's, or kCallTimeout. UNAVAILABLE means the store could not
// be reached or went away; the channel reconnects by itself, with backoff of at most two seconds.
// Answers resume on the owner's loop.
//
// Thread rule: the owner's loop. Destruction cancels calls in progress and waits for their ends.
#pragma once

#include <memory>
#include <string>

#include "core/async/loop.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise::rpc {

class CoordinatorStub : public lifecycle::CoordinatorApi {
 public:
  // `address`: "host:port" or "unix:/path". Connects lazily.
  static std::unique_ptr<CoordinatorStub> Create(Loop& loop, std::string address);
  // The address of the store's data plane, as the store tells it.
  virtual Task<Result<std::string>> DataAddress() = 0;
};

}  // namespace reprise::rpc
