#include "core/io/sim_net.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/base/check.h"
#include "core/base/digest.h"
#include "core/base/log.h"
#include "core/io/sim_io.h"
#include "core/io/sim_world.h"

namespace reprise {

SimNet::PassedFd::~PassedFd() {
  if (fd_ >= 0) ::close(fd_);
}

// --- hosts and partitions ---

bool SimNet::Blocks(const std::string& from, const std::string& to) const {
  if (from == to) return false;
  return blocked_.contains({from, to}) || blocked_.contains({from, "*"}) ||
         blocked_.contains({"*", to});
}

bool SimNet::IsUp(const std::string& host) const {
  auto found = hosts_.find(host);
  return found != hosts_.end() && found->second > 0;
}

void SimNet::Isolate(const std::string& host) {
  Partition(host, "*");
  Partition("*", host);
}

void SimNet::Heal(const std::string& from, const std::string& to) {
  blocked_.erase({from, to});
  // What was held goes on its way; in a Poll, not inline.
  for (auto& [id, socket] : sockets_) {
    if (socket.outgoing.empty()) continue;
    world_.At(world_.clock().Now(), 0, [this, id = id] { Pump(id); });
  }
}

void SimNet::HealAll() {
  auto blocked = blocked_;
  for (const auto& [from, to] : blocked) Heal(from, to);
}

void SimNet::Reset(const std::string& first, const std::string& second) {
  for (auto& [id, socket] : sockets_) {
    bool between = (socket.host == first && socket.remote_host == second) ||
                   (socket.host == second && socket.remote_host == first);
    if (between && !socket.listener) ResetSocket(socket);
  }
}

size_t SimNet::OpenSockets(const std::string& host) const {
  return static_cast<size_t>(std::ranges::count_if(sockets_, [&](const auto& item) {
    return item.second.host == host && !item.second.closed && !item.second.dead;
  }));
}

void SimNet::HostUp(SimIo& io) { ++hosts_[io.host()]; }

void SimNet::HostDown(SimIo& io, SimCrash crash) {
  --hosts_[io.host()];
  std::vector<int> owned;
  for (auto& [id, socket] : sockets_) {
    if (socket.owner == &io) owned.push_back(id);
  }
  for (int id : owned) {
    Socket& socket = sockets_.at(id);
    socket.accepts.clear();
    socket.receives.clear();
    socket.sends.clear();
    socket.owner = nullptr;
    if (socket.listener) {
      listeners_.erase(socket.host + "|" + socket.address);
      sockets_.erase(id);
    } else if (crash == SimCrash::kProcessDeath) {
      if (!socket.closed) Push(id, {.reset = true});
      socket.closed = true;
      Forget(id);
    } else {
      socket.dead = true;
      socket.outgoing.clear();
      Forget(id);
    }
  }
}

// --- making connections ---

// The listener table's key for `address` as seen from `io`; `host` becomes the host it is on.
std::string SimNet::Resolve(const SimIo& io, const std::string& address, std::string& host) const {
  host = io.host();
  if (address.starts_with("unix:")) return host + "|" + address;
  size_t colon = address.rfind(':');
  if (colon == std::string::npos) return "";
  std::string name = address.substr(0, colon);
  static const std::set<std::string> own = {"",        "localhost", "127.0.0.1",
                                            "0.0.0.0", "[::]",      "[::1]"};
  if (!own.contains(name)) host = name;
  return host + "|" + host + address.substr(colon);
}

int SimNet::Add(Socket socket) {
  int id = next_socket_++;
  sockets_.emplace(id, std::move(socket));
  return id;
}

SimNet::Socket* SimNet::Find(int id) {
  auto found = sockets_.find(id);
  return found == sockets_.end() ? nullptr : &found->second;
}

Result<int> SimNet::Listen(SimIo& io, const std::string& address) {
  std::string host;
  std::string key = Resolve(io, address, host);
  if (key.empty()) return Fail(Code::kInvalidArgument, "listen {}: not host:port", address);
  if (host != io.host()) {
    return Fail(Code::kUnavailable, "listen {}: not an address of this host", address);
  }
  if (key.ends_with(":0")) {
    key.resize(key.size() - 1);
    key += std::to_string(next_port_++);
  }
  if (listeners_.contains(key)) {
    return Fail(Code::kAlreadyExists, "listen {}: address in use", address);
  }
  Socket socket;
  socket.owner = &io;
  socket.host = host;
  socket.address = key.substr(host.size() + 1);
  socket.listener = true;
  int id = Add(std::move(socket));
  listeners_.emplace(key, id);
  return id;
}

std::optional<Result<int>> SimNet::TryConnect(SimIo& io, const std::string& address) {
  std::string host;
  std::string key = Resolve(io, address, host);
  if (key.empty()) return Fail(Code::kInvalidArgument, "connect {}: not host:port", address);
  if (!hosts_.contains(host)) return Fail(Code::kUnavailable, "connect {}: no such host", address);
  if (Blocks(io.host(), host) || Blocks(host, io.host()) || !IsUp(host)) return std::nullopt;
  auto listener = listeners_.find(key);
  if (listener == listeners_.end()) {
    return Fail(Code::kUnavailable, "connect {}: connection refused", address);
  }
  Socket near;
  near.owner = &io;
  near.host = io.host();
  near.remote_host = host;
  near.address =
      address.starts_with("unix:") ? "unix:" : io.host() + ":" + std::to_string(next_port_++);
  Socket far;
  far.owner = sockets_.at(listener->second).owner;
  far.host = host;
  far.remote_host = io.host();
  far.address = key.substr(host.size() + 1);
  int near_id = Add(std::move(near));
  int far_id = Add(std::move(far));
  sockets_.at(near_id).peer_process = sockets_.at(far_id).owner->process();
  sockets_.at(far_id).peer_process = io.process();
  sockets_.at(near_id).peer = far_id;
  sockets_.at(far_id).peer = near_id;
  world_.Trace(io.host(), "connect", static_cast<uint64_t>(near_id), static_cast<uint64_t>(far_id));
  Socket& server = sockets_.at(listener->second);
  server.backlog.push_back(far_id);
  ServeAccepts(server);
  return near_id;
}

// --- requests ---

void SimNet::Finish(Socket& socket, IoRequest& request, int64_t result) {
  REPRISE_CHECK(socket.owner != nullptr);
  socket.owner->FinishSocketRequest(request, result);
}

void SimNet::FinishAll(Socket& socket, std::deque<IoRequest*>& requests, int64_t result) {
  while (!requests.empty()) {
    IoRequest* request = requests.front();
    requests.pop_front();
    Finish(socket, *request, result);
  }
}

void SimNet::Submit(SimIo& io, IoRequest& request) {
  Socket* socket = Find(request.handle);
  REPRISE_CHECK(socket != nullptr && socket->owner == &io, "request on a socket that is not open");
  REPRISE_CHECK(socket->listener == (request.op == IoOp::kAccept));
  switch (request.op) {
    case IoOp::kAccept: socket->accepts.push_back(&request); return ServeAccepts(*socket);
    case IoOp::kRecv: socket->receives.push_back(&request); return ServeReceives(*socket);
    default:
      if (request.pass_fd >= 0 && !IsUnix(request.handle)) {
        return Finish(*socket, request, -EOPNOTSUPP);
      }
      socket->sends.push_back(&request);
      return ServeSends(request.handle);
  }
}

void SimNet::Cancel(IoRequest& request) {
  Socket* socket = Find(request.handle);
  if (socket == nullptr) return;
  for (auto* requests : {&socket->accepts, &socket->receives, &socket->sends}) {
    auto found = std::ranges::find(*requests, &request);
    if (found == requests->end()) continue;
    requests->erase(found);
    return Finish(*socket, request, -ECANCELED);
  }
}

void SimNet::ServeAccepts(Socket& socket) {
  if (socket.ended) return FinishAll(socket, socket.accepts, -ECANCELED);
  while (!socket.accepts.empty() && !socket.backlog.empty()) {
    IoRequest* request = socket.accepts.front();
    socket.accepts.pop_front();
    int accepted = socket.backlog.front();
    socket.backlog.pop_front();
    Finish(socket, *request, accepted);
  }
}

void SimNet::ServeReceives(Socket& socket) {
  while (!socket.receives.empty()) {
    IoRequest* request = socket.receives.front();
    size_t size = TakeInbound(socket, *request);
    if (size > 0) {
    } else if (!socket.reset && !socket.peer_ended && !socket.ended && request->size > 0) {
      return;
    }
    socket.receives.pop_front();
    Finish(socket, *request, size == 0 && socket.reset ? -ECONNRESET : static_cast<int64_t>(size));
    if (Socket* peer = Find(socket.peer); peer != nullptr && size > 0) {
      peer->unread -= std::min<uint64_t>(peer->unread, size);
      ServeSends(socket.peer);
    }
  }
}

// Bytes up to the next descriptor, with the one that belongs to the first of them.
size_t SimNet::TakeInbound(Socket& socket, IoRequest& request) {
  size_t size = std::min(request.size, socket.inbound.size());
  if (size == 0) return 0;
  if (faults.segment) size = 1 + world_.rng().Below(size);
  auto& descriptors = socket.descriptors;
  if (!descriptors.empty() && descriptors.front().first == socket.received) {
    if (request.want_fd) request.pass_fd = descriptors.front().second.Take();
    descriptors.pop_front();
  }
  if (!descriptors.empty()) {
    size = std::min<size_t>(size, descriptors.front().first - socket.received);
  }
  std::memcpy(request.data, socket.inbound.data(), size);
  socket.inbound.erase(socket.inbound.begin(),
                       socket.inbound.begin() + static_cast<ptrdiff_t>(size));
  socket.received += size;
  return size;
}

void SimNet::ServeSends(int id) {
  Socket& socket = sockets_.at(id);
  while (!socket.sends.empty()) {
    IoRequest* request = socket.sends.front();
    int64_t result;
    if (socket.reset || socket.ended) {
      result = socket.reset ? -ECONNRESET : -EPIPE;
    } else {
      if (socket.unread >= faults.window_bytes && request->size > 0) return;
      size_t size = std::min(request->size, faults.window_bytes - socket.unread);
      if (faults.segment && size > 0) size = 1 + world_.rng().Below(size);
      Bytes data(request->data, request->data + size);
      world_.Trace(socket.host, "send", static_cast<uint64_t>(id), size, Crc32c(data));
      socket.unread += size;
      result = static_cast<int64_t>(size);
      bool reset = faults.reset_ppm != 0 && socket.host != socket.remote_host &&
                   world_.rng().Chance(faults.reset_ppm, 1'000'000);
      if (reset) ++resets_;
      PassedFd passed(request->pass_fd < 0 ? -1 : ::fcntl(request->pass_fd, F_DUPFD_CLOEXEC, 3));
      if (size > 0) Push(id, {.data = std::move(data), .fd = std::move(passed), .reset = reset});
    }
    socket.sends.pop_front();
    Finish(socket, *request, result);
  }
}

// --- segments ---

void SimNet::Push(int id, Segment segment) {
  Socket& socket = sockets_.at(id);
  Nanos latency = faults.latency_min;
  Nanos span = faults.latency_max - faults.latency_min;
  if (span > Nanos{0})
    latency += Nanos{world_.rng().Below(static_cast<uint64_t>(span.count()) + 1)};
  if (faults.slow_ppm != 0 && world_.rng().Chance(faults.slow_ppm, 1'000'000)) {
    ++slow_segments_;
    latency += Nanos{world_.rng().Below(static_cast<uint64_t>(faults.slow_max.count()))};
  }
  segment.when = std::max(world_.clock().Now() + latency, socket.last_segment);
  socket.last_segment = segment.when;
  socket.outgoing.push_back(std::move(segment));
  world_.At(socket.last_segment, 0, [this, id] { Pump(id); });
}

void SimNet::Pump(int id) {
  while (Socket* socket = Find(id)) {
    if (socket->outgoing.empty() || socket->outgoing.front().when > world_.clock().Now()) return;
    if (Blocks(socket->host, socket->remote_host)) return;  // held until Heal
    Segment segment = std::move(socket->outgoing.front());
    socket->outgoing.pop_front();
    Deliver(id, std::move(segment));
  }
}

void SimNet::Deliver(int id, Segment segment) {
  Socket& socket = sockets_.at(id);
  Socket* peer = Find(socket.peer);
  world_.Trace(socket.remote_host, "deliver", static_cast<uint64_t>(id), segment.data.size(),
               (segment.fin ? 1 : 0) + (segment.reset ? 2 : 0));
  if (peer != nullptr && peer->dead && !IsUp(peer->host)) return;  // nobody is there to answer
  if (peer == nullptr || peer->dead || peer->closed) {
    if (!segment.data.empty()) ResetSocket(socket);
    return;
  }
  if (segment.reset) {
    ResetSocket(socket);
    ResetSocket(*peer);
    return;
  }
  if (segment.fd.valid()) {
    uint64_t position = peer->received + peer->inbound.size();
    peer->descriptors.emplace_back(position, std::move(segment.fd));
  }
  peer->inbound.insert(peer->inbound.end(), segment.data.begin(), segment.data.end());
  peer->peer_ended = peer->peer_ended || segment.fin;
  ServeReceives(*peer);
}

void SimNet::ResetSocket(Socket& socket) {
  socket.reset = true;
  socket.outgoing.clear();
  if (socket.owner == nullptr) return;
  FinishAll(socket, socket.receives, -ECONNRESET);
  FinishAll(socket, socket.sends, -ECONNRESET);
}

// --- ending ---

bool SimNet::Has(SimIo& io, int socket) const {
  auto found = sockets_.find(socket);
  return found != sockets_.end() && found->second.owner == &io && !found->second.closed;
}

std::string SimNet::LocalAddress(int socket) const { return sockets_.at(socket).address; }

uint64_t SimNet::PeerProcess(int socket) const { return sockets_.at(socket).peer_process; }

bool SimNet::IsUnix(int socket) const { return sockets_.at(socket).address.starts_with("unix:"); }

void SimNet::Shutdown(int id) {
  Socket* socket = Find(id);
  if (socket == nullptr || socket->ended) return;
  socket->ended = true;
  if (socket->listener) {
    listeners_.erase(socket->host + "|" + socket->address);
    return ServeAccepts(*socket);
  }
  if (!socket->reset) Push(id, {.fin = true});
  ServeReceives(*socket);
  ServeSends(id);
}

void SimNet::Close(int id) {
  Socket* socket = Find(id);
  REPRISE_CHECK(socket != nullptr && !socket->closed, "closing a socket that is not open");
  REPRISE_CHECK(socket->accepts.empty() && socket->receives.empty() && socket->sends.empty(),
                "a socket is closed while requests on it are in flight: Shutdown it, await them");
  Shutdown(id);
  socket->closed = true;
  socket->owner = nullptr;
  if (socket->listener) {
    std::deque<int> backlog = std::move(socket->backlog);
    sockets_.erase(id);
    for (int waiting : backlog) {
      if (Find(waiting) == nullptr) continue;
      sockets_.at(waiting).closed = true;
      sockets_.at(waiting).owner = nullptr;
      Push(waiting, {.reset = true});
      Forget(waiting);
    }
    return;
  }
  // Unread bytes at close make the kernel reset instead of ending in good order.
  if (!socket->inbound.empty() && !socket->reset) Push(id, {.reset = true});
  Forget(id);
}

// Drops both ends of a stream once neither can be used any more.
void SimNet::Forget(int id) {
  Socket* socket = Find(id);
  Socket* peer = Find(socket->peer);
  bool peer_gone = peer == nullptr || peer->closed || peer->dead;
  if (!peer_gone) return;
  int peer_id = socket->peer;
  sockets_.erase(peer_id);
  sockets_.erase(id);
}

}  // namespace reprise
