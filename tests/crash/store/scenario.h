// Scenario: two ranks of one job save, delete and pin on a real store, and everything they ask for
// and are answered is told to the outside, one line each, before and after it happens.
//
// The lines are the only memory of what was promised: the process may die at any moment. The
// content of a checkpoint follows from its key, so that a checker needs nothing else to judge bytes.
//
//   begin E S R          rank R asks to save step S of epoch E
//   committed E S        the store said so
//   delete E S           asked for         deleted E S      answered       refused E S  answered
//   pin E S 0|1          asked for         pinned E S 0|1   answered
//   error ...            an answer that promises nothing
//
// Thread rule: one thread.
#pragma once

#include <fmt/format.h>

#include <map>
#include <optional>
#include <string>

#include "core/async/sync.h"
#include "tests/crash/store/real_store.h"

namespace reprise::crash {

inline constexpr uint32_t kWorld = 2;
inline constexpr uint64_t kShardBytes = 3 * 4096;
inline constexpr const char* kTenant = "crash";
inline constexpr const char* kJob = "job";

// One line to standard output, in one write: it is out even if the next instruction kills.
void SayLine(std::string line);
template <typename... Args>
void Say(fmt::format_string<Args...> format, Args&&... args) {
  SayLine(fmt::format(format, std::forward<Args>(args)...));
}

class Scenario {
 public:
  explicit Scenario(RealStore& host) : host_(host), changed_(host.loop()) {}

  // Registers a new run of the job (both ranks) and listens as its node.
  Status Begin();
  // One letter each: s save, d delete the oldest that can go, b both at once, P pin the oldest,
  // U unpin all. False when the store has failed and must be restarted.
  bool Do(char operation);
  // The last save was committed.
  bool saved() const {
    auto last = ended_.find({answer_.epoch, step_});
    return last != ended_.end() && last->second;
  }
  // Closes the store, which ends the listening too.
  void End();

 private:
  Task<void> Listen();
  Task<Status> Register(uint32_t rank);
  Task<Status> Save(CheckpointKey key);
  Task<Status> SaveRank(CheckpointKey key, uint32_t rank, Id attempt);
  Task<void> Delete(CheckpointKey key);
  Task<void> Pin(CheckpointKey key, bool pinned);
  Task<void> SaveNext();
  Task<void> DeleteOldest();
  Task<void> Both();
  Task<void> PinOldest();
  Task<void> UnpinAll();
  Task<std::vector<lifecycle::CheckpointInfo>> Listed();
  lifecycle::RankIdentity IdentityOf(uint32_t rank) const;

  RealStore& host_;
  Notifier changed_;
  Id node_;
  Id launch_;
  bool listening_ = false;
  lifecycle::RegisterAnswer answer_;
  uint64_t step_ = 0;
  std::map<CheckpointKey, bool> ended_;  // of this epoch: committed or aborted
};

}  // namespace reprise::crash
