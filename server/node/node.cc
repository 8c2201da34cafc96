// Start:  slab (lock, adopt) -> save service -> uploads of adopted slots -> membership -> socket.
//         The socket comes last, so that a process that connects finds its predecessor's slots.
// Close:  socket (processes' unsealed saves end for all ranks) -> drain -> parts -> slab (unlock).
#include "server/node/node.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "server/node/context.h"
#include "server/node/endpoint.h"
#include "server/node/membership.h"
#include "server/node/pid_watch.h"
#include "server/node/save_service.h"
#include "server/node/slab.h"

namespace reprise::node {
namespace {

class NodeImpl final : public Node {
 public:
  NodeImpl(Io& io, Rng& rng, NodeOptions options, lifecycle::CoordinatorApi& coordinator,
           dataplane::StoreLink& store)
      : context_(io, rng, std::move(options), coordinator, store) {}

  Task<Status> Open();
  Task<void> Close(TimePoint drain_deadline) override;
  NodeStats stats() const override;
  const Id& id() const override { return context_.node; }
  bool idle() const override;

 private:
  void OnEvent(const lifecycle::NodeEvent& event);

  NodeContext context_;
  std::unique_ptr<Slab> slab_;
  std::unique_ptr<PidWatch> pids_;
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<SaveService> saves_;
  std::unique_ptr<Endpoint> endpoint_;
};

Task<Status> NodeImpl::Open() {
  const NodeOptions& options = context_.options;
  REPRISE_CO_ASSIGN_STATUS(
      slab_, co_await Slab::Open(context_.io, context_.rng,
                                 {options.slab_directory, options.slab_bytes_max, options.machine,
                                  options.slab_mutations}));
  context_.node = slab_->node_id();
  context_.incarnation = context_.rng.NewId();
  REPRISE_CO_ASSIGN_STATUS(pids_, options.machine->WatchProcesses(context_.loop));
  membership_ = std::make_unique<Membership>(
      context_, "unix:" + options.socket_path, [this] { return slab_->Inventory(); },
      [this](const lifecycle::NodeEvent& event) { OnEvent(event); });
  auto inventory_changed = [this] { membership_->ReportSoon(); };
  saves_ = std::make_unique<SaveService>(context_, *slab_, inventory_changed);
  for (const std::shared_ptr<Slot>& slot : slab_->slots()) {
    if (!slot->committed()) saves_->Resume(slot);
  }
  ConnectionParts parts{context_, *slab_, *saves_, *pids_, inventory_changed, {}};
  REPRISE_CO_ASSIGN_STATUS(endpoint_,
                           co_await Endpoint::Start(std::move(parts), options.socket_path));
  membership_->Start();
  LogInfo("node {} serves {}, slab {} in {} ({} in use)", context_.node.ToHex(),
          options.socket_path, HumanBytes(slab_->budget_bytes()), options.slab_directory,
          HumanBytes(slab_->used_bytes()));
  co_return OkStatus();
}

void NodeImpl::OnEvent(const lifecycle::NodeEvent& event) {
  saves_->OnEvent(event);
  endpoint_->OnEvent(event);
}

Task<void> NodeImpl::Close(TimePoint drain_deadline) {
  if (endpoint_ != nullptr) co_await endpoint_->Close();
  if (saves_ != nullptr && !co_await saves_->uploader().WaitIdle(drain_deadline)) {
    LogWarn("node: {} sealed snapshots were not uploaded in time; they stay in {}",
            saves_->uploader().pending(), context_.options.slab_directory);
  }
  context_.BeginClosing();
  if (saves_ != nullptr) saves_->Wake();
  if (membership_ != nullptr) membership_->ReportSoon();
  co_await context_.gate.Close();
  if (slab_ != nullptr) co_await slab_->Close();
}

NodeStats NodeImpl::stats() const {
  NodeStats stats = context_.stats;
  stats.slab_used_bytes = slab_->used_bytes();
  stats.slab_budget_bytes = slab_->budget_bytes();
  stats.uploads_pending = saves_->uploader().pending();
  return stats;
}

bool NodeImpl::idle() const {
  if (context_.options.idle_exit <= Nanos{0}) return false;
  if (endpoint_->connection_count() > 0 || saves_->uploader().pending() > 0) return false;
  return context_.loop.Now() - endpoint_->last_activity() >= context_.options.idle_exit;
}

}  // namespace

Task<Result<std::unique_ptr<Node>>> Node::Start(Io& io, Rng& rng, NodeOptions options,
                                                lifecycle::CoordinatorApi& coordinator,
                                                dataplane::StoreLink& store) {
  auto node = std::make_unique<NodeImpl>(io, rng, std::move(options), coordinator, store);
  Status opened = co_await node->Open();
  if (!opened.ok()) {
    co_await node->Close(io.loop().Now());
    co_return Error(opened.Annotate("node role"));
  }
  co_return node;
}

}  // namespace reprise::node
