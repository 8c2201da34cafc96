#include "core/io/sim_world.h"

#include <algorithm>
#include <cstdio>

#include "core/base/check.h"

namespace reprise {

SimWorld::SimWorld(uint64_t seed) : seed_(seed), rng_(seed), net_(*this) { NewLoop(); }

SimWorld::~SimWorld() { loops_.clear(); }

SimDisk& SimWorld::disk(const std::string& host) {
  auto found = disks_.find(host);
  if (found == disks_.end()) found = disks_.emplace(host, SimDisk(rng_.Next())).first;
  return found->second;
}

Loop& SimWorld::NewLoop() {
  Loop& loop = loops_.emplace_back(clock_);
  Attach(loop);
  return loop;
}

void SimWorld::RunFor(Nanos span) {
  bool passed = false;
  loop().AddTimer(clock_.Now() + span, [&passed] { passed = true; });
  loop().RunUntil([&passed] { return passed; });
}

void SimWorld::Trace(std::string_view host, std::string_view what, uint64_t first, uint64_t second,
                     uint64_t third) {
  auto mix = [this](uint64_t value) {
    trace_hash_ = (trace_hash_ ^ value) * 0x9e3779b97f4a7c15;
    trace_hash_ ^= trace_hash_ >> 29;
  };
  mix(static_cast<uint64_t>(clock_.Now().since_start.count()));
  for (char letter : host) mix(static_cast<uint8_t>(letter));
  for (char letter : what) mix(static_cast<uint8_t>(letter));
  mix(first);
  mix(second);
  mix(third);
  ++trace_count_;
  if (!verbose_) return;
  std::fprintf(stderr, "%14.6f %-8.*s %-16.*s %llu %llu %lld\n",
               SecondsOf(clock_.Now().since_start), static_cast<int>(host.size()), host.data(),
               static_cast<int>(what.size()), what.data(), static_cast<unsigned long long>(first),
               static_cast<unsigned long long>(second), static_cast<long long>(third));
}

void SimWorld::At(TimePoint when, Owner owner, std::function<void()> fire) {
  events_.emplace(std::pair(std::max(when, clock_.Now()), next_event_++),
                  Event{owner, std::move(fire)});
}

void SimWorld::DropEvents(Owner owner) {
  std::erase_if(events_, [owner](const auto& item) { return item.second.owner == owner; });
}

bool SimWorld::HasEvents(Owner owner) const {
  return std::ranges::any_of(events_,
                             [owner](const auto& item) { return item.second.owner == owner; });
}

SimWorld::Port& SimWorld::PortOf(Loop& loop) {
  for (Port& port : ports_) {
    if (&port.loop == &loop) return port;
  }
  CheckFailed(__FILE__, __LINE__, "the loop is not attached to this world");
}

void SimWorld::Attach(Loop& loop) {
  REPRISE_CHECK(&loop.clock() == &clock_, "a simulated loop must use its world's clock");
  for (Port& port : ports_) {
    if (&port.loop == &loop) {
      ++port.users;
      return;
    }
  }
  REPRISE_CHECK(!nested_);
  Port& port = ports_.emplace_back(*this, loop);
  port.users = 1;
  loop.SetReactor(&port);
}

void SimWorld::Detach(Loop& loop) {
  if (--PortOf(loop).users > 0) return;
  REPRISE_CHECK(!nested_);
  loop.SetReactor(nullptr);
  ports_.remove_if([&loop](const Port& port) { return &port.loop == &loop; });
}

void SimWorld::Wake(Loop& loop) { PortOf(loop).woken = true; }

// Gives every loop but the caller's one turn. True when one of them did something or has been
// woken; else `earliest` is lowered to their next timer.
bool SimWorld::RunOtherLoops(Loop& caller, std::optional<TimePoint>& earliest) {
  bool busy = false;
  nested_ = true;
  for (Port& port : ports_) {
    if (&port.loop == &caller || port.stopped) continue;
    port.deadline.reset();
    port.woken = false;
    if (port.loop.RunOnce(true)) {
      busy = true;
    } else if (port.deadline.has_value() && (!earliest || *port.deadline < *earliest)) {
      earliest = port.deadline;
    }
  }
  nested_ = false;
  for (Port& port : ports_) busy = busy || (port.woken && !port.stopped);
  return busy;
}

void SimWorld::Poll(Loop& loop, std::optional<Nanos> timeout) {
  Port& port = PortOf(loop);
  std::optional<TimePoint> earliest;
  if (timeout.has_value()) earliest = clock_.Now() + *timeout;
  if (nested_) {  // a turn on behalf of another loop: only tell it how long there is time
    port.deadline = earliest;
    return;
  }
  bool busy = RunOtherLoops(loop, earliest) || timeout == Nanos{0};
  port.woken = false;
  if (!at_trace_.empty() && at_trace_.begin()->first <= trace_count_) {
    auto node = at_trace_.extract(at_trace_.begin());
    node.mapped()();
    return;
  }
  TimePoint now = clock_.Now();
  if (!events_.empty()) {
    TimePoint next = events_.begin()->first.first;
    bool due = busy ? next <= now : (!earliest.has_value() || next <= *earliest);
    if (due) {
      clock_.AdvanceTo(std::max(now, next));
      auto node = events_.extract(events_.begin());
      node.mapped().fire();
      return;
    }
  }
  if (busy) return;
  if (earliest.has_value()) {
    clock_.AdvanceTo(std::max(now, *earliest));
  } else if (on_stuck_) {
    on_stuck_();
  } else {
    CheckFailed(__FILE__, __LINE__, "the simulated world can make progress",
                "every coroutine waits, and no event, timer or message is left");
  }
}

}  // namespace reprise
