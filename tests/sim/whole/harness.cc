#include "tests/sim/whole/harness.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "core/base/clock.h"
#include "core/base/log.h"

namespace reprise::sim {
namespace {

volatile uint64_t g_seed = 0;

// A failed CHECK ends the process: it must say at which seed.
void OnAbort(int) {
  char text[96];
  int length = std::snprintf(
      text, sizeof(text), "\nseed %llu: aborted\nrepeat: tools/dev sim --seed %llu\n",
      static_cast<unsigned long long>(g_seed), static_cast<unsigned long long>(g_seed));
  (void)!::write(2, text, static_cast<size_t>(length));
  ::_exit(134);
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    out += static_cast<unsigned char>(letter) < 0x20 ? ' ' : letter;
  }
  return out + "\"";
}

// Runs `work` in a child; what it writes to the descriptor comes back. Nothing when it died first.
template <typename Work>
std::string InChild(Work work) {
  int ends[2];
  if (::pipe(ends) != 0) return {};
  std::fflush(nullptr);
  pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    std::signal(SIGABRT, SIG_DFL);
    std::signal(SIGSEGV, SIG_DFL);
    if (std::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(3);
    ::alarm(120);
    work(ends[1]);
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t moved; (moved = ::read(ends[0], buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(moved));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return text;
}

void Say(int to, const std::string& line) { (void)!::write(to, line.data(), line.size()); }

}  // namespace

SeedReport RunSeeds(uint64_t first, uint64_t count) {
  std::signal(SIGABRT, OnAbort);
  std::signal(SIGSEGV, OnAbort);
  SystemClock clock;
  TimePoint start = clock.Now();
  SeedReport report;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    g_seed = seed;
    Plan plan = MakePlan(seed);
    SimResult result = Simulate(plan);
    ++report.seeds;
    report.events += result.events;
    report.beyond_bound += result.beyond_bound ? 1 : 0;
    report.counts.Add(result.counts);
    if (!result.violations.empty()) report.violations.emplace_back(seed, result.violations.front());
    if (seed % 16 != 0) continue;
    ++report.determinism_checked;
    report.determinism_mismatches += Simulate(plan).trace_hash != result.trace_hash ? 1 : 0;
  }
  report.seconds = SecondsOf(clock.Now() - start);
  return report;
}

std::vector<std::string> SometimesMissed(const Counts& counts) {
  std::vector<std::string> missed;
  for (size_t i = 0; i < kPaths; ++i) {
    if (counts.reached[i] == 0) missed.emplace_back(PathName(static_cast<Path>(i)));
  }
  return missed;
}

std::string ToJson(const SeedReport& report) {
  std::string text = fmt::format(
      "{{\"seeds\": {}, \"events\": {}, \"seconds\": {:.1f}, \"beyond_bound\": {},\n"
      " \"determinism_checked\": {}, \"determinism_mismatches\": {}, \"violations\": [",
      report.seeds, report.events, report.seconds, report.beyond_bound, report.determinism_checked,
      report.determinism_mismatches);
  for (const auto& [seed, what] : report.violations) {
    text += fmt::format("{}[{}, {}]", text.back() == '[' ? "" : ", ", seed, Quoted(what));
  }
  text += "],\n \"faults\": {";
  for (size_t i = 0; i < kFaultKinds; ++i) {
    text += fmt::format("{}{}: {}", i == 0 ? "" : ", ",
                        Quoted(FaultName(static_cast<FaultKind>(i))), report.counts.faults[i]);
  }
  text += "},\n \"sometimes\": {";
  for (size_t i = 0; i < kPaths; ++i) {
    text += fmt::format("{}{}: {}", i == 0 ? "" : ", ", Quoted(PathName(static_cast<Path>(i))),
                        report.counts.reached[i]);
  }
  return text + "}}\n";
}

// --- shrinking

std::optional<std::string> OutcomeOf(const Plan& plan) {
  std::string said = InChild([&](int to) {
    SimResult result = Simulate(plan);
    Say(to, result.violations.empty() ? "fine" : result.violations.front());
  });
  if (said == "fine") return std::nullopt;
  return said.empty() ? "aborted" : said;
}

Plan Shrink(Plan plan) {
  auto still_fails = [](const Plan& candidate) { return OutcomeOf(candidate).has_value(); };
  // Whole kinds of faults first, then actions one by one, from the end.
  auto drop = [&](auto change) {
    Plan candidate = plan;
    change(candidate);
    if (still_fails(candidate)) plan = std::move(candidate);
  };
  drop([](Plan& p) { p.disk = SimDiskFaults{}; });
  drop([](Plan& p) { p.net = SimNetFaults{}; });
  drop([](Plan& p) { p.rpc = RpcFaults{}; });
  drop([](Plan& p) { p.disk.short_ppm = p.disk.slow_ppm = 0; });
  drop([](Plan& p) { p.disk.read_error_ppm = 0; });
  drop([](Plan& p) { p.disk.write_error_ppm = 0; });
  drop([](Plan& p) { p.disk.flush_error_ppm = 0; });
  drop([](Plan& p) { p.disk.misdirect_ppm = p.disk.stale_read_ppm = 0; });
  drop([](Plan& p) { p.rpc.lost_request_ppm = p.rpc.lost_reply_ppm = 0; });
  drop([](Plan& p) { p.rpc.duplicate_ppm = p.rpc.late_ppm = 0; });
  while (plan.runs.size() > 1) {
    size_t before = plan.runs.size();
    drop([](Plan& p) { p.runs.pop_back(); });
    if (plan.runs.size() == before) break;
  }
  for (size_t i = plan.tape.size(); i-- > 0;) {
    drop([i](Plan& p) { p.tape.erase(p.tape.begin() + static_cast<ptrdiff_t>(i)); });
  }
  return plan;
}

// --- mutations

MutationResult RunMutation(const Mutation& mutation) {
  MutationResult result;
  result.name = mutation.name;
  result.redundant = mutation.redundant;
  std::string said = InChild([&](int to) {
    for (uint64_t seed = 1; seed <= mutation.seeds; ++seed) {
      Say(to, fmt::format("{}\n", seed));
      Plan plan = MakePlan(seed);
      mutation.plant(plan);
      SimResult run = Simulate(plan);
      // A seed that fails without it shows nothing.
      if (run.violations.empty() || !Simulate(MakePlan(seed)).violations.empty()) continue;
      Say(to, run.violations.front() + "\n!");
      return;
    }
    Say(to, "-");
  });
  if (!said.empty() && said.back() == '-') {
    result.found_by = mutation.enumeration;
    return result;
  }
  result.found_by = "sim_whole";
  bool spoke = !said.empty() && said.back() == '!';
  if (!spoke) result.what = "aborted";
  if (spoke) said.resize(said.size() - 2);
  // The last line that is a number is the seed; a line after it says what was violated.
  size_t line = said.find_last_of('\n', spoke ? std::string::npos : said.size() - 2);
  if (spoke && line != std::string::npos) {
    result.what = said.substr(line + 1);
    said.resize(line);
    line = said.find_last_of('\n');
  }
  size_t begin = line == std::string::npos ? 0 : line + 1;
  result.found_at = std::strtoull(said.c_str() + begin, nullptr, 10);
  return result;
}

std::string ToJson(const std::vector<MutationResult>& results) {
  std::string text = "[";
  for (const MutationResult& result : results) {
    text += fmt::format(
        "{}\n {{\"name\": {}, \"found_by\": {}, \"seeds\": {}, \"what\": {}, \"redundant\": {}}}",
        text.size() == 1 ? "" : ",", Quoted(result.name), Quoted(result.found_by), result.found_at,
        Quoted(result.what), Quoted(result.redundant));
  }
  return text + "\n]\n";
}

}  // namespace reprise::sim
