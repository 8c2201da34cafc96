// TcpStoreLink: a StoreLink over TCP (docs/wire.md).
//
// Connections are made when needed, with bounded back-off until connect_timeout. Each upload has a
// connection of its own, taken from a small pool of idle ones; all open checkpoints share one more.
// A connection that fails fails what uses it with UNAVAILABLE (or DEADLINE_EXCEEDED with the setting
// to raise); the caller tries again, which connects anew.
//
// Thread rule: the Io's loop. Await Close before destruction; uploads and sources may outlive it,
// and answer UNAVAILABLE then.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "core/io/io.h"
#include "server/dataplane/store_link.h"

namespace reprise::dataplane {

// Messages name the keys of the daemon's configuration that set these, under "node".
struct TcpStoreLinkOptions {
  std::string address;      // of the store: "host:port"
  Id self;                  // node id
  std::string description;  // host, pid, program: shown in the store's messages
  uint32_t idle_connections_max = 8;
  Nanos connect_timeout = std::chrono::seconds(5);
  Nanos connect_backoff_min = std::chrono::milliseconds(50);
  Nanos connect_backoff_max = std::chrono::seconds(1);
  Nanos progress_timeout = std::chrono::seconds(60);  // without a byte, a credit or an answer
  Nanos seal_timeout = std::chrono::minutes(5);       // PUT_SEAL to SEALED
};

class TcpStoreLink final : public StoreLink {
 public:
  TcpStoreLink(Io& io, TcpStoreLinkOptions options);
  ~TcpStoreLink() override;

  // Besides what the store answers: UNAVAILABLE when no connection came about in time.
  Task<Result<std::unique_ptr<ShardUpload>>> OpenUpload(wire::PutOpen request) override;
  Task<Result<std::unique_ptr<CheckpointSource>>> OpenRead(Id job, CheckpointKey key) override;
  uint32_t chunk_bytes() const override;
  wire::Source source() const override { return wire::Source::kNvme; }
  // Ends every connection; what uses one fails with CANCELLED.
  Task<void> Close() override;

  // Connections made so far (tests: reuse).
  uint64_t connections_made() const;

 private:
  class State;
  class Upload;
  class Checkpoint;
  std::shared_ptr<State> state_;
};

}  // namespace reprise::dataplane
