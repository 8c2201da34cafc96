#include "server/lifecycle/read.h"

#include <algorithm>
#include <utility>

#include "server/lifecycle/objects.h"

namespace reprise::lifecycle {

class Reads::Session final : public ReadSession {
 public:
  Session(Reads& reads, format::CommitEntry commit, format::CheckpointManifest manifest)
      : reads_(reads), commit_(std::move(commit)), manifest_(std::move(manifest)) {
    reads_.committer_.AddLease(commit_.job, commit_.key);
  }
  ~Session() override { reads_.committer_.DropLease(commit_.job, commit_.key); }

  const format::CheckpointManifest& manifest() const override { return manifest_; }
  Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) override;
  Task<Result<Bytes>> Layout(Digest layout) override;
  Task<Status> ReadChunk(const format::ShardManifest& shard, uint64_t index,
                         MutableByteView buffer) override;

 private:
  Reads& reads_;
  const format::CommitEntry commit_;
  const format::CheckpointManifest manifest_;
};

Task<Result<std::unique_ptr<ReadSession>>> Reads::Open(Id job, CheckpointKey key) {
  const CheckpointRow* row = core_.state.FindCheckpoint(job, key);
  if (row == nullptr || committer_.IsDeleting(job, key)) {
    co_return Fail(Code::kNotFound, "{} is not committed", NameOf(key));
  }
  // The lease comes first: the checkpoint must not go away while its manifest is read.
  format::CommitEntry commit = row->commit;
  committer_.AddLease(job, key);
  Result<format::CheckpointManifest> manifest = co_await ReadManifest(commit);
  committer_.DropLease(job, key);
  if (!manifest.has_value()) {
    NoteDamage(job, key, manifest.error());
    co_return Error(manifest.error());
  }
  co_return std::make_unique<Session>(*this, std::move(commit), std::move(*manifest));
}

Task<Result<format::CheckpointManifest>> Reads::ReadManifest(format::CommitEntry commit) {
  std::string what = "checkpoint manifest of " + NameOf(commit.key);
  REPRISE_CO_ASSIGN(Bytes encoded, co_await ReadObject(core_.tier, commit.manifest, what));
  Result<format::CheckpointManifest> manifest = format::DecodeCheckpointManifest(encoded);
  if (!manifest.has_value()) co_return Error(manifest.error().Annotate(what));
  bool same = manifest->job == commit.job && manifest->key == commit.key &&
              manifest->attempt == commit.attempt &&
              format::CheckpointRoot(*manifest) == commit.root;
  if (!same) co_return Fail(Code::kDataLoss, "{}: it belongs to another checkpoint", what);
  co_return manifest;
}

Task<Result<format::ShardManifest>> Reads::ReadShard(format::CommitEntry commit,
                                                     format::CheckpointShard shard) {
  std::string what = fmt::format("manifest of rank {} of {}", shard.rank, NameOf(commit.key));
  REPRISE_CO_ASSIGN(Bytes encoded, co_await ReadObject(core_.tier, shard.manifest, what));
  Result<format::ShardManifest> manifest = format::DecodeShardManifest(encoded);
  if (!manifest.has_value()) co_return Error(manifest.error().Annotate(what));
  const format::ShardIdentity& identity = manifest->identity;
  bool same = identity.attempt == commit.attempt && identity.rank == shard.rank &&
              manifest->root == shard.root && manifest->length == shard.length;
  if (!same) co_return Fail(Code::kDataLoss, "{}: it belongs to another shard", what);
  co_return manifest;
}

Task<Status> Reads::Verify(CheckpointRow row) {
  REPRISE_CO_ASSIGN_STATUS(format::CheckpointManifest manifest, co_await ReadManifest(row.commit));
  for (const format::CheckpointShard& shard : manifest.shards) {
    Result<format::ShardManifest> checked = co_await ReadShard(row.commit, shard);
    if (!checked.has_value()) co_return checked.error();
  }
  co_return OkStatus();
}

void Reads::NoteDamage(const Id& job, const CheckpointKey& key, const Status& damage) {
  if (damage.code() != Code::kDataLoss) return;
  core_.Spawn([](Committer& committer, Id job, CheckpointKey key, Status damage) -> Task<void> {
    Status marked = co_await committer.SetMark(job, key, format::Mark::kDamaged, damage.message());
    if (!marked.ok()) LogWarn("{}", marked.ToString());
  }(committer_, job, key, damage));
}

Task<Result<format::ShardManifest>> Reads::Session::ShardManifest(uint32_t rank) {
  if (rank >= manifest_.shards.size()) {
    co_return Fail(Code::kInvalidArgument, "rank {} of a world of {}", rank, commit_.world);
  }
  Result<format::ShardManifest> shard = co_await reads_.ReadShard(commit_, manifest_.shards[rank]);
  if (!shard.has_value()) reads_.NoteDamage(commit_.job, commit_.key, shard.error());
  co_return shard;
}

Task<Result<Bytes>> Reads::Session::Layout(Digest layout) {
  auto found = std::lower_bound(
      manifest_.layouts.begin(), manifest_.layouts.end(), layout,
      [](const auto& entry, const Digest& wanted) { return entry.first < wanted; });
  if (found == manifest_.layouts.end() || found->first != layout) {
    co_return Fail(Code::kNotFound, "{} has no layout {}", NameOf(commit_.key), layout.ToHex());
  }
  Result<Bytes> bytes =
      co_await ReadObject(reads_.core_.tier, found->second, "layout " + layout.ToHex());
  if (!bytes.has_value()) reads_.NoteDamage(commit_.job, commit_.key, bytes.error());
  co_return bytes;
}

Task<Status> Reads::Session::ReadChunk(const format::ShardManifest& shard, uint64_t index,
                                       MutableByteView buffer) {
  if (index >= shard.chunk_digests.size()) {
    co_return FailStatus(Code::kOutOfRange, "chunk {} of {}", index, shard.chunk_digests.size());
  }
  uint64_t length =
      AlignUp(format::ChunkLength(shard.length, shard.chunk_bytes, index), limits::kIoAlignment);
  if (buffer.size() < length) {
    co_return FailStatus(Code::kInvalidArgument, "chunk {} needs a buffer of {} bytes", index,
                         length);
  }
  co_return co_await reads_.core_.tier.Read(shard.runs, index * shard.chunk_bytes,
                                            buffer.first(length));
}

}  // namespace reprise::lifecycle
