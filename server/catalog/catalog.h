// Catalog: the index of a store, a materialised view of its journal as ordered key-value rows.
//
// Rows and the mark of the last applied group change together, atomically. Applied rows need not be
// durable before Flush; after a crash the catalog holds the state after some applied group at or
// beyond the last flush: never a mix, never a gap.
//
// Implementations, under one conformance suite (tests/conformance/catalog_test.cc): MemoryCatalog
// (model, with simulated crashes) and RocksdbCatalog (write-ahead log disabled, atomic flush).
//
// Thread rule: the owner's loop. Nothing here blocks it: RocksDB runs on a thread of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/async/task.h"
#include "core/base/bytes.h"
#include "core/format/mark.h"
#include "reprise/status.h"

namespace reprise::catalog {

// The last group a catalog has applied; journal::Mark by another name.
using Mark = format::GroupMark;

// A row is put (value present) or removed.
struct RowChange {
  std::string key;
  std::optional<std::string> value;
  bool operator==(const RowChange&) const = default;
};

class Catalog {
 public:
  virtual ~Catalog() = default;
  // The last applied group that is in the catalog (durable right after opening).
  virtual Mark applied() const = 0;
  // The last group known to be durable.
  virtual Mark flushed() const = 0;
  // Calls `row` for every row in key order, on the loop. A failure from `row` ends the scan.
  virtual Task<Status> Scan(std::function<Status(ByteView key, ByteView value)> row) = 0;
  // Applies one group's changes and its mark. Calls are applied in order; marks rise.
  // On failure the catalog is failed: reopen it.
  virtual Task<Status> Apply(Mark mark, std::vector<RowChange> changes) = 0;
  // Makes everything applied before this call durable.
  virtual Task<Status> Flush() = 0;
  // Ends background work. No call may follow.
  virtual Task<void> Close() = 0;
};

}  // namespace reprise::catalog
