#include "tests/unit/journal/journal_world.h"

#include <algorithm>

#include "core/base/log.h"

namespace reprise::journal {
namespace {

constexpr int kClients = 3;

struct Reference {
  Journal& journal;
  JournalRun& run;
  int running = 0;
};

Task<void> Client(Reference& reference, int client, int appends) {
  for (int i = 0; i < appends; ++i) {
    std::string tag = fmt::format("c{}-{}", client, i);
    std::vector<format::Entry> entries{Tagged(tag)};
    JournalRun& run = reference.run;
    Result<Mark> mark =
        co_await reference.journal.Append(std::move(entries), [&run, tag](const Mark& at) {
          if (run.history.empty() || run.history.back().mark.seq != at.seq) {
            run.history.push_back({at, {}});
          }
          run.history.back().entries.push_back(Tagged(tag));
        });
    if (mark.has_value()) {
      run.acknowledged.push_back(tag);
    } else {
      run.failures.push_back(mark.error());
    }
    // The index lags by up to half a ring.
    if (client == 0 && mark.has_value() && reference.journal.unindexed() >= kSlots / 2) {
      run.indexed = *mark;
      reference.journal.SetIndexed(*mark);
    }
  }
  --reference.running;
}

std::vector<Mark> MarksOf(const std::vector<Group>& groups) {
  std::vector<Mark> marks;
  for (const Group& group : groups) marks.push_back(group.mark);
  return marks;
}

// All combinations of one outcome per undecided thing.
std::vector<std::vector<SimOutcome>> Combinations(const std::vector<SimUndecided>& undecided) {
  std::vector<std::vector<SimOutcome>> all{{}};
  for (const SimUndecided& item : undecided) {
    std::vector<std::vector<SimOutcome>> longer;
    for (const std::vector<SimOutcome>& prefix : all) {
      for (const SimOutcome& outcome : OutcomesOf(item, /*torn=*/true)) {
        longer.push_back(prefix);
        longer.back().push_back(outcome);
      }
    }
    all = std::move(longer);
    if (all.size() > 4096) break;  // enough: the rest is decided as "lost"
  }
  return all;
}

SimChooser Scripted(std::vector<SimOutcome> outcomes) {
  return [outcomes = std::move(outcomes), next = size_t{0}](const SimUndecided&) mutable {
    return next < outcomes.size() ? outcomes[next++] : SimOutcome{};
  };
}

void Record(Tally& tally, const Verdict& verdict, std::string_view where) {
  ++tally.states;
  if (verdict.ok) return;
  if (tally.violations++ == 0) tally.first = fmt::format("{}: {}", where, verdict.why);
}

Verdict Recover(const JournalRun& run, Machine& machine, const Mark& applied,
                const std::vector<Mark>& known, Mutations mutations, std::vector<Mark>* served) {
  Result<Journal::Recovered> recovered = machine.Open(applied, mutations);
  if (!recovered.has_value()) return {false, recovered.error().ToString()};
  if (served != nullptr) *served = MarksOf(recovered->replay);
  return Judge(run, applied, known, recovered->replay);
}

// Recovery of a disk that lost power, power cuts within it, and a power cut after it.
void RecoverWithCuts(Tally& tally, const JournalRun& run, const SimDisk& disk, const Moment& moment,
                     const Mark& applied, Mutations mutations) {
  Machine machine(disk);
  std::vector<SimDisk> inside;
  machine.disk().OnEvent([&](const SimEvent&) { inside.push_back(machine.disk()); });
  std::vector<Mark> served;
  Record(tally, Recover(run, machine, applied, moment.known, mutations, &served), "recovery");
  machine.disk().OnEvent({});
  for (const SimDisk& cut : inside) {
    for (const SimChooser& chooser : {SimChooser(LoseUnflushed), RandomOutcome(tally.states)}) {
      Machine again(cut);
      again.disk().Crash(chooser);
      Record(tally, Recover(run, again, applied, moment.known, mutations, nullptr),
             "recovery after a cut in recovery");
    }
  }
  std::vector<Mark> owed = moment.known;
  for (const Mark& mark : served) {
    if (owed.empty() || mark.seq > owed.back().seq) owed.push_back(mark);
  }
  Machine after(machine.disk());
  after.disk().Crash(LoseUnflushed);
  Record(tally, Recover(run, after, applied, owed, mutations, nullptr),
         "power cut after a recovery that served");
}

// The index surely holds `indexed`; it may hold anything up to what was reported.
std::vector<Mark> PossibleIndexes(const Moment& moment) {
  std::vector<Mark> marks{moment.indexed};
  if (!moment.known.empty() && moment.known.back().seq > moment.indexed.seq) {
    marks.push_back(moment.known.back());
  }
  return marks;
}

}  // namespace

Options TestOptions(Mutations mutations) {
  Options options{"/a/JOURNAL.0", "/b/JOURNAL.1", kSlots, {}, mutations};
  options.store.bytes.fill(0x5a);
  return options;
}

format::Entry Tagged(const std::string& tag) { return format::JobEntry{{}, "tenant", tag}; }

std::string TagOf(const format::Entry& entry) { return std::get<format::JobEntry>(entry).name; }

std::vector<std::string> TagsOf(const std::vector<Group>& groups) {
  std::vector<std::string> tags;
  for (const Group& group : groups) {
    for (const format::Entry& entry : group.entries) tags.push_back(TagOf(entry));
  }
  return tags;
}

uint64_t OffsetOf(uint64_t seq) { return (seq % kSlots) * limits::kJournalSlotBytes; }

Machine::~Machine() {
  io.CrashHost(SimCrash::kProcessDeath);
  world.loop().DestroyAll();
}

Result<Journal::Recovered> Machine::Open(Mark applied, Mutations mutations) {
  return loop().RunTask(Journal::Open(io, TestOptions(mutations), applied));
}

Result<Mark> Machine::Append(Journal& journal, const std::string& tag) {
  return loop().RunTask(journal.Append({Tagged(tag)}));
}

JournalRun RunReference(RunOptions options) {
  Machine machine;
  JournalRun run;
  REPRISE_CHECK(machine.loop().RunTask(machine.io.MakeDirectory("/a")).ok());
  REPRISE_CHECK(machine.loop().RunTask(machine.io.MakeDirectory("/b")).ok());
  REPRISE_CHECK(machine.loop().RunTask(machine.io.SyncDirectory("/")).ok());
  Options journal_options = TestOptions(options.mutations);
  REPRISE_CHECK(machine.loop().RunTask(Journal::Create(machine.io, journal_options)).ok());
  Result<Journal::Recovered> opened = machine.Open({}, options.mutations);
  REPRISE_CHECK(opened.has_value());
  Reference reference{*opened->journal, run};
  if (options.keep_moments) {
    machine.disk().OnEvent([&](const SimEvent&) {
      run.moments.push_back({machine.disk(), run.indexed, MarksOf(run.history)});
    });
  }
  machine.disk().ResetCounters();
  machine.disk().faults.fail_write_at = options.fail_write_at;
  reference.running = kClients;
  for (int client = 0; client < kClients; ++client) {
    machine.loop().Spawn(Client(reference, client, options.appends_per_client));
  }
  machine.loop().RunUntil([&] { return reference.running == 0; });
  machine.loop().RunTask(opened->journal->Close());
  machine.disk().OnEvent({});
  run.disk = machine.disk();
  return run;
}

Verdict Judge(const JournalRun& run, const Mark& applied, const std::vector<Mark>& known,
              const std::vector<Group>& replay) {
  uint64_t owed = known.empty() ? 0 : known.back().seq;
  uint64_t end = replay.empty() ? applied.seq : replay.back().mark.seq;
  if (end < owed) return {false, fmt::format("ends at {}, {} was acknowledged", end, owed)};
  uint64_t known_or_applied = std::max(owed, applied.seq);
  if (end > known_or_applied + 1) {
    return {false, fmt::format("ends at {}, only {} could exist", end, known_or_applied + 1)};
  }
  uint64_t seq = applied.seq;
  for (const Group& group : replay) {
    if (group.mark.seq != ++seq) return {false, "groups are not consecutive"};
    if (seq > run.history.size()) return {false, "a group that was never written"};
    const Group& expected = run.history[seq - 1];
    if (expected.mark != group.mark || TagsOf({expected}) != TagsOf({group})) {
      return {false, fmt::format("group {} differs from what was written", seq)};
    }
  }
  return {};
}

Tally EnumeratePowerCuts(const JournalRun& run, Mutations mutations) {
  Tally tally;
  for (const Moment& moment : run.moments) {
    for (const std::vector<SimOutcome>& outcomes : Combinations(moment.disk.UnflushedCells())) {
      SimDisk disk = moment.disk;
      disk.Crash(Scripted(outcomes));
      for (const Mark& applied : PossibleIndexes(moment)) {
        RecoverWithCuts(tally, run, disk, moment, applied, mutations);
      }
    }
  }
  return tally;
}

Tally EnumeratePowerCutsWithRot(const JournalRun& run) {
  Tally tally;
  for (const Moment& moment : run.moments) {
    for (const std::vector<SimOutcome>& outcomes : Combinations(moment.disk.UnflushedCells())) {
      SimDisk disk = moment.disk;
      disk.Crash(Scripted(outcomes));
      for (uint32_t position = 0; position < 2 * kSlots; ++position) {
        Machine machine(disk);
        Options options = TestOptions();
        machine.disk().FlipBit(position % 2 == 0 ? options.path_a : options.path_b,
                               OffsetOf(position / 2) + 64 + position, 1);
        Record(tally, Recover(run, machine, moment.indexed, moment.known, {}, nullptr),
               fmt::format("power cut, and rot at position {}", position));
      }
    }
  }
  return tally;
}

Tally EnumerateProcessDeaths(const JournalRun& run, Mutations mutations) {
  Tally tally;
  for (const Moment& moment : run.moments) {
    for (const SimChooser& chooser : {SimChooser(KeepUnflushed), SimChooser(LoseUnflushed)}) {
      SimDisk disk = moment.disk;
      disk.SettleInFlight(chooser);
      for (const Mark& applied : PossibleIndexes(moment)) {
        RecoverWithCuts(tally, run, disk, moment, applied, mutations);
      }
    }
  }
  return tally;
}

}  // namespace reprise::journal
