// What the CLI prints: tables for people, JSON for programs, progress on a terminal.
//
// Data goes to stdout, messages and progress to stderr. Colour only on a terminal without NO_COLOR.
// JSON documents carry "schema": 1; fields may be added within a schema.
//
// Thread rule: one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/clock.h"
#include "reprise/status.h"

namespace reprise::cli {

// Exit codes (docs/cli.md).
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,
  kExitUsage = 2,
  kExitPartial = 3,
  kExitNotFound = 4,
  kExitCorrupt = 5,
  kExitUnreachable = 10,
  kExitFenced = 11,
  kExitDenied = 12,
  kExitFull = 13,
  kExitDeadline = 124,
};
int ExitCodeOf(Code code);

// Columns padded to their widest cell; numbers are the caller's business to format.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void Print() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

void PrintJson(const nlohmann::json& document);
// "error: ..." on stderr, or a JSON line there when `json`.
void PrintError(const Status& status, bool json);

// "3 s", "12 min", "5 h", "2 d" since a wall-clock time.
std::string AgeOf(int64_t wall_micros);

// A bar on stderr when it is a terminal; otherwise, with `json`, one line of JSON a second there.
class Progress {
 public:
  Progress(std::string title, uint64_t total_bytes, bool json);
  ~Progress();
  void Add(uint64_t bytes);
  double seconds() const;

 private:
  void Show(bool last);
  std::string title_;
  uint64_t total_;
  uint64_t done_ = 0;
  bool json_;
  bool terminal_;
  SystemClock clock_;
  TimePoint began_;
  TimePoint shown_;
};

}  // namespace reprise::cli
