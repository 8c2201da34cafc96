// Daemon: the composition root of reprised. Builds the roles a configuration asks for, in order, and
// takes them apart in reverse.
//
// Store role: loop thread, Store (recovery), data plane, control API. Node role: loop thread, the way
// to the coordinator and to the store (in this process or remote), Node. Then the web pages.
//
// Shutdown, the same order whether asked for or after a failure: the node stops accepting and drains
// sealed snapshots until shutdown_timeout; the data plane closes; the store ends its waits and flushes
// its index; the control API stops; loops end; objects go in reverse order of construction.
//
// Thread rule: one thread, which becomes the owner. Start and Stop block.
#pragma once

#include <memory>
#include <string>

#include "reprise/status.h"
#include "server/config.h"

namespace reprise {

// Where a running daemon can be reached; empty for roles it does not have.
struct DaemonAddresses {
  std::string control;
  std::string data;
  std::string socket;
  std::string web;
};

class Daemon {
 public:
  // Runs recovery and listens. The error says which part could not start and what to do.
  static Result<std::unique_ptr<Daemon>> Start(const Config& config);
  virtual ~Daemon() = default;
  virtual const DaemonAddresses& addresses() const = 0;
  // Not OK after an error that only a restart can clear.
  virtual Status Health() = 0;
  // Embedded mode: nothing has used this daemon for node.idle_exit and nothing is left to drain.
  virtual bool IsIdle() = 0;
  virtual void Stop() = 0;
};

}  // namespace reprise
