// SaveService: drives every save of the node, from the grant of a slot to commit or abort.
//
//   1. Start      a slot is filling; Begin goes to the coordinator meanwhile (the trainer
//                 never waits)
//   2. hash       ready chunks are hashed, at most kHashSlice at a time on the loop
//   3. upload     begins as soon as the attempt has its id (uploader.h), following the hashing
//   4. seal       all chunks hashed and SaveSeal here: companion and header are written, inventory
//                 goes out, the trainer hears kLocalSealed. A crash before leaves a slot that is
//                 dropped, a crash after leaves one that is adopted and uploaded again
//   5. events     kLocalSealed, kCommitted, kAborted, kFenced from the coordinator end it
//
// A save that fails for a reason of this node is announced (Skip), so that all ranks hear at once.
// A sealed save outlives its trainer and its connection.
//
// Thread rule: the node's loop.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/node/context.h"
#include "server/node/save.h"
#include "server/node/slab.h"
#include "server/node/uploader.h"

namespace reprise::node {

// Hashing holds the loop at most about this long.
inline constexpr Nanos kHashSlice = std::chrono::microseconds(500);

class SaveService {
 public:
  // `inventory_changed` is called whenever a shard was sealed or dropped.
  SaveService(NodeContext& context, Slab& slab, std::function<void()> inventory_changed);

  Uploader& uploader() { return uploader_; }

  // Who hears every state of a save until Save::observer is reset.
  struct Observer {
    const void* watcher;  // names it
    std::function<void(const wire::SaveState&)> tell;
  };
  // Steps 1 to 3 for a slot that Slab::Take returned.
  std::shared_ptr<Save> Start(SaveSpec spec, std::shared_ptr<Slot> slot, Observer observer);
  // A rank has registered, perhaps not for the first time (its connection broke, this daemon was
  // restarted): tells how its sealed saves of that epoch stand or have ended, as far as they are
  // known here, and returns those that are open, observed from now on.
  std::vector<std::shared_ptr<Save>> Rejoin(const Id& job, uint64_t epoch, uint32_t rank,
                                            const Observer& observer);
  // A sealed, uncommitted slot found at start: uploads it.
  void Resume(std::shared_ptr<Slot> slot);
  // Chunks are in the slot / all are. A contradiction fails the save and says so to all ranks.
  void AddReady(const std::shared_ptr<Save>& save, uint64_t first, uint64_t count);
  void RequestSeal(const std::shared_ptr<Save>& save);
  // Ends a save that has not committed: its slot is given up, the trainer hears kFailed, and with
  // `announce` all ranks hear the reason.
  void Fail(const std::shared_ptr<Save>& save, Status why, bool announce);
  // A rank cannot take part in a step: tells the coordinator, retrying while it is away.
  void Announce(Id job, CheckpointKey key, uint32_t rank, std::string reason);

  void OnEvent(const lifecycle::NodeEvent& event);
  // The context is closing: everything that waits for a save looks again.
  void Wake();

  // Saves that are neither failed nor committed.
  size_t open_count() const { return saves_.size(); }

 private:
  static Task<void> RunBegin(SaveService* service, std::shared_ptr<Save> save, Gate::Hold hold);
  static Task<void> RunHash(SaveService* service, std::shared_ptr<Save> save, Gate::Hold hold);
  static Task<void> RunAnnounce(SaveService* service, lifecycle::SkipRequest skip, Gate::Hold hold);
  Task<void> HashAll(std::shared_ptr<Save> save);
  Task<void> SealLocally(std::shared_ptr<Save> save);
  void OnCommitted(const lifecycle::NodeEvent& event);
  void OnAborted(const lifecycle::NodeEvent& event);
  void OnFenced(const lifecycle::NodeEvent& event);
  // Keeps how a save ended for a rank that is not connected at this moment.
  void Remember(const Save& save);
  std::vector<std::shared_ptr<Save>> SavesOf(const lifecycle::NodeEvent& event) const;

  NodeContext& context_;
  Slab& slab_;
  std::function<void()> inventory_changed_;
  Uploader uploader_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::shared_ptr<Save>> saves_;
  struct Ended {
    format::ShardIdentity shard;
    wire::SaveState state;
  };
  std::deque<Ended> ended_;  // the newest kEndedMax
};

}  // namespace reprise::node
