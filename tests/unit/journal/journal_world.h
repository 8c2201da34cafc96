// A journal on simulated disks, a reference run that can be cut at every event, and its judgement.
//
// Reference run: three clients append tagged entries concurrently to a ring of eight slots, an
// indexer reports progress now and then. At each disk event the disk is copied, together with what
// the callers knew at that moment.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "server/journal/journal.h"

namespace reprise::journal {

inline const std::string kHost = "store";
inline constexpr uint32_t kSlots = 8;

Options TestOptions(Mutations mutations = {});
format::Entry Tagged(const std::string& tag);
std::string TagOf(const format::Entry& entry);
// Tags of all groups, in order.
std::vector<std::string> TagsOf(const std::vector<Group>& groups);
// Byte offset of the slot of group `seq`.
uint64_t OffsetOf(uint64_t seq);

// One life of a machine: a world, one host, its Io.
struct Machine {
  explicit Machine(uint64_t seed = 1) : world(seed), io(world.loop(), world, kHost) {}
  // Starts with the disk of another machine.
  explicit Machine(const SimDisk& disk) : Machine() { world.disk(kHost) = disk; }
  ~Machine();

  SimDisk& disk() { return world.disk(kHost); }
  Loop& loop() { return world.loop(); }
  Result<Journal::Recovered> Open(Mark applied, Mutations mutations = {});
  Result<Mark> Append(Journal& journal, const std::string& tag);

  SimWorld world;
  SimIo io;
};

// What was true when a disk event happened.
struct Moment {
  SimDisk disk;
  Mark indexed;             // durable in the index
  std::vector<Mark> known;  // groups reported durable so far, in order
};

struct JournalRun {
  std::vector<Moment> moments;
  std::vector<Group> history;  // all groups, as reported through on_durable
  std::vector<std::string> acknowledged;
  SimDisk disk;  // at the end
  Mark indexed;
  std::vector<Status> failures;  // of appends
};

struct RunOptions {
  int appends_per_client = 12;
  Mutations mutations;
  uint64_t fail_write_at = 0;
  bool keep_moments = true;
};
JournalRun RunReference(RunOptions options);

// The group numbers that recovery may hand out for a disk, judged against the full history.
struct Verdict {
  bool ok = true;
  std::string why;
};
// `replay` after `applied` must continue the history, hold all of `known`, and at most one more.
Verdict Judge(const JournalRun& run, const Mark& applied, const std::vector<Mark>& known,
              const std::vector<Group>& replay);

// Crash states looked at, and those whose recovery broke a promise; `first` tells of the first.
struct Tally {
  uint64_t states = 0;
  uint64_t violations = 0;
  std::string first;
};
// Power cut at every event, every outcome of every undecided cell; then a cut at every event of that
// recovery; then a cut after it.
Tally EnumeratePowerCuts(const JournalRun& run, Mutations mutations);
// Power cut at every event and one flipped bit in one slot of one copy.
Tally EnumeratePowerCutsWithRot(const JournalRun& run);
// The process dies at every event, the machine lives; after recovery the power is cut.
Tally EnumerateProcessDeaths(const JournalRun& run, Mutations mutations);

}  // namespace reprise::journal
