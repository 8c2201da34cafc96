// Harness: runs ranges of seeds, repeats some to compare trace hashes, shrinks what fails, and writes
// what was done as JSON.
//
// Thread rule: one thread. Shrinking and mutations run worlds in child processes, because a world
// that fails may abort.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/sim/whole/mutations.h"
#include "tests/sim/whole/simulation.h"

namespace reprise::sim {

struct SeedReport {
  uint64_t seeds = 0;
  uint64_t events = 0;
  uint64_t beyond_bound = 0;
  uint64_t determinism_checked = 0;
  uint64_t determinism_mismatches = 0;
  std::vector<std::pair<uint64_t, std::string>> violations;  // seed, what
  Counts counts;
  double seconds = 0;
};

// Seeds [first, first + count); every sixteenth twice.
SeedReport RunSeeds(uint64_t first, uint64_t count);
// Labels that these seeds did not reach.
std::vector<std::string> SometimesMissed(const Counts& counts);
std::string ToJson(const SeedReport& report);

// What a plan ends with, run in a child process: its first violation, "aborted" after a failed CHECK,
// or nothing.
std::optional<std::string> OutcomeOf(const Plan& plan);
// The plan with every action and fault dropped that is not needed for it to fail.
Plan Shrink(Plan plan);

struct MutationResult {
  std::string name;
  uint64_t found_at = 0;  // how many seeds it took; 0: not found within the budget
  std::string found_by;
  std::string what;
  std::string redundant;
};
MutationResult RunMutation(const Mutation& mutation);
std::string ToJson(const std::vector<MutationResult>& results);

}  // namespace reprise::sim
