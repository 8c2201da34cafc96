// crash_store: the store in a process that a test can break at will. What it promises goes to
// standard output line by line (scenario.h); the exit code says how it went.
//
//   crash_store run --directory D --script LETTERS [--prewrite] [--slots N] [--mutate NAME]
//                   [--fail-allocation N] [--show]
//       Opens (or makes) the store, with --show says what it shows (as check does, then `shown`),
//       starts a run of the job and does what the letters say; R closes the store and opens it
//       again. Last line: `done CHANGES ALLOCATIONS`.
//       Exit 3: the store does not open, or stopped itself; the reason is in an `error` line.
//   crash_store check --directory D [--keep]
//       Opens the store and says what it shows: `visible E S ROOT PINNED ok|REASON` each,
//       `latest E S|none`, `repair TEXT` each. Then, unless --keep, saves once more (deleting
//       something if the store is full) and says `usage TAKEN LEDGER NEEDED` in bytes.
//
// REPRISE_IO chooses the engine, REPRISE_CRASH_AT_IO and REPRISE_FAIL_AT_IO break it
// (core/base/fault_points.h).
#include <CLI/CLI.hpp>

#include <algorithm>
#include <map>

#include "core/base/fault_points.h"
#include "core/base/log.h"
#include "tests/crash/store/allocation.h"
#include "tests/crash/store/content.h"
#include "tests/crash/store/scenario.h"

namespace reprise::crash {
namespace {

constexpr int kStopped = 3;

struct Arguments {
  std::string directory;
  std::string script = "s";
  std::string mutation;
  uint64_t fail_allocation = 0;
  uint32_t slots = 16;
  bool prewrite = false;
  bool keep = false;
  bool show = false;
};

const std::map<std::string, void (*)(lifecycle::StoreOptions&)> kMutations = {
    {"skip_payload_flush", [](auto& o) { o.mutations.skip_payload_flush = true; }},
    {"skip_manifest_flush", [](auto& o) { o.mutations.skip_manifest_flush = true; }},
    {"skip_flush", [](auto& o) { o.tier_mutations.skip_flush = true; }},
    {"skip_creation_sync", [](auto& o) { o.tier_mutations.skip_creation_sync = true; }},
    {"no_dsync", [](auto& o) { o.journal_mutations.no_dsync = true; }},
    {"ack_before_commit_durable", [](auto& o) { o.mutations.ack_before_commit_durable = true; }},
    {"ack_delete_early", [](auto& o) { o.mutations.ack_delete_early = true; }},
    {"free_before_delete_durable", [](auto& o) { o.mutations.free_before_delete_durable = true; }},
    {"ack_before_durable", [](auto& o) { o.journal_mutations.ack_before_durable = true; }},
};

lifecycle::StoreOptions OptionsOf(const Arguments& arguments) {
  lifecycle::StoreOptions options = SmallStore(arguments.directory);
  options.prewrite_segments = arguments.prewrite;
  options.geometry.journal_slots = arguments.slots;
  if (!arguments.mutation.empty()) kMutations.at(arguments.mutation)(options);
  return options;
}

// What the daemon does when its store fails: an orderly end, for the next one to recover.
int Stopped(const Status& why, Scenario* scenario = nullptr) {
  Say("error stopped: {}", why.ToString());
  if (scenario != nullptr) scenario->End();
  return kStopped;
}

Status CompareVisible(RealStore& host, const Id& job, const CheckpointKey& key) {
  auto session = host.Run(host.store().OpenRead(job, key));
  if (!session.has_value()) return session.error();
  return host.Run(CompareCheckpoint(**session, kShardBytes));
}

void SayVisible(RealStore& host) {
  auto job = host.Run(host.store().GetJob(kTenant, kJob));
  if (!job.has_value()) return Say("latest none");
  // Before the listing: a save that was interrupted may be committed in between.
  auto latest = host.Run(host.store().Resolve(kTenant, kJob, {}));
  if (latest.has_value()) {
    Say("latest {} {}", latest->key.epoch, latest->key.step);
  } else {
    Say("latest none");
  }
  auto listed = host.Run(host.store().ListCheckpoints(kTenant, kJob, true));
  if (!listed.has_value()) return Say("error list: {}", listed.error().ToString());
  for (const lifecycle::CheckpointInfo& info : *listed) {
    if (info.state == lifecycle::CheckpointState::kSaving) continue;
    Status same = CompareVisible(host, job->job, info.key);
    Say("visible {} {} {} {} {}", info.key.epoch, info.key.step, info.root.ToHex(),
        info.pinned ? 1 : 0, same.ok() ? "ok" : same.ToString());
  }
}

int RunScenario(const Arguments& arguments) {
  RealStore host;
  if (arguments.fail_allocation != 0) FailAllocation(arguments.fail_allocation);
  std::unique_ptr<Scenario> scenario;
  for (char operation : "R" + arguments.script) {
    if (operation != 'R') {
      if (!scenario->Do(operation)) {
        return Stopped({Code::kUnavailable, "the store has failed"}, scenario.get());
      }
      continue;
    }
    if (scenario != nullptr) scenario->End();
    Status opened = host.Open(OptionsOf(arguments));
    if (!opened.ok()) return Stopped(opened);
    if (arguments.show && scenario == nullptr) {
      SayVisible(host);
      Say("shown");
    }
    scenario = std::make_unique<Scenario>(host);
    if (Status begun = scenario->Begin(); !begun.ok()) return Stopped(begun, scenario.get());
  }
  scenario->End();
  FaultPoints* faults = FaultPoints::FromEnvironment();
  Say("done {} {}", faults == nullptr ? 0 : faults->changes(), AllocationCount());
  return 0;
}

// Space that is taken, that the ledger knows, and that the checkpoints need: all the same when
// nothing is going on.
void SayUsage(RealStore& host) {
  const lifecycle::StoreState& state = host.store().state();
  uint64_t live = 0;
  for (const format::Run& run : state.LiveRuns()) live += run.length;
  uint64_t needed = 0;
  for (const auto& [id, job] : state.jobs()) {
    for (const auto& [key, row] : job.checkpoints) needed += state.StoredBytes(row);
  }
  for (const auto& [key, row] : state.Rows()) needed += key.starts_with('l') ? 4096 : 0;
  Say("usage {} {} {}", host.store().usage().used_bytes, live, needed);
}

// A store that is full takes a save again when something is deleted.
bool SaveOnceMore(Scenario& scenario) {
  for (char operation : {'s', 'U', 'd', 'd', 's'}) {
    if (!scenario.Do(operation)) return false;
    if (operation == 's' && scenario.saved()) return true;
  }
  return true;
}

int Check(const Arguments& arguments) {
  RealStore host;
  if (Status opened = host.Open(OptionsOf(arguments)); !opened.ok()) return Stopped(opened);
  for (const std::string& repair : host.store().recovery().repairs) Say("repair {}", repair);
  SayVisible(host);
  if (!arguments.keep) {
    Scenario scenario(host);
    if (Status begun = scenario.Begin(); !begun.ok()) return Stopped(begun, &scenario);
    if (!SaveOnceMore(scenario)) {
      return Stopped({Code::kUnavailable, "the store has failed"}, &scenario);
    }
    SayUsage(host);
    scenario.End();
  }
  if (host.is_open()) host.Close();
  Say("done");
  return 0;
}

}  // namespace
}  // namespace reprise::crash

int main(int argc, char** argv) {
  using namespace reprise::crash;
  reprise::SetLogLevel(reprise::LogLevel::kWarn);
  Arguments arguments;
  CLI::App app("The store in a process that a test can break at will.");
  app.require_subcommand(1);
  auto* run = app.add_subcommand("run", "Save, delete and pin as the script says");
  auto* check = app.add_subcommand("check", "Say what a store shows");
  for (CLI::App* command : {run, check}) {
    command->add_option("--directory", arguments.directory, "Of the store")->required();
    command->add_option("--mutate", arguments.mutation, "Remove one barrier");
    command->add_option("--slots", arguments.slots, "Of the journal of a store that is made");
    command->add_flag("--prewrite", arguments.prewrite, "Write segments with zeros ahead");
  }
  run->add_option("--script", arguments.script, "Letters: s d b P U R (scenario.h)");
  run->add_flag("--show", arguments.show, "Say what the store shows before anything else");
  run->add_option("--fail-allocation", arguments.fail_allocation, "The n-th fails");
  check->add_flag("--keep", arguments.keep, "Change nothing beyond what recovery does");
  CLI11_PARSE(app, argc, argv);
  return run->parsed() ? RunScenario(arguments) : Check(arguments);
}
