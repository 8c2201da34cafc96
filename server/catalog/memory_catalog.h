// MemoryCatalog: the model of Catalog, over a MemoryCatalogDisk that survives simulated crashes.
//
// The disk keeps the rows as of the last flush and every group applied since, one by one, so that a
// test (or the simulator) picks which prefix of them a crash leaves behind: a catalog may have more
// on its medium than it knows (background flushes), never less than it flushed, never a gap.
//
// Thread rule: one loop; the disk belongs to the test and outlives its catalogs.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/async/loop.h"
#include "server/catalog/catalog.h"

namespace reprise::catalog {

class MemoryCatalogDisk {
 public:
  using Rows = std::map<std::string, std::string, std::less<>>;

  // Groups applied since the last successful flush.
  size_t unflushed_count() const { return unflushed_.size(); }
  // Power cut: of the unflushed groups the first `surviving_count` are kept (CHECK: not more than
  // there are). The catalog that was open must be gone.
  void Crash(size_t surviving_count);
  // Everything is gone: the index was lost or is to be rebuilt.
  void Erase();
  // The next `count` calls of Flush (or Apply) fail and change nothing.
  void FailFlushes(uint32_t count) { flushes_to_fail_ = count; }
  void FailApplies(uint32_t count) { applies_to_fail_ = count; }
  // What a catalog that opens now would find.
  Rows VisibleRows() const;
  Mark visible_mark() const { return unflushed_.empty() ? mark_ : unflushed_.back().mark; }
  Mark flushed_mark() const { return mark_; }

 private:
  friend class MemoryCatalog;
  struct AppliedGroup {
    Mark mark;
    std::vector<RowChange> changes;
  };
  static void ApplyTo(Rows& rows, const std::vector<RowChange>& changes);
  void MakeDurable(size_t count);

  Rows rows_;
  Mark mark_;
  std::vector<AppliedGroup> unflushed_;
  uint32_t flushes_to_fail_ = 0;
  uint32_t applies_to_fail_ = 0;
};

class MemoryCatalog final : public Catalog {
 public:
  // Opens what is on `disk`; everything there counts as durable from then on.
  static std::unique_ptr<Catalog> Open(Loop& loop, MemoryCatalogDisk& disk);

  Mark applied() const override { return applied_; }
  Mark flushed() const override { return flushed_; }
  Task<Status> Scan(std::function<Status(ByteView key, ByteView value)> row) override;
  Task<Status> Apply(Mark mark, std::vector<RowChange> changes) override;
  Task<Status> Flush() override;
  Task<void> Close() override;

 private:
  MemoryCatalog(Loop& loop, MemoryCatalogDisk& disk);

  Loop& loop_;
  MemoryCatalogDisk& disk_;
  MemoryCatalogDisk::Rows rows_;
  Mark applied_;
  Mark flushed_;
  bool failed_ = false;
};

}  // namespace reprise::catalog
