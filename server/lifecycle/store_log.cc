#include "server/lifecycle/store_log.h"

#include <iterator>
#include <utility>

#include "core/base/log.h"

namespace reprise::lifecycle {

StoreLog::StoreLog(Loop& loop, Parts parts, std::function<void(Status)> on_failure)
    : loop_(loop), parts_(parts), on_failure_(std::move(on_failure)), work_(loop), gate_(loop) {}

void StoreLog::Start() { loop_.Spawn(IndexInBackground(gate_.Enter())); }

Task<Status> StoreLog::Append(std::vector<format::Entry> entries) {
  if (failed_ || closing_) {
    co_return Status(Code::kUnavailable, failed_ ? "the store has failed: restart it to recover"
                                                 : "the store is shutting down");
  }
  // Reasons come from other processes, of any length; a journal entry has limits.
  for (format::Entry& entry : entries) entry = format::Bounded(std::move(entry));
  std::vector<format::Entry> copy = entries;
  Result<journal::Mark> mark = co_await parts_.journal.Append(
      std::move(copy), [this, entries = std::move(entries)](const journal::Mark& durable) {
        OnDurable(durable, entries);
      });
  if (!mark.has_value()) {
    if (mark.error().code() != Code::kInvalidArgument) FailWith(mark.error());
    co_return mark.error();
  }
  if (failed_) {
    co_return Status(Code::kOutcomeUnknown, "the store has failed: restart it to recover");
  }
  co_return OkStatus();
}

void StoreLog::OnDurable(const journal::Mark& mark, const std::vector<format::Entry>& entries) {
  if (failed_) return;
  if (pending_.empty() || pending_.back().mark != mark) pending_.push_back({mark, {}});
  std::vector<catalog::RowChange>& rows = pending_.back().rows;
  for (const format::Entry& entry : entries) {
    Result<StoreState::Change> change = parts_.state.Apply(entry);
    if (!change.has_value()) return FailWith(change.error());
    rows.insert(rows.end(), std::make_move_iterator(change->rows.begin()),
                std::make_move_iterator(change->rows.end()));
    std::erase_if(change->freed,
                  [this](const format::Run& run) { return freed_early_.erase(run); });
    if (!change->freed.empty()) parts_.tier.Free(change->freed);
  }
  work_.Notify();
}

void StoreLog::FreeEarly(const std::vector<format::Run>& runs) {
  parts_.tier.Free(runs);
  freed_early_.insert(runs.begin(), runs.end());
}

Task<void> StoreLog::IndexInBackground(Gate::Hold /*keeps Close waiting*/) {
  while (true) {
    co_await work_.WaitFor([this] { return !pending_.empty() || closing_ || failed_; });
    if (failed_) co_return;
    if (pending_.empty()) co_return;  // closing, and everything is applied
    Status status = co_await IndexPending();
    if (status.ok() && parts_.journal.unindexed() > parts_.journal_slots / 2) {
      status = co_await FlushIndex();
    }
    if (!status.ok()) {
      FailWith(status.Annotate("index"));
      co_return;
    }
  }
}

Task<Status> StoreLog::IndexPending() {
  while (!pending_.empty() && !failed_) {
    Pending next = std::move(pending_.front());
    pending_.pop_front();
    REPRISE_CO_RETURN_IF_ERROR(co_await parts_.catalog.Apply(next.mark, std::move(next.rows)));
    // Because a long queue must not outlast the ring, which waits for this flush.
    if (parts_.journal.unindexed() > parts_.journal_slots / 2) {
      REPRISE_CO_RETURN_IF_ERROR(co_await FlushIndex());
    }
  }
  co_return OkStatus();
}

Task<Status> StoreLog::FlushIndex() {
  REPRISE_CO_RETURN_IF_ERROR(co_await parts_.catalog.Flush());
  parts_.journal.SetIndexed(parts_.catalog.flushed());
  co_return OkStatus();
}

Task<Status> StoreLog::Close() {
  closing_ = true;
  work_.Notify();
  co_await gate_.Close();
  if (failed_) co_return Status(Code::kUnavailable, "the store has failed");
  co_return co_await FlushIndex();
}

void StoreLog::FailWith(Status status) {
  if (failed_) return;
  failed_ = true;
  LogError("store: {}; restart it to recover", status.ToString());
  parts_.journal.Refuse();  // who waits for the index to make room would wait for ever
  work_.Notify();
  if (on_failure_) on_failure_(std::move(status));
}

}  // namespace reprise::lifecycle
