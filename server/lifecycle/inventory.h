// Inventories: what the nodes hold sealed in RAM. Soft state: known only from their reports.
//
// A report replaces the node's last one. It revives attempts a restarted coordinator has forgotten,
// tells the node what became of attempts that are over, and announces (kLocalSealed) attempts that
// every rank has sealed. Settle asks all live nodes for a fresh report by token.
//
// Thread rule: the store's loop.
#pragma once

#include <map>
#include <set>

#include "server/lifecycle/attempt.h"
#include "server/lifecycle/core.h"

namespace reprise::lifecycle {

inline constexpr size_t kInventoryItemsMax = 65536;

class Inventories {
 public:
  Inventories(Core& core, Attempts& attempts) : core_(core), attempts_(attempts) {}

  // CoordinatorApi::ReportInventory.
  Status Report(InventoryReport report);

  // A settle token no node has seen; nodes answer it with a report.
  uint64_t NextToken() { return ++last_token_; }
  bool Answered(const Id& node, uint64_t token) const;

  // Ranks of the attempt that some node holds sealed (with `token` != 0: only nodes that answered
  // it). `conflict`: two sources disagree about a rank's bytes.
  struct Sealed {
    std::set<uint32_t> ranks;
    bool conflict = false;
  };
  Sealed SealedRanks(const Attempt& attempt, uint64_t token) const;

 private:
  struct NodeInventory {
    InventoryReport report;
    std::set<Id> told;  // attempts whose end this incarnation has heard of
  };
  void TellEnd(const Id& node, NodeInventory& inventory, const format::ShardIdentity& shard);
  void AnnounceLocal(const AttemptPtr& attempt);

  Core& core_;
  Attempts& attempts_;
  std::map<Id, NodeInventory> nodes_;
  uint64_t last_token_ = 0;
};

}  // namespace reprise::lifecycle
