// Settler: what a new epoch resumes from (narrative on top of settle.cc).
//
// Thread rule: the store's loop. One settle per job at a time.
#pragma once

#include <vector>

#include "server/lifecycle/attempt.h"
#include "server/lifecycle/commit.h"
#include "server/lifecycle/core.h"
#include "server/lifecycle/inventory.h"
#include "server/lifecycle/read.h"

namespace reprise::lifecycle {

inline constexpr size_t kSkippedMax = 8;  // what was skipped, at most; a RESUME must fit its slot

class Settler {
 public:
  struct Parts {
    Attempts& attempts;
    Committer& committer;
    Inventories& inventories;
    Reads& reads;
  };
  Settler(Core& core, Parts parts) : core_(core), parts_(parts), started_(core.Now()) {}

  // Settles `epoch`, whose EPOCH is durable, and returns its RESUME, durable too. UNAVAILABLE: the
  // store shuts down or has failed.
  Task<Result<format::ResumeEntry>> Settle(Id job, uint64_t epoch);

 private:
  Task<Status> CollectInventories(uint64_t token);
  std::vector<AttemptPtr> Adopt(const Id& job, uint64_t epoch, uint64_t token);
  Task<void> WaitForCommits(std::vector<AttemptPtr> adopted);
  Task<Result<format::ResumeEntry>> Resume(Id job, uint64_t epoch);
  void SkipUnfinished(const Id& job, uint64_t epoch, format::ResumeEntry& resume) const;
  Task<Status> ChooseParent(Id job, format::ResumeEntry& resume);
  Task<Status> VerifyPatiently(CheckpointRow row, int& tries);

  Core& core_;
  Parts parts_;
  const TimePoint started_;
};

}  // namespace reprise::lifecycle
