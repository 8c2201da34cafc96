// Time as an argument: nothing in Reprise asks the system for the time except through a Clock.
//
// Monotonic time decides deadlines and leases; wall time is only shown to people and never decides
// anything (it may jump). The simulator passes its own Clock.
//
// Thread rule: any thread. Non-blocking.
#pragma once

#include <chrono>
#include <cstdint>

namespace reprise {

using Nanos = std::chrono::nanoseconds;

// Monotonic time since an arbitrary start.
struct TimePoint {
  Nanos since_start{0};
  auto operator<=>(const TimePoint&) const = default;
};
inline TimePoint operator+(TimePoint time, Nanos span) { return {time.since_start + span}; }
inline Nanos operator-(TimePoint later, TimePoint earlier) {
  return later.since_start - earlier.since_start;
}
inline double SecondsOf(Nanos span) { return std::chrono::duration<double>(span).count(); }

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
  // Microseconds since 1970 UTC, for display only.
  virtual int64_t WallMicros() const = 0;
};

// The machine's clock (CLOCK_MONOTONIC, CLOCK_REALTIME).
class SystemClock final : public Clock {
 public:
  TimePoint Now() const override;
  int64_t WallMicros() const override;
};

}  // namespace reprise
