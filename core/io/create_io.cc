#include <cstdlib>
#include <mutex>
#include <string>

#include "core/base/log.h"
#include "core/io/io.h"
#include "core/io/thread_io.h"
#include "core/io/uring_io.h"

namespace reprise {
namespace {

// One line per process is enough: every loop of a process gets the same engine.
void LogEngine(const std::string& name, const std::string& reason) {
  static std::once_flag logged;
  std::call_once(logged, [&] {
    if (reason.empty()) {
      LogInfo("I/O engine: {}", name);
    } else {
      LogInfo("I/O engine: {}: {}", name, reason);
    }
  });
}

}  // namespace

Result<std::unique_ptr<Io>> CreateIo(Loop& loop, IoOptions options) {
  const char* override = std::getenv("REPRISE_IO");
  std::string wanted = override != nullptr && *override != '\0' ? override : options.engine;
  if (wanted != "auto" && wanted != "uring" && wanted != "threads") {
    return Fail(Code::kInvalidArgument, "I/O engine '{}': use auto, uring or threads", wanted);
  }
  std::string reason = "asked for";
  if (wanted != "threads") {
    Result<std::unique_ptr<UringIo>> uring = UringIo::Create(loop, options);
    if (uring.has_value()) {
      LogEngine((*uring)->Name(), "");
      return std::unique_ptr<Io>(std::move(*uring));
    }
    if (wanted == "uring") return Error(uring.error());
    reason = uring.error().message();
  }
  Result<std::unique_ptr<ThreadIo>> threads = ThreadIo::Create(loop, options);
  if (!threads.has_value()) return Error(threads.error());
  LogEngine((*threads)->Name(), reason);
  return std::unique_ptr<Io>(std::move(*threads));
}

}  // namespace reprise
