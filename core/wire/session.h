// Session: the sans-I/O half of a connection. Bytes in, frames and messages out; no sockets, no time.
//
// The driver (threads in the client, coroutines in the daemon, the simulator in tests) reads 64 header
// bytes, asks OnHeader what to do with the payload, and hands complete bodies to OnBody. The session
// enforces the handshake (HELLO first, version and features agreed), that each opcode is legal for
// this side and role, and that bodies assembled from several frames stay within limits. After any
// error the session is broken: send the ErrorBody it offers, then close the connection.
//
// Thread rule: one owner. Order of frames and roles: docs/wire.md.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "core/wire/frame.h"
#include "core/wire/messages.h"

namespace reprise::wire {

enum class Role : uint8_t {
  kStoreServer,  // accepts puts and reads
  kStoreClient,  // node daemon (or bench) talking to a store
  kLocalServer,  // node daemon serving training processes
  kLocalClient,  // training process
};

class Session {
 public:
  explicit Session(Role role) : role_(role) {}

  // The connecting side's first frame. The session is established when HELLO_OK passed OnBody.
  Bytes MakeHello(const Hello& hello);
  // The accepting side's answer to a HELLO that passed OnBody. UNIMPLEMENTED: no version in common,
  // or a required feature this build lacks; the message names it.
  Result<Bytes> AcceptHello(const Hello& theirs, const HelloOk& ours);

  struct Expect {
    FrameHeader header;
    bool chunk =
        false;  // payload is raw chunk bytes: receive it into an aligned buffer of your own
  };
  // Checks a header in the connection's current state; allocates nothing. Besides the codes of
  // DecodeFrameHeader: FAILED_PRECONDITION when the opcode is not legal here and now,
  // INVALID_ARGUMENT when the payload does not fit the opcode or the limits.
  Result<Expect> OnHeader(std::span<const uint8_t, limits::kFrameHeaderBytes> bytes);

  struct Incoming {
    FrameHeader header;
    Bytes body;
  };
  // A message frame's payload (empty ones too). Yields the body once its last frame is here.
  Result<std::optional<Incoming>> OnBody(const FrameHeader& header, ByteView payload);

  // Frames of a message: headers and payloads, split at the payload limit.
  template <typename Message>
  static Bytes Pack(const Message& message, uint64_t request, uint64_t stream = 0,
                    uint64_t offset = 0) {
    return PackBody(kOpcodeOf<Message>, Encode(message), request, stream, offset);
  }
  static Bytes PackBody(Opcode opcode, ByteView body, uint64_t request, uint64_t stream = 0,
                        uint64_t offset = 0);
  static Bytes PackError(const Status& status, uint64_t request, uint64_t stream = 0);

  bool established() const { return established_; }
  bool broken() const { return broken_; }
  // Bytes of bodies whose last frame is still to come.
  uint64_t partial_bytes() const { return partial_bytes_; }

 private:
  struct Partial {
    FrameHeader first;
    Bytes body;
  };
  bool IsLegal(Opcode opcode) const;
  Status CheckHeader(const FrameHeader& header) const;
  Status CheckHelloOk(ByteView body);
  std::unexpected<Status> Break(Status status);

  Role role_;
  bool established_ = false;
  bool broken_ = false;
  bool hello_sent_ = false;              // connecting side
  bool hello_received_ = false;          // accepting side
  std::map<uint64_t, Partial> partial_;  // by request id; at most limits::kPartialBodiesMax
  uint64_t partial_bytes_ = 0;           // at most limits::kBodyBytesMax
};

// Features this build understands (bits of Hello::required_features).
inline constexpr uint64_t kKnownFeatures = 0;

}  // namespace reprise::wire
