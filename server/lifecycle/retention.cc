#include "server/lifecycle/retention.h"

namespace reprise::lifecycle {

std::vector<CheckpointKey> Expired(const StoreState& state, const JobState& job, const Keep& keep) {
  if (keep.last == 0) return {};
  const CheckpointRow* oldest_kept = nullptr;
  uint32_t kept = 0;
  for (const CheckpointRow* row : state.Lineage(job)) {
    if (row->mark != format::Mark::kIntact) continue;
    oldest_kept = row;
    if (++kept == keep.last) break;
  }
  if (kept < keep.last) return {};
  std::vector<CheckpointKey> expired;
  for (const auto& [key, row] : job.checkpoints) {
    if (key >= oldest_kept->commit.key) break;
    bool periodic = keep.every != 0 && key.step % keep.every == 0;
    if (!row.pinned && !periodic) expired.push_back(key);
  }
  return expired;
}

}  // namespace reprise::lifecycle
