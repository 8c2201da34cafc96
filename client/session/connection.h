// Connection: one Unix-socket connection to the node daemon, from connect() to its end.
//
// Reads whole frames without blocking, together with the descriptor that may come with a header's
// first byte, and drives the sans-I/O wire::Session. Any error is final: destroy it and connect anew.
//
// Thread rule: one owner for everything but TrySend, which may run beside it on another thread. Only
// Connect and ReadReply block, until their deadline.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "client/session/deadline.h"
#include "client/session/inbox.h"
#include "core/wire/session.h"

namespace reprise::client {

class Connection {
 public:
  // Connects and shakes hands. UNAVAILABLE: nobody answers at `socket_path`, and what to do about it.
  // Codes of the daemon's own refusal (version, permission) otherwise.
  static Result<std::unique_ptr<Connection>> Connect(const std::string& socket_path,
                                                     const wire::Hello& hello, Deadline deadline);

  // The next complete message; nullopt when the rest of it has not arrived. Never blocks.
  Result<std::optional<Reply>> ReadSome();
  // The next complete message, waiting for it.
  Result<Reply> ReadReply(Deadline deadline, std::string_view what);
  // Sends a prefix of `bytes` and returns its length (0: the socket is full). Never blocks.
  Result<size_t> TrySend(ByteView bytes);
  // Sends all of `bytes`, waiting for room.
  Status SendAll(ByteView bytes, Deadline deadline);

  int descriptor() const { return socket_.get(); }
  const wire::HelloOk& peer() const { return peer_; }

 private:
  explicit Connection(Descriptor socket) : socket_(std::move(socket)) {}
  Status Handshake(const wire::Hello& hello, Deadline deadline);
  // Fills `target` from `have` on; false when the socket has no more.
  Result<bool> Fill(MutableByteView target, size_t& have, bool with_descriptor);

  Descriptor socket_;
  wire::Session wire_{wire::Role::kLocalClient};
  wire::HelloOk peer_;
  std::array<uint8_t, limits::kFrameHeaderBytes> header_bytes_{};
  size_t header_have_ = 0;
  std::optional<wire::FrameHeader> header_;  // set while its payload is being read
  Bytes payload_;
  size_t payload_have_ = 0;
  Descriptor passed_;  // came with the current message
};

}  // namespace reprise::client
