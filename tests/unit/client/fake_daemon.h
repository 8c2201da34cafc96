// FakeDaemon: a node daemon in a thread, as strict as the real one about the protocol, whose refusals,
// silences, damage and death the test chooses. Serves one or more connections on a Unix socket.
//
// Saves: grants memfd slots, keeps what was sealed, reports phases by itself unless told to hold them.
// Reads: serves one checkpoint given with SetCheckpoint (or the last sealed save) from ring or slot.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/format/layout.h"
#include "core/format/manifest.h"
#include "core/wire/session.h"

namespace reprise::client::test {

// One saved checkpoint in memory.
struct StoredShard {
  format::Layout layout;
  Bytes bytes;  // shard_bytes of them
};
struct StoredCheckpoint {
  format::CheckpointManifest manifest;
  std::vector<format::ShardManifest> shards;
  std::map<Digest, Bytes> layouts;
  std::vector<Bytes> bytes;
};
StoredCheckpoint MakeCheckpoint(CheckpointKey key, const std::vector<StoredShard>& shards,
                                std::string metadata = "");

class FakeDaemon {
 public:
  // What the daemon does; change it under Set().
  struct Behaviour {
    uint32_t chunk_bytes = 4096;
    std::optional<Status> refuse_register;
    std::optional<Status> refuse_attach;
    std::optional<Status> refuse_begin;
    bool silent_begin = false;           // SAVE_BEGIN is never answered
    bool forget_layouts = false;         // SAVE_BEGIN without layout bytes: NOT_FOUND
    bool ignore_seals = false;           // SAVE_SEAL has no effect
    bool hold_commit = false;            // no kCommitted until Commit()
    bool offer_slots = false;            // SlotOf succeeds
    bool attach_once = false;            // a second ATTACH on a connection is refused
    std::optional<uint64_t> holds_step;  // a save that it tells of at registration
    wire::SavePhase holds_phase = wire::SavePhase::kLocalSealed;
    uint32_t ring_chunks = 8;
    // (rank, chunk) -> how often it is delivered damaged.
    std::map<std::pair<uint32_t, uint64_t>, int> damage;
    std::map<std::pair<uint32_t, uint64_t>, int> damage_slot;
    std::optional<Status> fail_fetch;
    // Dies (closes everything) after this many chunks were delivered.
    std::optional<int> die_after_chunks;
    std::optional<CheckpointKey> resume;
  };

  FakeDaemon();
  ~FakeDaemon();

  const std::string& socket_path() const { return path_; }
  void Set(const std::function<void(Behaviour&)>& change);
  void SetCheckpoint(StoredCheckpoint checkpoint);
  // Closes socket and connections; nothing answers until Start.
  void Stop();
  void Start();
  // Reports `phase` of the newest save.
  void Report(wire::SavePhase phase, Status status = {});
  void Commit() { Report(wire::SavePhase::kCommitted); }

  // --- what was seen; each waits (up to 10 s) until the condition holds and returns it
  bool AwaitSkips(size_t count);
  bool AwaitSeals(size_t count);
  bool AwaitBegins(size_t count);
  bool AwaitConnections(size_t count);
  bool died();  // by die_after_chunks
  std::vector<wire::SaveSkip> skips();
  std::vector<wire::Register> registrations();
  std::vector<wire::SaveBegin> begins();
  std::vector<wire::Attach> attaches();
  size_t layouts_received();
  size_t chunk_messages();
  // Every ring buffer has been given back (the message that does so has no answer).
  bool AwaitRingFree();
  // Bytes of the slot of the newest sealed save.
  Bytes sealed_bytes();

 private:
  struct Peer;
  void Run();
  void Listen();
  void Pump();
  bool ReadFrom(Peer& peer);
  void Handle(Peer& peer, wire::Session::Incoming message);
  void HandleSave(Peer& peer, const wire::Session::Incoming& message);
  void HandleBegin(Peer& peer, const wire::Session::Incoming& message);
  void HandleSeal(Peer& peer, const wire::Session::Incoming& message);
  void HandleRead(Peer& peer, const wire::Session::Incoming& message);
  void HandleRing(Peer& peer, const wire::Session::Incoming& message);
  void Deliver(Peer& peer, uint64_t request, uint64_t stream, uint32_t rank, uint64_t chunk,
               std::optional<uint32_t> buffer);
  void Attach(Peer& peer, uint64_t request, const wire::Attach& attach);
  void OfferSlot(Peer& peer, uint64_t request, uint64_t stream, uint32_t rank);
  void Send(Peer& peer, ByteView frames, int descriptor = -1);
  void SendError(Peer& peer, const Status& status, const wire::FrameHeader& header);
  bool Await(const std::function<bool()>& condition);
  void Wake();

  std::string path_;
  int wake_ = -1;
  std::mutex mutex_;
  std::condition_variable seen_;
  std::condition_variable changed_;
  // Everything below is guarded by mutex_.
  Behaviour behaviour_;
  bool running_ = false;
  bool closing_ = false;
  int listener_ = -1;
  std::vector<std::unique_ptr<Peer>> peers_;
  size_t connections_ = 0;
  std::optional<StoredCheckpoint> checkpoint_;
  std::vector<wire::SaveSkip> skips_;
  std::vector<wire::Register> registrations_;
  std::vector<wire::SaveBegin> begins_;
  std::vector<wire::Attach> attaches_;
  size_t layouts_received_ = 0;
  size_t chunk_messages_ = 0;
  size_t seals_ = 0;
  uint64_t next_save_ = 1;
  Bytes sealed_;
  std::thread thread_;
};

}  // namespace reprise::client::test
