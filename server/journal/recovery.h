// Recovery of the journal, the deciding half: from two copies of the ring and what the index holds,
// which groups are the history, and which slots must be rewritten before serving.
//
// The rules are the numbered narrative on top of journal.cc. Reading the copies and carrying out the
// rewrites is journal.cc's part.
//
// Thread rule: a pure function; no I/O.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "reprise/status.h"
#include "server/journal/journal.h"
#include "server/journal/ring.h"

namespace reprise::journal {

struct Rewrite {
  size_t copy = 0;  // 0 or 1
  uint32_t position = 0;
  ByteView slot;  // points into one of the images, or at zeros with static life
};

struct RecoveryPlan {
  std::vector<Group> replay;       // (applied, W], in order
  Mark last;                       // W
  std::vector<Rewrite> rewrites;   // in this order, one after the other
  std::vector<std::string> notes;  // for Recovered::repairs
};

// DATA_LOSS and UNIMPLEMENTED as Journal::Open. `images` must outlive the plan.
Result<RecoveryPlan> PlanRecovery(const std::array<RingImage, 2>& images, const Options& options,
                                  const Mark& applied);

}  // namespace reprise::journal
