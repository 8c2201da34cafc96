// Endpoint: the Unix socket that training processes connect to. Accepts, and keeps the connections.
//
// A socket file left by a daemon that was killed is replaced. Connections beyond
// limits::kConnectionsMax wait in the listener's queue. What is said on a connection: connection.h.
//
// Thread rule: the node's loop. Close before destruction.
#pragma once

#include <list>
#include <memory>
#include <string>

#include "server/node/connection.h"

namespace reprise::node {

class Endpoint {
 public:
  // Listens at `socket_path`.
  static Task<Result<std::unique_ptr<Endpoint>>> Start(ConnectionParts parts,
                                                       std::string socket_path);
  // Stops accepting, ends every connection, waits for them.
  Task<void> Close();

  void OnEvent(const lifecycle::NodeEvent& event);
  size_t connection_count() const { return connections_.size(); }
  // When the last connection ended (or when this one started, if none came).
  TimePoint last_activity() const { return last_activity_; }

 private:
  explicit Endpoint(ConnectionParts parts);
  static Task<void> RunAccept(Endpoint* self, Gate::Hold hold);
  static Task<void> RunConnection(Endpoint* self, std::shared_ptr<Connection> connection,
                                  Gate::Hold hold);
  bool IsServedElsewhere(const Connection* asking, const Id& process) const;

  ConnectionParts parts_;
  SocketId listener_;
  std::string socket_path_;
  Gate gate_;
  Notifier changed_;
  bool closing_ = false;
  TimePoint last_activity_;
  std::list<std::shared_ptr<Connection>> connections_;
};

}  // namespace reprise::node
