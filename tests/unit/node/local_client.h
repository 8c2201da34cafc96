// LocalClient: a training process reduced to its frames, driven by the test's loop.
//
// Thread rule: that loop.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/io/io.h"
#include "core/wire/session.h"
#include "server/node/slab_mapping.h"

namespace reprise::node {

// Memory behind a descriptor that came over the socket.
class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(OwnedFd fd, bool writable);
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();
  MutableByteView bytes() const { return {data_, size_}; }
  bool mapped() const { return data_ != nullptr; }

 private:
  OwnedFd fd_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// A layout of three tensors (replicated, sharded, per rank) that makes `chunks` chunks of 4 KiB,
// the last one short; and the bytes that a rank saves at a step.
format::Layout TestLayout(uint32_t chunks);
Bytes TestShard(uint64_t length, uint64_t step, uint32_t rank);

class LocalClient {
 public:
  struct Message {
    wire::FrameHeader header;
    Bytes body;
    OwnedFd fd;
    template <typename T>
    T As() const {
      return *wire::Decode<T>(body);
    }
    Status error() const;
  };

  LocalClient(Io& io, uint32_t rank, uint32_t world);
  ~LocalClient();
  // Connects and shakes hands.
  Task<Status> Connect(std::string path);
  void Close();

  // The next message with this opcode; others are kept for later. A kError that was not asked for
  // is returned as well.
  Task<Message> Await(wire::Opcode opcode);
  template <typename T>
  Task<void> Send(T message, uint64_t request = 0, uint64_t stream = 0) {
    co_await SendBytes(wire::Session::Pack(message, request, stream));
  }
  Task<void> SendBytes(Bytes bytes);

  wire::Register Registration() const;
  // Registers; the error when it is refused.
  Task<Result<wire::Registered>> Register();
  Task<Status> Attach(uint64_t slot_bytes, uint32_t slots = 2);
  Task<Result<wire::SaveGrant>> Begin(uint64_t step, const format::Layout& layout);
  // Copies the chunks into the slot and announces them.
  Task<void> Copy(wire::SaveGrant grant, uint64_t step, const format::Layout& layout,
                  uint64_t first, uint64_t count);
  Task<void> Seal(wire::SaveGrant grant);
  // Begin, Copy of everything, Seal.
  Task<Result<wire::SaveGrant>> Save(uint64_t step, const format::Layout& layout);
  // The next SaveState of `save` with `phase`; earlier phases are passed over, kFailed is returned.
  Task<wire::SaveState> AwaitPhase(uint64_t save, wire::SavePhase phase);

  Task<Result<wire::ReadOk>> Open(uint64_t stream, std::optional<uint64_t> step = {});
  Task<Status> AttachRing(uint32_t chunks);
  MutableByteView slot_data(uint32_t index) const;

  Id process{{9}};
  wire::HelloOk hello;
  wire::Attached attached;
  std::map<uint32_t, SharedMemory> slots;
  SharedMemory ring;
  wire::RingInfo ring_info;

 private:
  Task<Message> ReadOne();
  Io& io_;
  uint32_t rank_;
  uint32_t world_;
  SocketId socket_;
  wire::Session session_{wire::Role::kLocalClient};
  std::deque<Message> kept_;
  bool layout_sent_ = false;
};

}  // namespace reprise::node
