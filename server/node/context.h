// NodeContext: what every part of the node role needs, in one place instead of in ten constructors.
//
// Made by Node (node.cc), which owns what the references point to; outlives every part. `gate`
// holds each coroutine that the parts spawn: Node::Close closes it after `closing` was set, and
// every loop in the parts ends when it sees `closing`.
//
// Thread rule: the node's loop.
#pragma once

#include <string>

#include "core/async/sync.h"
#include "core/base/limits.h"
#include "core/base/random.h"
#include "core/io/io.h"
#include "server/dataplane/store_link.h"
#include "server/lifecycle/coordinator_api.h"
#include "server/node/node.h"

namespace reprise::node {

struct NodeContext {
  NodeContext(Io& the_io, Rng& the_rng, NodeOptions the_options,
              lifecycle::CoordinatorApi& the_coordinator, dataplane::StoreLink& the_store)
      : io(the_io),
        loop(the_io.loop()),
        rng(the_rng),
        options(std::move(the_options)),
        coordinator(the_coordinator),
        store(the_store),
        gate(loop),
        closing_changed(loop) {}

  Io& io;
  Loop& loop;
  Rng& rng;
  NodeOptions options;
  lifecycle::CoordinatorApi& coordinator;
  dataplane::StoreLink& store;
  Id node;         // survives restarts (slab directory)
  Id incarnation;  // new at each start
  NodeStats stats;
  Gate gate;
  bool closing = false;
  Notifier closing_changed;

  // The store's chunk size; until the store was reached once, the default.
  uint32_t chunk_bytes() const {
    uint32_t bytes = store.chunk_bytes();
    return bytes == 0 ? limits::kChunkBytesDefault : bytes;
  }

  // Waits `span`, less when the node begins to close.
  Task<void> Pause(Nanos span) {
    co_await closing_changed.WaitFor([this] { return closing; }, loop.Now() + span);
  }
  void BeginClosing() {
    closing = true;
    closing_changed.Notify();
  }
};

// Waiting times between attempts: doubles from 100 ms to 5 s.
class Backoff {
 public:
  Nanos Next() {
    Nanos now = next_;
    next_ = std::min<Nanos>(next_ * 2, std::chrono::seconds(5));
    return now;
  }
  void Reset() { next_ = std::chrono::milliseconds(100); }

 private:
  Nanos next_ = std::chrono::milliseconds(100);
};

// True for failures that say nothing about the request: the same call may succeed later.
inline bool IsTransient(Code code) {
  return code == Code::kUnavailable || code == Code::kDeadlineExceeded ||
         code == Code::kOutcomeUnknown || code == Code::kCancelled;
}

}  // namespace reprise::node
