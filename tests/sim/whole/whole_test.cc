// The whole system under many seeds. What is run, which faults, which invariants: docs/testing.md,
// "The simulator".
//
//   REPRISE_SIM_SEEDS  how many seeds (default: a few hundred)   REPRISE_SIM_FIRST  the first
//   REPRISE_SIM_SEED   this one only, with its timeline          REPRISE_SIM_VERBOSE  and its events
//   REPRISE_SIM_REPORT where a JSON report of the seeds goes
//   REPRISE_SIM_MUTATE where the report of all planted bugs goes; REPRISE_SIM_MUTATION: of one
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/base/log.h"
#include "tests/sim/whole/harness.h"

namespace reprise::sim {
namespace {

constexpr uint64_t kSeedsDefault = 300;
// A budget of at least this many seeds must reach every SOMETIMES label.
constexpr uint64_t kSeedsForEveryPath = 5000;

std::string Env(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? std::string() : text;
}
uint64_t Env(const char* name, uint64_t otherwise) {
  std::string text = Env(name);
  return text.empty() ? otherwise : std::strtoull(text.c_str(), nullptr, 10);
}

void WriteFile(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr) << path;
  std::fwrite(text.data(), 1, text.size(), file);
  std::fclose(file);
}

Plan PlanOf(uint64_t seed) {
  Plan plan = MakePlan(seed);
  if (const Mutation* planted = FindMutation(Env("REPRISE_SIM_MUTATION"))) planted->plant(plan);
  return plan;
}

void PrintRun(const Plan& plan, const SimResult& result) {
  std::printf("%s", Describe(plan).c_str());
  for (const std::string& line : result.timeline) std::printf("%s\n", line.c_str());
  std::printf("%s", fmt::format("trace {:016x}, {} events, {:.3f} s simulated\n", result.trace_hash,
                                result.events, SecondsOf(result.simulated))
                        .c_str());
  for (const std::string& what : result.violations) std::printf("VIOLATION: %s\n", what.c_str());
}

// A failing seed, made small and told as a story.
void Explain(uint64_t seed) {
  Plan small = Shrink(PlanOf(seed));
  SimOptions options;
  options.timeline = true;
  std::printf("\nseed %llu, shrunk:\n", static_cast<unsigned long long>(seed));
  auto outcome = OutcomeOf(small);
  if (outcome == "aborted") {
    std::printf("%saborted: run it for the failed CHECK\n", Describe(small).c_str());
  } else {
    PrintRun(small, Simulate(small, options));
  }
  std::printf("repeat: tools/dev sim --seed %llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
}

class Whole : public ::testing::Test {
 protected:
  void SetUp() override {
    // No line is formatted: in a world of faults they are the rule.
    SetLogLevel(Env("REPRISE_SIM_VERBOSE").empty() ? static_cast<LogLevel>(4) : LogLevel::kInfo);
  }
};

TEST_F(Whole, NoSeedBreaksAPromise) {
  if (uint64_t seed = Env("REPRISE_SIM_SEED", 0); seed != 0) {
    SimOptions options;
    options.timeline = true;
    options.verbose = !Env("REPRISE_SIM_VERBOSE").empty();
    Plan plan = PlanOf(seed);
    SimResult result = Simulate(plan, options);
    PrintRun(plan, result);
    EXPECT_TRUE(result.violations.empty());
    return;
  }
  if (!Env("REPRISE_SIM_MUTATE").empty()) GTEST_SKIP() << "planted bugs only";
  uint64_t seeds = Env("REPRISE_SIM_SEEDS", kSeedsDefault);
  SeedReport report = RunSeeds(Env("REPRISE_SIM_FIRST", 1), seeds);
  std::string path = Env("REPRISE_SIM_REPORT");
  if (!path.empty()) WriteFile(path, ToJson(report));
  RecordProperty("seeds", std::to_string(report.seeds));
  RecordProperty("events", std::to_string(report.events));
  RecordProperty("faults", std::to_string(report.counts.total_faults()));
  RecordProperty("determinism_checked", std::to_string(report.determinism_checked));
  std::printf("%s", fmt::format("{} seeds, {} events, {} faults, {:.1f} s\n", report.seeds,
                                report.events, report.counts.total_faults(), report.seconds)
                        .c_str());
  EXPECT_EQ(report.determinism_mismatches, 0u);
  for (const auto& [seed, what] : report.violations)
    ADD_FAILURE() << "seed " << seed << ": " << what;
  if (!report.violations.empty()) Explain(report.violations.front().first);
  if (seeds < kSeedsForEveryPath || !path.empty()) return;
  for (const std::string& label : SometimesMissed(report.counts)) {
    ADD_FAILURE() << "never reached: " << label;
  }
}

TEST_F(Whole, TheSameSeedIsTheSameHistory) {
  for (uint64_t seed : {3, 17, 40}) {
    SimResult first = Simulate(MakePlan(seed));
    SimResult second = Simulate(MakePlan(seed));
    EXPECT_EQ(first.trace_hash, second.trace_hash) << "seed " << seed;
    EXPECT_NE(first.trace_hash, Simulate(MakePlan(seed + 1)).trace_hash);
  }
}

TEST_F(Whole, PlantedBugsAreFound) {
  std::string path = Env("REPRISE_SIM_MUTATE");
  std::string only = Env("REPRISE_SIM_MUTATION");
  std::vector<MutationResult> results;
  for (const Mutation& mutation : Mutations()) {
    // In a plain run a few, as a test of the simulator itself.
    bool chosen = path.empty() ? mutation.in_every_run : only.empty() || mutation.name == only;
    if (!chosen) continue;
    results.push_back(RunMutation(mutation));
    const MutationResult& result = results.back();
    std::printf("%s", fmt::format("{:40} {} after {} seeds {}\n", result.name, result.found_by,
                                  result.found_at, result.what)
                          .c_str());
    std::fflush(stdout);
    EXPECT_TRUE(!result.found_by.empty() || !result.redundant.empty()) << result.name;
  }
  EXPECT_FALSE(results.empty());
  if (!path.empty()) WriteFile(path, ToJson(results));
}

}  // namespace
}  // namespace reprise::sim
