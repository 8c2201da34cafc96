// What the ranks of a crash test save: bytes that follow from (rank, epoch, step), how they are
// uploaded, and how they are read back and compared.
//
// Thread rule: the store's loop.
#pragma once

#include "core/base/bytes.h"
#include "core/format/manifest.h"
#include "server/lifecycle/shard_store.h"

namespace reprise::crash {

// The bytes of one shard.
Bytes ShardBytes(const CheckpointKey& key, uint32_t rank, uint64_t length);

// Uploads the shard `identity` of `length` bytes as a node does: OpenPut, chunks, Seal. OK also when
// it was sealed before.
Task<Status> UploadShard(lifecycle::ShardStore& store, format::ShardIdentity identity,
                         uint64_t length);

// Reads all shards back, checks every chunk against its digest and compares with what was saved.
// DATA_LOSS: the store's own check failed. INTERNAL: it did not, and the bytes are wrong.
Task<Status> CompareCheckpoint(lifecycle::ReadSession& session, uint64_t length);

}  // namespace reprise::crash
