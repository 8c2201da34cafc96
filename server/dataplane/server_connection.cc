// A connection of the store, in the order of events:
//
//   1. HELLO is answered, or refused with the reason.
//   2. Frames are read one at a time. Chunks go straight into an aligned buffer that nobody else
//      writes; message bodies are collected by the session.
//   3. PUT_OPEN reserves the whole shard, or fails. The grant says how many chunks may be in flight.
//   4. CHUNK: hashed in the buffer it will be written from. A digest other than the announced one
//      fails the upload, not the connection. The credit goes back when the write has completed.
//   5. PUT_SEAL waits for every write, then for the store's commit protocol (S1..S5).
//   6. READ_CHUNKS keeps a window of reads in flight and sends in order.
//   7. At the end (BYE, a peer that left, an error, Shutdown) the operations in progress end first,
//      then the streams are destroyed: unsealed uploads give their space back.
//
// A crash of the store after 3 or 4 leaves nothing (the reservation is in memory); after 5 the shard
// is PREPARED and the node, which did not hear so, asks again and is told ALREADY SEALED.
#include "server/dataplane/server_connection.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::dataplane {
namespace {

using wire::FrameHeader;
using wire::Opcode;
using wire::Session;

// The chunk with zeros up to the next 4 KiB, as it is written.
ByteView Padded(const BufferPool::Buffer& buffer, size_t size) {
  MutableByteView padded = buffer.first(AlignUp(size, limits::kIoAlignment));
  std::ranges::fill(padded.subspan(size), uint8_t{0});
  return padded;
}

}  // namespace

ServerConnection::Request::Request(ServerConnection& owner, FrameHeader header)
    : owner_(&owner), header_(header), hold_(owner.operations_.Enter()) {
  REPRISE_CHECK(static_cast<bool>(hold_));
  ++owner.requests_;
}

ServerConnection::Request::~Request() {
  if (owner_ == nullptr) return;
  --owner_->requests_;
  owner_->changed_.Notify();
}

ServerConnection::ServerConnection(StoreServer& server, SocketId socket)
    : server_(server),
      store_(server.store_),
      options_(server.options_),
      loop_(server.io_.loop()),
      link_(server.io_, socket, wire::Role::kStoreServer,
            {"a new peer", server.options_.idle_timeout, "store.idle_timeout"}),
      changed_(loop_),
      operations_(loop_) {}

Task<Status> ServerConnection::Run() {
  wire::HelloOk answer{wire::kVersion, options_.self, store_.chunk_bytes(), options_.description};
  Result<wire::Hello> hello =
      co_await link_.Welcome(answer, loop_.Now() + options_.handshake_timeout);
  Status status = StatusOf(hello);
  if (status.ok()) {
    link_.set_peer(hello->description.empty() ? hello->peer.ToHex() : hello->description);
    status = co_await ReadFrames();
    // The peer hears why, unless it is gone already.
    if (!status.ok() && !link_.ended()) co_await Reply(Session::PackError(status, 0));
  }
  link_.Shutdown();
  co_await operations_.Close();
  bool held = !puts_.empty() || !reads_.empty();
  puts_.clear();
  reads_.clear();
  // Leaving without BYE while nothing is open is how pooled connections end.
  if (status.code() == Code::kUnavailable && !held) status = OkStatus();
  co_return status;
}

bool ServerConnection::IsBusy() const {
  if (requests_ > 0) return true;
  return std::ranges::any_of(puts_, [](const auto& item) { return item.second->writing > 0; });
}

Task<Result<Session::Expect>> ServerConnection::NextHeader() {
  for (;;) {
    Nanos limit = options_.unused_timeout;
    std::string_view setting;
    if (!reads_.empty()) {
      limit = options_.read_idle_timeout;
      setting = "store.read_idle_timeout";
    }
    if (!puts_.empty()) {
      limit = options_.idle_timeout;
      setting = "store.idle_timeout";
    }
    Result<Session::Expect> expect = co_await link_.NextHeader(loop_.Now() + limit);
    if (expect.has_value() || expect.error().code() != Code::kDeadlineExceeded) co_return expect;
    // While a request is served or a chunk written, it is the peer that waits for us.
    if (IsBusy() || loop_.Now() - link_.last_progress() < limit) continue;
    if (setting.empty()) {
      co_return Fail(Code::kUnavailable, "{} did not use the connection for {:.0f} s", link_.peer(),
                     SecondsOf(limit));
    }
    co_return Fail(Code::kDeadlineExceeded,
                   "waiting for a frame: {} was silent for {:.1f} s with {} uploads and {} "
                   "checkpoints open ({}); look at that host and the network, or raise {}",
                   link_.peer(), SecondsOf(limit), puts_.size(), reads_.size(),
                   link_.LastProgress(), setting);
  }
}

Task<Status> ServerConnection::ReadFrames() {
  while (!left_) {
    co_await changed_.WaitFor(
        [this] { return requests_ < options_.requests_per_connection_max || link_.ended(); });
    Result<Session::Expect> expect = co_await NextHeader();
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(expect));
    if (expect->chunk) {
      REPRISE_CO_RETURN_IF_ERROR(co_await OnChunk(expect->header));
      continue;
    }
    auto body = co_await link_.Body(expect->header);
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(body));
    if (!body->has_value()) continue;
    Status status = co_await OnMessage(std::move(**body));
    REPRISE_CO_RETURN_IF_ERROR(status.Annotate(link_.peer()));
  }
  co_return OkStatus();
}

Task<Status> ServerConnection::OnMessage(Session::Incoming message) {
  switch (message.header.opcode) {
    case Opcode::kPutOpen: co_return OnPutOpen(message);
    case Opcode::kPutSeal:
    case Opcode::kPutAbandon: co_return OnPutMessage(message);
    case Opcode::kReadOpen: co_return OnReadOpen(message);
    case Opcode::kReadShard:
    case Opcode::kReadLayout:
    case Opcode::kReadChunks:
    case Opcode::kReadClose: co_return OnReadMessage(message);
    case Opcode::kBye: left_ = true; co_return OkStatus();
    default: break;
  }
  co_return FailStatus(Code::kInternal, "{} is not handled",
                       wire::OpcodeName(message.header.opcode));
}

Status ServerConnection::CheckNewStream(uint64_t stream) const {
  if (puts_.contains(stream) || reads_.contains(stream)) {
    return FailStatus(Code::kInvalidArgument, "stream {} is open already", stream);
  }
  if (puts_.size() + reads_.size() >= options_.streams_per_connection_max) {
    return FailStatus(Code::kResourceExhausted,
                      "{} streams are open on this connection: close some, or open another one",
                      puts_.size() + reads_.size());
  }
  return OkStatus();
}

// --- putting a shard

std::string ServerConnection::NameOf(const PutStream& put) const {
  return fmt::format("rank {} of step {} (epoch {}, attempt {})", put.shard.rank,
                     put.shard.key.step, put.shard.key.epoch, put.shard.attempt.ToHex());
}

Status ServerConnection::OnPutOpen(const Session::Incoming& message) {
  REPRISE_ASSIGN_STATUS(wire::PutOpen open, wire::Decode<wire::PutOpen>(message.body));
  uint64_t stream = message.header.stream;
  Status status = CheckNewStream(stream);
  if (status.ok() && open.shard.rank >= open.shard.world) {
    status = FailStatus(Code::kInvalidArgument, "rank {} of a world of {}", open.shard.rank,
                        open.shard.world);
  }
  if (status.ok() &&
      (open.length > limits::kShardBytesMax || open.chunk_bytes != store_.chunk_bytes())) {
    status =
        FailStatus(Code::kInvalidArgument,
                   "a shard of {} bytes in chunks of {}: this store takes at most {} in "
                   "chunks of {}",
                   open.length, open.chunk_bytes, limits::kShardBytesMax, store_.chunk_bytes());
  }
  if (status.ok() &&
      format::ChunkCount(open.length, open.chunk_bytes) > limits::kChunksPerShardMax) {
    status = FailStatus(Code::kInvalidArgument, "a shard of more than {} chunks",
                        limits::kChunksPerShardMax);
  }
  if (!status.ok()) {
    loop_.Spawn([](ServerConnection* self, Status why, Request request) -> Task<void> {
      co_await self->ReplyError(std::move(why), request.id(), request.stream());
    }(this, std::move(status), Request(*this, message.header)));
    return OkStatus();
  }
  auto put = std::make_shared<PutStream>();
  put->id = stream;
  put->shard = open.shard;
  put->length = open.length;
  put->chunk_count = format::ChunkCount(open.length, open.chunk_bytes);
  puts_.emplace(stream, put);
  loop_.Spawn(OpenPut(put, std::move(open), Request(*this, message.header)));
  return OkStatus();
}

Task<void> ServerConnection::OpenPut(Put put, wire::PutOpen open, Request request) {
  lifecycle::PutRequest wanted{open.shard, open.length, open.chunk_bytes, open.layout};
  auto session = co_await store_.OpenPut(wanted, open.root_if_sealed);
  wire::PutGrant grant;
  if (!session.has_value()) {
    puts_.erase(put->id);
    if (session.error().code() != Code::kAlreadyExists) {
      co_await ReplyError(session.error(), request.id(), request.stream());
      co_return;
    }
    grant.already_sealed = true;
  } else {
    put->session = *std::move(session);
    put->received.resize(put->chunk_count);
    put->granted = options_.credits;
    grant.needs_layout = put->session->needs_layout();
    grant.credits = put->granted;
  }
  co_await Reply(Session::Pack(grant, request.id(), request.stream()));
}

// What a peer that keeps to the protocol never sends. Ends the connection.
Status ServerConnection::CheckChunk(const Put& put, const FrameHeader& header) const {
  if (put == nullptr || (put->session == nullptr && put->failure.ok())) {
    return FailStatus(Code::kInvalidArgument, "{}: CHUNK for stream {}, which is not open",
                      link_.peer(), header.stream);
  }
  if (put->granted == 0) {
    return FailStatus(Code::kInvalidArgument, "{}: CHUNK {} of {} without a credit", link_.peer(),
                      header.offset, NameOf(*put));
  }
  if (put->sealing) {
    return FailStatus(Code::kInvalidArgument, "{}: CHUNK {} of {} after PUT_SEAL", link_.peer(),
                      header.offset, NameOf(*put));
  }
  if (header.offset >= put->chunk_count || put->received[header.offset] ||
      header.payload_bytes !=
          format::ChunkLength(put->length, store_.chunk_bytes(), header.offset)) {
    return FailStatus(Code::kInvalidArgument,
                      "{}: CHUNK {} ({} bytes) of {} is sent twice, or does not fit its {} bytes",
                      link_.peer(), header.offset, header.payload_bytes, NameOf(*put), put->length);
  }
  return OkStatus();
}

Task<Status> ServerConnection::OnChunk(FrameHeader header) {
  auto found = puts_.find(header.stream);
  Put put = found == puts_.end() ? nullptr : found->second;
  REPRISE_CO_RETURN_IF_ERROR(CheckChunk(put, header));
  --put->granted;
  put->received[header.offset] = true;
  // The rest of what a failed upload had in flight.
  if (!put->failure.ok()) co_return co_await link_.Skip(header);
  BufferPool::Buffer buffer =
      co_await server_.receive_buffers_->Acquire(loop_.Now() + options_.idle_timeout);
  if (!buffer) {
    co_return FailStatus(Code::kDeadlineExceeded,
                         "receiving chunk {} of {}: no buffer became free for {:.1f} s ({}); the "
                         "disk is slow or hangs, or raise store.receive_buffers",
                         header.offset, NameOf(*put), SecondsOf(options_.idle_timeout),
                         link_.LastProgress());
  }
  REPRISE_CO_RETURN_IF_ERROR(co_await link_.Payload(header, buffer.first(header.payload_bytes)));
  ++server_.metrics_.chunks_received;
  ++put->writing;
  loop_.Spawn(StoreChunk(put, header.offset, header.payload_bytes, header.digest, std::move(buffer),
                         operations_.Enter()));
  co_return OkStatus();
}

Task<void> ServerConnection::StoreChunk(Put put, uint64_t index, size_t size, Digest announced,
                                        BufferPool::Buffer buffer,
                                        [[maybe_unused]] Gate::Hold hold) {
  Status status = put->failure;
  if (status.ok()) {
    Digest actual = DigestOf(buffer.first(size));
    if (actual != announced) {
      ++server_.metrics_.chunks_corrupt;
      status = FailStatus(Code::kDataLoss,
                          "chunk {} of {} arrived with digest {}, announced was {}: it changed "
                          "after it was hashed or on the way; upload the shard again",
                          index, NameOf(*put), actual.ToHex(), announced.ToHex());
    } else {
      status = co_await put->session->WriteChunk(index, Padded(buffer, size), actual);
    }
  }
  buffer = {};
  --put->writing;
  if (status.ok()) {
    ++put->received_count;
    ++put->credit_due;
  }
  bool told = !put->failure.ok();
  if (!status.ok()) FailPut(put, status);
  changed_.Notify();
  if (status.ok()) {
    co_await SendCredits(put);
  } else if (!told && !put->sealing) {
    // Nobody asked yet: request 0 is the stream as such.
    co_await ReplyError(status, 0, put->id);
  }
}

Task<void> ServerConnection::SendCredits(Put put) {
  if (put->sending_credit || put->sealing) co_return;
  put->sending_credit = true;
  while (put->credit_due > 0 && !link_.ended()) {
    uint32_t count = std::exchange(put->credit_due, 0);
    put->granted += count;
    co_await Reply(Session::PackBody(Opcode::kCredit, {}, 0, put->id, count));
  }
  put->sending_credit = false;
}

// The first failure stays. The space goes back as soon as no write needs it.
void ServerConnection::FailPut(const Put& put, Status status) {
  if (put->failure.ok()) put->failure = std::move(status);
  if (put->writing == 0 && !put->sealing) put->session.reset();
}

Status ServerConnection::OnPutMessage(const Session::Incoming& message) {
  auto found = puts_.find(message.header.stream);
  Put put = found == puts_.end() ? nullptr : found->second;
  bool open = put != nullptr && (put->session != nullptr || !put->failure.ok()) && !put->sealing;
  if (!open) {
    return FailStatus(Code::kInvalidArgument, "{} for stream {}, which is not open",
                      wire::OpcodeName(message.header.opcode), message.header.stream);
  }
  if (message.header.opcode == Opcode::kPutAbandon) {
    put->sealing = true;
    loop_.Spawn(AbandonPut(put, Request(*this, message.header)));
    return OkStatus();
  }
  REPRISE_ASSIGN_STATUS(wire::PutSeal seal, wire::Decode<wire::PutSeal>(message.body));
  put->sealing = true;
  loop_.Spawn(SealPut(put, std::move(seal), Request(*this, message.header)));
  return OkStatus();
}

Task<void> ServerConnection::SealPut(Put put, wire::PutSeal seal, Request request) {
  co_await changed_.WaitFor([put] { return put->writing == 0; });
  Status status = put->failure;
  if (status.ok() && put->received_count != put->chunk_count) {
    status = FailStatus(Code::kFailedPrecondition, "{}: {} of {} chunks arrived before PUT_SEAL",
                        NameOf(*put), put->received_count, put->chunk_count);
  }
  if (status.ok()) {
    status = co_await put->session->Seal(std::move(seal.piece_digests), std::move(seal.layout),
                                         seal.root);
  }
  put->session.reset();
  puts_.erase(put->id);
  if (!status.ok()) {
    co_await ReplyError(std::move(status), request.id(), request.stream());
    co_return;
  }
  ++server_.metrics_.shards_sealed;
  co_await Reply(Session::Pack(wire::Sealed{seal.root}, request.id(), request.stream()));
}

Task<void> ServerConnection::AbandonPut(Put put, Request request) {
  co_await changed_.WaitFor([put] { return put->writing == 0; });
  put->session.reset();
  puts_.erase(put->id);
  co_await Reply(Session::PackBody(Opcode::kDone, {}, request.id(), request.stream()));
}

// --- answers

Task<void> ServerConnection::Reply(Bytes frames) {
  Status status = co_await link_.Send(std::move(frames));
  if (!status.ok()) LogDebug("data plane: {}", status.message());
}

Task<void> ServerConnection::ReplyError(Status status, uint64_t request_id, uint64_t stream) {
  co_await Reply(Session::PackError(status, request_id, stream));
}

}  // namespace reprise::dataplane
