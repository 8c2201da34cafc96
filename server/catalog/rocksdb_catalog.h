// RocksdbCatalog: the index of a store in an embedded RocksDB, without a write-ahead log.
//
// The journal is the log, so RocksDB's own is disabled: rows and the mark of their group go into one
// write batch in one column family, and whatever memtable a crash or a flush leaves behind is the
// state after some whole group. RocksDB is never asked to repair itself: anything it calls corrupt
// is DATA_LOSS here, and the owner rebuilds the index from the journal (Destroy, then Open).
//
// Thread rule: the owner's loop. RocksDB is called from one thread of this object's own, in the
// order of the calls; results come back through Loop::Post. Nothing here blocks the loop but the
// destructor, which joins that thread when Close was not awaited. Keys: rocksdb_catalog.cc.
#pragma once

#include <memory>
#include <string>

#include "core/async/loop.h"
#include "server/catalog/catalog.h"

namespace reprise::catalog {

class RocksdbCatalog {
 public:
  // Opens or makes the index in directory `path` (whose parent exists). DATA_LOSS: the index is
  // damaged; Destroy it and rebuild. UNAVAILABLE: locked by another process, or an I/O error.
  static Task<Result<std::unique_ptr<Catalog>>> Open(Loop& loop, std::string path);

  // Removes everything that is in `path`, so that Open starts empty. The index must not be open.
  // Blocks on file operations: for start-up only.
  static Status Destroy(const std::string& path);
};

}  // namespace reprise::catalog
