#include "server/node/endpoint.h"

#include <cerrno>
#include <utility>

#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/io/transfer.h"

namespace reprise::node {

Endpoint::Endpoint(ConnectionParts parts)
    : parts_(std::move(parts)),
      gate_(parts_.context.loop),
      changed_(parts_.context.loop),
      last_activity_(parts_.context.loop.Now()) {
  parts_.is_served_elsewhere = [this](const Connection* asking, const Id& process) {
    return IsServedElsewhere(asking, process);
  };
}

Task<Result<std::unique_ptr<Endpoint>>> Endpoint::Start(ConnectionParts parts,
                                                        std::string socket_path) {
  Io& io = parts.context.io;
  auto endpoint = std::unique_ptr<Endpoint>(new Endpoint(std::move(parts)));
  endpoint->socket_path_ = socket_path;
  // The slab directory's lock says that no other daemon lives; the file is a dead one's.
  Status removed = co_await io.Remove(socket_path);
  if (!removed.ok() && removed.code() != Code::kNotFound) {
    LogDebug("node: {}", removed.ToString());
  }
  REPRISE_CO_ASSIGN(endpoint->listener_, co_await io.Listen("unix:" + socket_path));
  io.loop().Spawn(RunAccept(endpoint.get(), endpoint->gate_.Enter()));
  co_return endpoint;
}

Task<void> Endpoint::RunAccept(Endpoint* self, Gate::Hold) {
  NodeContext& context = self->parts_.context;
  while (!self->closing_) {
    int64_t accepted = co_await context.io.Accept(self->listener_);
    if (accepted < 0) {
      if (self->closing_) co_return;
      // Out of descriptors, most likely: the ones there are will be given back.
      LogWarn("node: {}", StatusFromErrno(static_cast<int>(-accepted), "accept").ToString());
      co_await self->changed_.WaitFor([&] { return self->closing_; },
                                      context.loop.Now() + std::chrono::milliseconds(100));
      continue;
    }
    SocketId socket{static_cast<int>(accepted)};
    Gate::Hold hold = self->gate_.Enter();
    if (!hold || self->closing_) {
      context.io.Shutdown(socket);
      context.io.CloseSocket(socket);
      continue;
    }
    auto connection = std::make_shared<Connection>(self->parts_, socket);
    self->connections_.push_back(connection);
    context.loop.Spawn(RunConnection(self, std::move(connection), std::move(hold)));
    co_await self->changed_.WaitFor(
        [&] { return self->closing_ || self->connections_.size() < limits::kConnectionsMax; });
  }
}

Task<void> Endpoint::RunConnection(Endpoint* self, std::shared_ptr<Connection> connection,
                                   Gate::Hold) {
  co_await Connection::Serve(connection);
  self->connections_.remove(connection);
  self->last_activity_ = self->parts_.context.loop.Now();
  self->changed_.Notify();
}

bool Endpoint::IsServedElsewhere(const Connection* asking, const Id& process) const {
  for (const std::shared_ptr<Connection>& connection : connections_) {
    if (connection.get() != asking && connection->process() == process) return true;
  }
  return false;
}

void Endpoint::OnEvent(const lifecycle::NodeEvent& event) {
  if (event.kind != lifecycle::NodeEvent::Kind::kFenced) return;
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->OnFenced(event.job, event.key.epoch);
  }
}

Task<void> Endpoint::Close() {
  closing_ = true;
  changed_.Notify();
  Io& io = parts_.context.io;
  io.Shutdown(listener_);
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->Stop("it is shutting down");
  }
  co_await gate_.Close();
  io.CloseSocket(listener_);
  Status removed = co_await io.Remove(socket_path_);
  if (!removed.ok()) LogDebug("node: {}", removed.ToString());
}

}  // namespace reprise::node
