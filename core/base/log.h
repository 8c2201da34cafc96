// Log lines for operators: one line an event, to stderr, with time, level and the program's part.
//
// Log where an event is handled, not where it passes. A line names the object (job, step, rank) and
// says what to do when something must be done. Formatting is fmt's.
//
// Thread rule: any thread. May block on stderr for the length of one write.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "reprise/status.h"

namespace reprise {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarn, kError };

// Lines below `level` are dropped. The start value comes from REPRISE_LOG (debug, info, warn,
// error; default info for daemons, warn inside a training process).
void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();
// Prefix of every line ("reprised node", "rank 3").
void SetLogName(std::string_view name);
void WriteLog(LogLevel level, std::string_view line);

template <typename... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (level >= GetLogLevel()) WriteLog(level, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kDebug, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogWarn(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kWarn, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kError, format, std::forward<Args>(args)...);
}

// A failure whose message is formatted: `return Fail(Code::kNotFound, "no job {}", name);`
template <typename... Args>
std::unexpected<Status> Fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Error(code, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
Status FailStatus(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace reprise
