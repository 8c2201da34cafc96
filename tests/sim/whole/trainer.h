// Trainer: one simulated training process: the frames of a client, a state that changes with every
// step, and the habits of a training loop. It restores what its run resumes from and compares every
// byte, saves, skips, is fenced, reconnects when its node daemon was restarted, and dies when told.
//
// What it did and was told goes to the Model, which judges it.
//
// Thread rule: its own loop; Kill from the world. One life; then another object.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/io/sim_io.h"
#include "core/wire/session.h"
#include "server/node/slab_mapping.h"
#include "tests/sim/whole/model.h"
#include "tests/sim/whole/sim_machine.h"

namespace reprise::sim {

enum class Exit : uint8_t { kRunning, kFinished, kFailed, kFenced, kKilled };

// What the ranks of one launch share: their collectives.
class Run {
 public:
  explicit Run(Launch launch) : launch_(std::move(launch)) {}
  const Launch& launch() const { return launch_; }
  uint64_t first_step = 0;
  uint64_t steps = 4;
  uint32_t skip_ppm = 0;
  Nanos step_time = std::chrono::milliseconds(5);
  Nanos drain_time = std::chrono::seconds(40);
  bool takeover = true;
  bool wait_each = false;  // wait for each commit before the next step
  std::string launcher;

  // A rank is done with `step`.
  void Arrive(uint64_t step) {
    ++arrived_[step];
    for (Notifier* waiting : waiting_) waiting->Notify();
  }
  bool AllArrived(uint64_t step) const {
    auto found = arrived_.find(step);
    return found != arrived_.end() && found->second >= launch_.world;
  }

  void Join(Notifier* rank) { waiting_.push_back(rank); }
  void Leave(Notifier* rank) { std::erase(waiting_, rank); }

 private:
  const Launch launch_;
  std::vector<Notifier*> waiting_;  // in the order of their start: addresses are not repeatable
  std::map<uint64_t, uint32_t> arrived_;
};

struct TrainerParts {
  SimWorld& world;
  Loop& loop;
  ProcessTable& processes;
  Model& model;
  Counts& counts;
  std::function<void()> on_exit;
};

class Trainer {
 public:
  Trainer(TrainerParts parts, std::string host, std::shared_ptr<Run> run, uint32_t rank);
  ~Trainer();

  // SIGKILL, or the loss of its host.
  void Kill(SimCrash how);
  Exit exit() const { return exit_; }
  const std::string& why() const { return why_; }
  const std::string& host() const { return host_; }
  uint32_t rank() const { return rank_; }
  Loop& loop() { return parts_.loop; }
  bool registered() const { return epoch_ != 0; }
  uint64_t epoch() const { return epoch_; }
  // From now on it does not wait for the other ranks: they are gone, and it does not know.
  void BecomeZombie() {
    zombie_ = true;
    collective_.Notify();
  }

 private:
  struct Message {
    wire::FrameHeader header;
    Bytes body;
    node::OwnedFd fd;
  };
  struct OpenSave {
    uint64_t step = 0;
    bool sealed = false;  // told so
    bool over = false;
    bool committed = false;
    uint32_t slot = UINT32_MAX;
  };
  // One connection to the node daemon.
  struct Link {
    explicit Link(Loop& loop) : changed(loop) {}
    SocketId socket;
    wire::Session session{wire::Role::kLocalClient};
    std::deque<Message> inbox;
    std::set<uint64_t> ignored;
    Notifier changed;
    bool ended = false;
    uint32_t senders = 0;
    bool layout_sent = false;
    uint32_t chunk_bytes = 0;
    wire::Attached attached;
    std::map<uint32_t, SharedMemory> slots;
    SharedMemory ring;
    wire::RingInfo ring_info;
    std::map<uint64_t, OpenSave> saves;
    bool again = false;  // it registered in an epoch that it was in before
  };
  using LinkPtr = std::shared_ptr<Link>;

  static Task<void> Main(Trainer* self);
  Task<Status> Live();
  Task<Status> Connect();
  Task<Status> ConnectOnce();
  Task<Status> Register();
  Task<Status> Attach();
  // Restores what `pinned` says from its run's answer.
  Task<Status> Restore(CheckpointKey key);
  Task<Status> RestoreShard(uint64_t stream, const format::CheckpointManifest& manifest,
                            uint32_t rank);
  Task<Result<Bytes>> FetchAll(uint64_t stream, const format::ShardManifest& shard);
  Task<Status> TakeChunk(uint64_t stream, uint64_t request, const format::ShardManifest& shard,
                         wire::ChunkAt at, Bytes& out);
  Task<Status> Step(uint64_t step);
  Task<Status> Save(uint64_t step);
  Task<Status> Fill(LinkPtr link, wire::SaveGrant grant, uint64_t step);
  Task<void> Drain();

  static Task<void> ReadLoop(Trainer* self, LinkPtr link);
  Task<Result<Message>> ReadFrame(LinkPtr link);
  void OnState(Link& link, const wire::SaveState& state);
  // A slot is given again only when what it held is over, or something newer is committed.
  void CheckGrant(const Link& link, const wire::SaveGrant& grant);
  Task<Status> SendBytes(LinkPtr link, Bytes frames);
  // The next message for `request`; an ERROR as the Status it carries; UNAVAILABLE: link ended.
  Task<Result<Message>> Await(LinkPtr link, uint64_t request, Nanos timeout);
  template <typename T>
  Task<Result<Message>> Ask(LinkPtr link, T message, uint64_t stream, Nanos timeout);
  void CloseLink();
  Task<void> Think(Nanos span) { co_await parts_.loop.Sleep(span); }
  Rng& rng() { return rng_; }
  bool NoteCode(const Status& status, std::string_view call, std::initializer_list<Code> allowed);

  TrainerParts parts_;
  const std::string host_;
  const std::shared_ptr<Run> run_;
  const uint32_t rank_;
  Rng rng_;
  Id process_;
  std::unique_ptr<SimIo> io_;
  LinkPtr link_;
  Notifier collective_;
  uint64_t next_request_ = 1;
  std::string_view asked_;  // the opcode of the last request
  format::Layout layout_;
  Id job_;
  uint64_t epoch_ = 0;
  std::optional<CheckpointKey> resume_;
  std::set<uint64_t> unsure_;  // steps whose seal was asked for and whose end is not known
  bool zombie_ = false;
  Exit exit_ = Exit::kRunning;
  std::string why_;
};

inline constexpr std::string_view kNodeSocket = "/run/node.sock";

}  // namespace reprise::sim
