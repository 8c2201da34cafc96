#include "core/base/fault_points.h"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise {
namespace {

std::vector<std::string_view> Split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    size_t colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return parts;
    text.remove_prefix(colon + 1);
  }
}

bool ParseNumber(std::string_view text, uint64_t& number) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool ParseCrash(std::string_view text, FaultPlan& plan) {
  std::vector<std::string_view> parts = Split(text);
  if (parts.size() > 2 || !ParseNumber(parts[0], plan.crash_at)) return false;
  plan.crash_after = parts.size() == 2 && parts[1] == "after";
  return parts.size() == 1 || parts[1] == "before" || parts[1] == "after";
}

bool ParseFailure(std::string_view text, FaultPlan& plan) {
  static const std::map<std::string_view, FaultPlan::Kind> kKinds = {
      {"read", FaultPlan::Kind::kRead},     {"write", FaultPlan::Kind::kWrite},
      {"flush", FaultPlan::Kind::kFlush},   {"space", FaultPlan::Kind::kSpace},
      {"change", FaultPlan::Kind::kChange},
  };
  static const std::map<std::string_view, int> kErrors = {{"EIO", EIO}, {"ENOSPC", ENOSPC}};
  std::vector<std::string_view> parts = Split(text);
  if (parts.size() < 3 || parts.size() > 4) return false;
  auto kind = kKinds.find(parts[1]);
  auto error = kErrors.find(parts[2]);
  bool known = kind != kKinds.end() && error != kErrors.end();
  if (!known || !ParseNumber(parts[0], plan.fail_at)) return false;
  plan.fail_kind = kind->second;
  plan.fail_errno = error->second;
  plan.fail_on = parts.size() == 4 && parts[3] == "on";
  return parts.size() == 3 || plan.fail_on;
}

std::unique_ptr<FaultPoints> MakeFromEnvironment() {
  const char* crash = std::getenv("REPRISE_CRASH_AT_IO");
  const char* fail = std::getenv("REPRISE_FAIL_AT_IO");
  if (crash == nullptr && fail == nullptr) return nullptr;
  std::optional<FaultPlan> plan = FaultPlan::Parse(crash, fail);
  REPRISE_CHECK(plan.has_value(),
                "REPRISE_CRASH_AT_IO or REPRISE_FAIL_AT_IO is malformed: see "
                "core/base/fault_points.h");
  LogWarn(
      "FAULT POINTS ARE ON, this process is here to be broken: REPRISE_CRASH_AT_IO={} "
      "REPRISE_FAIL_AT_IO={}",
      crash != nullptr ? crash : "", fail != nullptr ? fail : "");
  return std::make_unique<FaultPoints>(*plan);
}

// SIGKILL, because nothing of ours may run on the way out. To the whole process, at once.
[[noreturn]] void Die() {
  std::raise(SIGKILL);
  std::abort();
}

}  // namespace

std::optional<FaultPlan> FaultPlan::Parse(const char* crash_at_io, const char* fail_at_io) {
  FaultPlan plan;
  bool crash = crash_at_io != nullptr && *crash_at_io != '\0';
  bool fail = fail_at_io != nullptr && *fail_at_io != '\0';
  if (crash && !ParseCrash(crash_at_io, plan)) return std::nullopt;
  if (fail && !ParseFailure(fail_at_io, plan)) return std::nullopt;
  return plan;
}

FaultPoints* FaultPoints::FromEnvironment() {
  static const std::unique_ptr<FaultPoints> points = MakeFromEnvironment();
  return points.get();
}

bool FaultPoints::IsKind(DiskOperation operation) const {
  using enum DiskOperation;
  switch (plan_.fail_kind) {
    case FaultPlan::Kind::kRead: return operation == kRead;
    case FaultPlan::Kind::kWrite: return operation == kWrite;
    case FaultPlan::Kind::kFlush: return operation == kFlush || operation == kSyncDirectory;
    case FaultPlan::Kind::kSpace:
      return operation == kWrite || operation == kAllocate || operation == kCreate ||
             operation == kTruncate || operation == kMakeDirectory || operation == kRename;
    case FaultPlan::Kind::kChange: return operation != kRead;
  }
  return false;
}

FaultPoints::Point FaultPoints::Begin(DiskOperation operation) {
  Point point;
  if (operation != DiskOperation::kRead) point.number = ++changes_;
  if (plan_.fail_at != 0 && IsKind(operation)) {
    uint64_t number = ++of_kind_;
    bool hit = plan_.fail_on ? number >= plan_.fail_at : number == plan_.fail_at;
    if (hit) point.error = plan_.fail_errno;
    // Once: a test must be able to tell a fault that was survived from one that never came.
    if (number == plan_.fail_at) LogWarn("fault point hit: operation {} of its kind fails", number);
  }
  if (plan_.crash_at != 0 && !plan_.crash_after && point.number == plan_.crash_at) Die();
  return point;
}

void FaultPoints::End(Point point) const {
  if (plan_.crash_at != 0 && plan_.crash_after && point.number == plan_.crash_at) Die();
}

}  // namespace reprise
