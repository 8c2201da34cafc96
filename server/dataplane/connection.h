// Connection: wire::Session driven over one socket of an Io by coroutines. Both ends of the data
// plane are built on it: StoreServer (ServerConnection) and TcpStoreLink (StoreChannel).
//
// One coroutine receives (NextHeader, then Body, Payload or Skip); any number may send, each frame
// goes out whole. A receive or send that fails ends the connection: what others wait for fails too.
// Every wait has a deadline: no byte for `timeout` is DEADLINE_EXCEEDED, and the message names
// phase, peer, last progress and the setting to raise.
//
// Thread rule: the Io's loop. Destroy it only when no call is in progress. Frames: docs/wire.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "core/async/sync.h"
#include "core/io/io.h"
#include "core/wire/session.h"

namespace reprise::dataplane {

struct ConnectionOptions {
  std::string peer;     // for messages: "store at n1:7000"
  Nanos timeout{};      // without a byte while one is due
  std::string setting;  // configuration key of `timeout`
};

class Connection {
 public:
  Connection(Io& io, SocketId socket, wire::Role role, ConnectionOptions options);
  ~Connection();  // closes the socket
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Handshake of the connecting side. An ERROR from the peer is returned as it is.
  Task<Result<wire::HelloOk>> Greet(wire::Hello hello, TimePoint deadline);
  // Handshake of the accepting side. A refused peer has been told why.
  Task<Result<wire::Hello>> Welcome(wire::HelloOk answer, TimePoint deadline);

  // The next header, checked by the session. Reaching `deadline` is DEADLINE_EXCEEDED and leaves the
  // connection as it was: call again. UNAVAILABLE: the peer has closed.
  Task<Result<wire::Session::Expect>> NextHeader(std::optional<TimePoint> deadline);
  // Receives the payload of a message; the whole body once its last frame is here.
  Task<Result<std::optional<wire::Session::Incoming>>> Body(wire::FrameHeader header);
  // Receives a chunk's payload; `buffer` has exactly its size.
  Task<Status> Payload(wire::FrameHeader header, MutableByteView buffer);
  // Receives a chunk's payload and drops it.
  Task<Status> Skip(wire::FrameHeader header);

  // Sends whole frames, as made by wire::Session::Pack.
  Task<Status> Send(Bytes frames);
  // Sends one CHUNK; `payload` is not copied and stays valid until the call returns.
  Task<Status> SendChunk(wire::FrameHeader header, ByteView payload);

  // Ends both directions; calls in progress return soon. Idempotent.
  void Shutdown();
  bool ended() const { return ended_; }

  const std::string& peer() const { return options_.peer; }
  void set_peer(std::string peer) { options_.peer = std::move(peer); }
  // When a frame last arrived or left.
  TimePoint last_progress() const { return last_progress_; }
  // "last frame PUT_OPEN, 3.2 s ago".
  std::string LastProgress() const;
  Loop& loop() { return io_.loop(); }

  // Payload and header bytes so far.
  uint64_t bytes_received() const { return bytes_received_; }
  uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  Task<Status> Fill(MutableByteView buffer, std::string_view phase, wire::Opcode opcode);
  Task<Status> Drain(ByteView data, std::string_view phase);
  Status Timeout(std::string_view phase, wire::Opcode opcode) const;
  Status CutOff(int64_t result, std::string_view operation) const;
  void Progress(wire::Opcode opcode);

  Io& io_;
  const SocketId socket_;
  ConnectionOptions options_;
  wire::Session session_;
  bool ended_ = false;
  std::array<uint8_t, limits::kFrameHeaderBytes> header_{};
  size_t header_filled_ = 0;
  Semaphore send_turn_;
  TimePoint last_progress_;
  wire::Opcode last_opcode_ = wire::Opcode::kHello;
  uint64_t bytes_received_ = 0;
  uint64_t bytes_sent_ = 0;
};

}  // namespace reprise::dataplane
