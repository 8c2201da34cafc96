#include "core/wire/session.h"

#include <algorithm>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::wire {
namespace {

void AppendFrame(Bytes& out, FrameHeader header, ByteView payload) {
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  size_t start = out.size();
  out.resize(start + limits::kFrameHeaderBytes);
  EncodeFrameHeader(header, std::span<uint8_t, limits::kFrameHeaderBytes>(
                                out.data() + start, limits::kFrameHeaderBytes));
  out.insert(out.end(), payload.begin(), payload.end());
}

bool IsServer(Role role) { return role == Role::kStoreServer || role == Role::kLocalServer; }

// What a role may receive once the handshake is done.
bool IsLegalAtStoreServer(Opcode opcode) {
  switch (opcode) {
    case Opcode::kPutOpen:
    case Opcode::kChunk:
    case Opcode::kPutSeal:
    case Opcode::kPutAbandon:
    case Opcode::kReadOpen:
    case Opcode::kReadShard:
    case Opcode::kReadLayout:
    case Opcode::kReadChunks:
    case Opcode::kReadClose:
    case Opcode::kBye: return true;
    default: return false;
  }
}

bool IsLegalAtStoreClient(Opcode opcode) {
  switch (opcode) {
    case Opcode::kError:
    case Opcode::kDone:
    case Opcode::kPutGrant:
    case Opcode::kCredit:
    case Opcode::kSealed:
    case Opcode::kReadOk:
    case Opcode::kShardManifest:
    case Opcode::kLayout:
    case Opcode::kChunk: return true;
    default: return false;
  }
}

bool IsLegalAtLocalServer(Opcode opcode) {
  switch (opcode) {
    case Opcode::kRegister:
    case Opcode::kAttach:
    case Opcode::kSaveBegin:
    case Opcode::kSaveChunks:
    case Opcode::kSaveSeal:
    case Opcode::kSaveSkip:
    case Opcode::kReadOpen:
    case Opcode::kReadShard:
    case Opcode::kReadLayout:
    case Opcode::kReadClose:
    case Opcode::kRingAttach:
    case Opcode::kFetch:
    case Opcode::kRingFree:
    case Opcode::kCorrupt:
    case Opcode::kSlotOf:
    case Opcode::kBye: return true;
    default: return false;
  }
}

bool IsLegalAtLocalClient(Opcode opcode) {
  switch (opcode) {
    case Opcode::kError:
    case Opcode::kDone:
    case Opcode::kRegistered:
    case Opcode::kAttached:
    case Opcode::kSlot:
    case Opcode::kSaveGrant:
    case Opcode::kSaveState:
    case Opcode::kReadOk:
    case Opcode::kShardManifest:
    case Opcode::kLayout:
    case Opcode::kRing:
    case Opcode::kChunkAt: return true;
    default: return false;
  }
}

}  // namespace

bool Session::IsLegal(Opcode opcode) const {
  if (!established_) {
    if (IsServer(role_)) return opcode == Opcode::kHello && !hello_received_;
    return hello_sent_ && (opcode == Opcode::kHelloOk || opcode == Opcode::kError);
  }
  switch (role_) {
    case Role::kStoreServer: return IsLegalAtStoreServer(opcode);
    case Role::kStoreClient: return IsLegalAtStoreClient(opcode);
    case Role::kLocalServer: return IsLegalAtLocalServer(opcode);
    case Role::kLocalClient: return IsLegalAtLocalClient(opcode);
  }
  return false;
}

std::unexpected<Status> Session::Break(Status status) {
  broken_ = true;
  partial_.clear();
  partial_bytes_ = 0;
  return Error(std::move(status));
}

Bytes Session::MakeHello(const Hello& hello) {
  REPRISE_CHECK(!IsServer(role_) && !hello_sent_);
  hello_sent_ = true;
  return Pack(hello, 0);
}

Result<Bytes> Session::AcceptHello(const Hello& theirs, const HelloOk& ours) {
  REPRISE_CHECK(IsServer(role_) && hello_received_ && !established_);
  if (theirs.version_min > kVersion || theirs.version_max < kVersion) {
    return Break(FailStatus(Code::kUnimplemented,
                            "{} speaks versions {} to {} of the wire protocol, this side speaks "
                            "{}: upgrade the older side",
                            theirs.description, theirs.version_min, theirs.version_max, kVersion));
  }
  if (uint64_t unknown = theirs.required_features & ~kKnownFeatures; unknown != 0) {
    return Break(FailStatus(Code::kUnimplemented,
                            "{} requires features {:#x}, which this build lacks: upgrade this side",
                            theirs.description, unknown));
  }
  established_ = true;
  HelloOk answer = ours;
  answer.version = kVersion;
  return Pack(answer, 0);
}

Status Session::CheckHelloOk(ByteView body) {
  REPRISE_ASSIGN_STATUS(HelloOk answer, Decode<HelloOk>(body));
  if (answer.version != kVersion) {
    return FailStatus(Code::kUnimplemented,
                      "{} chose version {} of the wire protocol, this side speaks {}",
                      answer.description, answer.version, kVersion);
  }
  established_ = true;
  return OkStatus();
}

Status Session::CheckHeader(const FrameHeader& header) const {
  std::string_view name = OpcodeName(header.opcode);
  if (!IsLegal(header.opcode)) {
    return FailStatus(Code::kFailedPrecondition, "{} is not legal here{}", name,
                      established_ ? "" : ": the handshake is not complete");
  }
  // A chunk never becomes part of a body; anything else under the request of a half-sent one would.
  auto partial = partial_.find(header.request);
  if (header.opcode != Opcode::kChunk && partial != partial_.end() &&
      (partial->second.first.opcode != header.opcode ||
       partial->second.first.stream != header.stream)) {
    return FailStatus(Code::kInvalidArgument, "{} interrupts the {} of the same request {}", name,
                      OpcodeName(partial->second.first.opcode), header.request);
  }
  bool more = (header.flags & kFlagMore) != 0;
  if (header.opcode == Opcode::kChunk || IsBodiless(header.opcode)) {
    if (more) return FailStatus(Code::kInvalidArgument, "{} cannot be continued", name);
    if (header.opcode != Opcode::kChunk && header.payload_bytes != 0) {
      return FailStatus(Code::kInvalidArgument, "{} carries {} bytes, it has no body", name,
                        header.payload_bytes);
    }
    return OkStatus();
  }
  uint32_t limit = established_ ? limits::kMessageBytesMax : limits::kHelloBytesMax;
  // An ERROR in answer to a HELLO may be as long as any other.
  if (header.opcode == Opcode::kError) limit = limits::kMessageBytesMax;
  if (header.payload_bytes > limit) {
    return FailStatus(Code::kInvalidArgument, "{} carries {} bytes in one frame, the limit is {}",
                      name, header.payload_bytes, limit);
  }
  if (more && (!established_ || header.payload_bytes == 0)) {
    return FailStatus(Code::kInvalidArgument, "{} of {} bytes cannot be continued", name,
                      header.payload_bytes);
  }
  if (partial == partial_.end() && more && partial_.size() >= limits::kPartialBodiesMax) {
    return FailStatus(Code::kInvalidArgument, "{}: {} bodies are half-sent, the limit is {}", name,
                      partial_.size(), limits::kPartialBodiesMax);
  }
  if (partial_bytes_ + header.payload_bytes > limits::kBodyBytesMax) {
    return FailStatus(Code::kInvalidArgument, "{}: bodies of more than {} bytes are refused", name,
                      limits::kBodyBytesMax);
  }
  return OkStatus();
}

Result<Session::Expect> Session::OnHeader(
    std::span<const uint8_t, limits::kFrameHeaderBytes> bytes) {
  REPRISE_CHECK(!broken_);
  Result<FrameHeader> header = DecodeFrameHeader(bytes);
  if (!header.has_value()) return Break(std::move(header).error());
  if (Status status = CheckHeader(*header); !status.ok()) return Break(std::move(status));
  return Expect{*header, header->opcode == Opcode::kChunk};
}

Result<std::optional<Session::Incoming>> Session::OnBody(const FrameHeader& header,
                                                         ByteView payload) {
  REPRISE_CHECK(!broken_ && header.opcode != Opcode::kChunk);
  REPRISE_CHECK(payload.size() == header.payload_bytes);
  auto partial = partial_.find(header.request);
  if ((header.flags & kFlagMore) != 0) {
    if (partial == partial_.end())
      partial = partial_.emplace(header.request, Partial{header, {}}).first;
    Bytes& body = partial->second.body;
    body.insert(body.end(), payload.begin(), payload.end());
    partial_bytes_ += payload.size();
    return std::nullopt;
  }
  Incoming incoming{header, {}};
  if (partial != partial_.end()) {
    incoming.header = partial->second.first;
    incoming.header.flags = 0;
    incoming.body = std::move(partial->second.body);
    partial_bytes_ -= incoming.body.size();
    partial_.erase(partial);
  }
  incoming.body.insert(incoming.body.end(), payload.begin(), payload.end());
  if (header.opcode == Opcode::kHello) hello_received_ = true;
  if (header.opcode == Opcode::kHelloOk) {
    if (Status status = CheckHelloOk(incoming.body); !status.ok()) return Break(std::move(status));
  }
  return incoming;
}

Bytes Session::PackBody(Opcode opcode, ByteView body, uint64_t request, uint64_t stream,
                        uint64_t offset) {
  REPRISE_CHECK(opcode != Opcode::kChunk);
  FrameHeader header;
  header.opcode = opcode;
  header.request = request;
  header.stream = stream;
  header.offset = offset;
  Bytes out;
  size_t frames = std::max<size_t>(1, CeilDiv(body.size(), limits::kMessageBytesMax));
  out.reserve(body.size() + frames * limits::kFrameHeaderBytes);
  while (body.size() > limits::kMessageBytesMax) {
    header.flags = kFlagMore;
    AppendFrame(out, header, body.first(limits::kMessageBytesMax));
    body = body.subspan(limits::kMessageBytesMax);
  }
  header.flags = 0;
  AppendFrame(out, header, body);
  return out;
}

Bytes Session::PackError(const Status& status, uint64_t request, uint64_t stream) {
  REPRISE_CHECK(!status.ok());
  return PackBody(Opcode::kError, Encode(ErrorBody{status.code(), status.message()}), request,
                  stream);
}

}  // namespace reprise::wire
