// SimWorld: the simulated universe of a test: one clock, one event queue, hosts with disks, a net.
//
// The world is the reactor of every loop in it. When no loop has anything ready, the clock jumps to
// the next event or timer, and one event happens. Everything random comes from one seed, and every
// event goes into TraceHash(), so that the same seed gives the same hash or something is broken.
//
// A test usually takes world.loop() and puts one or several SimIo on it. To crash hosts one by one,
// give each a loop of its own (NewLoop): all loops advance while any of them runs.
//
// How to crash a host:
//   1. io.CrashHost(SimCrash::kPowerLoss)    drops its requests; nothing refers to frames any more
//   2. loop.DestroyAll()                     destroys its coroutines
//   3. destroy the product's objects and the SimIo
//   4. world.disk(host).Crash(chooser)       after a power loss (SettleInFlight after
//   kProcessDeath)
//   5. make a new SimIo for the host, and start the product again
//
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/async/loop.h"
#include "core/base/random.h"
#include "core/io/sim_clock.h"
#include "core/io/sim_disk.h"
#include "core/io/sim_net.h"

namespace reprise {

class SimWorld {
 public:
  // One life of a host's SimIo; its pending events can be dropped together. 0 is the world itself.
  using Owner = uint64_t;

  explicit SimWorld(uint64_t seed);
  ~SimWorld();
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;

  SimClock& clock() { return clock_; }
  Rng& rng() { return rng_; }
  uint64_t seed() const { return seed_; }
  SimNet& net() { return net_; }
  // The disk of `host`, made empty at the first call. Stays when the host crashes.
  SimDisk& disk(const std::string& host);

  // The loop most tests need.
  Loop& loop() { return loops_.front(); }
  // One more, owned by the world.
  Loop& NewLoop();

  // Lets `span` of simulated time pass.
  void RunFor(Nanos span);
  // Called when every loop waits and nothing will ever happen. Without a handler that is a failed
  // CHECK, because the test would hang.
  void OnStuck(std::function<void()> handler) { on_stuck_ = std::move(handler); }

  // Over every event so far, in order, with its time and content.
  uint64_t TraceHash() const { return trace_hash_; }
  uint64_t trace_count() const { return trace_count_; }
  // Adds an event; product-side invariants may add theirs.
  void Trace(std::string_view host, std::string_view what, uint64_t first = 0, uint64_t second = 0,
             uint64_t third = 0);
  // Prints each traced event to stderr (a failing seed's timeline).
  void set_verbose(bool verbose) { verbose_ = verbose; }

  // Calls `fire` between two events as soon as trace_count() has reached `count`: "at any event".
  void AtTrace(uint64_t count, std::function<void()> fire) {
    at_trace_.emplace(count, std::move(fire));
  }
  // A stopped loop (SIGSTOP of its process) runs nothing until it is let go; what completes
  // meanwhile waits. Never the loop that drives the world.
  void SetStopped(Loop& loop, bool stopped) { PortOf(loop).stopped = stopped; }

  // --- for SimIo and SimNet
  Owner NewOwner() { return ++last_owner_; }
  // Calls `fire` at `when` (in a Poll, never inline).
  void At(TimePoint when, Owner owner, std::function<void()> fire);
  void DropEvents(Owner owner);
  bool HasEvents(Owner owner) const;
  // Makes the world the reactor of `loop`, counted; Detach undoes the last.
  void Attach(Loop& loop);
  void Detach(Loop& loop);
  void Poll(Loop& loop, std::optional<Nanos> timeout);
  void Wake(Loop& loop);

 private:
  struct Port final : Reactor {
    Port(SimWorld& owner, Loop& served) : world(owner), loop(served) {}
    void Poll(std::optional<Nanos> timeout) override { world.Poll(loop, timeout); }
    void Wake() override { woken = true; }
    SimWorld& world;
    Loop& loop;
    uint64_t users = 0;
    bool woken = false;
    bool stopped = false;
    std::optional<TimePoint> deadline;  // of a turn run on behalf of another loop
  };
  struct Event {
    Owner owner;
    std::function<void()> fire;
  };

  Port& PortOf(Loop& loop);
  bool RunOtherLoops(Loop& caller, std::optional<TimePoint>& earliest);

  const uint64_t seed_;
  SimClock clock_;
  Rng rng_;
  SimNet net_;
  std::map<std::string, SimDisk> disks_;
  std::map<std::pair<TimePoint, uint64_t>, Event> events_;
  std::multimap<uint64_t, std::function<void()>> at_trace_;
  uint64_t next_event_ = 1;
  Owner last_owner_ = 0;
  uint64_t trace_hash_ = 0xcbf29ce484222325;
  uint64_t trace_count_ = 0;
  bool verbose_ = false;
  bool nested_ = false;
  std::function<void()> on_stuck_;
  std::list<Port> ports_;
  std::list<Loop> loops_;  // last: its coroutines go first
};

}  // namespace reprise
