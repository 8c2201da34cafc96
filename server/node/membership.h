// Membership: keeps the coordinator and this node informed about each other.
//
// One coroutine polls for events (which is also the heartbeat) and hands each to `on_event` in
// order; another sends inventories: on connect, after every change, and at once with the token when
// a kSettle event asks. Reports replace one another, so changes that come while one is under way
// are one more report, not a queue. When the coordinator is away both retry with growing pauses,
// for ever.
//
// Thread rule: the node's loop. Ends when the context is closing; a poll under way ends by itself
// within NodeOptions::poll_slice.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "server/node/context.h"

namespace reprise::node {

class Membership {
 public:
  using OnEvent = std::function<void(const lifecycle::NodeEvent&)>;
  using TakeInventory = std::function<std::vector<lifecycle::InventoryItem>()>;
  Membership(NodeContext& context, std::string address, TakeInventory take_inventory,
             OnEvent on_event);

  void Start();
  // The inventory changed: report it soon.
  void ReportSoon();

 private:
  static Task<void> RunPoll(Membership* self, Gate::Hold hold);
  static Task<void> RunReports(Membership* self, Gate::Hold hold);
  void Dispatch(const lifecycle::NodeEvent& event);

  NodeContext& context_;
  std::string address_;
  TakeInventory take_inventory_;
  OnEvent on_event_;
  bool dirty_ = true;
  std::deque<uint64_t> settle_tokens_;  // asked for and not answered yet
  Notifier changed_;
};

}  // namespace reprise::node
