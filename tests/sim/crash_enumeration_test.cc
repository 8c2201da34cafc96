// Exhaustive crash enumeration of the commit protocol, driving the real store over a simulated disk
// with a volatile cache (docs/adr: the promise is checked against the code, not against a model).
//
// At every disk event of the reference scenario (crash_workload.h) the media and the oracle are
// forked, and for each way in which the undecided cells may survive the power cut (kept, lost,
// torn) a store is recovered and judged. Up to 256 combinations are all tried; above that,
// every single and every pair deviation from "all lost" and from "all kept", and seeded samples.
// The index model loses none, some or all of its unflushed groups. Recovery itself is cut off at
// each of its own events (nested), and recovering twice must give what recovering once gives.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "core/base/log.h"
#include "tests/sim/crash_workload.h"

namespace reprise::lifecycle {
namespace {

// How much is tried at each crash point.
struct Effort {
  uint64_t exhaustive_states = 256;  // all combinations up to this many
  size_t pair_cells_max = 10;        // above it: pair deviations among the first so many cells
  uint64_t samples = 12;             // above it: seeded random combinations
  bool nested = true;                // recovery is cut off at each of its events
  bool stop_at_first = false;        // violation
};
// For removed barriers: enough to find them, soon.
constexpr Effort kSearch{32, 0, 4, false, true};

StoreOptions EnumerationOptions() {
  StoreOptions options = TinyOptions();
  options.geometry.segment_count = 1;
  options.coordinator.settle_timeout = 10s;
  return options;
}

struct Statistics {
  uint64_t points = 0;
  uint64_t states = 0;
  uint64_t nested = 0;
  uint64_t largest_group = 0;  // entries made durable with one journal write
  uint64_t violations = 0;
  std::string first;
  std::map<std::string, uint64_t> kinds;
};

// One instant of the scenario.
struct CrashPoint {
  SimDisk disk;
  catalog::MemoryCatalogDisk index;
  CrashOracle oracle;
};

using Outcomes = std::vector<SimOutcome>;

class Enumerator {
 public:
  Enumerator(StoreOptions options, Effort effort, CrashShape shape = {})
      : options_(std::move(options)), effort_(effort), shape_(shape) {}

  Statistics Run() {
    StoreHost host(7);
    CrashOracle oracle;
    host.disk().OnEvent([&](const SimEvent&) { At(host, oracle); });
    Status opened = host.Open(options_);
    if (!opened.ok()) {
      Violation("open: " + opened.ToString());
      return statistics_;
    }
    std::optional<std::string> failed = CrashWorkload(host, oracle, shape_).Run();
    if (failed.has_value()) Violation("workload: " + *failed);
    NoteGroups(host);
    if (!Done()) Rot(host, oracle);
    host.disk().OnEvent(nullptr);
    return statistics_;
  }

 private:
  bool Done() const { return effort_.stop_at_first && statistics_.violations > 0; }
  void Violation(std::string text) {
    ++statistics_.kinds[text];
    if (statistics_.violations++ == 0) statistics_.first = std::move(text);
  }

  void NoteGroups(StoreHost& host) {
    Bytes journal = host.disk().Contents("/store/JOURNAL.0").value_or(Bytes());
    for (size_t at = 0; at + limits::kJournalSlotBytes <= journal.size();
         at += limits::kJournalSlotBytes) {
      auto slot = format::DecodeSlot(ByteView(journal).subspan(at, limits::kJournalSlotBytes),
                                     host.store().id());
      if (!slot.has_value()) continue;
      statistics_.largest_group =
          std::max<uint64_t>(statistics_.largest_group, slot->entries.size());
    }
  }

  void At(StoreHost& host, const CrashOracle& oracle) {
    if (Done()) return;
    ++statistics_.points;
    CrashPoint point{host.disk(), host.index(), oracle};
    std::vector<SimUndecided> undecided = point.disk.UnflushedCells();
    ForEachOutcome(undecided, [&](const Outcomes& outcomes, bool baseline) {
      if (!Done()) TryState(point, outcomes, baseline);
    });
  }

  template <typename Visit>
  void ForEachOutcome(const std::vector<SimUndecided>& undecided, Visit visit) {
    std::vector<Outcomes> choices;
    uint64_t product = 1;
    for (const SimUndecided& each : undecided) {
      choices.push_back(OutcomesOf(each, /*torn=*/true));
      product = std::min<uint64_t>(product * choices.back().size(), effort_.exhaustive_states + 1);
    }
    Outcomes lost;
    Outcomes kept;
    for (const SimUndecided& each : undecided) {
      lost.push_back(LoseUnflushed(each));
      kept.push_back(KeepUnflushed(each));
    }
    visit(lost, true);
    visit(kept, true);
    if (product <= effort_.exhaustive_states) return VisitAll(choices, visit);
    for (const Outcomes& base : {lost, kept}) VisitDeviations(base, choices, visit);
    Rng rng(statistics_.points);
    for (uint64_t sample = 0; sample < effort_.samples; ++sample) {
      Outcomes random;
      for (const Outcomes& each : choices) random.push_back(each[rng.Below(each.size())]);
      visit(random, false);
    }
  }
  template <typename Visit>
  void VisitAll(const std::vector<Outcomes>& choices, Visit visit) {
    std::vector<size_t> digit(choices.size(), 0);
    while (true) {
      Outcomes outcomes;
      for (size_t i = 0; i < choices.size(); ++i) outcomes.push_back(choices[i][digit[i]]);
      visit(outcomes, false);
      size_t i = 0;
      while (i < digit.size() && ++digit[i] == choices[i].size()) digit[i++] = 0;
      if (i == digit.size()) return;
    }
  }
  template <typename Visit>
  void VisitDeviations(const Outcomes& base, const std::vector<Outcomes>& choices, Visit visit) {
    for (size_t i = 0; i < choices.size(); ++i) {
      for (const SimOutcome& first : choices[i]) {
        Outcomes one = base;
        one[i] = first;
        visit(one, false);
        for (size_t j = i + 1; j < std::min<size_t>(choices.size(), effort_.pair_cells_max); ++j) {
          for (const SimOutcome& second : choices[j]) {
            Outcomes two = one;
            two[j] = second;
            visit(two, false);
          }
        }
      }
    }
  }

  static void Cut(StoreHost& host, const Outcomes& outcomes) {
    size_t next = 0;
    host.disk().Crash([&](const SimUndecided&) {
      return next < outcomes.size() ? outcomes[next++] : SimOutcome{};
    });
  }

  void TryState(const CrashPoint& point, const Outcomes& outcomes, bool baseline) {
    size_t groups = point.index.unflushed_count();
    size_t survivors = baseline ? groups : statistics_.states % (groups + 1);
    for (int variant = 0; variant < (baseline ? 2 : 1); ++variant) {
      ++statistics_.states;
      StoreHost host(point.disk, point.index, 1000);
      Cut(host, outcomes);
      host.index().Crash(variant == 0 ? survivors : 0);
      if (baseline && effort_.nested) Nested(host, point.oracle);
      Recover(host, point.oracle, baseline);
      if (Done()) return;
    }
  }

  // Recovers, judges, and (in baselines) recovers again and saves once more.
  void Recover(StoreHost& host, const CrashOracle& oracle, bool thorough) {
    Status opened = host.Open(RecoveryOptions());
    if (!opened.ok()) return Violation("does not start: " + opened.ToString());
    for (std::string& violation : oracle.Judge(host)) Violation(std::move(violation));
    if (!thorough) return;
    auto rows = host.store().state().Rows();
    Status again = host.Restart(LoseUnflushed, RecoveryOptions());
    if (!again.ok()) return Violation("does not start twice: " + again.ToString());
    if (host.store().state().Rows() != rows) Violation("recovering twice differs from once");
    for (std::string& violation : oracle.Judge(host)) Violation("second: " + violation);
    TestRun later;
    later.world = oracle.world;
    later.launch = 50;
    if (Status up = later.Start(host); !up.ok()) Violation("no new run: " + up.ToString());
    CrashOracle settled = oracle;
    for (auto& [key, step] : settled.steps) step.given_up = step.given_up || !step.committed;
    for (std::string& violation : settled.Judge(host)) Violation("after a new run: " + violation);
  }
  // Recovery as the real thing does it: with the same removed barriers, if any.
  StoreOptions RecoveryOptions() const {
    StoreOptions options = options_;
    options.coordinator.inventory_grace = 1ms;
    options.coordinator.node_timeout = 1ms;
    options.coordinator.settle_timeout = 1ms;
    return options;
  }

  // Cuts the recovery of `powered_off` itself at each of its events.
  void Nested(StoreHost& powered_off, const CrashOracle& oracle) {
    StoreHost first(powered_off.disk(), powered_off.index(), 2000);
    first.disk().OnEvent([&](const SimEvent&) {
      for (bool keep : {false, true}) {
        if (Done()) return;
        ++statistics_.nested;
        StoreHost second(first.disk(), first.index(), 3000);
        second.disk().Crash(keep ? KeepUnflushed : LoseUnflushed);
        second.index().Crash(keep ? second.index().unflushed_count() : 0);
        Recover(second, oracle, false);
      }
    });
    Status opened = first.Open(RecoveryOptions());
    first.disk().OnEvent(nullptr);
    if (!opened.ok()) Violation("does not start: " + opened.ToString());
  }

  // --- rot: damage beyond a plain power cut, at the end of the scenario

  void Rot(StoreHost& host, const CrashOracle& oracle) {
    CrashPoint point{host.disk(), host.index(), oracle};
    RotJournal(point);
    RotBothCopies(point);
    RotManifest(point);
    LoseIndex(point);
  }
  // Each slot of each copy is rotten, then (repaired) the same slot of the other.
  void RotJournal(const CrashPoint& point) {
    for (uint64_t slot = 0; slot < options_.geometry.journal_slots; ++slot) {
      for (int copy = 0; copy < 2 && !Done(); ++copy) {
        ++statistics_.states;
        StoreHost host(point.disk, point.index, 4000);
        host.disk().Crash(LoseUnflushed);
        host.index().Crash(0);
        host.disk().FlipBit("/store/JOURNAL." + std::to_string(copy), slot * 4096 + 40, 3);
        Status opened = host.Open(RecoveryOptions());
        if (!opened.ok()) {
          Violation("rotten journal slot: " + opened.ToString());
          continue;
        }
        for (std::string& violation : point.oracle.Judge(host)) Violation("rot: " + violation);
        // The index is lost in the same crash: everything rests on the other copy.
        StoreHost other(host.disk(), point.index, 4001);
        host.Kill();
        other.disk().Crash(LoseUnflushed);
        other.index().Crash(0);
        other.disk().FlipBit("/store/JOURNAL." + std::to_string(1 - copy), slot * 4096 + 40, 3);
        Recover(other, point.oracle, false);
      }
    }
  }
  // One slot is rotten in both copies: no promise may be broken silently. The last slot is left
  // out, because nothing tells its loss from a group that was never written.
  void RotBothCopies(const CrashPoint& point) {
    uint64_t last = point.index.visible_mark().seq % options_.geometry.journal_slots;
    for (uint64_t slot = 0; slot < options_.geometry.journal_slots && !Done(); ++slot) {
      if (slot == last) continue;
      ++statistics_.states;
      StoreHost host(point.disk, point.index, 4500);
      host.disk().Crash(LoseUnflushed);
      host.index().Crash(0);
      host.disk().FlipBit("/store/JOURNAL.0", slot * 4096 + 40, 3);
      host.disk().FlipBit("/store/JOURNAL.1", slot * 4096 + 40, 3);
      Status opened = host.Open(RecoveryOptions());
      if (!opened.ok()) {
        if (opened.code() != Code::kDataLoss) Violation("rot: " + opened.ToString());
        continue;
      }
      for (std::string& violation : point.oracle.Judge(host)) Violation("silent: " + violation);
    }
  }
  // The newest checkpoint's manifest is damaged: it must be reported, and latest move to another.
  void RotManifest(const CrashPoint& point) {
    ++statistics_.states;
    StoreHost host(point.disk, point.index, 5000);
    host.disk().Crash(LoseUnflushed);
    host.index().Crash(0);
    if (Status opened = host.Open(RecoveryOptions()); !opened.ok()) {
      return Violation("does not start: " + opened.ToString());
    }
    auto latest = host.Run(host.store().Resolve("team", "gpt", {}));
    if (!latest.has_value()) return Violation("no latest: " + latest.error().ToString());
    const CheckpointRow* row = host.store().state().FindCheckpoint(point.oracle.job, latest->key);
    format::Run run = row->commit.manifest.run;
    host.Kill();
    host.disk().Crash(LoseUnflushed);
    host.index().Crash(host.index().unflushed_count());
    host.disk().FlipBit(fmt::format("/store/seg/{:08}", run.segment), run.offset + 100, 5);
    if (Status opened = host.Open(RecoveryOptions()); !opened.ok()) {
      return Violation("a rotten manifest stops the store: " + opened.ToString());
    }
    latest = host.Run(host.store().Resolve("team", "gpt", {}));
    if (!latest.has_value()) return Violation("no latest: " + latest.error().ToString());
    auto session = host.Run(host.store().OpenRead(point.oracle.job, latest->key));
    if (!session.has_value()) Violation("latest is damaged: " + session.error().ToString());
  }
  // The index is gone: rebuilt whole from the journal, or, when the ring has wrapped, refused in words.
  void LoseIndex(const CrashPoint& point) {
    ++statistics_.states;
    StoreHost host(point.disk, point.index, 6000);
    host.disk().Crash(LoseUnflushed);
    host.index().Crash(0);
    host.index().Erase();
    Status opened = host.Open(RecoveryOptions());
    if (opened.ok()) {
      for (std::string& violation : point.oracle.Judge(host)) Violation("no index: " + violation);
    } else if (opened.code() != Code::kDataLoss) {
      Violation("a lost index is answered with " + opened.ToString());
    }
  }

  const StoreOptions options_;
  const Effort effort_;
  const CrashShape shape_;
  Statistics statistics_;
};

void Print(const Statistics& result) {
  std::printf(
      "crash points: %llu (all outcomes up to %llu, above that single and pair deviations "
      "and samples)\n",
      static_cast<unsigned long long>(result.points),
      static_cast<unsigned long long>(Effort().exhaustive_states));
  std::printf("crash states: %llu, violations: %llu, nested: %llu, largest group: %llu entries\n",
              static_cast<unsigned long long>(result.states),
              static_cast<unsigned long long>(result.violations),
              static_cast<unsigned long long>(result.nested),
              static_cast<unsigned long long>(result.largest_group));
  for (const auto& [kind, count] : result.kinds) {
    std::printf("  %llu x %s\n", static_cast<unsigned long long>(count), kind.c_str());
  }
}

TEST(CrashEnumeration, NoCrashStateBreaksAPromise) {
  SetLogLevel(LogLevel::kError);
  Statistics result = Enumerator(EnumerationOptions(), Effort()).Run();
  Print(result);
  EXPECT_EQ(result.violations, 0u) << result.first;
  EXPECT_GT(result.states, 1000u);
  EXPECT_GT(result.nested, 1000u);
}

constexpr CrashShape kTwoNodesAtOnce{.at_once = true, .nodes = 2};

StoreOptions AtOnceOptions() {
  StoreOptions options = EnumerationOptions();
  options.geometry.segment_count = 2;
  return options;
}

TEST(CrashEnumeration, NorWithTwoNodesAndSavesAndADeleteAtOnce) {
  SetLogLevel(LogLevel::kError);
  Statistics result = Enumerator(AtOnceOptions(), Effort(), kTwoNodesAtOnce).Run();
  Print(result);
  EXPECT_EQ(result.violations, 0u) << result.first;
  EXPECT_GT(result.states, 1000u);
  EXPECT_GT(result.nested, 1000u);
  EXPECT_GE(result.largest_group, 2u) << "no group had to carry more than one entry";
}

// A barrier in the way of several saves at once is missed there as well.
TEST(CrashEnumeration, BarriersRemovedAreCaughtInSavesAtOnceToo) {
  SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1));
  StoreOptions options = AtOnceOptions();
  options.mutations.prepared_before_flush = true;
  EXPECT_GT(Enumerator(options, kSearch, kTwoNodesAtOnce).Run().violations, 0u);
  options = AtOnceOptions();
  options.mutations.free_before_delete_durable = true;
  EXPECT_GT(Enumerator(options, kSearch, kTwoNodesAtOnce).Run().violations, 0u);
}

struct Removed {
  const char* name;
  void (*remove)(StoreOptions&);
  // Set when another barrier does the same work: why it is kept all the same.
  const char* redundant = nullptr;
};

const Removed kRemoved[] = {
    {"skip_payload_flush", [](StoreOptions& o) { o.mutations.skip_payload_flush = true; }},
    {"prepared_before_flush", [](StoreOptions& o) { o.mutations.prepared_before_flush = true; }},
    {"skip_prepared", [](StoreOptions& o) { o.mutations.skip_prepared = true; }},
    {"skip_manifest_flush", [](StoreOptions& o) { o.mutations.skip_manifest_flush = true; }},
    {"commit_without_all_sealed",
     [](StoreOptions& o) { o.mutations.commit_without_all_sealed = true; }},
    {"ack_before_commit_durable",
     [](StoreOptions& o) { o.mutations.ack_before_commit_durable = true; }},
    {"free_before_delete_durable",
     [](StoreOptions& o) { o.mutations.free_before_delete_durable = true; }},
    {"ack_delete_early", [](StoreOptions& o) { o.mutations.ack_delete_early = true; }},
    {"skip_root_check", [](StoreOptions& o) { o.mutations.skip_root_check = true; }},
    {"skip_manifest_verify", [](StoreOptions& o) { o.mutations.skip_manifest_verify = true; }},
    {"resume_without_settle", [](StoreOptions& o) { o.mutations.resume_without_settle = true; }},
    {"journal.skip_second_copy",
     [](StoreOptions& o) { o.journal_mutations.skip_second_copy = true; }},
    {"journal.ack_before_durable",
     [](StoreOptions& o) { o.journal_mutations.ack_before_durable = true; }},
    {"journal.no_dsync", [](StoreOptions& o) { o.journal_mutations.no_dsync = true; }},
    {"journal.skip_chain_check",
     [](StoreOptions& o) { o.journal_mutations.skip_chain_check = true; },
     "a power cut leaves no slot with a right number and a foreign past; misdirected or replayed "
     "slots are tests/unit/journal's"},
    {"journal.skip_repair", [](StoreOptions& o) { o.journal_mutations.skip_repair = true; }},
    {"journal.truncate_at_rot",
     [](StoreOptions& o) { o.journal_mutations.truncate_at_rot = true; }},
    {"tier.skip_flush", [](StoreOptions& o) { o.tier_mutations.skip_flush = true; }},
    {"tier.trust_second_flush", [](StoreOptions& o) { o.tier_mutations.trust_second_flush = true; },
     "acts only after a failed flush, which this scenario does not have; see tests/conformance"},
    {"tier.skip_creation_sync",
     [](StoreOptions& o) { o.tier_mutations.skip_creation_sync = true; }},
};

TEST(CrashEnumeration, EveryRemovedBarrierIsCaught) {
  SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1));
  int caught = 0;
  std::printf("%-30s %-10s %8s %8s  %s\n", "removed barrier", "verdict", "points", "states",
              "first violation");
  for (const Removed& removed : kRemoved) {
    StoreOptions options = EnumerationOptions();
    removed.remove(options);
    Statistics result = Enumerator(options, kSearch).Run();
    bool found = result.violations > 0;
    caught += found;
    std::printf("%-30s %-10s %8llu %8llu  %s\n", removed.name,
                found                          ? "caught"
                : removed.redundant != nullptr ? "redundant"
                                               : "MISSED",
                static_cast<unsigned long long>(result.points),
                static_cast<unsigned long long>(result.states),
                found                          ? result.first.substr(0, 100).c_str()
                : removed.redundant != nullptr ? removed.redundant
                                               : "");
    std::fflush(stdout);
    EXPECT_TRUE(found || removed.redundant != nullptr) << removed.name << " is not caught";
  }
  std::printf("caught: %d of %zu\n", caught, std::size(kRemoved));
  EXPECT_GE(caught, 12);
}

}  // namespace
}  // namespace reprise::lifecycle
