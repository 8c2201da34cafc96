#include "server/dataplane/store_server.h"

#include <cerrno>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/io/transfer.h"
#include "server/dataplane/server_connection.h"

namespace reprise::dataplane {
namespace {
// After accept failed for want of descriptors or memory.
constexpr Nanos kAcceptPause = std::chrono::milliseconds(100);
}  // namespace

StoreServer::StoreServer(Io& io, lifecycle::ShardStore& store, StoreServerOptions options)
    : io_(io), store_(store), options_(std::move(options)), changed_(io.loop()), gate_(io.loop()) {
  REPRISE_CHECK(options_.credits > 0 && options_.credits <= limits::kCreditsMax);
  REPRISE_CHECK(options_.read_depth > 0);
}

StoreServer::~StoreServer() { REPRISE_CHECK(gate_.inside() == 0, "await Close first"); }

Task<Status> StoreServer::Start() {
  const size_t chunk_bytes = store_.chunk_bytes();
  auto receive_buffers = BufferPool::Create(io_, {chunk_bytes, options_.receive_buffers});
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(receive_buffers));
  auto send_buffers = BufferPool::Create(io_, {chunk_bytes, options_.send_buffers});
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(send_buffers));
  receive_buffers_ = *std::move(receive_buffers);
  send_buffers_ = *std::move(send_buffers);
  Result<SocketId> listener = co_await io_.Listen(options_.address);
  REPRISE_CO_RETURN_IF_ERROR(StatusOf(listener));
  Result<std::string> address = io_.LocalAddress(*listener);
  if (!address.has_value()) {
    io_.CloseSocket(*listener);
    co_return address.error();
  }
  listener_ = *listener;
  address_ = *address;
  io_.loop().Spawn(AcceptLoop(gate_.Enter()));
  co_return OkStatus();
}

Task<void> StoreServer::AcceptLoop([[maybe_unused]] Gate::Hold hold) {
  while (!closing_) {
    int64_t accepted = co_await io_.Accept(listener_);
    if (accepted == -ECANCELED || (accepted < 0 && closing_)) break;
    if (accepted < 0) {
      LogWarn("data plane {}: {}; no new connection for {:.1f} s", address_,
              StatusFromErrno(static_cast<int>(-accepted), "accept").message(),
              SecondsOf(kAcceptPause));
      co_await changed_.WaitFor([this] { return closing_; }, io_.loop().Now() + kAcceptPause);
      continue;
    }
    SocketId socket{static_cast<int>(accepted)};
    if (closing_ || connections_.size() >= options_.connections_max) {
      ++metrics_.connections_refused;
      LogWarn("data plane {}: refused a connection: {} are open; raise store.connections", address_,
              connections_.size());
      io_.CloseSocket(socket);
      continue;
    }
    ++metrics_.connections_accepted;
    io_.loop().Spawn(Serve(socket, gate_.Enter()));
  }
  io_.CloseSocket(listener_);
}

Task<void> StoreServer::Serve(SocketId socket, [[maybe_unused]] Gate::Hold hold) {
  ServerConnection connection(*this, socket);
  connections_.push_back(&connection);
  if (!closing_) {
    Status status = co_await connection.Run();
    if (!status.ok()) {
      ++metrics_.connections_failed;
      LogWarn("data plane {}: {}", address_, status.message());
    }
  }
  std::erase(connections_, &connection);
  metrics_.bytes_received += connection.bytes_received();
  metrics_.bytes_sent += connection.bytes_sent();
  changed_.Notify();
}

StoreServerMetrics StoreServer::metrics() const {
  StoreServerMetrics metrics = metrics_;
  metrics.connections = connections_.size();
  for (const ServerConnection* connection : connections_) {
    metrics.bytes_received += connection->bytes_received();
    metrics.bytes_sent += connection->bytes_sent();
  }
  return metrics;
}

Task<void> StoreServer::Close() {
  if (!std::exchange(closing_, true) && listener_.valid()) {
    io_.Shutdown(listener_);
    for (ServerConnection* connection : connections_) connection->Shutdown();
    changed_.Notify();
  }
  co_await gate_.Close();
}

}  // namespace reprise::dataplane
