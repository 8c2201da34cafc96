#include "client/snapshot/save.h"

#include <algorithm>

#include "core/base/log.h"

namespace reprise::client {
namespace {

constexpr uint8_t kFailed = static_cast<uint8_t>(wire::SavePhase::kFailed);
constexpr uint8_t kCommitted = static_cast<uint8_t>(wire::SavePhase::kCommitted);
constexpr uint8_t kLocalAll = static_cast<uint8_t>(wire::SavePhase::kLocalAll);

}  // namespace

Status Save::WaitCopied(Deadline deadline) {
  std::unique_lock lock(mutex_);
  auto settled = [&] { return !reading_ && (copied_ || phase_ == kFailed); };
  uint64_t seen = progress_->load(std::memory_order_relaxed);
  Deadline stalled = Deadline::After(stall_budget_);
  while (!settled()) {
    // A short turn, so that a rising counter is noticed and moves the stall deadline.
    Deadline turn = Deadline::After(std::chrono::milliseconds(50));
    Deadline wake = phase_ == kFailed ? turn : turn.Earlier(stalled).Earlier(deadline);
    changed_.wait_until(lock, wake.point(), settled);
    uint64_t now = progress_->load(std::memory_order_relaxed);
    if (now != seen) {
      seen = now;
      stalled = Deadline::After(stall_budget_);
    }
    if (settled() || phase_ == kFailed) continue;
    if (deadline.expired()) {
      FailLocked(
          FailStatus(Code::kDeadlineExceeded,
                     "step {}: the copy was not complete at the caller's deadline; the save is "
                     "given up, training goes on",
                     step));
    } else if (stalled.expired()) {
      FailLocked(
          FailStatus(Code::kDeadlineExceeded,
                     "step {}: the node daemon made no progress for {:.1f} s (stall budget); "
                     "the save is given up, training goes on",
                     step, SecondsOf(stall_budget_)));
    }
  }
  if (copied_) return OkStatus();
  observed_ = true;
  return status_;
}

bool Save::ReachedLocked(Durability durability) const {
  if (phase_ == kFailed) return false;
  return phase_ >= (durability == Durability::kLocal ? kLocalAll : kCommitted);
}

Status Save::Wait(Durability durability, Deadline deadline) {
  if (durability == Durability::kObject) {
    return Status(Code::kUnimplemented,
                  "waiting for `object` durability is not supported by this version: wait for "
                  "`server` and ask `reprise show` for the object copy");
  }
  std::unique_lock lock(mutex_);
  auto settled = [&] { return phase_ == kFailed || ReachedLocked(durability); };
  if (deadline.never()) {
    changed_.wait(lock, settled);
  } else if (!changed_.wait_until(lock, deadline.point(), settled)) {
    return FailStatus(
        Code::kDeadlineExceeded,
        "step {} did not reach `{}` durability in time (phase {} of 4): the save goes "
        "on; wait longer, or look at `reprise status`",
        step, DurabilityName(durability), phase_);
  }
  observed_ = true;
  return status_;
}

void Save::FailLocked(const Status& status) {
  status.IgnoreError();  // kept: told to whoever asks the ticket
  if (phase_ == kFailed || phase_ == kCommitted) return;
  phase_ = kFailed;
  status_ = status;
  cancelled_.store(true, std::memory_order_relaxed);
  if (awaited_ != nullptr) awaited_->Close();
  changed_.notify_all();
}

void Save::Fail(const Status& status) {
  std::lock_guard lock(mutex_);
  FailLocked(status);
}

SaveProgress Save::progress() const {
  std::lock_guard lock(mutex_);
  return {.phase = phase_,
          .status = status_,
          .step = step,
          .bytes = layout->layout.shard_bytes,
          .start_ms = start_ms_,
          .copied_ms = copied_ms_,
          .local_ms = local_ms_,
          .committed_ms = committed_ms_};
}

Status Save::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

bool Save::over() const {
  std::lock_guard lock(mutex_);
  return phase_ == kFailed || phase_ == kCommitted;
}

bool Save::committed() const {
  std::lock_guard lock(mutex_);
  return phase_ == kCommitted;
}

bool Save::was_observed() const {
  std::lock_guard lock(mutex_);
  return observed_;
}

Result<Reply> Save::Await(const std::shared_ptr<Inbox>& inbox, Deadline deadline,
                          std::string_view what) {
  {
    std::lock_guard lock(mutex_);
    if (phase_ == kFailed) return Error(status_);
    awaited_ = inbox;
  }
  Result<Reply> reply = inbox->Next(deadline, what);
  std::lock_guard lock(mutex_);
  awaited_ = nullptr;
  return reply;
}

bool Save::BeginReading() {
  std::lock_guard lock(mutex_);
  if (phase_ == kFailed) return false;
  reading_ = true;
  return true;
}

void Save::EndReading() {
  std::lock_guard lock(mutex_);
  reading_ = false;
  changed_.notify_all();
}

void Save::SetCopied() {
  std::lock_guard lock(mutex_);
  if (phase_ == kFailed) return;
  copied_ = true;
  copied_ms_ = MillisSince(called_);
  changed_.notify_all();
}

void Save::SetBegun(uint64_t generation, uint64_t id) {
  std::lock_guard lock(mutex_);
  generation_ = generation;
  id_ = id;
  phase_ = std::max(phase_, static_cast<uint8_t>(wire::SavePhase::kTransferring));
  AddProgress();
  // News that overtook the grant.
  if (early_.has_value() && early_->save == id) OnStateLocked(*early_);
  early_.reset();
}

void Save::SetStartMillis(double millis) {
  std::lock_guard lock(mutex_);
  start_ms_ = millis;
}

void Save::OnState(const wire::SaveState& state) {
  std::lock_guard lock(mutex_);
  if (generation_ == 0) {
    // Not granted yet: of this save only if the grant will have its id; else of an earlier save of the
    // same step, which a daemon tells of when a rank registers again.
    early_ = state;
    return;
  }
  if (!orphaned_at_.has_value() && state.save != id_) return;
  OnStateLocked(state);
}

void Save::OnCommitted() {
  std::lock_guard lock(mutex_);
  if (generation_ == 0) return;
  wire::SaveState state;
  state.save = id_;
  state.step = step;
  state.phase = wire::SavePhase::kCommitted;
  OnStateLocked(state);
}

void Save::OnStateLocked(const wire::SaveState& state) {
  AddProgress();
  if (state.phase == wire::SavePhase::kFailed) {
    Code code = state.code == Code::kOk ? Code::kAborted : state.code;
    told_by_daemon_ = true;
    FailLocked(Status(code, state.message));
    return;
  }
  if (phase_ == kFailed) return;
  // The daemon's successor has taken the save over: it tells how it ends.
  if (orphaned_at_.has_value()) {
    rejoined_ = true;
    id_ = state.save;
  }
  orphaned_at_.reset();
  phase_ = std::max(phase_, static_cast<uint8_t>(state.phase));
  if (phase_ >= kLocalAll && local_ms_ < 0) local_ms_ = MillisSince(called_);
  if (phase_ == kCommitted && committed_ms_ < 0) committed_ms_ = MillisSince(called_);
  changed_.notify_all();
}

void Save::OnDisconnected(uint64_t generation, const Status& why) {
  std::lock_guard lock(mutex_);
  early_.reset();  // another daemon may give the same id to another save
  if (generation_ != generation && !rejoined_) return;
  if (copied_) {
    orphaned_at_ = SteadyClock::now();
    return;
  }
  FailLocked(why.Annotate("step " + std::to_string(step) + " was not copied yet"));
}

std::optional<Nanos> Save::orphaned_for() const {
  std::lock_guard lock(mutex_);
  if (!orphaned_at_.has_value() || phase_ == kFailed || phase_ == kCommitted) return std::nullopt;
  return SteadyClock::now() - *orphaned_at_;
}

bool Save::occupies_slot(uint64_t generation) const {
  std::lock_guard lock(mutex_);
  if (phase_ == kFailed || phase_ == kCommitted) return false;
  return generation_ == 0 || generation_ == generation;
}

bool Save::told_by_daemon() const {
  std::lock_guard lock(mutex_);
  return told_by_daemon_;
}

void Save::FailByDaemon(const Status& status) {
  std::lock_guard lock(mutex_);
  // Given up here first: that is not the daemon's news, and it still has to be told.
  if (phase_ == kFailed) return;
  told_by_daemon_ = true;
  FailLocked(status);
}

}  // namespace reprise::client
