#include "server/dataplane/store_channel.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::dataplane {
namespace {

using wire::FrameHeader;
using wire::Opcode;
using wire::Session;

}  // namespace

StoreChannel::StoreChannel(Io& io, SocketId socket, ConnectionOptions options)
    : loop_(io.loop()),
      link_(io, socket, wire::Role::kStoreClient, std::move(options)),
      changed_(io.loop()) {}

Task<Status> StoreChannel::Start(wire::Hello hello, TimePoint deadline, Gate::Hold hold) {
  Result<wire::HelloOk> answer = co_await link_.Greet(std::move(hello), deadline);
  Status status = StatusOf(answer);
  if (status.ok() && (answer->chunk_bytes < limits::kChunkBytesMin ||
                      answer->chunk_bytes > limits::kChunkBytesMax ||
                      !IsAligned(answer->chunk_bytes, limits::kIoAlignment))) {
    status = FailStatus(Code::kInvalidArgument, "{} announces chunks of {} bytes", link_.peer(),
                        answer->chunk_bytes);
  }
  if (!status.ok()) {
    status_ = status;
    link_.Shutdown();
    co_return status;
  }
  chunk_bytes_ = answer->chunk_bytes;
  loop_.Spawn(ReadLoop(shared_from_this(), std::move(hold)));
  co_return OkStatus();
}

void StoreChannel::End(const Status& why) {
  why.IgnoreError();  // the first is kept: every call gets it
  if (status_.ok()) status_ = why;
  link_.Shutdown();
  changed_.Notify();
}

// --- the reader

Task<void> StoreChannel::ReadLoop(std::shared_ptr<StoreChannel> self,
                                  [[maybe_unused]] Gate::Hold hold) {
  Status status;
  while (status.ok()) status = co_await self->ReadFrame();
  self->End(status);
}

Task<Status> StoreChannel::ReadFrame() {
  Result<Session::Expect> expect = co_await link_.NextHeader({});
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(expect));
  if (expect->chunk) co_return co_await OnChunk(expect->header);
  auto body = co_await link_.Body(expect->header);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(body));
  if (!body->has_value()) {
    auto pending = pending_.find(expect->header.request);
    if (pending != pending_.end()) pending->second->progress = loop_.Now();
    co_return OkStatus();
  }
  co_return OnMessage(std::move(**body));
}

Task<Status> StoreChannel::OnChunk(FrameHeader header) {
  auto found = pending_.find(header.request);
  std::shared_ptr<Pending> pending = found == pending_.end() ? nullptr : found->second;
  if (pending == nullptr || pending->received >= pending->sink.buffers.size() ||
      header.offset != pending->sink.first + pending->received ||
      header.payload_bytes != pending->sink.buffers[pending->received].size()) {
    co_return FailStatus(Code::kInvalidArgument, "{} sent chunk {} ({} bytes), which is not due",
                         link_.peer(), header.offset, header.payload_bytes);
  }
  pending->receiving = true;
  Status status = co_await link_.Payload(header, pending->sink.buffers[pending->received]);
  pending->receiving = false;
  pending->progress = loop_.Now();
  if (status.ok() && ++pending->received == pending->sink.buffers.size()) {
    pending->answer.emplace(Bytes());
  }
  changed_.Notify();
  co_return status;
}

void StoreChannel::OnCredit(const FrameHeader& header) {
  auto found = streams_.find(header.stream);
  if (found == streams_.end()) return;  // the upload has ended meanwhile
  Stream& stream = *found->second;
  uint64_t credits = stream.credits + header.offset;
  stream.credits = static_cast<uint32_t>(std::min<uint64_t>(credits, limits::kCreditsMax));
  stream.last_credit = loop_.Now();
  changed_.Notify();
}

Status StoreChannel::OnError(const Session::Incoming& message) {
  REPRISE_ASSIGN_STATUS(wire::ErrorBody body, wire::Decode<wire::ErrorBody>(message.body));
  Status error(body.code, std::move(body.message));
  if (auto pending = pending_.find(message.header.request); pending != pending_.end()) {
    pending->second->answer.emplace(Error(std::move(error)));
    return OkStatus();
  }
  if (message.header.stream == 0) return error.Annotate(link_.peer());
  auto stream = streams_.find(message.header.stream);
  if (stream != streams_.end() && stream->second->failure.ok()) {
    error.IgnoreError();  // kept: the next call of that upload gets it
    stream->second->failure = error;
  }
  return OkStatus();
}

Status StoreChannel::OnMessage(Session::Incoming message) {
  if (message.header.opcode == Opcode::kCredit) {
    OnCredit(message.header);
    return OkStatus();
  }
  if (message.header.opcode == Opcode::kError) {
    Status status = OnError(message);
    changed_.Notify();
    return status;
  }
  auto found = pending_.find(message.header.request);
  if (found == pending_.end() || found->second->expected != message.header.opcode) {
    return FailStatus(Code::kInvalidArgument, "{} sent {} for request {}, which nobody asked for",
                      link_.peer(), wire::OpcodeName(message.header.opcode),
                      message.header.request);
  }
  found->second->answer.emplace(std::move(message.body));
  changed_.Notify();
  return OkStatus();
}

// --- calls

Task<Result<Bytes>> StoreChannel::Call(Bytes frames, uint64_t request, Opcode expected,
                                       CallOptions options, ChunkSink sink) {
  REPRISE_CO_TRY(status_);
  auto pending = std::make_shared<Pending>();
  pending->expected = expected;
  pending->sink = std::move(sink);
  pending->progress = loop_.Now();
  pending_[request] = pending;
  Status sent = co_await link_.Send(std::move(frames));
  if (!sent.ok()) End(sent);
  auto settled = [this, pending] { return pending->answer.has_value() || !status_.ok(); };
  while (!co_await changed_.WaitFor(settled, pending->progress + options.timeout)) {
    if (loop_.Now() - pending->progress < options.timeout) continue;
    End(FailStatus(Code::kDeadlineExceeded,
                   "{}: {} did not answer for {:.1f} s ({}); look at the store's disk and the "
                   "network, or raise {}",
                   options.phase, link_.peer(), SecondsOf(options.timeout), link_.LastProgress(),
                   options.setting));
  }
  // The caller's buffers must be left alone before the call returns; the channel has ended, so the
  // reader's receive completes at once.
  co_await changed_.WaitFor([pending] { return !pending->receiving; });
  pending_.erase(request);
  if (!pending->answer.has_value()) co_return Error(status_.Annotate(options.phase));
  if (!pending->answer->has_value()) {
    co_return Error(pending->answer->error().Annotate(options.phase));
  }
  co_return **std::move(pending->answer);
}

bool StoreChannel::TryTakeCredit(Stream& stream) {
  if (stream.credits == 0 || !stream.failure.ok() || !status_.ok()) return false;
  --stream.credits;
  return true;
}

Task<Status> StoreChannel::TakeCredit(std::shared_ptr<Stream> stream, CallOptions options) {
  auto settled = [this, stream] {
    return stream->credits > 0 || !stream->failure.ok() || !status_.ok();
  };
  TimePoint begun = loop_.Now();
  if (!co_await changed_.WaitFor(settled, begun + options.timeout)) {
    End(FailStatus(Code::kDeadlineExceeded,
                   "{}: {} granted no credit for {:.1f} s (last one {:.1f} s ago); its disk is "
                   "slow or hangs, or raise {}",
                   options.phase, link_.peer(), SecondsOf(options.timeout),
                   SecondsOf(loop_.Now() - stream->last_credit), options.setting));
  }
  REPRISE_CO_RETURN_IF_ERROR(stream->failure.Annotate(options.phase));
  REPRISE_CO_RETURN_IF_ERROR(status_.Annotate(options.phase));
  --stream->credits;
  co_return OkStatus();
}

Task<Status> StoreChannel::SendChunk(FrameHeader header, ByteView chunk) {
  REPRISE_CO_RETURN_IF_ERROR(status_);
  Status status = co_await link_.SendChunk(header, chunk);
  if (!status.ok()) End(status);
  co_return status_;
}

}  // namespace reprise::dataplane
