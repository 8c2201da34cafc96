#include "server/catalog/memory_catalog.h"

#include <utility>

#include "core/base/check.h"

namespace reprise::catalog {

void MemoryCatalogDisk::ApplyTo(Rows& rows, const std::vector<RowChange>& changes) {
  for (const RowChange& change : changes) {
    if (change.value.has_value()) {
      rows.insert_or_assign(change.key, *change.value);
    } else {
      rows.erase(change.key);
    }
  }
}

void MemoryCatalogDisk::MakeDurable(size_t count) {
  REPRISE_CHECK(count <= unflushed_.size());
  for (size_t i = 0; i < count; ++i) ApplyTo(rows_, unflushed_[i].changes);
  if (count > 0) mark_ = unflushed_[count - 1].mark;
  unflushed_.erase(unflushed_.begin(), unflushed_.begin() + static_cast<ptrdiff_t>(count));
}

void MemoryCatalogDisk::Crash(size_t surviving_count) {
  MakeDurable(surviving_count);
  unflushed_.clear();
}

void MemoryCatalogDisk::Erase() {
  rows_.clear();
  mark_ = {};
  unflushed_.clear();
}

MemoryCatalogDisk::Rows MemoryCatalogDisk::VisibleRows() const {
  Rows rows = rows_;
  for (const AppliedGroup& group : unflushed_) ApplyTo(rows, group.changes);
  return rows;
}

std::unique_ptr<Catalog> MemoryCatalog::Open(Loop& loop, MemoryCatalogDisk& disk) {
  disk.MakeDurable(disk.unflushed_.size());
  return std::unique_ptr<Catalog>(new MemoryCatalog(loop, disk));
}

MemoryCatalog::MemoryCatalog(Loop& loop, MemoryCatalogDisk& disk)
    : loop_(loop), disk_(disk), rows_(disk.rows_), applied_(disk.mark_), flushed_(disk.mark_) {}

Task<Status> MemoryCatalog::Scan(std::function<Status(ByteView key, ByteView value)> row) {
  MemoryCatalogDisk::Rows snapshot = rows_;
  co_await loop_.Yield();
  for (const auto& [key, value] : snapshot) {
    REPRISE_CO_RETURN_IF_ERROR(row(ViewOf(key), ViewOf(value)));
  }
  co_return OkStatus();
}

Task<Status> MemoryCatalog::Apply(Mark mark, std::vector<RowChange> changes) {
  REPRISE_CHECK(mark.seq > applied_.seq, "marks rise");
  if (failed_) co_return Status(Code::kUnavailable, "the catalog has failed: reopen it");
  if (disk_.applies_to_fail_ > 0) {
    --disk_.applies_to_fail_;
    failed_ = true;
    co_return Status(Code::kUnavailable, "simulated failure of Apply");
  }
  // The order of calls is the order of effects, so the effect comes before the first suspension.
  MemoryCatalogDisk::ApplyTo(rows_, changes);
  disk_.unflushed_.push_back({mark, std::move(changes)});
  applied_ = mark;
  co_await loop_.Yield();
  co_return OkStatus();
}

Task<Status> MemoryCatalog::Flush() {
  if (failed_) co_return Status(Code::kUnavailable, "the catalog has failed: reopen it");
  Mark target = applied_;
  co_await loop_.Yield();
  if (disk_.flushes_to_fail_ > 0) {
    --disk_.flushes_to_fail_;
    failed_ = true;
    co_return Status(Code::kUnavailable, "simulated failure of Flush");
  }
  size_t covered = 0;
  while (covered < disk_.unflushed_.size() && disk_.unflushed_[covered].mark.seq <= target.seq) {
    ++covered;
  }
  disk_.MakeDurable(covered);
  if (target.seq > flushed_.seq) flushed_ = target;
  co_return OkStatus();
}

Task<void> MemoryCatalog::Close() { co_await loop_.Yield(); }

}  // namespace reprise::catalog
