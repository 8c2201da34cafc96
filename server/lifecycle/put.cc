// PUT and SEAL of one shard; what a crash after each step leaves is said behind the arrow:
//
//   P1  attempt open (or adopted), epoch current, space for all of it       -> nothing (RAM only)
//   P2  chunks arrive in private buffers, hashed by the receiver            -> nothing
//   P3  O_DIRECT writes, any order, any depth                               -> free space
//   P4  every completion reaped, full length
//   S1  all chunks are there, none in flight; root equals the sender's
//   S2  layout (if new) and shard manifest written and reaped               -> free space
//   S3  flush of every touched segment, called after S1 and S2              -> free space
//   S4  under the ledger lock: attempt still open, epoch current, rank not PREPARED;
//       [LAYOUT] PREPARED journalled as one group
//         -> the shard survives: the attempt goes on after a restart, or its ABORT frees it
//   S5  answered SEALED; the last rank's starts the commit
#include "server/lifecycle/put.h"

#include <utility>
#include <vector>

#include "server/lifecycle/objects.h"

namespace reprise::lifecycle {
namespace {

// Extents that go back to the tier unless they were handed over to the ledger.
class Reservation {
 public:
  explicit Reservation(tier::Tier& tier) : tier_(tier) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() {
    if (!runs_.empty()) tier_.Free(runs_);
  }
  void Add(const std::vector<format::Run>& runs) {
    runs_.insert(runs_.end(), runs.begin(), runs.end());
  }
  void HandOver() { runs_.clear(); }
  const std::vector<format::Run>& runs() const { return runs_; }

 private:
  tier::Tier& tier_;
  std::vector<format::Run> runs_;
};

}  // namespace

class Puts::Session final : public PutSession {
 public:
  Session(Puts& puts, PutRequest request, AttemptPtr attempt, std::vector<format::Run> payload)
      : puts_(puts),
        core_(puts.core_),
        request_(std::move(request)),
        attempt_(std::move(attempt)),
        payload_(std::move(payload)),
        reserved_(core_.tier) {
    reserved_.Add(payload_);
    chunks_.resize(format::ChunkCount(request_.length, request_.chunk_bytes));
    written_.resize(chunks_.size());
  }

  bool needs_layout() const override { return core_.state.FindLayout(request_.layout) == nullptr; }
  Task<Status> WriteChunk(uint64_t index, ByteView data, Digest digest) override;
  Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) override;

 private:
  enum class ChunkState : uint8_t { kMissing, kInFlight, kWritten };

  Status CheckAllWritten() const;
  Task<Result<LayoutPtr>> CheckLayout(const Bytes& encoded, size_t piece_count);
  Task<Status> StoreLayout(Bytes encoded);
  Task<Status> StoreManifest(std::vector<Digest> piece_digests, Digest root);
  Task<Status> Flush();
  Task<Status> Record();
  Status WhyClosed() const;
  Status CheckStillOpen() const;
  std::vector<format::Entry> Entries() const;

  Puts& puts_;
  Core& core_;
  const PutRequest request_;
  const AttemptPtr attempt_;
  const std::vector<format::Run> payload_;
  Reservation reserved_;
  std::vector<Digest> chunks_;
  std::vector<ChunkState> written_;
  format::ShardManifest manifest_;
  format::ObjectRef manifest_object_;
  std::optional<format::ObjectRef> layout_object_;
  Status failure_;  // of the session, for good
};

// --- P1

Status Puts::CheckRequest(const PutRequest& request) const {
  if (request.chunk_bytes != core_.geometry.chunk_bytes) {
    return FailStatus(Code::kInvalidArgument, "chunks are {} here, not {}",
                      HumanBytes(core_.geometry.chunk_bytes), HumanBytes(request.chunk_bytes));
  }
  if (request.length > limits::kShardBytesMax ||
      CeilDiv(request.length, request.chunk_bytes) > limits::kChunksPerShardMax ||
      request.shard.rank >= request.shard.world) {
    return Status(Code::kInvalidArgument, "shard is too long, or its rank outside its world");
  }
  return OkStatus();
}

Task<Result<std::unique_ptr<PutSession>>> Puts::Open(PutRequest request, Digest root_if_sealed) {
  REPRISE_CO_TRY(CheckRequest(request));
  const format::PreparedEntry* sealed =
      core_.state.FindShard(request.shard.attempt, request.shard.rank);
  if (sealed != nullptr && sealed->root == root_if_sealed) {
    co_return Fail(Code::kAlreadyExists, "rank {} is sealed here already", request.shard.rank);
  }
  REPRISE_CO_ASSIGN(AttemptPtr attempt, attempts_.Find(request.shard));
  if (sealed != nullptr) {
    co_return Fail(Code::kAborted, "rank {} is sealed here with another root", request.shard.rank);
  }
  std::vector<format::Run> payload;
  if (request.length > 0) {
    Result<std::vector<format::Run>> reserved = core_.tier.Reserve(request.length);
    if (!reserved.has_value()) {
      Status full = reserved.error().Annotate(fmt::format("rank {}", request.shard.rank));
      REPRISE_CO_TRY(co_await attempts_.Abort(attempt, full.message()));
      co_return Error(std::move(full));
    }
    payload = std::move(*reserved);
  }
  attempts_.NoteProgress(attempt);
  co_return std::make_unique<Session>(*this, std::move(request), std::move(attempt),
                                      std::move(payload));
}

// --- P2 to P4

Task<Status> Puts::Session::WriteChunk(uint64_t index, ByteView data, Digest digest) {
  if (!failure_.ok()) co_return failure_;
  if (!attempt_->accepts()) co_return WhyClosed();
  if (index >= chunks_.size() || written_[index] != ChunkState::kMissing) {
    co_return FailStatus(Code::kInvalidArgument, "chunk {} was sent twice or lies outside", index);
  }
  uint64_t length = format::ChunkLength(request_.length, request_.chunk_bytes, index);
  if (data.size() != AlignUp(length, limits::kIoAlignment)) {
    co_return FailStatus(Code::kInvalidArgument, "chunk {} must be padded to {} bytes", index,
                         AlignUp(length, limits::kIoAlignment));
  }
  written_[index] = ChunkState::kInFlight;
  Status written = co_await core_.tier.Write(payload_, index * request_.chunk_bytes, data);
  if (!written.ok()) {
    failure_ = written.Annotate(fmt::format("rank {} chunk {}", request_.shard.rank, index));
    co_return failure_;
  }
  written_[index] = ChunkState::kWritten;
  chunks_[index] = digest;
  puts_.attempts_.NoteProgress(attempt_);
  co_return OkStatus();
}

// --- S1 to S5

Task<Status> Puts::Session::Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) {
  if (!failure_.ok()) co_return failure_;
  // Whatever goes wrong below, this session cannot be used again; a new one may try.
  failure_ = Status(Code::kFailedPrecondition, "this upload was sealed or failed before");
  failure_.IgnoreError();  // for calls that should not come
  REPRISE_CO_RETURN_IF_ERROR(CheckAllWritten());
  Result<LayoutPtr> checked = co_await CheckLayout(layout, piece_digests.size());
  if (!checked.has_value()) co_return checked.error();
  REPRISE_CO_RETURN_IF_ERROR(CheckStillOpen());
  REPRISE_CO_RETURN_IF_ERROR(co_await StoreLayout(std::move(layout)));
  std::vector<Digest> pieces = piece_digests;
  REPRISE_CO_RETURN_IF_ERROR(co_await StoreManifest(std::move(piece_digests), root));
  if (core_.mutations.prepared_before_flush) {
    REPRISE_CO_RETURN_IF_ERROR(co_await Record());
    REPRISE_CO_RETURN_IF_ERROR(co_await Flush());
  } else {
    REPRISE_CO_RETURN_IF_ERROR(co_await Flush());
    REPRISE_CO_RETURN_IF_ERROR(co_await Record());
  }
  attempt_->piece_digests[request_.shard.rank] = std::move(pieces);
  attempt_->begun.insert(request_.shard.rank);
  puts_.attempts_.NoteProgress(attempt_);
  core_.changed.Notify();
  puts_.committer_.TryCommit(attempt_);
  co_return OkStatus();
}

Status Puts::Session::CheckAllWritten() const {
  for (size_t i = 0; i < written_.size(); ++i) {
    if (written_[i] != ChunkState::kWritten) {
      return FailStatus(Code::kFailedPrecondition, "rank {}: chunk {} of {} is missing",
                        request_.shard.rank, i, written_.size());
    }
  }
  return OkStatus();
}

Task<Result<LayoutPtr>> Puts::Session::CheckLayout(const Bytes& encoded, size_t piece_count) {
  if (encoded.empty() && needs_layout()) {
    co_return Fail(Code::kFailedPrecondition,
                   "the store does not have layout {}: upload again and send it",
                   request_.layout.ToHex());
  }
  LayoutPtr layout;
  if (encoded.empty()) {
    REPRISE_CO_ASSIGN(layout, co_await puts_.layouts_.Get(request_.layout));
  } else {
    REPRISE_CO_ASSIGN(layout, puts_.layouts_.Take(request_.layout, encoded));
  }
  if (layout->chunk_bytes != request_.chunk_bytes || layout->shard_bytes != request_.length ||
      layout->pieces.size() != piece_count) {
    co_return Fail(Code::kInvalidArgument,
                   "rank {}: the layout describes {} pieces in {} bytes, the upload {} in {}",
                   request_.shard.rank, layout->pieces.size(), layout->shard_bytes, piece_count,
                   request_.length);
  }
  co_return layout;
}

Task<Status> Puts::Session::StoreLayout(Bytes encoded) {
  if (encoded.empty() || !needs_layout()) co_return OkStatus();
  REPRISE_CO_ASSIGN_STATUS(format::ObjectRef object,
                           co_await WriteObject(core_.tier, std::move(encoded), 0));
  reserved_.Add({object.run});
  layout_object_ = object;
  co_return OkStatus();
}

Task<Status> Puts::Session::StoreManifest(std::vector<Digest> piece_digests, Digest root) {
  manifest_.identity = request_.shard;
  manifest_.layout = request_.layout;
  manifest_.length = request_.length;
  manifest_.chunk_bytes = request_.chunk_bytes;
  manifest_.chunk_digests = chunks_;
  manifest_.piece_digests = std::move(piece_digests);
  manifest_.runs = payload_;
  manifest_.root = format::ShardRoot(manifest_);
  if (manifest_.root != root && !core_.mutations.skip_root_check) {
    co_return FailStatus(Code::kDataLoss,
                         "rank {}: what arrived has root {}, what was announced {}: upload again",
                         request_.shard.rank, manifest_.root.ToHex(), root.ToHex());
  }
  REPRISE_CO_ASSIGN_STATUS(
      manifest_object_,
      co_await WriteObject(core_.tier, format::EncodeShardManifest(manifest_), 0));
  reserved_.Add({manifest_object_.run});
  co_return OkStatus();
}

Task<Status> Puts::Session::Flush() {
  if (core_.mutations.skip_payload_flush) co_return OkStatus();
  Status flushed = co_await core_.tier.Flush(
      core_.mutations.prepared_before_flush ? payload_ : reserved_.runs());
  co_return flushed.Annotate(fmt::format("rank {}", request_.shard.rank));
}

Status Puts::Session::WhyClosed() const {
  // Another upload of this shard was first; opened anew, this one hears that it is sealed already.
  if (attempt_->phase == AttemptPhase::kCommitted) {
    return Status(Code::kUnavailable, "the step was committed meanwhile: ask again");
  }
  return Status(Code::kAborted, attempt_->reason);
}

Status Puts::Session::CheckStillOpen() const {
  if (!attempt_->accepts()) return WhyClosed();
  const JobState* job = core_.state.FindJob(attempt_->job);
  if (attempt_->key.epoch < core_.FenceOf(*job) && !attempt_->adopted) {
    return FailStatus(Code::kFenced, "epoch {} is over: epoch {} of this job runs now",
                      attempt_->key.epoch, job->epoch());
  }
  return OkStatus();
}

std::vector<format::Entry> Puts::Session::Entries() const {
  std::vector<format::Entry> entries;
  if (layout_object_.has_value()) {
    entries.push_back(format::LayoutEntry{request_.layout, *layout_object_});
  }
  format::PreparedEntry prepared;
  prepared.identity = request_.shard;
  // The same unless the mutation shards_keyed_by_step let another attempt's shard in.
  prepared.identity.attempt = attempt_->id;
  prepared.identity.key = attempt_->key;
  prepared.root = manifest_.root;
  prepared.length = request_.length;
  prepared.layout = request_.layout;
  prepared.manifest = manifest_object_;
  prepared.runs = payload_;
  entries.push_back(std::move(prepared));
  return entries;
}

Task<Status> Puts::Session::Record() {
  SharedLock::Hold ledger = co_await core_.ledger.Share();
  REPRISE_CO_RETURN_IF_ERROR(CheckStillOpen());
  uint32_t rank = request_.shard.rank;
  if (const format::PreparedEntry* other = core_.state.FindShard(attempt_->id, rank)) {
    if (other->root == manifest_.root)
      co_return OkStatus();  // another upload of the same bytes won
    co_return FailStatus(Code::kAborted, "rank {} is sealed here with another root", rank);
  }
  if (!layout_object_.has_value() && needs_layout()) {
    co_return FailStatus(Code::kUnavailable,
                         "rank {}: its layout was deleted meanwhile: "
                         "upload again",
                         rank);
  }
  if (!attempt_->sealing.insert(rank).second) {
    co_return FailStatus(Code::kUnavailable, "rank {} is being sealed by another upload", rank);
  }
  if (core_.mutations.skip_prepared) {
    for (format::Entry& entry : Entries()) attempt_->held_back.push_back(std::move(entry));
    reserved_.HandOver();
    co_return OkStatus();
  }
  Status logged = co_await core_.log.Append(Entries());
  attempt_->sealing.erase(rank);
  // Recorded, or unknown: only recovery may decide whether these extents are free.
  if (logged.code() != Code::kInvalidArgument) reserved_.HandOver();
  co_return logged;
}

}  // namespace reprise::lifecycle
