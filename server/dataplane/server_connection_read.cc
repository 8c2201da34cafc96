// The reading half of ServerConnection: open checkpoints, their manifests, layouts and chunks.
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "server/dataplane/server_connection.h"

namespace reprise::dataplane {
namespace {

using wire::FrameHeader;
using wire::Opcode;
using wire::Session;

// Manifests of shards kept per open checkpoint; others are read again.
constexpr size_t kManifestsKept = 4;

}  // namespace

// One chunk on its way from the store to the socket.
struct ServerConnection::ReadSlot {
  ReadSlot(Loop& loop, BufferPool::Buffer lease, uint64_t chunk_index, size_t chunk_size)
      : buffer(std::move(lease)), index(chunk_index), size(chunk_size), done(loop) {}
  BufferPool::Buffer buffer;
  const uint64_t index;
  const size_t size;
  OneShot<Status> done;
};

Status ServerConnection::OnReadOpen(const Session::Incoming& message) {
  REPRISE_ASSIGN_STATUS(wire::ReadOpen open, wire::Decode<wire::ReadOpen>(message.body));
  uint64_t stream = message.header.stream;
  if (Status status = CheckNewStream(stream); !status.ok()) {
    loop_.Spawn([](ServerConnection* self, Status why, Request request) -> Task<void> {
      co_await self->ReplyError(std::move(why), request.id(), request.stream());
    }(this, std::move(status), Request(*this, message.header)));
    return OkStatus();
  }
  auto reading = std::make_shared<ReadStream>();
  reading->id = stream;
  reads_.emplace(stream, reading);
  loop_.Spawn(OpenRead(reading, std::move(open), Request(*this, message.header)));
  return OkStatus();
}

Task<void> ServerConnection::OpenRead(Reading reading, wire::ReadOpen open, Request request) {
  auto session = co_await store_.OpenRead(open.job, open.key);
  if (!session.has_value()) {
    reads_.erase(reading->id);
    co_await ReplyError(session.error(), request.id(), request.stream());
    co_return;
  }
  reading->session = *std::move(session);
  const format::CheckpointManifest& manifest = reading->session->manifest();
  wire::ReadOk answer{manifest.key, format::EncodeCheckpointManifest(manifest)};
  co_await Reply(Session::Pack(answer, request.id(), request.stream()));
}

Status ServerConnection::OnReadMessage(const Session::Incoming& message) {
  auto found = reads_.find(message.header.stream);
  Reading reading = found == reads_.end() ? nullptr : found->second;
  if (reading == nullptr || reading->session == nullptr || reading->closing) {
    return FailStatus(Code::kInvalidArgument, "{} for stream {}, which is not open",
                      wire::OpcodeName(message.header.opcode), message.header.stream);
  }
  if (message.header.opcode == Opcode::kReadClose) {
    reading->closing = true;
    loop_.Spawn(CloseRead(reading, Request(*this, message.header)));
  } else if (message.header.opcode == Opcode::kReadShard) {
    REPRISE_ASSIGN_STATUS(wire::ReadShard wanted, wire::Decode<wire::ReadShard>(message.body));
    loop_.Spawn(SendShardManifest(reading, wanted.rank, Request(*this, message.header)));
  } else if (message.header.opcode == Opcode::kReadLayout) {
    REPRISE_ASSIGN_STATUS(wire::ReadLayout wanted, wire::Decode<wire::ReadLayout>(message.body));
    loop_.Spawn(SendLayout(reading, wanted.layout, Request(*this, message.header)));
  } else {
    REPRISE_ASSIGN_STATUS(wire::ReadChunks wanted, wire::Decode<wire::ReadChunks>(message.body));
    loop_.Spawn(SendChunks(reading, wanted, Request(*this, message.header)));
  }
  return OkStatus();
}

Task<Result<ServerConnection::Manifest>> ServerConnection::ManifestOf(Reading reading,
                                                                      uint32_t rank) {
  if (auto found = reading->manifests.find(rank); found != reading->manifests.end()) {
    co_return found->second;
  }
  auto manifest = co_await reading->session->ShardManifest(rank);
  if (!manifest.has_value()) co_return Error(manifest.error());
  Manifest kept = std::make_shared<const format::ShardManifest>(*std::move(manifest));
  if (reading->manifests.size() >= kManifestsKept) {
    reading->manifests.erase(reading->manifests.begin());
  }
  reading->manifests[rank] = kept;
  co_return kept;
}

Task<void> ServerConnection::SendShardManifest(Reading reading, uint32_t rank, Request request) {
  Result<Manifest> manifest = co_await ManifestOf(reading, rank);
  if (!manifest.has_value()) {
    co_await ReplyError(manifest.error(), request.id(), request.stream());
    co_return;
  }
  Bytes body = wire::Encode(wire::BlobBody{format::EncodeShardManifest(**manifest)});
  co_await Reply(Session::PackBody(Opcode::kShardManifest, body, request.id(), request.stream()));
}

Task<void> ServerConnection::SendLayout(Reading reading, Digest layout, Request request) {
  Result<Bytes> encoded = co_await reading->session->Layout(layout);
  if (!encoded.has_value()) {
    co_await ReplyError(encoded.error(), request.id(), request.stream());
    co_return;
  }
  Bytes body = wire::Encode(wire::BlobBody{*std::move(encoded)});
  co_await Reply(Session::PackBody(Opcode::kLayout, body, request.id(), request.stream()));
}

Task<void> ServerConnection::SendChunks(Reading reading, wire::ReadChunks wanted, Request request) {
  ReadWindow window;
  Status status = co_await StreamChunks(reading, wanted, request.id(), &window);
  // After a failure reads are still in flight; READ_CLOSE must find them ended.
  for (const auto& slot : window) co_await slot->done.Wait();
  window.clear();
  if (!status.ok()) co_await ReplyError(std::move(status), request.id(), request.stream());
}

Task<void> ServerConnection::ReadInto(std::shared_ptr<ReadSlot> slot, Reading reading,
                                      Manifest manifest, [[maybe_unused]] Gate::Hold hold) {
  MutableByteView padded = slot->buffer.first(AlignUp(slot->size, limits::kIoAlignment));
  Status status = co_await reading->session->ReadChunk(*manifest, slot->index, padded);
  slot->done.Set(std::move(status));
}

Task<Status> ServerConnection::StreamChunks(Reading reading, wire::ReadChunks wanted,
                                            uint64_t request_id, ReadWindow* window) {
  REPRISE_CO_ASSIGN_STATUS(Manifest manifest, co_await ManifestOf(reading, wanted.rank));
  uint64_t count = manifest->chunk_digests.size();
  if (wanted.first > count || wanted.count > count - wanted.first) {
    co_return FailStatus(Code::kOutOfRange, "chunks [{}, +{}) of rank {}, which has {}",
                         wanted.first, wanted.count, wanted.rank, count);
  }
  uint64_t next = wanted.first;
  const uint64_t end = wanted.first + wanted.count;
  while (next < end || !window->empty()) {
    if (link_.ended()) co_return FailStatus(Code::kUnavailable, "{} has left", link_.peer());
    while (next < end && window->size() < options_.read_depth) {
      BufferPool::Buffer buffer = server_.send_buffers_->TryAcquire();
      // Waiting is safe only while this request holds no buffer that others may be waiting for.
      if (!buffer && !window->empty()) break;
      if (!buffer) {
        buffer = co_await server_.send_buffers_->Acquire(loop_.Now() + options_.idle_timeout);
      }
      if (!buffer) {
        co_return FailStatus(Code::kDeadlineExceeded,
                             "reading chunk {} of rank {}: no buffer became free for {:.1f} s; "
                             "other readers are slow, or raise store.receive_buffers",
                             next, wanted.rank, SecondsOf(options_.idle_timeout));
      }
      size_t size = format::ChunkLength(manifest->length, manifest->chunk_bytes, next);
      window->push_back(std::make_shared<ReadSlot>(loop_, std::move(buffer), next++, size));
      loop_.Spawn(ReadInto(window->back(), reading, manifest, operations_.Enter()));
    }
    std::shared_ptr<ReadSlot> slot = window->front();
    std::optional<Status> read = co_await slot->done.Wait();
    window->pop_front();
    REPRISE_CO_RETURN_IF_ERROR(*read);
    FrameHeader header;
    header.request = request_id;
    header.stream = reading->id;
    header.offset = slot->index;
    header.digest = manifest->chunk_digests[slot->index];
    REPRISE_CO_RETURN_IF_ERROR(co_await link_.SendChunk(header, slot->buffer.first(slot->size)));
    ++server_.metrics_.chunks_sent;
  }
  co_return OkStatus();
}

Task<void> ServerConnection::CloseRead(Reading reading, Request request) {
  // This request and the one reference in reads_ are what remains when all others have ended.
  co_await changed_.WaitFor([&reading] { return reading.use_count() <= 2; });
  reads_.erase(reading->id);
  reading->session.reset();
  co_await Reply(Session::PackBody(Opcode::kDone, {}, request.id(), request.stream()));
}

}  // namespace reprise::dataplane
