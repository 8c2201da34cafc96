#include "tests/unit/node/local_client.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/random.h"
#include "core/io/transfer.h"

namespace reprise::node {

SharedMemory::SharedMemory(OwnedFd fd, bool writable) : fd_(std::move(fd)) {
  struct stat info{};
  if (::fstat(fd_.get(), &info) != 0) return;
  int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* address =
      ::mmap(nullptr, static_cast<size_t>(info.st_size), protection, MAP_SHARED, fd_.get(), 0);
  if (address == MAP_FAILED) return;
  data_ = static_cast<uint8_t*>(address);
  size_ = static_cast<size_t>(info.st_size);
}
SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}
SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
SharedMemory::~SharedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

format::Layout TestLayout(uint32_t chunks) {
  constexpr uint32_t kChunk = 4096;
  auto piece = [](std::string name, uint64_t bytes, Scope scope) {
    format::Piece made;
    made.name = std::move(name);
    made.dtype = Dtype::kU8;
    made.global_shape = {bytes};
    made.boxes = {Box{{0}, {bytes}}};
    made.scope = scope;
    return made;
  };
  format::Layout layout;
  uint64_t bytes = uint64_t{chunks} * kChunk;
  layout.pieces.push_back(piece("shared.weight", bytes / 2, Scope::kReplicated));
  layout.pieces.push_back(piece("sharded.weight", bytes / 4, Scope::kGlobal));
  layout.pieces.push_back(piece("norm.running_mean", bytes / 4 - kChunk / 2, Scope::kRank));
  format::AssignPositions(layout, kChunk);
  return layout;
}

Bytes TestShard(uint64_t length, uint64_t step, uint32_t rank) {
  Rng rng(step * 1000 + rank);
  Bytes bytes(length);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng.Next());
  return bytes;
}

Status LocalClient::Message::error() const {
  if (header.opcode != wire::Opcode::kError) return OkStatus();
  auto body_of = As<wire::ErrorBody>();
  return Status(body_of.code, body_of.message);
}

LocalClient::LocalClient(Io& io, uint32_t rank, uint32_t world)
    : io_(io), rank_(rank), world_(world) {
  process.bytes[1] = static_cast<uint8_t>(rank);
}

LocalClient::~LocalClient() { Close(); }

void LocalClient::Close() {
  if (!socket_.valid()) return;
  io_.Shutdown(socket_);
  io_.CloseSocket(socket_);
  socket_ = {};
}

Task<Status> LocalClient::Connect(std::string path) {
  TimePoint deadline = io_.loop().Now() + std::chrono::seconds(10);
  REPRISE_CO_ASSIGN_STATUS(socket_, co_await io_.Connect("unix:" + path, deadline));
  wire::Hello mine;
  mine.peer = process;
  mine.description = "test";
  co_await SendBytes(session_.MakeHello(mine));
  Message answer = co_await Await(wire::Opcode::kHelloOk);
  REPRISE_CO_RETURN_IF_ERROR(answer.error());
  hello = answer.As<wire::HelloOk>();
  co_return OkStatus();
}

Task<void> LocalClient::SendBytes(Bytes bytes) {
  Status sent = co_await SendFully(io_, socket_, bytes);
  EXPECT_TRUE(sent.ok()) << sent;
}

Task<LocalClient::Message> LocalClient::ReadOne() {
  TimePoint deadline = io_.loop().Now() + std::chrono::seconds(20);
  while (true) {
    std::array<uint8_t, limits::kFrameHeaderBytes> bytes{};
    Message message;
    size_t have = 0;
    while (have < bytes.size()) {
      Io::Operation receive = io_.RecvFd(socket_, MutableByteView(bytes).subspan(have), deadline);
      int64_t moved = co_await receive;
      if (receive.passed_fd() >= 0) message.fd = OwnedFd(receive.passed_fd());
      if (moved <= 0) {
        message.header.opcode = wire::Opcode::kError;
        message.body = wire::Encode(wire::ErrorBody{Code::kUnavailable, "connection ended"});
        co_return message;
      }
      have += static_cast<size_t>(moved);
    }
    auto expect = session_.OnHeader(bytes);
    REPRISE_CHECK(expect.has_value());
    Bytes payload(expect->header.payload_bytes);
    REPRISE_CHECK((co_await RecvFully(io_, socket_, payload, deadline)).ok());
    auto incoming = session_.OnBody(expect->header, payload);
    REPRISE_CHECK(incoming.has_value());
    if (!incoming->has_value()) continue;
    message.header = (*incoming)->header;
    message.body = std::move((*incoming)->body);
    co_return message;
  }
}

Task<LocalClient::Message> LocalClient::Await(wire::Opcode opcode) {
  for (auto kept = kept_.begin(); kept != kept_.end(); ++kept) {
    if (kept->header.opcode != opcode) continue;
    Message message = std::move(*kept);
    kept_.erase(kept);
    co_return message;
  }
  while (true) {
    Message message = co_await ReadOne();
    if (message.header.opcode == opcode || message.header.opcode == wire::Opcode::kError) {
      co_return message;
    }
    kept_.push_back(std::move(message));
  }
}

wire::Register LocalClient::Registration() const {
  wire::Register message;
  message.tenant = "team";
  message.job = "llm";
  message.rank = rank_;
  message.world = world_;
  message.process = process;
  message.launcher = "launch-1";
  message.host = "node7";
  message.timeout_ms = 20000;
  return message;
}

Task<Result<wire::Registered>> LocalClient::Register() {
  co_await Send(Registration(), 1);
  Message answer = co_await Await(wire::Opcode::kRegistered);
  REPRISE_CO_TRY(answer.error());
  co_return answer.As<wire::Registered>();
}

Task<Status> LocalClient::Attach(uint64_t slot_bytes, uint32_t count) {
  co_await Send(wire::Attach{slot_bytes, count}, 2);
  Message answer = co_await Await(wire::Opcode::kAttached);
  REPRISE_CO_RETURN_IF_ERROR(answer.error());
  attached = answer.As<wire::Attached>();
  for (uint32_t i = 0; i < attached.slots; ++i) {
    Message slot = co_await Await(wire::Opcode::kSlot);
    REPRISE_CO_RETURN_IF_ERROR(slot.error());
    EXPECT_TRUE(slot.fd.valid());
    slots[slot.As<wire::SlotInfo>().index] = SharedMemory(std::move(slot.fd), true);
  }
  co_return OkStatus();
}

MutableByteView LocalClient::slot_data(uint32_t index) const {
  return slots.at(index).bytes().subspan(attached.data_offset, attached.slot_bytes);
}

Task<Result<wire::SaveGrant>> LocalClient::Begin(uint64_t step, const format::Layout& layout) {
  wire::SaveBegin begin;
  begin.step = step;
  begin.length = layout.shard_bytes;
  begin.layout = format::LayoutDigest(layout);
  if (!layout_sent_) begin.layout_bytes = format::EncodeLayout(layout);
  begin.metadata = "{}";
  layout_sent_ = true;
  co_await Send(begin, 3);
  Message answer = co_await Await(wire::Opcode::kSaveGrant);
  REPRISE_CO_TRY(answer.error());
  co_return answer.As<wire::SaveGrant>();
}

Task<void> LocalClient::Copy(wire::SaveGrant grant, uint64_t step, const format::Layout& layout,
                             uint64_t first, uint64_t count) {
  Bytes shard = TestShard(layout.shard_bytes, step, rank_);
  uint64_t begin = first * 4096;
  uint64_t end = std::min<uint64_t>((first + count) * 4096, shard.size());
  std::memcpy(slot_data(grant.slot).data() + begin, shard.data() + begin, end - begin);
  co_await Send(wire::SaveChunks{grant.save, first, count});
}

Task<void> LocalClient::Seal(wire::SaveGrant grant) { co_await Send(wire::SaveSeal{grant.save}); }

Task<Result<wire::SaveGrant>> LocalClient::Save(uint64_t step, const format::Layout& layout) {
  REPRISE_CO_ASSIGN(wire::SaveGrant grant, co_await Begin(step, layout));
  uint64_t chunks = format::ChunkCount(layout.shard_bytes, 4096);
  co_await Copy(grant, step, layout, 0, chunks);
  co_await Seal(grant);
  co_return grant;
}

Task<wire::SaveState> LocalClient::AwaitPhase(uint64_t save, wire::SavePhase phase) {
  while (true) {
    Message message = co_await Await(wire::Opcode::kSaveState);
    if (!message.error().ok()) {
      ADD_FAILURE() << message.error();
      co_return wire::SaveState{};
    }
    auto state = message.As<wire::SaveState>();
    if (state.save != save) continue;
    if (state.phase == phase || state.phase == wire::SavePhase::kFailed) co_return state;
  }
}

Task<Result<wire::ReadOk>> LocalClient::Open(uint64_t stream, std::optional<uint64_t> step) {
  wire::ReadOpen open;
  open.tenant = "team";
  open.job_name = "llm";
  open.step = step;
  co_await Send(open, 10, stream);
  Message answer = co_await Await(wire::Opcode::kReadOk);
  REPRISE_CO_TRY(answer.error());
  co_return answer.As<wire::ReadOk>();
}

Task<Status> LocalClient::AttachRing(uint32_t chunks) {
  co_await Send(wire::RingAttach{chunks}, 11);
  Message answer = co_await Await(wire::Opcode::kRing);
  REPRISE_CO_RETURN_IF_ERROR(answer.error());
  ring_info = answer.As<wire::RingInfo>();
  EXPECT_TRUE(answer.fd.valid());
  ring = SharedMemory(std::move(answer.fd), false);
  co_return OkStatus();
}

}  // namespace reprise::node
