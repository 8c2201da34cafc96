// Model: the exact reference of what a simulated world may show, and the judge of what it shows.
//
// It hears what ranks and operators did and were told (Began, SealRequested, Registered ...) and sees
// the store's state now and then (Inspect). Contents are functions of (launch, step, rank), so that
// every byte is known. A contradiction is a violation: text for people, kept in `violations`.
//
// Thread rule: a value with one owner.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/format/layout.h"
#include "server/lifecycle/coordinator_api.h"
#include "server/lifecycle/store_state.h"
#include "tests/sim/whole/counts.h"

namespace reprise::sim {

inline constexpr uint32_t kChunkBytes = 4096;

// What a launch saves: three tensors (sharded, replicated, of each rank).
struct ContentShape {
  uint64_t row_bytes = 6000;
  uint64_t shared_bytes = 1000;
  uint64_t own_bytes = 500;
};
format::Layout LayoutOf(const ContentShape& shape, uint32_t rank, uint32_t world);
// The shard of `rank` at `step` of launch number `launch`.
Bytes ShardOf(const format::Layout& layout, uint64_t launch, uint64_t step, uint32_t rank);

struct Launch {
  uint64_t number = 0;  // unique in the world
  std::string job;
  uint32_t world = 1;
  ContentShape shape;
  Keep keep;
};

class Model {
 public:
  explicit Model(Counts& counts) : counts_(counts) {}

  std::vector<std::string> violations;
  // Beyond the fault bound: bytes or journal copies may have been damaged for good.
  bool may_lose = false;

  void Violate(std::string what);

  // --- what ranks did and heard
  void Registered(const Launch& launch, uint32_t rank, const lifecycle::RegisterAnswer& answer,
                  bool again);
  void Began(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank);
  void SealRequested(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank);
  void LocalSealed(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank);
  void Committed(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank);
  void Failed(const Launch& launch, uint64_t epoch, uint64_t step, uint32_t rank,
              const Status& why);
  // Bytes of a whole shard that was read back and fits its digests.
  void Restored(const std::string& job, CheckpointKey key, uint32_t rank, const Bytes& bytes,
                const format::Layout& layout, std::string_view how);

  // All its processes are gone.
  void LaunchEnded(uint64_t launch) { ended_.insert(launch); }

  // --- what operators asked and heard
  void DeleteAsked(const std::string& job, CheckpointKey key);
  void DeleteDone(const std::string& job, CheckpointKey key, const Status& status);
  void PinAsked(const std::string& job, CheckpointKey key, bool pinned);
  void PinDone(const std::string& job, CheckpointKey key, bool pinned, const Status& status);

  // --- what the store shows
  void Inspect(const lifecycle::StoreState& state);
  // A run was killed while nothing else went wrong since `calm_since` (see Simulation): what was
  // sealed by every rank then must be what the next run resumes from, or something newer.
  void ExpectResumeAtLeast(const std::string& job, CheckpointKey key) {
    jobs_[job].resume_at_least = key;
  }
  void DropExpectations() {
    for (auto& [name, job] : jobs_) job.resume_at_least.reset();
  }
  // The newest step of the launch that every rank has heard to be sealed and nobody to have failed.
  std::optional<CheckpointKey> SealedByAll(const Launch& launch) const;

  std::vector<CheckpointKey> Visible(const std::string& job) const;
  bool IsVisible(const std::string& job, CheckpointKey key) const;
  // No rank has heard of a later epoch of the job.
  bool IsNewest(const std::string& job, uint64_t epoch) const;
  const Launch* LaunchOf(const std::string& job, CheckpointKey key) const;

 private:
  struct Save {
    uint64_t launch = 0;
    std::set<uint32_t> begun, seal_requested, local_sealed;
    bool failed = false;
    bool committed = false;
  };
  struct Seen {
    Id attempt;
    bool pinned = false;
  };
  struct Epoch {
    uint64_t launch = 0;
    std::optional<CheckpointKey> resume;
    bool answered = false;
  };
  struct Job {
    std::map<CheckpointKey, Save> saves;
    std::map<CheckpointKey, Seen> seen;
    std::map<uint64_t, Epoch> epochs;
    std::set<CheckpointKey> delete_asked, delete_acked;
    std::map<CheckpointKey, bool> pinned;  // as acknowledged
    std::set<CheckpointKey> unpin_asked;   // may be carried out at any time, more than once
    std::optional<CheckpointKey> latest;
    uint64_t granted = 0;        // greatest epoch when last inspected
    uint64_t resumed_epoch = 0;  // greatest with a RESUME when last inspected
    std::optional<CheckpointKey> resume_at_least;
    bool keeps_all = true;
  };

  Save* SaveOf(const Launch& launch, uint64_t epoch, uint64_t step, std::string_view what);
  void InspectJob(Job& job, const lifecycle::StoreState& state, const lifecycle::JobState& shown);
  void InspectNew(Job& job, const lifecycle::JobState& shown, const lifecycle::CheckpointRow& row);
  void InspectGone(Job& job, const lifecycle::JobState& shown);
  void InspectExtents(const lifecycle::StoreState& state);

  Counts& counts_;
  std::map<std::string, Job> jobs_;
  std::map<uint64_t, Launch> launches_;
  std::set<uint64_t> ended_;
};

std::string NameOf(const std::string& job, CheckpointKey key);

}  // namespace reprise::sim
