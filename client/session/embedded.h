// Embedded mode: a private daemon for a directory, started by the first process that needs it.
//
//   DIR/.reprise/start.lock   flock: one process at a time looks for a daemon, and starts one if none
//   DIR/.reprise/node.sock    where it listens (a short path elsewhere when this one is too long)
//   DIR/.reprise/daemon.log   its stdout and stderr
// The daemon is its own session, holds nothing of the trainer open, survives the trainer, and ends
// itself some time after its last client. All ranks of a host share it; a job over several hosts is
// refused, naming the reprise:// way.
//
// Thread rule: any thread. Blocking rule: until the daemon listens, at most the deadline.
#pragma once

#include <cstdint>
#include <string>

#include "client/session/deadline.h"
#include "reprise/status.h"

namespace reprise::client {

struct EmbeddedOptions {
  std::string directory;
  std::string daemon;  // "": REPRISE_DAEMON, beside libreprise, ../bin, then PATH
  uint32_t world = 1;
};

// Makes sure that a daemon serves the directory; returns its socket. UNAVAILABLE ends with the last
// lines of the daemon's log. FAILED_PRECONDITION: the job spans hosts. NOT_FOUND: no `reprised`.
Result<std::string> EnsureEmbeddedDaemon(const EmbeddedOptions& options, Deadline deadline);

// Where a daemon of `directory` listens: inside it when that fits a socket address.
std::string EmbeddedSocketPath(const std::string& directory);

}  // namespace reprise::client
