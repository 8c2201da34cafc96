#include "core/base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <string>

namespace reprise {
namespace {

LogLevel LevelFromEnvironment() {
  const char* text = std::getenv("REPRISE_LOG");
  std::string_view name = text == nullptr ? "info" : text;
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

std::atomic<LogLevel>& Level() {
  static std::atomic<LogLevel> level{LevelFromEnvironment()};
  return level;
}

struct Name {
  std::mutex mutex;
  std::string text = "reprise";
};
Name& ProgramName() {
  static Name name;
  return name;
}

}  // namespace

void SetLogLevel(LogLevel level) { Level().store(level, std::memory_order_relaxed); }
LogLevel GetLogLevel() { return Level().load(std::memory_order_relaxed); }

void SetLogName(std::string_view name) {
  std::lock_guard lock(ProgramName().mutex);
  ProgramName().text = name;
}

void WriteLog(LogLevel level, std::string_view line) {
  static constexpr char kLetters[] = {'D', 'I', 'W', 'E'};
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  std::string text;
  {
    std::lock_guard lock(ProgramName().mutex);
    text = fmt::format("{:02}:{:02}:{:02}.{:03} {} [{}] {}\n", parts.tm_hour, parts.tm_min,
                       parts.tm_sec, now.tv_nsec / 1000000, kLetters[static_cast<int>(level)],
                       ProgramName().text, line);
  }
  // A log line that cannot be written has nowhere to be reported.
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace reprise
