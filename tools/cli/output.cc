#include "tools/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/log.h"

namespace reprise::cli {

int ExitCodeOf(Code code) {
  switch (code) {
    case Code::kOk: return kExitOk;
    case Code::kInvalidArgument: return kExitUsage;
    case Code::kNotFound: return kExitNotFound;
    case Code::kDataLoss: return kExitCorrupt;
    case Code::kUnavailable: return kExitUnreachable;
    case Code::kFenced: return kExitFenced;
    case Code::kPermissionDenied:
    case Code::kUnauthenticated: return kExitDenied;
    case Code::kResourceExhausted: return kExitFull;
    case Code::kDeadlineExceeded: return kExitDeadline;
    default: return kExitFailed;
  }
}

void Table::Print() const {
  std::vector<size_t> widths(rows_.front().size());
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      bool last = i + 1 == row.size();
      line += last ? row[i] : fmt::format("{:<{}}  ", row[i], widths[i]);
    }
    std::cout << line << "\n";
  }
}

void PrintJson(const nlohmann::json& document) {
  nlohmann::json out = document;
  out["schema"] = 1;
  std::cout << out.dump(2) << "\n";
}

void PrintError(const Status& status, bool json) {
  if (json) {
    nlohmann::json line = {{"schema", 1},
                           {"type", "error"},
                           {"code", CodeName(status.code())},
                           {"message", status.message()}};
    std::cerr << line.dump() << "\n";
    return;
  }
  std::cerr << "error: " << status.message() << "\n";
}

std::string AgeOf(int64_t wall_micros) {
  if (wall_micros == 0) return "-";
  int64_t seconds = (SystemClock().WallMicros() - wall_micros) / 1'000'000;
  if (seconds < 120) return fmt::format("{} s", seconds);
  if (seconds < 7200) return fmt::format("{} min", seconds / 60);
  if (seconds < 172800) return fmt::format("{} h", seconds / 3600);
  return fmt::format("{} d", seconds / 86400);
}

Progress::Progress(std::string title, uint64_t total_bytes, bool json)
    : title_(std::move(title)),
      total_(total_bytes),
      json_(json),
      terminal_(isatty(STDERR_FILENO) != 0),
      began_(clock_.Now()),
      shown_(began_) {}

Progress::~Progress() { Show(true); }

double Progress::seconds() const { return SecondsOf(clock_.Now() - began_); }

void Progress::Add(uint64_t bytes) {
  done_ += bytes;
  Nanos interval = terminal_ ? Nanos(std::chrono::milliseconds(100)) : std::chrono::seconds(1);
  if (clock_.Now() - shown_ < interval) return;
  shown_ = clock_.Now();
  Show(false);
}

void Progress::Show(bool last) {
  constexpr uint64_t kWidth = 30;
  double rate = static_cast<double>(done_) / 1e9 / std::max(seconds(), 1e-6);
  if (terminal_) {
    uint64_t filled = total_ == 0 ? kWidth : std::min(kWidth, done_ * kWidth / total_);
    std::cerr << fmt::format("\r{} [{}{}] {} of {}, {:.2f} GB/s ", title_, std::string(filled, '#'),
                             std::string(kWidth - filled, ' '), HumanBytes(done_),
                             HumanBytes(total_), rate)
              << (last ? "\n" : "") << std::flush;
  } else if (json_ && !last) {
    nlohmann::json line = {{"schema", 1},
                           {"type", "progress"},
                           {"bytes_done", done_},
                           {"bytes_total", total_},
                           {"seconds", seconds()}};
    std::cerr << line.dump() << "\n";
  }
}

}  // namespace reprise::cli
