// Retention: which checkpoints of a job may go now that a newer one is committed.
//
// Pure: a value in, a list out. The Committer asks after each commit and deletes through its own
// DELETE, which refuses whatever is pinned, being read, resumed from, or the last good one; what it
// refuses is offered again after the next commit.
//
// Thread rule: none.
#pragma once

#include <vector>

#include "server/lifecycle/store_state.h"

namespace reprise::lifecycle {

// Keys to delete, oldest first. Kept are the newest `keep.last` intact checkpoints of the lineage,
// everything newer than the oldest of those, pinned ones, and steps that are multiples of
// `keep.every`. Superseded and damaged checkpoints never count as one of the newest. Nothing goes
// while the lineage has fewer than `keep.last` intact ones, or when `keep.last` is 0.
std::vector<CheckpointKey> Expired(const StoreState& state, const JobState& job, const Keep& keep);

}  // namespace reprise::lifecycle
