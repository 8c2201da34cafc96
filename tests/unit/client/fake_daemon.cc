#include "tests/unit/client/fake_daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "core/base/check.h"

namespace reprise::client::test {
namespace {

constexpr uint64_t kDataOffset = 4096;

// A memfd with a mapping of it.
struct SharedFile {
  explicit SharedFile(uint64_t the_bytes) : bytes(the_bytes) {
    fd = ::memfd_create("fake-slot", MFD_CLOEXEC);
    REPRISE_CHECK(fd >= 0 && ::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
    data = static_cast<uint8_t*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    REPRISE_CHECK(data != MAP_FAILED);
    // Reused memory is dirty: a client that forgets to zero a gap is found out.
    std::memset(data, 0xEE, bytes);
  }
  ~SharedFile() {
    ::munmap(data, bytes);
    ::close(fd);
  }
  SharedFile(const SharedFile&) = delete;
  int fd = -1;
  uint64_t bytes = 0;
  uint8_t* data = nullptr;
};

std::string NewPath() {
  char folder[] = "/tmp/reprise-test-XXXXXX";
  REPRISE_CHECK(::mkdtemp(folder) != nullptr);
  return std::string(folder) + "/node.sock";
}

}  // namespace

StoredCheckpoint MakeCheckpoint(CheckpointKey key, const std::vector<StoredShard>& shards,
                                std::string metadata) {
  StoredCheckpoint made;
  made.manifest.job.bytes[0] = 7;
  made.manifest.attempt.bytes[0] = 9;
  made.manifest.key = key;
  made.manifest.world = static_cast<uint32_t>(shards.size());
  made.manifest.metadata = std::move(metadata);
  for (uint32_t rank = 0; rank < shards.size(); ++rank) {
    const StoredShard& shard = shards[rank];
    format::ShardManifest manifest;
    manifest.identity = {made.manifest.job, key, made.manifest.attempt, rank, made.manifest.world};
    Bytes encoded = format::EncodeLayout(shard.layout);
    manifest.layout = DigestOf(encoded);
    made.layouts[manifest.layout] = encoded;
    manifest.length = shard.layout.shard_bytes;
    manifest.chunk_bytes = shard.layout.chunk_bytes;
    REPRISE_CHECK(shard.bytes.size() == manifest.length);
    uint64_t chunks = format::ChunkCount(manifest.length, manifest.chunk_bytes);
    for (uint64_t i = 0; i < chunks; ++i) {
      uint64_t length = format::ChunkLength(manifest.length, manifest.chunk_bytes, i);
      manifest.chunk_digests.push_back(
          DigestOf(ByteView(shard.bytes).subspan(i * manifest.chunk_bytes, length)));
    }
    manifest.piece_digests.resize(shard.layout.pieces.size());
    manifest.root = format::ShardRoot(manifest);
    made.manifest.shards.push_back(
        {rank, manifest.root, manifest.length, manifest.layout, format::ObjectRef{}});
    made.shards.push_back(std::move(manifest));
    made.bytes.push_back(shard.bytes);
  }
  for (const auto& [digest, bytes] : made.layouts) {
    made.manifest.layouts.emplace_back(digest, format::ObjectRef{});
  }
  return made;
}

struct FakeDaemon::Peer {
  int fd = -1;
  wire::Session session{wire::Role::kLocalServer};
  Bytes in;
  wire::Register registration;
  std::vector<std::unique_ptr<SharedFile>> slots;
  uint64_t slot_bytes = 0;
  std::map<uint64_t, std::pair<uint32_t, wire::SaveBegin>> saves;  // id -> slot, begin
  std::map<uint64_t, uint64_t> chunks_ready;
  std::map<Digest, Bytes> layouts;
  uint64_t newest_save = 0;
  uint64_t newest_step = 0;
  std::unique_ptr<SharedFile> ring;
  std::vector<bool> ring_taken;
  std::deque<std::function<bool()>> waiting;  // deliveries that wait for a ring buffer
  ~Peer() { ::close(fd); }
};

FakeDaemon::FakeDaemon() : path_(NewPath()), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { Run(); });
  Start();
}

FakeDaemon::~FakeDaemon() {
  Stop();
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  Wake();
  thread_.join();
  ::close(wake_);
  ::unlink(path_.c_str());
  ::rmdir(path_.substr(0, path_.rfind('/')).c_str());
}

void FakeDaemon::Wake() {
  uint64_t one = 1;
  REPRISE_CHECK(::write(wake_, &one, sizeof(one)) == sizeof(one));
}

void FakeDaemon::Set(const std::function<void(Behaviour&)>& change) {
  std::lock_guard lock(mutex_);
  change(behaviour_);
}

void FakeDaemon::SetCheckpoint(StoredCheckpoint checkpoint) {
  std::lock_guard lock(mutex_);
  checkpoint_ = std::move(checkpoint);
}

void FakeDaemon::Listen() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.data(), path_.size());
  ::unlink(path_.c_str());
  listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  REPRISE_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  REPRISE_CHECK(::listen(listener_, 16) == 0);
}

void FakeDaemon::Start() {
  std::lock_guard lock(mutex_);
  Listen();
  running_ = true;
  Wake();
}

void FakeDaemon::Stop() {
  std::lock_guard lock(mutex_);
  if (!running_) return;
  running_ = false;
  ::close(listener_);
  listener_ = -1;
  ::unlink(path_.c_str());
  peers_.clear();
  Wake();
}

void FakeDaemon::Run() {
  while (true) {
    std::vector<pollfd> entries{{.fd = wake_, .events = POLLIN, .revents = 0}};
    {
      std::lock_guard lock(mutex_);
      if (closing_) return;
      if (listener_ >= 0) entries.push_back({.fd = listener_, .events = POLLIN, .revents = 0});
      for (auto& peer : peers_) entries.push_back({.fd = peer->fd, .events = POLLIN, .revents = 0});
    }
    ::poll(entries.data(), entries.size(), -1);
    uint64_t count = 0;
    [[maybe_unused]] ssize_t got = ::read(wake_, &count, sizeof(count));
    std::lock_guard lock(mutex_);
    if (running_) Pump();
    seen_.notify_all();
  }
}

void FakeDaemon::Pump() {
  while (true) {
    int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) break;
    peers_.push_back(std::make_unique<Peer>());
    peers_.back()->fd = fd;
    ++connections_;
  }
  for (size_t i = 0; i < peers_.size();) {
    bool alive = ReadFrom(*peers_[i]);
    if (!running_) return;
    if (alive) {
      ++i;
    } else {
      peers_.erase(peers_.begin() + static_cast<ptrdiff_t>(i));
    }
  }
}

bool FakeDaemon::ReadFrom(Peer& peer) {
  uint8_t buffer[65536];
  while (true) {
    ssize_t got = ::recv(peer.fd, buffer, sizeof(buffer), 0);
    if (got == 0) return false;
    if (got < 0) break;
    peer.in.insert(peer.in.end(), buffer, buffer + got);
  }
  while (peer.in.size() >= limits::kFrameHeaderBytes) {
    auto head = std::span<const uint8_t, limits::kFrameHeaderBytes>(peer.in.data(),
                                                                    limits::kFrameHeaderBytes);
    Result<wire::FrameHeader> header = wire::DecodeFrameHeader(head);
    REPRISE_CHECK(header.has_value());
    if (peer.in.size() < limits::kFrameHeaderBytes + header->payload_bytes) break;
    auto expect = peer.session.OnHeader(head);
    REPRISE_CHECK(expect.has_value(), expect.error().message());
    Bytes payload(peer.in.begin() + limits::kFrameHeaderBytes,
                  peer.in.begin() + limits::kFrameHeaderBytes + header->payload_bytes);
    peer.in.erase(peer.in.begin(),
                  peer.in.begin() + limits::kFrameHeaderBytes + header->payload_bytes);
    auto message = peer.session.OnBody(expect->header, payload);
    REPRISE_CHECK(message.has_value(), message.error().message());
    if (message->has_value()) Handle(peer, std::move(**message));
    if (!running_) return false;
  }
  return true;
}

void FakeDaemon::Send(Peer& peer, ByteView frames, int descriptor) {
  bool first = descriptor >= 0;
  while (!frames.empty()) {
    iovec piece{const_cast<uint8_t*>(frames.data()), frames.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (first) {
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(part), &descriptor, sizeof(int));
    }
    ssize_t sent = ::sendmsg(peer.fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) {
      pollfd entry{.fd = peer.fd, .events = POLLOUT, .revents = 0};
      ::poll(&entry, 1, 1000);
      continue;
    }
    if (sent < 0) return;
    first = false;
    frames = frames.subspan(static_cast<size_t>(sent));
  }
}

void FakeDaemon::SendError(Peer& peer, const Status& status, const wire::FrameHeader& header) {
  Send(peer, wire::Session::PackError(status, header.request, header.stream));
}

void FakeDaemon::Handle(Peer& peer, wire::Session::Incoming message) {
  switch (message.header.opcode) {
    case wire::Opcode::kHello: {
      wire::HelloOk ours;
      ours.chunk_bytes = behaviour_.chunk_bytes;
      ours.description = "fake daemon";
      Send(peer, *peer.session.AcceptHello(*wire::Decode<wire::Hello>(message.body), ours));
      return;
    }
    case wire::Opcode::kRegister: {
      peer.registration = *wire::Decode<wire::Register>(message.body);
      registrations_.push_back(peer.registration);
      if (behaviour_.refuse_register.has_value()) {
        return SendError(peer, *behaviour_.refuse_register, message.header);
      }
      wire::Registered answer;
      answer.job.bytes[0] = 7;
      answer.epoch = 5;
      answer.resume = behaviour_.resume;
      if (behaviour_.holds_step.has_value()) {
        peer.newest_step = *behaviour_.holds_step;
        peer.newest_save = 1000;  // no id that it will grant
        wire::SaveState held{
            peer.newest_save, peer.newest_step, behaviour_.holds_phase, Code::kOk, {}, 0};
        Send(peer, wire::Session::Pack(held, 0));
      }
      return Send(peer, wire::Session::Pack(answer, message.header.request));
    }
    case wire::Opcode::kBye: return;
    case wire::Opcode::kAttach:
    case wire::Opcode::kSaveBegin:
    case wire::Opcode::kSaveChunks:
    case wire::Opcode::kSaveSeal:
    case wire::Opcode::kSaveSkip: return HandleSave(peer, message);
    case wire::Opcode::kRingAttach:
    case wire::Opcode::kRingFree:
    case wire::Opcode::kFetch:
    case wire::Opcode::kCorrupt: return HandleRing(peer, message);
    default: return HandleRead(peer, message);
  }
}

// ---- saving

void FakeDaemon::HandleSave(Peer& peer, const wire::Session::Incoming& message) {
  switch (message.header.opcode) {
    case wire::Opcode::kAttach:
      return Attach(peer, message.header.request, *wire::Decode<wire::Attach>(message.body));
    case wire::Opcode::kSaveBegin: return HandleBegin(peer, message);
    case wire::Opcode::kSaveChunks: {
      auto ready = *wire::Decode<wire::SaveChunks>(message.body);
      ++chunk_messages_;
      // Each chunk once, in order.
      REPRISE_CHECK(peer.chunks_ready[ready.save] == ready.first && ready.count > 0);
      peer.chunks_ready[ready.save] += ready.count;
      return;
    }
    case wire::Opcode::kSaveSeal: return HandleSeal(peer, message);
    default: skips_.push_back(*wire::Decode<wire::SaveSkip>(message.body));
  }
}

void FakeDaemon::Attach(Peer& peer, uint64_t request, const wire::Attach& attach) {
  attaches_.push_back(attach);
  Status refusal;
  if (behaviour_.refuse_attach.has_value()) refusal = *behaviour_.refuse_attach;
  if (behaviour_.attach_once && !peer.slots.empty()) {
    refusal = Status(Code::kFailedPrecondition, "this connection has its slots already");
  }
  if (!refusal.ok()) return Send(peer, wire::Session::PackError(refusal, request));
  peer.slots.clear();
  peer.slot_bytes = attach.slot_bytes;
  wire::Attached answer{attach.slots, attach.slot_bytes, kDataOffset, behaviour_.chunk_bytes};
  Send(peer, wire::Session::Pack(answer, request));
  for (uint32_t i = 0; i < attach.slots; ++i) {
    peer.slots.push_back(std::make_unique<SharedFile>(kDataOffset + attach.slot_bytes));
    wire::SlotInfo info{i, kDataOffset + attach.slot_bytes, kDataOffset, false};
    Send(peer, wire::Session::Pack(info, request), peer.slots.back()->fd);
  }
}

void FakeDaemon::HandleBegin(Peer& peer, const wire::Session::Incoming& message) {
  auto begin = *wire::Decode<wire::SaveBegin>(message.body);
  begins_.push_back(begin);
  if (!begin.layout_bytes.empty()) {
    ++layouts_received_;
    peer.layouts[begin.layout] = begin.layout_bytes;
  } else if (behaviour_.forget_layouts) {
    peer.layouts.clear();
  }
  if (behaviour_.silent_begin) return;
  if (behaviour_.refuse_begin.has_value()) {
    return SendError(peer, *behaviour_.refuse_begin, message.header);
  }
  auto layout = peer.layouts.find(begin.layout);
  if (layout == peer.layouts.end()) {
    return SendError(peer, Status(Code::kNotFound, "unknown layout"), message.header);
  }
  REPRISE_CHECK(DigestOf(layout->second) == begin.layout && begin.length <= peer.slot_bytes);
  uint64_t save = next_save_++;
  auto slot = static_cast<uint32_t>(save % peer.slots.size());
  peer.saves[save] = {slot, begin};
  peer.newest_save = save;
  peer.newest_step = begin.step;
  Send(peer, wire::Session::Pack(wire::SaveGrant{save, slot}, message.header.request));
}

void FakeDaemon::HandleSeal(Peer& peer, const wire::Session::Incoming& message) {
  auto seal = *wire::Decode<wire::SaveSeal>(message.body);
  if (behaviour_.ignore_seals) {
    ++seals_;
    return;
  }
  auto& [slot, begin] = peer.saves.at(seal.save);
  format::Layout layout = *format::DecodeLayout(peer.layouts.at(begin.layout));
  REPRISE_CHECK(peer.chunks_ready[seal.save] ==
                format::ChunkCount(begin.length, layout.chunk_bytes));
  const uint8_t* data = peer.slots[slot]->data + kDataOffset;
  sealed_.assign(data, data + begin.length);
  checkpoint_ = MakeCheckpoint({5, begin.step}, {{layout, sealed_}}, begin.metadata);
  ++seals_;
  wire::SaveState state{seal.save, begin.step, wire::SavePhase::kLocalSealed, Code::kOk, "", 0};
  Send(peer, wire::Session::Pack(state, 0));
  state.phase = wire::SavePhase::kLocalAll;
  Send(peer, wire::Session::Pack(state, 0));
  if (behaviour_.hold_commit) return;
  state.phase = wire::SavePhase::kCommitted;
  Send(peer, wire::Session::Pack(state, 0));
}

void FakeDaemon::Report(wire::SavePhase phase, Status status) {
  std::lock_guard lock(mutex_);
  for (auto& peer : peers_) {
    if (peer->newest_save == 0) continue;
    wire::SaveState state{peer->newest_save, peer->newest_step, phase,
                          status.code(),     status.message(),  0};
    Send(*peer, wire::Session::Pack(state, 0));
  }
}

// ---- reading

void FakeDaemon::HandleRead(Peer& peer, const wire::Session::Incoming& message) {
  const wire::FrameHeader& header = message.header;
  if (header.opcode == wire::Opcode::kReadClose) return;
  if (header.opcode == wire::Opcode::kReadOpen) {
    auto open = *wire::Decode<wire::ReadOpen>(message.body);
    bool other = checkpoint_.has_value() && open.step.has_value() &&
                 *open.step != checkpoint_->manifest.key.step;
    if (!checkpoint_.has_value() || other) {
      return SendError(peer, Status(Code::kNotFound, "no such checkpoint"), header);
    }
    wire::ReadOk answer{checkpoint_->manifest.key,
                        format::EncodeCheckpointManifest(checkpoint_->manifest)};
    return Send(peer, wire::Session::Pack(answer, header.request, header.stream));
  }
  REPRISE_CHECK(checkpoint_.has_value());
  if (header.opcode == wire::Opcode::kReadLayout) {
    auto question = *wire::Decode<wire::ReadLayout>(message.body);
    wire::BlobBody body{checkpoint_->layouts.at(question.layout)};
    return Send(peer, wire::Session::PackBody(wire::Opcode::kLayout, wire::Encode(body),
                                              header.request, header.stream));
  }
  if (header.opcode == wire::Opcode::kReadShard) {
    auto question = *wire::Decode<wire::ReadShard>(message.body);
    wire::BlobBody body{format::EncodeShardManifest(checkpoint_->shards.at(question.rank))};
    return Send(peer, wire::Session::PackBody(wire::Opcode::kShardManifest, wire::Encode(body),
                                              header.request, header.stream));
  }
  REPRISE_CHECK(header.opcode == wire::Opcode::kSlotOf);
  OfferSlot(peer, header.request, header.stream, wire::Decode<wire::SlotOf>(message.body)->rank);
}

void FakeDaemon::OfferSlot(Peer& peer, uint64_t request, uint64_t stream, uint32_t rank) {
  if (!behaviour_.offer_slots) {
    return Send(
        peer, wire::Session::PackError(Status(Code::kNotFound, "no local copy"), request, stream));
  }
  const Bytes& bytes = checkpoint_->bytes.at(rank);
  SharedFile file(kDataOffset + bytes.size());
  std::memcpy(file.data + kDataOffset, bytes.data(), bytes.size());
  for (auto& [where, times] : behaviour_.damage_slot) {
    if (where.first == rank && times-- > 0) {
      file.data[kDataOffset + where.second * behaviour_.chunk_bytes] ^= 1;
    }
  }
  wire::SlotInfo info{0, file.bytes, kDataOffset, true};
  Send(peer, wire::Session::Pack(info, request, stream), file.fd);
}

void FakeDaemon::HandleRing(Peer& peer, const wire::Session::Incoming& message) {
  const wire::FrameHeader& header = message.header;
  if (header.opcode == wire::Opcode::kRingAttach) {
    REPRISE_CHECK(peer.ring == nullptr);
    peer.ring = std::make_unique<SharedFile>(behaviour_.ring_chunks * behaviour_.chunk_bytes);
    peer.ring_taken.assign(behaviour_.ring_chunks, false);
    wire::RingInfo info{behaviour_.ring_chunks, behaviour_.chunk_bytes};
    return Send(peer, wire::Session::Pack(info, header.request), peer.ring->fd);
  }
  if (header.opcode == wire::Opcode::kRingFree) {
    for (uint32_t index : wire::Decode<wire::RingFree>(message.body)->ring_indices) {
      REPRISE_CHECK(peer.ring_taken.at(index));
      peer.ring_taken[index] = false;
    }
  } else if (header.opcode == wire::Opcode::kCorrupt) {
    auto report = *wire::Decode<wire::Corrupt>(message.body);
    bool in_ring = report.ring_index < peer.ring_taken.size();
    std::optional<uint32_t> buffer;
    if (in_ring) buffer = report.ring_index;
    peer.waiting.push_back([this, &peer, header, report, buffer] {
      Deliver(peer, header.request, header.stream, report.rank, report.index, buffer);
      return true;
    });
  } else {
    auto fetch = *wire::Decode<wire::Fetch>(message.body);
    if (behaviour_.fail_fetch.has_value()) return SendError(peer, *behaviour_.fail_fetch, header);
    for (uint64_t i = fetch.first; i < fetch.first + fetch.count; ++i) {
      peer.waiting.push_back([this, &peer, header, fetch, i] {
        Deliver(peer, header.request, header.stream, fetch.rank, i, std::nullopt);
        return true;
      });
    }
  }
  while (running_ && !peer.waiting.empty()) {
    if (std::ranges::find(peer.ring_taken, false) == peer.ring_taken.end()) return;
    auto next = std::move(peer.waiting.front());
    peer.waiting.pop_front();
    next();
  }
}

void FakeDaemon::Deliver(Peer& peer, uint64_t request, uint64_t stream, uint32_t rank,
                         uint64_t chunk, std::optional<uint32_t> buffer) {
  if (behaviour_.die_after_chunks.has_value() && (*behaviour_.die_after_chunks)-- <= 0) {
    behaviour_.die_after_chunks.reset();
    running_ = false;
    ::close(listener_);
    listener_ = -1;
    ::unlink(path_.c_str());
    for (auto& one : peers_) ::shutdown(one->fd, SHUT_RDWR);
    return;
  }
  auto free = std::ranges::find(peer.ring_taken, false);
  uint32_t index = buffer.value_or(static_cast<uint32_t>(free - peer.ring_taken.begin()));
  peer.ring_taken[index] = true;
  const format::ShardManifest& shard = checkpoint_->shards.at(rank);
  uint64_t length = format::ChunkLength(shard.length, shard.chunk_bytes, chunk);
  uint8_t* target = peer.ring->data + index * uint64_t{behaviour_.chunk_bytes};
  std::memcpy(target, checkpoint_->bytes.at(rank).data() + chunk * shard.chunk_bytes, length);
  auto damage = behaviour_.damage.find({rank, chunk});
  if (damage != behaviour_.damage.end() && damage->second-- > 0) target[length / 2] ^= 0x10;
  wire::ChunkAt at{rank, chunk, index, static_cast<uint32_t>(length), wire::Source::kNvme};
  Send(peer, wire::Session::Pack(at, request, stream));
}

// ---- observation

bool FakeDaemon::Await(const std::function<bool()>& condition) {
  std::unique_lock lock(mutex_);
  return seen_.wait_for(lock, std::chrono::seconds(10), condition);
}
bool FakeDaemon::AwaitSkips(size_t count) {
  return Await([&] { return skips_.size() >= count; });
}
bool FakeDaemon::AwaitSeals(size_t count) {
  return Await([&] { return seals_ >= count; });
}
bool FakeDaemon::AwaitBegins(size_t count) {
  return Await([&] { return begins_.size() >= count; });
}
bool FakeDaemon::AwaitConnections(size_t count) {
  return Await([&] { return connections_ >= count; });
}
bool FakeDaemon::died() {
  std::lock_guard lock(mutex_);
  return !running_;
}
std::vector<wire::SaveSkip> FakeDaemon::skips() {
  std::lock_guard lock(mutex_);
  return skips_;
}
std::vector<wire::Register> FakeDaemon::registrations() {
  std::lock_guard lock(mutex_);
  return registrations_;
}
std::vector<wire::SaveBegin> FakeDaemon::begins() {
  std::lock_guard lock(mutex_);
  return begins_;
}
std::vector<wire::Attach> FakeDaemon::attaches() {
  std::lock_guard lock(mutex_);
  return attaches_;
}
size_t FakeDaemon::layouts_received() {
  std::lock_guard lock(mutex_);
  return layouts_received_;
}
size_t FakeDaemon::chunk_messages() {
  std::lock_guard lock(mutex_);
  return chunk_messages_;
}
bool FakeDaemon::AwaitRingFree() {
  return Await([&] {
    return std::ranges::none_of(
        peers_, [](auto& peer) { return std::ranges::count(peer->ring_taken, true) > 0; });
  });
}
Bytes FakeDaemon::sealed_bytes() {
  std::lock_guard lock(mutex_);
  return sealed_;
}

}  // namespace reprise::client::test
