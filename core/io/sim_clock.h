// SimClock: time that passes only when the simulated world says so.
//
// Monotonic time starts at one second (so that "now - a little" stays positive) and moves forward
// in jumps, from event to event. Wall time follows it, plus an offset that tests change to simulate
// an operator or NTP setting the clock.
//
// Thread rule: one thread, the simulation's. Owner: SimWorld.
#pragma once

#include "core/base/check.h"
#include "core/base/clock.h"

namespace reprise {

class SimClock final : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  int64_t WallMicros() const override {
    return wall_offset_micros_ +
           std::chrono::duration_cast<std::chrono::microseconds>(now_.since_start).count();
  }
  // Moves to `time`, which must not lie in the past.
  void AdvanceTo(TimePoint time) {
    REPRISE_CHECK(time >= now_);
    now_ = time;
  }
  // Makes the wall clock jump, in either direction; monotonic time is unaffected.
  void JumpWall(int64_t micros) { wall_offset_micros_ += micros; }

 private:
  TimePoint now_{std::chrono::seconds(1)};
  int64_t wall_offset_micros_ = 1'700'000'000'000'000;
};

}  // namespace reprise
