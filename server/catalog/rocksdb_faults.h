// What lets fault points (core/base/fault_points.h) reach RocksDB: a file system that asks them
// before each operation and tells them after it. For crash tests only.
//
// Owner: the process. Thread rule: any thread.
#pragma once

#include <rocksdb/env.h>

#include "core/base/fault_points.h"

namespace reprise::catalog {

// The environment for databases of this process whose file operations count as fault points. One
// per process, never destroyed: RocksDB's own threads outlive its databases.
rocksdb::Env* EnvWithFaultPoints(FaultPoints& faults);

}  // namespace reprise::catalog
