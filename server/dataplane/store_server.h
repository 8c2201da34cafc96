// StoreServer: the store's end of the data plane over TCP. Accepts connections, receives shards into
// a ShardStore and serves them from it.
//
// Putting: each chunk is received straight into an aligned buffer, hashed *there*, compared with the
// digest the sender announced, and written from the same buffer; its credit goes back when the write
// completed. Reading: a window of direct reads into aligned buffers, sent in order. A failed stream
// answers ERROR and leaves the connection usable; a peer that breaks the protocol, or is silent for
// idle_timeout while it holds a stream open, loses the connection. A lost connection frees all it
// held, after the operations in progress. Narrative on top of server_connection.cc; docs/wire.md.
//
// Thread rule: the Io's loop, which is the ShardStore's. Await Close before destruction.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/io/buffer_pool.h"
#include "core/io/io.h"
#include "server/lifecycle/shard_store.h"

namespace reprise::dataplane {

// Messages name the keys of the daemon's configuration that set these, under "store".
struct StoreServerOptions {
  std::string address = "127.0.0.1:0";
  Id self;                  // store id
  std::string description;  // host, pid, program: shown to peers
  uint32_t connections_max = 1024;
  uint32_t streams_per_connection_max = limits::kStreamsPerConnectionMax;
  uint32_t requests_per_connection_max = 32;   // further ones wait in the socket
  uint32_t credits = limits::kCreditsDefault;  // chunks in flight of one upload
  uint32_t receive_buffers = 64;               // chunks being received or written, in all
  uint32_t send_buffers = 32;                  // chunks being read or sent, in all
  uint32_t read_depth = 8;                     // chunks being read for one READ_CHUNKS
  Nanos handshake_timeout = std::chrono::seconds(10);
  Nanos idle_timeout = std::chrono::seconds(60);       // without progress while an upload is open
  Nanos read_idle_timeout = std::chrono::minutes(10);  // likewise while a checkpoint is
  Nanos unused_timeout = std::chrono::minutes(10);     // without any stream open
};

// Since start, but for `connections`. Read on the loop.
struct StoreServerMetrics {
  uint64_t connections = 0;  // open now
  uint64_t connections_accepted = 0;
  uint64_t connections_refused = 0;  // over connections_max
  uint64_t connections_failed = 0;   // ended by an error: protocol, timeout, reset
  uint64_t bytes_received = 0;       // headers and payloads of ended and open connections
  uint64_t bytes_sent = 0;
  uint64_t chunks_received = 0;
  uint64_t chunks_sent = 0;
  uint64_t chunks_corrupt = 0;  // received with a digest that does not match
  uint64_t shards_sealed = 0;
};

class ServerConnection;

class StoreServer {
 public:
  StoreServer(Io& io, lifecycle::ShardStore& store, StoreServerOptions options);
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;

  // Takes the buffers, listens and begins to accept. RESOURCE_EXHAUSTED: no memory. After a failure the server serves nobody; Close is not needed.
  Task<Status> Start();
  // "host:port" it is bound to, once started.
  const std::string& address() const { return address_; }
  StoreServerMetrics metrics() const;
  // Stops accepting, ends every connection, and returns when all of them and their operations on the
  // store are gone.
  Task<void> Close();

 private:
  friend class ServerConnection;
  Task<void> AcceptLoop(Gate::Hold hold);
  Task<void> Serve(SocketId socket, Gate::Hold hold);

  Io& io_;
  lifecycle::ShardStore& store_;
  const StoreServerOptions options_;
  std::string address_;
  SocketId listener_;
  bool closing_ = false;
  std::unique_ptr<BufferPool> receive_buffers_;
  std::unique_ptr<BufferPool> send_buffers_;
  StoreServerMetrics metrics_;                  // without the bytes of open connections
  std::vector<ServerConnection*> connections_;  // in the order in which they came
  Notifier changed_;                            // a connection ended, or closing began
  Gate gate_;                                   // the accept loop and each connection
};

}  // namespace reprise::dataplane
