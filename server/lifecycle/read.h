// ReadSessions: one committed checkpoint being read, kept from deletion while the session lives.
//
// Whatever fails its digest here is recorded as damage of the checkpoint (MARK), so that `latest`
// moves to an older one, and answered as DATA_LOSS that names rank and object.
//
// Thread rule: the store's loop.
#pragma once

#include <memory>

#include "server/lifecycle/commit.h"
#include "server/lifecycle/core.h"
#include "server/lifecycle/shard_store.h"

namespace reprise::lifecycle {

class Reads {
 public:
  Reads(Core& core, Committer& committer) : core_(core), committer_(committer) {}

  // ShardStore::OpenRead.
  Task<Result<std::unique_ptr<ReadSession>>> Open(Id job, CheckpointKey key);

  // Reads and verifies the manifests of a checkpoint and of all its shards: everything a restore
  // needs but the bytes. DATA_LOSS names what is damaged; nothing is recorded.
  Task<Status> Verify(CheckpointRow row);
  Task<Result<format::CheckpointManifest>> ReadManifest(format::CommitEntry commit);

 private:
  class Session;
  Task<Result<format::ShardManifest>> ReadShard(format::CommitEntry commit,
                                                format::CheckpointShard shard);
  // Records the damage in the background.
  void NoteDamage(const Id& job, const CheckpointKey& key, const Status& damage);

  Core& core_;
  Committer& committer_;
};

}  // namespace reprise::lifecycle
