#include "server/node/membership.h"

#include <utility>

#include "core/base/log.h"

namespace reprise::node {
namespace {

// More unanswered requests than this are old ones of a coordinator that was away.
constexpr size_t kSettleTokensMax = 64;

}  // namespace

Membership::Membership(NodeContext& context, std::string address, TakeInventory take_inventory,
                       OnEvent on_event)
    : context_(context),
      address_(std::move(address)),
      take_inventory_(std::move(take_inventory)),
      on_event_(std::move(on_event)),
      changed_(context.loop) {}

void Membership::Start() {
  Gate::Hold poll_hold = context_.gate.Enter();
  Gate::Hold report_hold = context_.gate.Enter();
  if (!poll_hold || !report_hold) return;
  context_.loop.Spawn(RunPoll(this, std::move(poll_hold)));
  context_.loop.Spawn(RunReports(this, std::move(report_hold)));
}

void Membership::ReportSoon() {
  dirty_ = true;
  changed_.Notify();
}

Task<void> Membership::RunPoll(Membership* self, Gate::Hold) {
  NodeContext& context = self->context_;
  lifecycle::PollRequest request{context.node, context.incarnation, 0};
  Backoff backoff;
  bool away = false;
  while (!context.closing) {
    TimePoint deadline = context.loop.Now() + context.options.poll_slice;
    Result<lifecycle::PollAnswer> answer =
        co_await context.coordinator.PollEvents(request, deadline);
    if (!answer.has_value()) {
      if (answer.error().code() == Code::kDeadlineExceeded) continue;
      if (!away) LogWarn("coordinator is away: {}", answer.error().ToString());
      away = true;
      co_await context.Pause(backoff.Next());
      continue;
    }
    if (away) LogInfo("coordinator is back");
    if (away || answer->lost) self->ReportSoon();
    away = false;
    backoff.Reset();
    request.after = answer->cursor;
    for (const lifecycle::NodeEvent& event : answer->events) self->Dispatch(event);
  }
  self->changed_.Notify();
}

void Membership::Dispatch(const lifecycle::NodeEvent& event) {
  if (event.kind == lifecycle::NodeEvent::Kind::kSettle) {
    if (settle_tokens_.size() == kSettleTokensMax) settle_tokens_.pop_front();
    settle_tokens_.push_back(event.token);
    ReportSoon();
  }
  on_event_(event);
}

Task<void> Membership::RunReports(Membership* self, Gate::Hold) {
  NodeContext& context = self->context_;
  Backoff backoff;
  while (true) {
    co_await self->changed_.WaitFor([&] { return self->dirty_ || context.closing; });
    if (context.closing) co_return;
    self->dirty_ = false;
    lifecycle::InventoryReport report;
    report.node = context.node;
    report.incarnation = context.incarnation;
    report.address = self->address_;
    report.items = self->take_inventory_();
    if (!self->settle_tokens_.empty()) report.settle_token = self->settle_tokens_.front();
    uint64_t token = report.settle_token;
    Status status = co_await context.coordinator.ReportInventory(std::move(report));
    if (!status.ok()) {
      self->dirty_ = true;
      LogDebug("inventory report: {}", status.ToString());
      co_await context.Pause(backoff.Next());
      continue;
    }
    backoff.Reset();
    std::erase(self->settle_tokens_, token);
    // One report answers one token.
    if (!self->settle_tokens_.empty()) self->dirty_ = true;
  }
}

}  // namespace reprise::node
