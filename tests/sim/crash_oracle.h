// CrashOracle: what the outside world knows about a store at one instant, and the judgement of what
// a store that was recovered from that instant shows.
//
// The workload of an enumeration notes every request before it is made and every answer when it
// arrives. The oracle is copied together with the media at each crash point; nothing in it comes
// from the store's own idea of its state.
//
// Thread rule: a value.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/lifecycle/harness.h"

namespace reprise::lifecycle {

struct CrashOracle {
  struct Step {
    uint64_t seed = 0;  // of its bytes
    Id attempt;
    std::set<uint32_t> seal_requested;  // ranks whose Seal was called
    std::set<uint32_t> seal_answered;   // ranks whose Seal answered OK
    bool committed = false;             // acknowledged
    bool delete_requested = false;
    bool deleted = false;           // acknowledged
    bool given_up = false;          // abort or a later RESUME was asked for
    bool local_everywhere = false;  // sealed on every node before the fence: must not be lost
  };
  Id job;
  uint32_t world = 2;
  uint64_t length = kTestChunk;
  std::map<CheckpointKey, Step> steps;
  // Once a run was told where to resume, nothing else may ever be its answer.
  std::map<uint64_t, std::optional<CheckpointKey>> resumed;

  // Everything wrong with `host`'s store, recovered; empty when it keeps its promises.
  std::vector<std::string> Judge(StoreHost& host) const {
    std::vector<std::string> violations;
    const JobState* state = host.store().state().FindJob(job);
    for (const auto& [key, step] : steps) JudgeStep(host, state, key, step, violations);
    for (const auto& [epoch, parent] : resumed) {
      bool same = state != nullptr && state->epochs.contains(epoch) &&
                  state->epochs.at(epoch).resume.has_value() &&
                  state->epochs.at(epoch).resume->parent == parent;
      if (!same) violations.push_back("the resume point of an epoch changed");
    }
    JudgeLatest(host, violations);
    if (host.store().failed()) violations.push_back("the store failed while it was checked");
    return violations;
  }

 private:
  static std::string Name(const CheckpointKey& key) {
    return std::to_string(key.step) + "~" + std::to_string(key.epoch);
  }
  void JudgeStep(StoreHost& host, const JobState* state, const CheckpointKey& key, const Step& step,
                 std::vector<std::string>& violations) const {
    bool visible = state != nullptr && state->checkpoints.contains(key);
    if (step.committed && !step.delete_requested && !visible) {
      violations.push_back("acknowledged commit " + Name(key) + " is lost");
    }
    if (step.deleted && visible) {
      violations.push_back("acknowledged delete of " + Name(key) + " came back");
    }
    if (visible && step.seal_requested.size() != world) {
      violations.push_back(Name(key) + " is visible though not every rank sealed");
    }
    if (visible) {
      Status bytes = CheckBytes(host, job, key, world, step.seed, length);
      if (!bytes.ok()) violations.push_back(Name(key) + " is visible but: " + bytes.ToString());
    }
    bool over = step.given_up || step.delete_requested;
    for (uint32_t rank : step.seal_answered) {
      if (over || host.store().state().FindShard(step.attempt, rank) != nullptr) continue;
      violations.push_back("sealed shard " + std::to_string(rank) + " of " + Name(key) +
                           " is lost");
    }
  }
  void JudgeLatest(StoreHost& host, std::vector<std::string>& violations) const {
    std::optional<CheckpointKey> floor;
    for (const auto& [key, step] : steps) {
      if (step.committed && !step.delete_requested) floor = key;
    }
    if (!floor.has_value()) return;
    auto latest = host.Run(host.store().Resolve("team", "gpt", {}));
    if (!latest.has_value() || latest->key < *floor) {
      violations.push_back("latest went back below " + Name(*floor));
    }
  }
};

}  // namespace reprise::lifecycle
