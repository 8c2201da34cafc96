// Slab: the node's memory for snapshots. One file per slot in a tmpfs directory, under one hard
// budget.
//
// A slot belongs to the process it was granted to (its owner) until that process is gone; then it
// is *released*: nobody writes it again, and it lives on while it holds the newest copy. The life
// of a slot's content: free -> filling -> sealed -> (newer attempt committed, or own attempt
// aborted) free. The only good copy is never overwritten: Take hands out a sealed slot only when a
// NEWER attempt of the same job is committed. Pages are allocated here, before a grant, so that the
// kernel charges them to the daemon and not to the trainer's container. File formats:
// slot_format.h.
//
// After a restart of the daemon, Open adopts every sealed slot whose header and companion are
// intact, as released; all else in the directory that is ours is removed.
//
// Thread rule: the loop of `io`. Nothing blocks but what is a Task. Close before destruction, unless the
// Io has dropped everything (a simulated crash).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/base/random.h"
#include "core/io/io.h"
#include "server/lifecycle/coordinator_api.h"
#include "server/node/machine.h"
#include "server/node/slab_mapping.h"
#include "server/node/slab_mutations.h"
#include "server/node/slot_format.h"

namespace reprise::node {

class Slab;

// Bytes reserved in the slab's budget; given back on destruction.
class BudgetHold {
 public:
  BudgetHold() = default;
  BudgetHold(std::shared_ptr<uint64_t> used, uint64_t bytes);
  BudgetHold(BudgetHold&& other) noexcept;
  BudgetHold& operator=(BudgetHold&& other) noexcept;
  ~BudgetHold();

 private:
  std::shared_ptr<uint64_t> used_;
  uint64_t bytes_ = 0;
};

// One slot. Made by Slab; shared with whoever reads it, so that its memory outlives its removal.
class Slot {
 public:
  const std::string& name() const { return name_; }
  uint32_t index() const { return header_.index; }
  uint64_t capacity() const { return header_.capacity; }
  uint64_t file_bytes() const { return mapping_.size(); }
  SlotState state() const { return header_.state; }
  bool committed() const { return header_.committed; }
  bool quarantined() const { return quarantined_; }
  bool released() const { return owner_.IsZero(); }
  const Id& owner() const { return owner_; }
  const SlabMapping& mapping() const { return mapping_; }
  MutableByteView data() const {
    return mapping_.bytes().subspan(kSlotDataOffset, header_.capacity);
  }

  // What a sealed slot holds. Require state() == kSealed.
  const format::ShardIdentity& identity() const { return manifest_->identity; }
  const std::shared_ptr<const format::ShardManifest>& manifest() const { return manifest_; }
  const std::shared_ptr<const Bytes>& layout() const { return layout_; }
  // Bytes of chunk `index` as they lie there now.
  ByteView Chunk(uint64_t index) const;
  // True when this slot still holds that very shard, sealed and not quarantined.
  bool Holds(const Id& attempt, uint32_t rank) const;
  // How often it was handed out: tells whether it is still the one that somebody took.
  uint64_t takes() const { return takes_; }

 private:
  friend class Slab;
  friend class SlotUse;
  void WriteHeader();

  std::string name_;
  Id owner_;  // the grant; zero once released
  SlotHeader header_;
  SlabMapping mapping_;
  BudgetHold budget_;
  std::shared_ptr<const format::ShardManifest> manifest_;
  std::shared_ptr<const Bytes> layout_;
  bool quarantined_ = false;
  bool removed_ = false;
  uint32_t uses_ = 0;
  uint64_t takes_ = 0;
};

// Keeps a slot from being handed out for the next shard while an upload or a seal works on it.
class SlotUse {
 public:
  SlotUse() = default;
  explicit SlotUse(std::shared_ptr<Slot> slot) : slot_(std::move(slot)) { ++slot_->uses_; }
  SlotUse(SlotUse&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
  SlotUse& operator=(SlotUse&& other) noexcept {
    std::swap(slot_, other.slot_);
    return *this;
  }
  ~SlotUse() {
    if (slot_ != nullptr) --slot_->uses_;
  }

 private:
  std::shared_ptr<Slot> slot_;
};

struct SlabOptions {
  std::string directory;   // made when missing (its parent must exist)
  uint64_t bytes_max = 0;  // 0: half of what the file system has free
  Machine* machine = &Machine::Local();
  SlabMutations mutations;
};

struct GrantRequest {
  Id owner;    // names the grant; new for every attach
  Id process;  // for the header
  uint32_t rank = 0;
  uint64_t slot_bytes = 0;  // a multiple of the chunk size
  uint32_t slots = 2;
};

class Slab {
 public:
  // Locks the directory (FAILED_PRECONDITION: another daemon holds it) and adopts what is intact.
  static Task<Result<std::unique_ptr<Slab>>> Open(Io& io, Rng& rng, SlabOptions options);
  // Waits for files that are being removed, and unlocks. Sealed slots stay on disk for the next
  // daemon.
  Task<void> Close();

  // Allocates and maps `slots` slots. Released slots whose checkpoint is committed make room first,
  // oldest first. RESOURCE_EXHAUSTED shows the arithmetic; nothing is allocated then.
  Task<Result<std::vector<std::shared_ptr<Slot>>>> Grant(GrantRequest request);
  // An anonymous shared file of `bytes`, in the budget (restore rings).
  struct Scratch {
    SlabMapping mapping;
    BudgetHold budget;
  };
  Task<Result<Scratch>> GrantScratch(uint64_t bytes, std::string purpose);

  // A slot of `owner` for a new shard, now filling. RESOURCE_EXHAUSTED says what each slot holds.
  Result<std::shared_ptr<Slot>> Take(const Id& owner, const format::ShardIdentity& shard);
  // The shard is complete: writes the companion, then the header. On failure the slot stays
  // filling.
  Task<Status> Seal(std::shared_ptr<Slot> slot,
                    std::shared_ptr<const format::ShardManifest> manifest,
                    std::shared_ptr<const Bytes> layout);
  // The content is worthless (aborted): free for its owner, or removed when released.
  void Discard(const std::shared_ptr<Slot>& slot);
  // The owner is gone: sealed content stays, the rest of its slots is removed.
  void Release(const Id& owner);
  // A copy failed its digest: never read again, never reported; freed like any other content.
  void Quarantine(const std::shared_ptr<Slot>& slot);

  // An attempt is committed: its slots say so, and older content of the job becomes reusable.
  void OnCommitted(const Id& job, CheckpointKey key, const Id& attempt);
  // The attempt will never commit: discards its sealed slots.
  void OnAborted(const Id& job, CheckpointKey key, const Id& attempt);

  // Removes released slots that a newer commit has made obsolete, but for those in use: whoever ends
  // the use of one calls this.
  void DropSuperseded();

  // The sealed, intact copy of a shard, or null.
  std::shared_ptr<Slot> Find(const Id& attempt, uint32_t rank) const;
  std::vector<lifecycle::InventoryItem> Inventory() const;
  const std::vector<std::shared_ptr<Slot>>& slots() const { return slots_; }

  const SlabMutations& mutations() const { return options_.mutations; }
  uint64_t used_bytes() const { return *used_; }
  uint64_t budget_bytes() const { return budget_bytes_; }
  const std::string& directory() const { return options_.directory; }
  // The daemon's identity, kept with the slots it describes.
  const Id& node_id() const { return node_id_; }

 private:
  Slab(Io& io, Rng& rng, SlabOptions options);
  Task<Status> LoadNodeId();
  Task<Status> Adopt();
  Task<Status> AdoptOne(std::string name);
  Task<Result<std::shared_ptr<Slot>>> MakeSlot(GrantRequest request, uint32_t index,
                                               BudgetHold budget);
  void MakeRoom(uint64_t bytes);
  bool IsSuperseded(const Slot& slot) const;
  void Remove(const std::shared_ptr<Slot>& slot);
  void RemoveFile(std::string name);
  static Task<void> RemoveFileTask(Slab* slab, std::string path, Gate::Hold hold);
  std::string PathOf(const std::string& name) const { return options_.directory + "/" + name; }
  Status Refusal(const GrantRequest& request) const;

  Io& io_;
  Rng& rng_;
  SlabOptions options_;
  Gate gate_;
  FileId lock_;
  Id node_id_;
  uint64_t budget_bytes_ = 0;
  std::shared_ptr<uint64_t> used_ = std::make_shared<uint64_t>(0);
  std::vector<std::shared_ptr<Slot>> slots_;
  std::map<Id, CheckpointKey> newest_committed_;  // by job; bounded
};

// What a slot of this capacity takes from the budget.
uint64_t SlotCost(uint64_t slot_bytes);

}  // namespace reprise::node
