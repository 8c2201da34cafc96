// Journal: the log of a store. An entry is acknowledged when its group's slot lies on both copies.
//
// Appends that arrive while a slot is being written join the next group. Groups are written one at a
// time, to both mirrored copies, O_DIRECT | O_DSYNC; the completion of the second copy is the
// linearisation point of everything in the group. Each append is all in one slot or not at all.
//
// Failure: an error while writing a slot leaves the outcome unknown. The journal then refuses
// everything (failed() is true) and the store must stop, restart and recover.
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
#include "core/io/io.h"
#include "reprise/status.h"

namespace reprise::journal {

// How far a consumer has come: the group's number and its slot's chain value.
struct Mark {
  uint64_t seq = 0;
  Digest chain;
  bool operator==(const Mark&) const = default;
};

struct Options {
  std::string path_a;  // two copies; on two devices where there are two
  std::string path_b;
  uint32_t slot_count = 0;
  Id store;
};

// One durable group, as recovered or as just written.
struct Group {
  Mark mark;
  std::vector<format::Entry> entries;
};

class Journal {
 public:
  struct Recovered {
    std::unique_ptr<Journal> journal;
    std::vector<Group> replay;           // (applied, W], in order
    std::vector<std::string> repairs;    // what was wrong in one copy and was repaired
  };

  // Makes both files, written with zeros and flushed, directories synced. Existing files are
  // overwritten only when they hold no intact slot (else ALREADY_EXISTS).
  static Task<Status> Create(Io& io, Options options);

  // Recovery (narrative on top of journal.cc). `applied` is what the index holds durably.
  // DATA_LOSS: the chain from `applied` is broken, or the index is ahead of both copies (the device
  // lies), or the ring no longer reaches back to `applied`; the message says which and what to do.
  // A slot that one copy lacks is repaired from the other.
  static Task<Result<Recovered>> Open(Io& io, Options options, Mark applied);

  ~Journal();

  // Appends `entries` atomically. `on_durable` (optional) is called on the loop when the group is
  // durable, before any caller of a later group resumes; calls come in journal order. The returned
  // mark is the group's. INVALID_ARGUMENT: the entries do not fit one slot. OUTCOME_UNKNOWN: the
  // write failed. UNAVAILABLE: the journal has failed before, or is closed.
  Task<Result<Mark>> Append(std::vector<format::Entry> entries,
                            std::function<void(const Mark&)> on_durable = {});

  // The index is durable up to `mark`: its slots may be overwritten.
  void SetIndexed(Mark mark);
  Mark last() const;
  // Groups between the last durable one and the last indexed one.
  uint64_t unindexed() const;
  bool failed() const;
  // Waits for the group in flight, then closes the files. Later appends are UNAVAILABLE.
  Task<void> Close();

 private:
  struct State;
  explicit Journal(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace reprise::journal
