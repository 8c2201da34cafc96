#include "client/restore/reader.h"

#include <algorithm>
#include <atomic>
#include <map>

#include "client/snapshot/layout_cache.h"
#include "core/base/log.h"

namespace reprise::client {
namespace {

// Requests for layouts and shard manifests that are under way at once.
constexpr size_t kRequestsAhead = 32;

// Names of open checkpoints; unique within the process, hence within each connection.
uint64_t NextStream() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

// Asks for messages[0..] with a bounded number under way; answers come in the same order.
template <typename Message>
Result<std::vector<Bytes>> AskBlobs(Session& session, const std::vector<Message>& messages,
                                    wire::Opcode expected, uint64_t generation, uint64_t stream,
                                    Deadline deadline, std::string_view what) {
  std::vector<std::shared_ptr<Inbox>> inboxes(messages.size());
  std::vector<uint64_t> requests;
  std::vector<Bytes> blobs;
  Status status;
  for (size_t done = 0; done < messages.size() && status.ok(); ++done) {
    while (status.ok() && requests.size() < std::min(messages.size(), done + kRequestsAhead)) {
      auto inbox = std::make_shared<Inbox>();
      auto request = session.Start(messages[requests.size()], inbox, generation, stream);
      status = StatusOf(request);
      if (!status.ok()) break;
      inboxes[requests.size()] = std::move(inbox);
      requests.push_back(*request);
    }
    if (!status.ok()) break;
    Result<Reply> reply = inboxes[done]->Next(deadline, what);
    inboxes[done].reset();
    status = StatusOf(reply);
    if (status.ok() && reply->header.opcode != expected) {
      status = FailStatus(Code::kInternal, "the node daemon answered {} with {}", what,
                          wire::OpcodeName(reply->header.opcode));
    }
    if (!status.ok()) break;
    auto body = wire::Decode<wire::BlobBody>(reply->body);
    status = StatusOf(body);
    if (status.ok()) blobs.push_back(std::move(body->data));
  }
  for (uint64_t request : requests) session.Forget(request);
  if (!status.ok()) return Error(std::move(status));
  return blobs;
}

}  // namespace

Result<std::vector<WantedPiece>> WantedOf(std::span<const PieceView> pieces) {
  std::vector<WantedPiece> wanted;
  wanted.reserve(pieces.size());
  for (const PieceView& view : pieces) {
    format::Layout single;
    REPRISE_ASSIGN(format::Piece piece, PieceOf(view));
    single.pieces.push_back(std::move(piece));
    format::AssignPositions(single, limits::kChunkBytesDefault);
    REPRISE_TRY(format::Validate(single));
    uint64_t bytes = format::BytesOf(single.pieces[0]);
    if (view.data_bytes != bytes || (view.data == nullptr && bytes != 0)) {
      return Fail(Code::kInvalidArgument,
                  "tensor \"{}\": its memory has {} bytes at {}, its shape and type take {}",
                  view.name, view.data_bytes,
                  view.data == nullptr ? "a null pointer" : "an address", bytes);
    }
    wanted.push_back({.piece = std::move(single.pieces[0]), .source_rank = view.source_rank});
  }
  return wanted;
}

Result<std::unique_ptr<Reader>> Reader::Open(Session& session, CopyEngine& engine,
                                             RestoreRing& ring, ReaderOptions options,
                                             Deadline deadline) {
  std::unique_ptr<Reader> reader(new Reader(session, engine, ring, std::move(options)));
  REPRISE_TRY(reader->OpenStream(deadline));
  REPRISE_TRY(reader->LoadLayouts(deadline));
  return reader;
}

Reader::~Reader() {
  if (generation_ == 0 || session_.generation() != generation_) return;
  session_.SendEmpty(wire::Opcode::kReadClose, generation_, stream_).IgnoreError();
}

Status Reader::OpenStream(Deadline deadline) {
  REPRISE_ASSIGN_STATUS(uint64_t generation, session_.WaitConnected(deadline));
  wire::ReadOpen open;
  open.tenant = options_.tenant;
  open.job_name = options_.job;
  open.step = options_.step;
  open.epoch = options_.epoch;
  bool again = generation_ != 0;
  if (again) {
    open.step = manifest_.key.step;
    open.epoch = manifest_.key.epoch;
  }
  uint64_t stream = NextStream();
  REPRISE_ASSIGN_STATUS(
      auto opened,
      session_.Ask<wire::ReadOk>(open, deadline, "the checkpoint's manifest", generation, stream));
  generation_ = generation;
  stream_ = stream;
  REPRISE_ASSIGN_STATUS(auto manifest,
                        format::DecodeCheckpointManifest(opened.checkpoint_manifest));
  if (again && format::CheckpointRoot(manifest) != format::CheckpointRoot(manifest_)) {
    return Status(Code::kDataLoss, "the checkpoint changed while it was read");
  }
  manifest_ = std::move(manifest);
  return OkStatus();
}

Status Reader::LoadLayouts(Deadline deadline) {
  std::vector<wire::ReadLayout> questions;
  std::map<Digest, uint32_t> index;
  for (const format::CheckpointShard& shard : manifest_.shards) {
    auto [entry, fresh] = index.try_emplace(shard.layout, questions.size());
    if (fresh) questions.push_back({.layout = shard.layout});
    saved_.layout_of_rank.push_back(entry->second);
  }
  REPRISE_ASSIGN_STATUS(auto blobs, AskBlobs(session_, questions, wire::Opcode::kLayout,
                                             generation_, stream_, deadline, "a layout"));
  for (size_t i = 0; i < blobs.size(); ++i) {
    if (DigestOf(blobs[i]) != questions[i].layout) {
      return Status(Code::kDataLoss, "a layout of the checkpoint fails its digest");
    }
    REPRISE_ASSIGN_STATUS(auto layout, format::DecodeLayout(blobs[i]));
    saved_.layouts.push_back(std::move(layout));
  }
  return OkStatus();
}

Result<std::vector<format::ShardManifest>> Reader::LoadShards(const RestorePlan& plan,
                                                              Deadline deadline) {
  std::vector<wire::ReadShard> questions;
  for (const ShardPlan& shard : plan.shards) questions.push_back({.rank = shard.rank});
  REPRISE_ASSIGN(auto blobs, AskBlobs(session_, questions, wire::Opcode::kShardManifest,
                                      generation_, stream_, deadline, "a shard's manifest"));
  std::vector<format::ShardManifest> shards;
  for (size_t i = 0; i < blobs.size(); ++i) {
    const format::CheckpointShard& parent = manifest_.shards[plan.shards[i].rank];
    REPRISE_ASSIGN(auto shard, format::DecodeShardManifest(blobs[i]));
    if (shard.root != parent.root || shard.length != plan.shards[i].length ||
        shard.chunk_bytes != plan.shards[i].chunk_bytes || shard.layout != parent.layout) {
      return Fail(Code::kDataLoss,
                  "the manifest of rank {}'s shard is not the one that was committed",
                  plan.shards[i].rank);
    }
    shards.push_back(std::move(shard));
  }
  return shards;
}

Status Reader::Read(std::span<const PieceView> pieces, bool map_slots, Deadline deadline) {
  SteadyPoint started = SteadyClock::now();
  REPRISE_ASSIGN_STATUS(auto wanted, WantedOf(pieces));
  REPRISE_ASSIGN_STATUS(
      auto plan, PlanRestore(saved_, wanted, {.rank = options_.rank, .world = options_.world}));
  double plan_ms = MillisSince(started);
  started = SteadyClock::now();
  if (session_.generation() != generation_) REPRISE_RETURN_IF_ERROR(OpenStream(deadline));
  REPRISE_ASSIGN_STATUS(auto shards, LoadShards(plan, deadline));
  Restorer restorer(session_, engine_, ring_, plan, shards, pieces);
  Status status = ReadOnce(restorer, map_slots, deadline);
  for (int attempt = 1; attempt < kAttemptsMax && status.code() == Code::kUnavailable &&
                        session_.generation() != generation_ && !deadline.expired();
       ++attempt) {
    status = OpenStream(deadline);
    if (status.ok()) status = ReadOnce(restorer, map_slots, deadline);
  }
  AddStats(restorer.stats(), plan_ms, MillisSince(started));
  return status;
}

void Reader::AddStats(const ReadStats& read, double plan_ms, double read_ms) {
  stats_.bytes_slab += read.bytes_slab;
  stats_.bytes_peer += read.bytes_peer;
  stats_.bytes_ram += read.bytes_ram;
  stats_.bytes_nvme += read.bytes_nvme;
  stats_.bytes_object += read.bytes_object;
  stats_.chunks_corrupt += read.chunks_corrupt;
  stats_.plan_ms += plan_ms;
  stats_.read_ms += read_ms;
}

Status Reader::ReadOnce(Restorer& restorer, bool map_slots, Deadline deadline) {
  return restorer.Run({.generation = generation_, .stream = stream_, .map_slots = map_slots},
                      deadline);
}

}  // namespace reprise::client
