// StoreLog: from a decision to its effect: journal, then state, then free space, then index.
//
// Append() returns when the entries are durable *and* applied to the StoreState. Extents that they
// free go back to the tier at that moment, never earlier. Rows follow into the catalog in the
// background, in journal order; the catalog is flushed when the ring is half used by groups that
// the index does not hold durably, so that the ring never wraps past it.
//
// Failure: a journal or catalog that failed, or an entry the state refuses, fails the log for good
// (failed() is true, `on_failure` is called once): the store must be restarted and recovered.
//
// Thread rule: the store's loop. Owner: the store.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <set>
#include <vector>

#include "core/async/sync.h"
#include "core/format/journal.h"
#include "reprise/status.h"
#include "server/catalog/catalog.h"
#include "server/journal/journal.h"
#include "server/lifecycle/store_state.h"
#include "server/tier/tier.h"

namespace reprise::lifecycle {

class StoreLog {
 public:
  struct Parts {
    StoreState& state;
    journal::Journal& journal;
    catalog::Catalog& catalog;
    tier::Tier& tier;
    uint32_t journal_slots = 0;
  };
  StoreLog(Loop& loop, Parts parts, std::function<void(Status)> on_failure);

  // Starts the background writer of the index.
  void Start();
  // Makes `entries` durable atomically and applies them. OUTCOME_UNKNOWN, UNAVAILABLE: the log has
  // failed or is closed. INVALID_ARGUMENT: too large for one slot; nothing happened.
  Task<Status> Append(std::vector<format::Entry> entries);
  // Waits until the index holds everything durably. No Append may follow.
  Task<Status> Close();
  bool failed() const { return failed_; }
  // Test only (Mutations): gives extents back before the entry that frees them is durable.
  void FreeEarly(const std::vector<format::Run>& runs);

 private:
  struct Pending {
    journal::Mark mark;
    std::vector<catalog::RowChange> rows;
  };
  void OnDurable(const journal::Mark& mark, const std::vector<format::Entry>& entries);
  Task<void> IndexInBackground(Gate::Hold hold);
  Task<Status> IndexPending();
  Task<Status> FlushIndex();
  void FailWith(Status status);

  Loop& loop_;
  Parts parts_;
  std::function<void(Status)> on_failure_;
  std::deque<Pending> pending_;
  std::set<format::Run> freed_early_;
  Notifier work_;
  Gate gate_;
  bool closing_ = false;
  bool failed_ = false;
};

}  // namespace reprise::lifecycle
