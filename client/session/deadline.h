// Deadline: the one clock of the client library. Every wait takes one, and an error names what the
// wait was for. Monotonic; a wall clock that jumps changes nothing.
//
// Thread rule: a value. Non-blocking.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "core/base/clock.h"

namespace reprise::client {

using SteadyClock = std::chrono::steady_clock;
using SteadyPoint = SteadyClock::time_point;

inline double MillisSince(SteadyPoint start) {
  return std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
}

class Deadline {
 public:
  static Deadline Never() { return Deadline(SteadyPoint::max()); }
  static Deadline At(SteadyPoint point) { return Deadline(point); }
  static Deadline After(Nanos span) { return Deadline(SteadyClock::now() + span); }
  // Negative, NaN, or beyond 30 years: never.
  static Deadline AfterSeconds(double seconds) {
    if (!(seconds >= 0 && seconds < 1e9)) return Never();
    return After(std::chrono::duration_cast<Nanos>(std::chrono::duration<double>(seconds)));
  }

  bool never() const { return point_ == SteadyPoint::max(); }
  bool expired() const { return !never() && SteadyClock::now() >= point_; }
  SteadyPoint point() const { return point_; }
  Deadline Earlier(Deadline other) const { return Deadline(std::min(point_, other.point_)); }
  // For poll(): milliseconds left, rounded up; -1 for never.
  int poll_ms() const {
    if (never()) return -1;
    auto left = std::chrono::ceil<std::chrono::milliseconds>(point_ - SteadyClock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
  }

 private:
  explicit Deadline(SteadyPoint point) : point_(point) {}
  SteadyPoint point_;
};

}  // namespace reprise::client
