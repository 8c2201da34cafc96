#include "server/lifecycle/events.h"

#include <algorithm>
#include <utility>

namespace reprise::lifecycle {

void EventBus::Enqueue(Node& node, const NodeEvent& event) {
  node.queue.push_back(event);
  if (node.queue.size() > kEventsPerNodeMax) {
    node.queue.pop_front();
    ++node.first_cursor;
  }
  node.arrived.Notify();
}

void EventBus::Publish(const NodeEvent& event) {
  for (auto& [id, node] : nodes_) Enqueue(*node, event);
}

void EventBus::PublishTo(const Id& id, const NodeEvent& event) {
  auto found = nodes_.find(id);
  if (found != nodes_.end()) Enqueue(*found->second, event);
}

std::shared_ptr<EventBus::Node> EventBus::Get(const Id& id) {
  auto found = nodes_.find(id);
  if (found != nodes_.end()) return found->second;
  if (nodes_.size() >= kNodesMax) {
    // Room is made of daemons that are gone; they are told `lost` if they come back.
    std::erase_if(nodes_, [this](const auto& item) { return !IsAlive(item.first); });
    if (nodes_.size() >= kNodesMax) return nullptr;
  }
  auto node = std::make_shared<Node>(loop_);
  node->first_cursor = cursor_base_ + 1;
  nodes_[id] = node;
  return node;
}

bool EventBus::Touch(const Id& id, const Id& incarnation) {
  std::shared_ptr<Node> node = Get(id);
  if (node == nullptr) return false;
  node->last_seen = loop_.Now();
  if (node->incarnation == incarnation) return false;
  node->incarnation = incarnation;
  return true;
}

Task<Result<PollAnswer>> EventBus::Poll(PollRequest request, TimePoint deadline) {
  if (closed_) co_return Error(Code::kUnavailable, "the store is shutting down");
  std::shared_ptr<Node> node = Get(request.node);
  if (node == nullptr) {
    co_return Error(Code::kResourceExhausted, "too many node daemons are connected to this store");
  }
  Touch(request.node, request.incarnation);
  PollAnswer answer;
  answer.cursor = std::max(request.after, node->first_cursor - 1);
  answer.lost = request.after != 0 &&
                (request.after + 1 < node->first_cursor || request.after >= node->next_cursor());
  if (answer.lost) answer.cursor = node->first_cursor - 1;
  while (!node->queue.empty() && node->first_cursor <= answer.cursor) {
    node->queue.pop_front();
    ++node->first_cursor;
  }
  if (node->queue.empty() && !answer.lost) {
    ++node->polls;
    co_await node->arrived.WaitFor([this, node] { return closed_ || !node->queue.empty(); },
                                   deadline);
    --node->polls;
    node->last_seen = loop_.Now();
  }
  if (closed_) co_return Error(Code::kUnavailable, "the store is shutting down");
  size_t count = std::min(node->queue.size(), kEventsPerAnswerMax);
  answer.events.assign(node->queue.begin(), node->queue.begin() + static_cast<ptrdiff_t>(count));
  answer.cursor = node->first_cursor + count - 1;
  co_return answer;
}

bool EventBus::IsAlive(const Id& id) const {
  auto found = nodes_.find(id);
  if (found == nodes_.end()) return false;
  const Node& node = *found->second;
  return node.polls > 0 || loop_.Now() - node.last_seen <= node_timeout_;
}

std::vector<Id> EventBus::LiveNodes() const {
  std::vector<Id> live;
  for (const auto& [id, node] : nodes_) {
    if (IsAlive(id)) live.push_back(id);
  }
  return live;
}

void EventBus::Close() {
  closed_ = true;
  for (auto& [id, node] : nodes_) node->arrived.Notify();
}

}  // namespace reprise::lifecycle
