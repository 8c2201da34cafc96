#include "server/dataplane/tcp_store_link.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/log.h"
#include "server/dataplane/store_channel.h"

namespace reprise::dataplane {
namespace {

using wire::Opcode;
using wire::Session;
using Channel = std::shared_ptr<StoreChannel>;

// Trying again cannot help.
bool IsFinal(const Status& status) {
  return status.code() == Code::kUnimplemented || status.code() == Code::kInvalidArgument ||
         status.code() == Code::kPermissionDenied || status.code() == Code::kUnauthenticated;
}

}  // namespace

// What uploads and sources share with the link, and may need after it.
class TcpStoreLink::State {
 public:
  State(Io& io_in, TcpStoreLinkOptions options_in)
      : io(io_in), options(std::move(options_in)), closing(io_in.loop()), gate(io_in.loop()) {}

  Task<Result<Channel>> TakeForUpload() {
    while (!idle.empty()) {
      Channel channel = std::move(idle.back());
      idle.pop_back();
      if (channel->status().ok()) co_return channel;
    }
    co_return co_await Connect();
  }
  void GiveBack(Channel channel) {
    if (!channel->status().ok()) return;
    if (!closed && idle.size() < options.idle_connections_max) {
      idle.push_back(std::move(channel));
    } else {
      channel->End({Code::kCancelled, "not needed anymore"});
    }
  }
  Task<Result<Channel>> TakeForRead() {
    if (reader == nullptr || !reader->status().ok()) {
      REPRISE_CO_ASSIGN(Channel made, co_await Connect());
      // Somebody else may have connected meanwhile.
      if (reader != nullptr && reader->status().ok()) {
        GiveBack(std::move(made));
      } else {
        reader = std::move(made);
      }
    }
    co_return reader;
  }
  StoreChannel::CallOptions Call(std::string phase) const {
    return {std::move(phase), options.progress_timeout, "node.store_timeout"};
  }
  StoreChannel::CallOptions SealCall(std::string phase) const {
    return {std::move(phase), options.seal_timeout, "node.seal_timeout"};
  }

  Io& io;
  const TcpStoreLinkOptions options;
  bool closed = false;
  uint32_t chunk_bytes = 0;
  uint64_t connections_made = 0;
  std::vector<Channel> idle;
  Channel reader;
  std::vector<std::weak_ptr<StoreChannel>> channels;
  Notifier closing;
  Gate gate;  // connects in progress, and the reader of each channel

 private:
  Task<Result<Channel>> Connect();
  Task<Result<Channel>> ConnectOnce(TimePoint deadline);
};

Task<Result<Channel>> TcpStoreLink::State::ConnectOnce(TimePoint deadline) {
  Gate::Hold hold = gate.Enter();
  if (!hold) co_return Fail(Code::kCancelled, "the link to {} is closed", options.address);
  REPRISE_CO_ASSIGN(SocketId socket, co_await io.Connect(options.address, deadline));
  auto channel = std::make_shared<StoreChannel>(
      io, socket,
      ConnectionOptions{"store at " + options.address, options.progress_timeout,
                        "node.store_timeout"});
  std::erase_if(channels, [](const auto& known) { return known.expired(); });
  channels.push_back(channel);
  wire::Hello hello;
  hello.peer = options.self;
  hello.description = options.description;
  REPRISE_CO_TRY(co_await channel->Start(std::move(hello), deadline, std::move(hold)));
  ++connections_made;
  chunk_bytes = channel->chunk_bytes();
  co_return channel;
}

Task<Result<Channel>> TcpStoreLink::State::Connect() {
  TimePoint deadline = io.loop().Now() + options.connect_timeout;
  Nanos backoff = options.connect_backoff_min;
  for (;;) {
    Result<Channel> channel = co_await ConnectOnce(deadline);
    if (channel.has_value() && !closed) co_return channel;
    if (closed) {
      if (channel.has_value()) (*channel)->End({Code::kCancelled, "the link is closed"});
      co_return Fail(Code::kCancelled, "the link to {} is closed", options.address);
    }
    const Status& error = channel.error();
    if (IsFinal(error)) co_return Error(error.Annotate("connecting to the store"));
    TimePoint next = io.loop().Now() + backoff;
    if (next >= deadline) {
      co_return Fail(Code::kUnavailable,
                     "connecting to the store at {}: no success within {:.1f} s, last: {}; is the "
                     "store running and the address right? Else raise node.connect_timeout",
                     options.address, SecondsOf(options.connect_timeout), error.message());
    }
    co_await closing.WaitFor([this] { return closed; }, next);
    backoff = std::min(backoff * 2, options.connect_backoff_max);
  }
}

// --- one upload

class TcpStoreLink::Upload final : public ShardUpload {
 public:
  Upload(std::shared_ptr<State> state, Channel channel, wire::PutOpen request, uint64_t stream,
         const wire::PutGrant& grant)
      : state_(std::move(state)),
        channel_(std::move(channel)),
        request_(std::move(request)),
        stream_id_(stream),
        stream_(std::make_shared<StoreChannel::Stream>()),
        already_sealed_(grant.already_sealed),
        needs_layout_(grant.needs_layout) {
    stream_->credits = std::min<uint32_t>(grant.credits, limits::kCreditsMax);
    stream_->last_credit = state_->io.loop().Now();
    if (already_sealed_) {
      End();
    } else {
      channel_->Register(stream_id_, stream_);
    }
  }
  ~Upload() override {
    if (channel_ == nullptr) return;
    // Nothing was awaited: only the end of the connection frees the space at the store.
    channel_->Unregister(stream_id_);
    channel_->End({Code::kCancelled, "the upload was dropped"});
  }

  bool already_sealed() const override { return already_sealed_; }

  Task<Status> Send(uint64_t index, ByteView chunk, Digest digest) override {
    if (channel_ == nullptr) co_return Ended();
    Channel channel = channel_;
    if (!channel->TryTakeCredit(*stream_)) {
      REPRISE_CO_RETURN_IF_ERROR(co_await channel->TakeCredit(
          stream_, state_->Call(Phase("waiting to send chunk", index))));
    }
    wire::FrameHeader header;
    header.stream = stream_id_;
    header.offset = index;
    header.digest = digest;
    Status status = co_await channel->SendChunk(header, chunk);
    if (status.ok()) co_return status;
    co_return status.Annotate(Phase("sending chunk", index));
  }

  Task<Status> Seal(std::vector<Digest> piece_digests, Bytes layout, Digest root) override {
    if (channel_ == nullptr) co_return Ended();
    if (!needs_layout_) layout.clear();
    wire::PutSeal seal{std::move(piece_digests), std::move(layout), root};
    Channel channel = channel_;
    uint64_t request = channel->NextId();
    Result<Bytes> answer =
        co_await channel->Call(Session::Pack(seal, request, stream_id_), request, Opcode::kSealed,
                               state_->SealCall(Phase("sealing")));
    End();
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(answer));
    Result<wire::Sealed> sealed = wire::Decode<wire::Sealed>(*answer);
    REPRISE_CO_RETURN_IF_ERROR(StatusOf(sealed));
    if (sealed->root != root) {
      co_return FailStatus(Code::kDataLoss, "{}: the store sealed root {}, not {}",
                           Phase("sealing"), sealed->root.ToHex(), root.ToHex());
    }
    co_return OkStatus();
  }

  Task<void> Abandon() override {
    if (channel_ == nullptr) co_return;
    Channel channel = channel_;
    uint64_t request = channel->NextId();
    Result<Bytes> answer =
        co_await channel->Call(Session::PackBody(Opcode::kPutAbandon, {}, request, stream_id_),
                               request, Opcode::kDone, state_->Call(Phase("abandoning")));
    if (!answer.has_value()) LogDebug("{}", answer.error().message());
    End();
  }

 private:
  void End() {
    if (channel_ == nullptr) return;
    channel_->Unregister(stream_id_);
    state_->GiveBack(std::move(channel_));
    channel_ = nullptr;
  }
  static Status Ended() {
    return Status(Code::kFailedPrecondition, "this upload is sealed or abandoned");
  }
  std::string Phase(std::string_view doing) const {
    return fmt::format("{} rank {} of step {}", doing, request_.shard.rank,
                       request_.shard.key.step);
  }
  std::string Phase(std::string_view doing, uint64_t index) const {
    return fmt::format("{} {} of rank {} of step {}", doing, index, request_.shard.rank,
                       request_.shard.key.step);
  }

  const std::shared_ptr<State> state_;
  Channel channel_;  // none once ended
  const wire::PutOpen request_;
  const uint64_t stream_id_;
  const std::shared_ptr<StoreChannel::Stream> stream_;
  const bool already_sealed_;
  const bool needs_layout_;
};

// --- one open checkpoint

class TcpStoreLink::Checkpoint final : public CheckpointSource {
 public:
  Checkpoint(std::shared_ptr<State> state, Channel channel, uint64_t stream,
             format::CheckpointManifest manifest)
      : state_(std::move(state)),
        channel_(std::move(channel)),
        stream_(stream),
        manifest_(std::move(manifest)) {}
  ~Checkpoint() override {
    if (channel_ == nullptr || !channel_->status().ok()) return;
    // Dropped unclosed: the store is told, and nobody waits for its answer.
    state_->io.loop().Spawn(CloseStream(state_, channel_, stream_));
  }

  const format::CheckpointManifest& manifest() const override { return manifest_; }

  Task<Result<format::ShardManifest>> ShardManifest(uint32_t rank) override {
    REPRISE_CO_TRY(Open());
    Channel channel = channel_;
    uint64_t request = channel->NextId();
    REPRISE_CO_ASSIGN(
        Bytes answer,
        co_await channel->Call(Session::Pack(wire::ReadShard{rank}, request, stream_), request,
                               Opcode::kShardManifest,
                               state_->Call(fmt::format("reading the manifest of rank {}", rank))));
    REPRISE_CO_ASSIGN(wire::BlobBody blob, wire::Decode<wire::BlobBody>(answer));
    co_return format::DecodeShardManifest(blob.data);
  }

  Task<Result<Bytes>> Layout(Digest layout) override {
    REPRISE_CO_TRY(Open());
    Channel channel = channel_;
    uint64_t request = channel->NextId();
    REPRISE_CO_ASSIGN(
        Bytes answer,
        co_await channel->Call(Session::Pack(wire::ReadLayout{layout}, request, stream_), request,
                               Opcode::kLayout, state_->Call("reading layout " + layout.ToHex())));
    REPRISE_CO_ASSIGN(wire::BlobBody blob, wire::Decode<wire::BlobBody>(answer));
    if (DigestOf(blob.data) != layout) {
      co_return Fail(Code::kDataLoss, "layout {} arrived with another digest", layout.ToHex());
    }
    co_return std::move(blob.data);
  }

  Task<Status> ReadChunks(const format::ShardManifest& shard, uint64_t first,
                          std::vector<MutableByteView> buffers) override {
    REPRISE_CO_RETURN_IF_ERROR(Open());
    if (buffers.empty()) co_return OkStatus();
    uint64_t count = format::ChunkCount(shard.length, shard.chunk_bytes);
    if (first > count || buffers.size() > count - first) {
      co_return FailStatus(Code::kOutOfRange, "chunks [{}, +{}) of rank {}, which has {}", first,
                           buffers.size(), shard.identity.rank, count);
    }
    wire::ReadChunks wanted{shard.identity.rank, first, static_cast<uint32_t>(buffers.size())};
    ChunkSink sink{first, std::move(buffers)};
    for (size_t i = 0; i < sink.buffers.size(); ++i) {
      uint64_t length = format::ChunkLength(shard.length, shard.chunk_bytes, first + i);
      REPRISE_CHECK(sink.buffers[i].size() >= length);
      // The padding of a short chunk does not travel.
      std::ranges::fill(sink.buffers[i].subspan(length), uint8_t{0});
      sink.buffers[i] = sink.buffers[i].first(length);
    }
    Channel channel = channel_;
    uint64_t request = channel->NextId();
    Result<Bytes> answer =
        co_await channel->Call(Session::Pack(wanted, request, stream_), request, Opcode::kChunk,
                               state_->Call(fmt::format("reading chunks [{}, +{}) of rank {}",
                                                        wanted.first, wanted.count, wanted.rank)),
                               std::move(sink));
    co_return StatusOf(answer);
  }

  Task<void> Close() override {
    if (channel_ == nullptr) co_return;
    Channel channel = std::exchange(channel_, nullptr);
    co_await CloseStream(state_, channel, stream_);
  }

 private:
  static Task<void> CloseStream(std::shared_ptr<State> state, Channel channel, uint64_t stream) {
    Gate::Hold hold = state->gate.Enter();
    if (!hold || !channel->status().ok()) co_return;
    uint64_t request = channel->NextId();
    Result<Bytes> answer =
        co_await channel->Call(Session::PackBody(Opcode::kReadClose, {}, request, stream), request,
                               Opcode::kDone, state->Call("closing a checkpoint"));
    if (!answer.has_value()) LogDebug("{}", answer.error().message());
  }
  Status Open() const {
    if (channel_ != nullptr) return channel_->status();
    return Status(Code::kFailedPrecondition, "this checkpoint is closed");
  }

  const std::shared_ptr<State> state_;
  Channel channel_;  // none once closed
  const uint64_t stream_;
  const format::CheckpointManifest manifest_;
};

// --- the link

TcpStoreLink::TcpStoreLink(Io& io, TcpStoreLinkOptions options)
    : state_(std::make_shared<State>(io, std::move(options))) {}

TcpStoreLink::~TcpStoreLink() { REPRISE_CHECK(state_->gate.inside() == 0, "await Close first"); }

uint32_t TcpStoreLink::chunk_bytes() const { return state_->chunk_bytes; }
uint64_t TcpStoreLink::connections_made() const { return state_->connections_made; }

Task<Result<std::unique_ptr<ShardUpload>>> TcpStoreLink::OpenUpload(wire::PutOpen request) {
  std::shared_ptr<State> state = state_;
  REPRISE_CO_ASSIGN(Channel channel, co_await state->TakeForUpload());
  uint64_t stream = channel->NextId();
  uint64_t id = channel->NextId();
  Result<Bytes> answer =
      co_await channel->Call(Session::Pack(request, id, stream), id, Opcode::kPutGrant,
                             state->Call(fmt::format("opening the upload of rank {} of step {}",
                                                     request.shard.rank, request.shard.key.step)));
  if (!answer.has_value()) {
    state->GiveBack(std::move(channel));
    co_return Error(answer.error());
  }
  Result<wire::PutGrant> grant = wire::Decode<wire::PutGrant>(*answer);
  if (!grant.has_value()) {
    channel->End(grant.error());
    co_return Error(grant.error());
  }
  co_return std::make_unique<Upload>(state, std::move(channel), std::move(request), stream, *grant);
}

Task<Result<std::unique_ptr<CheckpointSource>>> TcpStoreLink::OpenRead(Id job, CheckpointKey key) {
  std::shared_ptr<State> state = state_;
  REPRISE_CO_ASSIGN(Channel channel, co_await state->TakeForRead());
  uint64_t stream = channel->NextId();
  uint64_t id = channel->NextId();
  wire::ReadOpen open;
  open.job = job;
  open.key = key;
  REPRISE_CO_ASSIGN(
      Bytes answer,
      co_await channel->Call(Session::Pack(open, id, stream), id, Opcode::kReadOk,
                             state->Call(fmt::format("opening the checkpoint of step {} (epoch {})",
                                                     key.step, key.epoch))));
  REPRISE_CO_ASSIGN(wire::ReadOk ok, wire::Decode<wire::ReadOk>(answer));
  REPRISE_CO_ASSIGN(auto manifest, format::DecodeCheckpointManifest(ok.checkpoint_manifest));
  if (manifest.job != job || manifest.key != key) {
    co_return Fail(Code::kDataLoss, "the store answered with another checkpoint");
  }
  co_return std::make_unique<Checkpoint>(state, std::move(channel), stream, std::move(manifest));
}

Task<void> TcpStoreLink::Close() {
  std::shared_ptr<State> state = state_;
  state->closed = true;
  state->closing.Notify();
  state->idle.clear();
  state->reader = nullptr;
  for (const auto& known : state->channels) {
    if (Channel channel = known.lock()) {
      channel->End({Code::kCancelled, "the link to the store was closed"});
    }
  }
  co_await state->gate.Close();
}

}  // namespace reprise::dataplane
