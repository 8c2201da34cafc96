// Who this process is, and what its URI names.
//
// The launcher id tells one launch of a job from another: equal in all ranks of a launch, different for
// a second launch. Restart counters are not used: after the loss of a node survivors and replacements
// disagree about them. docs/guide, "Run identity".
//
// Thread rule: any thread. Reads the environment.
#pragma once

#include <cstdint>
#include <string>

#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::client {

struct Target {
  bool embedded = false;
  std::string directory;  // embedded only, absolute
  std::string tenant;
  std::string job;
};
// Parses "reprise://TENANT/JOB" or "file:///DIR". INVALID_ARGUMENT says what is expected.
Result<Target> ParseUri(std::string_view uri);

struct Identity {
  Id process;  // new for every client
  std::string host;
  std::string launcher;
  std::string description;  // "rank 3 of 8 on host (pid 4711)", for logs and errors
};
// `launcher` wins over the environment: SLURM_JOB_ID, then TORCHELASTIC_RUN_ID (unless it is torchrun's
// default "none"), then MASTER_ADDR and MASTER_PORT, then host and parent process.
Identity MakeIdentity(std::string_view launcher, uint32_t rank, uint32_t world);

// An environment variable, "" when unset.
std::string Environment(const char* name);
// True when the environment says that `world` ranks do not all run on this host.
bool SpansHosts(uint32_t world);

}  // namespace reprise::client
