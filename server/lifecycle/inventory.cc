#include "server/lifecycle/inventory.h"

#include <utility>

namespace reprise::lifecycle {

Status Inventories::Report(InventoryReport report) {
  if (report.items.size() > kInventoryItemsMax) {
    return FailStatus(Code::kInvalidArgument, "an inventory of {} shards; at most {} are accepted",
                      report.items.size(), kInventoryItemsMax);
  }
  core_.events.Touch(report.node, report.incarnation);
  if (!nodes_.contains(report.node) && nodes_.size() >= kNodesMax) {
    return FailStatus(Code::kResourceExhausted, "inventories of {} nodes are held already",
                      nodes_.size());
  }
  NodeInventory& inventory = nodes_[report.node];
  if (inventory.report.incarnation != report.incarnation) inventory.told.clear();
  // An answer to settle stays one when a later report of the same daemon comes without a token.
  if (inventory.report.incarnation == report.incarnation && report.settle_token == 0) {
    report.settle_token = inventory.report.settle_token;
  }
  inventory.report = std::move(report);
  std::map<Id, AttemptPtr> touched;  // by id: what follows must not depend on addresses
  for (const InventoryItem& item : inventory.report.items) {
    if (item.shard.rank >= item.shard.world) continue;
    AttemptPtr attempt = attempts_.Revive(item.shard);
    if (attempt == nullptr) {
      TellEnd(inventory.report.node, inventory, item.shard);
      continue;
    }
    attempt->begun.insert(item.shard.rank);
    touched[attempt->id] = attempt;
  }
  for (const auto& [id, attempt] : touched) AnnounceLocal(attempt);
  core_.changed.Notify();
  return OkStatus();
}

void Inventories::TellEnd(const Id& node, NodeInventory& inventory,
                          const format::ShardIdentity& shard) {
  if (!inventory.told.insert(shard.attempt).second) return;
  NodeEvent event;
  event.job = shard.job;
  event.key = shard.key;
  event.attempt = shard.attempt;
  const JobState* job = core_.state.FindJob(shard.job);
  Status over = job == nullptr ? OkStatus() : attempts_.WhyOver(*job, shard);
  // Whose save was committed hears that, also when the checkpoint has been deleted since.
  if (over.code() == Code::kAlreadyExists) {
    event.kind = NodeEvent::Kind::kCommitted;
  } else {
    event.kind = NodeEvent::Kind::kAborted;
    event.reason = "this attempt is over";
    if (job != nullptr && job->over.contains(shard.key)) {
      event.reason = job->over.at(shard.key).end.reason;
    }
  }
  core_.events.PublishTo(node, event);
}

void Inventories::AnnounceLocal(const AttemptPtr& attempt) {
  if (attempt->local_sealed_told) return;
  Sealed sealed = SealedRanks(*attempt, 0);
  if (sealed.conflict || sealed.ranks.size() != attempt->world) return;
  attempt->local_sealed_told = true;
  NodeEvent event;
  event.kind = NodeEvent::Kind::kLocalSealed;
  event.job = attempt->job;
  event.key = attempt->key;
  event.attempt = attempt->id;
  core_.events.Publish(event);
}

bool Inventories::Answered(const Id& node, uint64_t token) const {
  auto found = nodes_.find(node);
  return found != nodes_.end() && found->second.report.settle_token >= token;
}

Inventories::Sealed Inventories::SealedRanks(const Attempt& attempt, uint64_t token) const {
  Sealed sealed;
  std::map<uint32_t, Digest> roots;
  auto add = [&](uint32_t rank, const Digest& root) {
    auto [place, fresh] = roots.try_emplace(rank, root);
    if (!fresh && place->second != root) sealed.conflict = true;
    sealed.ranks.insert(rank);
  };
  if (const PreparedAttempt* prepared = core_.state.FindAttempt(attempt.id)) {
    for (const auto& [rank, shard] : prepared->shards) add(rank, shard.root);
  }
  for (const auto& [id, node] : nodes_) {
    bool counts = core_.events.IsAlive(id) && (token == 0 || node.report.settle_token >= token);
    if (!counts) continue;
    for (const InventoryItem& item : node.report.items) {
      const format::ShardIdentity& shard = item.shard;
      bool same = shard.attempt == attempt.id && shard.job == attempt.job &&
                  shard.key == attempt.key && shard.world == attempt.world &&
                  shard.rank < attempt.world;
      if (same) add(shard.rank, item.root);
    }
  }
  return sealed;
}

}  // namespace reprise::lifecycle
