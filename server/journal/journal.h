// Journal: the log of a store. An entry is acknowledged when its group's slot lies on both copies.
//
// Appends that arrive while a slot is being written join the next group. Groups are written one at a
// time, to both mirrored copies, O_DIRECT | O_DSYNC; the completion of the second copy is the
// linearisation point of everything in the group. Each append is all in one slot or not at all.
//
// Failure: an error while writing a slot leaves the outcome unknown. The journal then refuses
// everything (failed() is true) and the store must stop, restart and recover. Nothing is retried.
//
// Ring: a slot is overwritten slot_count groups later. The owner reports what its index holds
// durably through SetIndexed; Append waits (back-pressure) rather than overwrite a slot the index
// still needs.
//
// Thread rule: the Io's loop. Format: docs/format.md, "Journal".
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/async/sync.h"
#include "core/format/journal.h"
#include "core/format/mark.h"
#include "core/io/io.h"
#include "reprise/status.h"

namespace reprise::journal {

// How far a consumer has come: the group's number and its slot's chain value.
using Mark = format::GroupMark;

// Test only: each flag removes one barrier or check, so that the crash enumeration can show that it
// is needed. All false in production.
struct Mutations {
  bool skip_second_copy = false;    // groups are written to the first copy alone
  bool ack_before_durable = false;  // callers are answered when the slot is submitted
  bool no_dsync = false;            // slots stay in the device's volatile cache
  bool skip_chain_check = false;    // recovery accepts a slot by its number alone
  bool skip_repair = false;         // recovery leaves the copies as it found them
  bool truncate_at_rot = false;     // recovery takes damage in the middle for the end
};

struct Options {
  std::string path_a;  // two copies; on two devices where there are two
  std::string path_b;
  uint32_t slot_count = 0;  // at least 2, at most kSlotCountMax
  Id store;
  Mutations mutations;
};

// Slots of one ring at most; recovery holds both copies in memory.
inline constexpr uint32_t kSlotCountMax = 1 << 16;

// One durable group, as recovered or as just written.
struct Group {
  Mark mark;
  std::vector<format::Entry> entries;
};

class Journal {
 public:
  struct Recovered {
    std::unique_ptr<Journal> journal;
    std::vector<Group> replay;         // (applied, W], in order
    std::vector<std::string> repairs;  // what was wrong in a copy, and what was done about it
  };

  // Makes both files, written with zeros and flushed, directories synced. Existing files are
  // overwritten only when they hold no intact slot (else ALREADY_EXISTS).
  static Task<Status> Create(Io& io, Options options);

  // Recovery (narrative on top of journal.cc). `applied` is what the index holds durably.
  // DATA_LOSS: the chain from `applied` is broken, or the index is ahead of both copies (the device
  // lies), or the ring no longer reaches back to `applied`; the message says which and what to do.
  // A slot that one copy lacks is repaired from the other; a copy that is missing is made anew.
  // NOT_FOUND: both copies are missing. UNIMPLEMENTED: a slot of a newer version. After OK the
  // copies are alike and every group in `replay` is durable.
  static Task<Result<Recovered>> Open(Io& io, Options options, Mark applied);

  ~Journal();

  // Appends `entries` atomically. `on_durable` (optional) is called on the loop when the group is
  // durable, before any caller of a later group resumes; calls come in journal order. The returned
  // mark is the group's. INVALID_ARGUMENT: the entries do not fit one slot, or there are none.
  // OUTCOME_UNKNOWN: the write failed. UNAVAILABLE: nothing was written, because the journal has
  // failed before, or is closed. Concurrent appends keep the order in which they were started.
  Task<Result<Mark>> Append(std::vector<format::Entry> entries,
                            std::function<void(const Mark&)> on_durable = {});

  // The index is durable up to `mark`: its slots may be overwritten. Lower marks are ignored.
  void SetIndexed(Mark mark);
  // The last durable group.
  Mark last() const;
  // Groups between the last durable one and the last indexed one.
  uint64_t unindexed() const;
  bool failed() const;
  // The index has failed and will make no more room: appends that wait are UNAVAILABLE, and so are
  // later ones. The group in flight ends as it may.
  void Refuse();
  // Waits for the group in flight, then closes the files. Appends that wait behind it, and later
  // ones, are UNAVAILABLE.
  Task<void> Close();

 private:
  struct State;
  explicit Journal(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;  // shared with the writer coroutine
};

}  // namespace reprise::journal
