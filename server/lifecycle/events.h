// EventBus: what happened, told to every node daemon in order, and which daemons are alive.
//
// Each node has a bounded queue and a cursor. Events stay queued until a later poll acknowledges
// them by its cursor, so that an answer lost on the way is asked for again. Cursors start above
// everything an earlier life of the coordinator gave out: a node that comes with an older cursor,
// or fell behind the queue's bound, is told `lost` and answers with a full inventory.
//
// Thread rule: the store's loop. Polls wait; publishing never does.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/async/sync.h"
#include "reprise/status.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise::lifecycle {

inline constexpr size_t kEventsPerNodeMax = 4096;
inline constexpr size_t kNodesMax = 65536;
inline constexpr size_t kEventsPerAnswerMax = 512;

class EventBus {
 public:
  // `cursor_base` must rise with every start of the coordinator.
  EventBus(Loop& loop, uint64_t cursor_base, Nanos node_timeout)
      : loop_(loop), cursor_base_(cursor_base), node_timeout_(node_timeout) {}

  void Publish(const NodeEvent& event);
  void PublishTo(const Id& node, const NodeEvent& event);
  // Waits for events after `request.after`, at most until `deadline`; then an empty answer.
  // UNAVAILABLE after Close. RESOURCE_EXHAUSTED: too many nodes.
  Task<Result<PollAnswer>> Poll(PollRequest request, TimePoint deadline);

  // Notes a sign of life other than a poll. True when `incarnation` is new: the daemon started
  // anew.
  bool Touch(const Id& node, const Id& incarnation);
  // Polling now, or heard of within the node timeout.
  bool IsAlive(const Id& node) const;
  std::vector<Id> LiveNodes() const;
  // Ends all polls with UNAVAILABLE.
  void Close();

 private:
  struct Node {
    explicit Node(Loop& loop) : arrived(loop) {}
    Id incarnation;
    std::deque<NodeEvent> queue;
    uint64_t first_cursor = 0;  // of queue.front()
    uint64_t polls = 0;         // waiting now
    TimePoint last_seen;
    Notifier arrived;
    uint64_t next_cursor() const { return first_cursor + queue.size(); }
  };
  std::shared_ptr<Node> Get(const Id& node);
  void Enqueue(Node& node, const NodeEvent& event);

  Loop& loop_;
  uint64_t cursor_base_;
  Nanos node_timeout_;
  std::map<Id, std::shared_ptr<Node>> nodes_;
  bool closed_ = false;
};

}  // namespace reprise::lifecycle
