#include "tests/sim/whole/operator.h"

#include <algorithm>
#include <utility>

#include "core/base/aligned_buffer.h"
#include "core/base/log.h"

namespace reprise::sim {

using namespace std::chrono_literals;

namespace {

dataplane::TcpStoreLinkOptions LinkOptions() {
  dataplane::TcpStoreLinkOptions options;
  options.address = kStoreAddress;
  options.self = Id{{7}};
  options.description = "operator";
  options.connect_timeout = 2s;
  options.progress_timeout = 5s;
  return options;
}

}  // namespace

Operator::Operator(HostParts parts)
    : parts_(parts),
      loop_(parts.world.loop()),
      io_(std::make_unique<SimIo>(loop_, parts.world, "operator")),
      coordinator_(parts.rpc, loop_, "operator"),
      link_(std::make_unique<dataplane::TcpStoreLink>(*io_, LinkOptions())) {}

Operator::~Operator() {
  // The world ends: nobody waits for anything any more.
  io_->CrashHost(SimCrash::kProcessDeath);
  loop_.DestroyAll();
  link_ = nullptr;
  loop_.DestroyAll();
}

Task<Status> Operator::Delete(std::string job, CheckpointKey key) {
  parts_.model.DeleteAsked(job, key);
  Status status = co_await coordinator_.Delete("team", job, key);
  parts_.model.DeleteDone(job, key, status);
  co_return status;
}

Task<Status> Operator::Pin(std::string job, CheckpointKey key, bool pinned) {
  parts_.model.PinAsked(job, key, pinned);
  Status status = co_await coordinator_.Pin("team", job, key, pinned, "simulated");
  parts_.model.PinDone(job, key, pinned, status);
  co_return status;
}

Task<Result<std::vector<lifecycle::CheckpointInfo>>> Operator::List(std::string job) {
  return coordinator_.ListCheckpoints("team", std::move(job), true);
}

Task<Status> Operator::DeleteAllButNewest(std::string job) {
  auto list = co_await List(job);
  if (!list.has_value()) {
    co_return list.error().code() == Code::kNotFound ? OkStatus() : Status(list.error());
  }
  std::set<CheckpointKey> newest;
  auto latest = co_await coordinator_.Resolve("team", job, {});
  if (latest.has_value()) newest.insert(latest->key);
  for (const lifecycle::CheckpointInfo& info : *list) {
    if (info.state == lifecycle::CheckpointState::kSaving || newest.contains(info.key)) continue;
    if (info.pinned) {
      Status unpinned = co_await Pin(job, info.key, false);
      if (!unpinned.ok()) co_return unpinned.Annotate("unpin");
    }
    Status deleted = co_await Delete(job, info.key);
    // What the run resumes from stays until it has committed; one may have ended meanwhile.
    bool fine = deleted.ok() || deleted.code() == Code::kFailedPrecondition ||
                deleted.code() == Code::kNotFound;
    if (!fine) co_return deleted;
  }
  co_return OkStatus();
}

Task<Status> Operator::Verify(std::string job, CheckpointKey key) {
  auto info = co_await coordinator_.GetJob("team", job);
  if (!info.has_value()) co_return info.error();
  // A connection that broke while nobody used it costs one try; the next connects anew.
  auto source = co_await link_->OpenRead(info->job, key);
  if (!source.has_value() && source.error().code() == Code::kUnavailable) {
    source = co_await link_->OpenRead(info->job, key);
  }
  if (!source.has_value()) co_return source.error();
  Status status;
  for (uint32_t rank = 0; status.ok() && rank < (*source)->manifest().world; ++rank) {
    status = co_await VerifyOpen(job, **source, rank);
  }
  co_await (*source)->Close();
  co_return status;
}

Task<Status> Operator::VerifyOpen(std::string job, dataplane::CheckpointSource& source,
                                  uint32_t rank) {
  REPRISE_CO_ASSIGN_STATUS(format::ShardManifest shard, co_await source.ShardManifest(rank));
  if (shard.root != source.manifest().shards[rank].root) {
    co_return Status(Code::kDataLoss, "the shard's manifest is not the checkpoint's");
  }
  REPRISE_CO_ASSIGN_STATUS(Bytes encoded, co_await source.Layout(shard.layout));
  if (DigestOf(encoded) != shard.layout) co_return Status(Code::kDataLoss, "layout digest");
  REPRISE_CO_ASSIGN_STATUS(format::Layout layout, format::DecodeLayout(encoded));
  Bytes bytes(shard.length, 0);
  AlignedBuffer buffer(shard.chunk_bytes);
  for (uint64_t i = 0; i < shard.chunk_digests.size(); ++i) {
    uint64_t length = format::ChunkLength(shard.length, shard.chunk_bytes, i);
    std::vector<MutableByteView> targets = {
        buffer.span().first(AlignUp(length, limits::kIoAlignment))};
    REPRISE_CO_RETURN_IF_ERROR(co_await source.ReadChunks(shard, i, targets));
    if (DigestOf(buffer.view().first(length)) != shard.chunk_digests[i]) {
      co_return FailStatus(Code::kDataLoss, "chunk {} of rank {} fails its digest", i, rank);
    }
    std::memcpy(bytes.data() + i * shard.chunk_bytes, buffer.data(), length);
  }
  parts_.model.Restored(job, source.manifest().key, rank, bytes, layout, "by an operator");
  co_return OkStatus();
}

}  // namespace reprise::sim
