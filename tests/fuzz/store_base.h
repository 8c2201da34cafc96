// A store with a history, made once per process: two jobs, checkpoints in two epochs, one deleted,
// one attempt left half-way. Targets copy its media and open stores on the copies.
//
// Thread rule: the fuzzer's thread.
#pragma once

#include <map>

#include "tests/unit/lifecycle/harness.h"

namespace reprise::fuzz {

struct StoreBase {
  SimDisk disk;
  catalog::MemoryCatalogDisk index;
  lifecycle::TestRun run;  // of job "gpt", world 2: its last epoch
  Id attempt;              // of its step 4: rank 0 has sealed, rank 1 has not
  // What the bytes of each committed checkpoint of that job were made of.
  std::map<CheckpointKey, uint64_t> seeds;
};

const StoreBase& BaseOfStore();

}  // namespace reprise::fuzz
