// PutSessions: receiving one shard of one attempt, up to PREPARED (narrative on top of put.cc).
//
// Thread rule: the store's loop. A session may be destroyed at any time but while one of its calls
// is running; its reservation goes back unless the shard was PREPARED.
#pragma once

#include <memory>

#include "server/lifecycle/attempt.h"
#include "server/lifecycle/commit.h"
#include "server/lifecycle/core.h"
#include "server/lifecycle/layouts.h"
#include "server/lifecycle/shard_store.h"

namespace reprise::lifecycle {

class Puts {
 public:
  Puts(Core& core, Attempts& attempts, Layouts& layouts, Committer& committer)
      : core_(core), attempts_(attempts), layouts_(layouts), committer_(committer) {}

  // ShardStore::OpenPut.
  Task<Result<std::unique_ptr<PutSession>>> Open(PutRequest request, Digest root_if_sealed);

 private:
  class Session;
  Status CheckRequest(const PutRequest& request) const;

  Core& core_;
  Attempts& attempts_;
  Layouts& layouts_;
  Committer& committer_;
};

}  // namespace reprise::lifecycle
