#include "core/base/clock.h"

namespace reprise {

TimePoint SystemClock::Now() const {
  return {std::chrono::duration_cast<Nanos>(std::chrono::steady_clock::now().time_since_epoch())};
}

int64_t SystemClock::WallMicros() const {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace reprise
