#include "tests/crash/store/scenario.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/base/check.h"
#include "tests/crash/store/content.h"

namespace reprise::crash {

using namespace std::chrono_literals;
using lifecycle::CheckpointInfo;
using lifecycle::NodeEvent;

namespace {

constexpr Nanos kPatience = 20s;

}  // namespace

void SayLine(std::string line) {
  line += '\n';
  ssize_t written = write(STDOUT_FILENO, line.data(), line.size());
  REPRISE_CHECK(written == static_cast<ssize_t>(line.size()), "nobody listens");
}

lifecycle::RankIdentity Scenario::IdentityOf(uint32_t rank) const {
  Id process = launch_;
  process.bytes[0] = static_cast<uint8_t>(rank);
  return {
      kTenant, kJob, rank, kWorld, process, launch_.ToHex(), "host", static_cast<int64_t>(rank)};
}

// --- the run

Status Scenario::Begin() {
  node_ = host_.rng().NewId();
  launch_ = host_.rng().NewId();
  listening_ = true;
  host_.loop().Spawn(Listen());
  Status first;
  std::optional<Status> second;
  host_.loop().Spawn([](Scenario& self, std::optional<Status>& out) -> Task<void> {
    out = co_await self.Register(1);
    self.changed_.Notify();
  }(*this, second));
  first = host_.Run(Register(0));
  host_.loop().RunUntil([&] { return second.has_value(); });
  REPRISE_RETURN_IF_ERROR(*second);
  REPRISE_RETURN_IF_ERROR(first);
  for (const CheckpointInfo& info : host_.Run(Listed())) step_ = std::max(step_, info.key.step);
  Say("run {}", answer_.epoch);
  return OkStatus();
}

Task<Status> Scenario::Register(uint32_t rank) {
  lifecycle::RegisterRequest request;
  request.who = IdentityOf(rank);
  request.node = node_;
  request.takeover = true;
  auto answer = co_await host_.store().Register(request, host_.In(kPatience));
  if (answer.has_value()) answer_ = *answer;
  co_return StatusOf(answer);
}

Task<void> Scenario::Listen() {
  lifecycle::PollRequest poll{node_, launch_, 0};
  while (true) {
    auto answer = co_await host_.store().PollEvents(poll, host_.In(kPatience));
    if (!answer.has_value()) break;
    poll.after = answer->cursor;
    for (const NodeEvent& event : answer->events) {
      if (event.kind == NodeEvent::Kind::kCommitted) {
        Say("committed {} {}", event.key.epoch, event.key.step);
        ended_[event.key] = true;
      } else if (event.kind == NodeEvent::Kind::kAborted) {
        Say("error {} {} aborted: {}", event.key.epoch, event.key.step, event.reason);
        ended_[event.key] = false;
      }
    }
    changed_.Notify();
  }
  listening_ = false;
  changed_.Notify();
}

void Scenario::End() {
  if (host_.is_open()) host_.Close();
  host_.loop().RunUntil([this] { return !listening_; });
}

Task<std::vector<CheckpointInfo>> Scenario::Listed() {
  auto listed = co_await host_.store().ListCheckpoints(kTenant, kJob, true);
  std::vector<CheckpointInfo> committed;
  if (!listed.has_value()) co_return committed;
  for (CheckpointInfo& info : *listed) {
    if (info.state != lifecycle::CheckpointState::kSaving) committed.push_back(std::move(info));
  }
  std::ranges::sort(committed, {}, &CheckpointInfo::key);
  co_return committed;
}

bool Scenario::Do(char operation) {
  switch (operation) {
    case 's': host_.Run(SaveNext()); break;
    case 'd': host_.Run(DeleteOldest()); break;
    case 'b': host_.Run(Both()); break;
    case 'P': host_.Run(PinOldest()); break;
    case 'U': host_.Run(UnpinAll()); break;
    default: REPRISE_CHECK(false, "no such operation");
  }
  return !host_.store().failed();
}

// --- saving

Task<void> Scenario::SaveNext() {
  CheckpointKey key{answer_.epoch, ++step_};
  Status saved = co_await Save(key);
  if (!saved.ok()) Say("error {} {} save: {}", key.epoch, key.step, saved.ToString());
}

Task<Status> Scenario::Save(CheckpointKey key) {
  Id attempt;
  for (uint32_t rank = 0; rank < kWorld; ++rank) {
    Say("begin {} {} {}", key.epoch, key.step, rank);
    lifecycle::BeginRequest request{
        answer_.job, key.epoch, key.step, rank, IdentityOf(rank).process, "{}", {}};
    auto begun = co_await host_.store().Begin(request);
    if (!begun.has_value()) co_return begun.error();
    attempt = begun->attempt;
  }
  std::optional<Status> other;
  host_.loop().Spawn(
      [](Scenario& self, CheckpointKey key, Id attempt, std::optional<Status>& out) -> Task<void> {
        out = co_await self.SaveRank(key, 1, attempt);
        self.changed_.Notify();
      }(*this, key, attempt, other));
  Status first = co_await SaveRank(key, 0, attempt);
  co_await changed_.WaitFor([&other] { return other.has_value(); });
  REPRISE_CO_RETURN_IF_ERROR(*other);
  REPRISE_CO_RETURN_IF_ERROR(first);
  bool answered = co_await changed_.WaitFor(
      [&] { return ended_.contains(key) || host_.store().failed() || !listening_; },
      host_.In(kPatience));
  co_return answered ? OkStatus() : Status(Code::kDeadlineExceeded, "no answer to a save");
}

Task<Status> Scenario::SaveRank(CheckpointKey key, uint32_t rank, Id attempt) {
  format::ShardIdentity identity{answer_.job, key, attempt, rank, kWorld};
  co_return co_await UploadShard(host_.store(), identity, kShardBytes);
}

// --- deleting and pinning

Task<void> Scenario::Delete(CheckpointKey key) {
  Say("delete {} {}", key.epoch, key.step);
  Status deleted = co_await host_.store().Delete(kTenant, kJob, key);
  if (deleted.ok()) {
    Say("deleted {} {}", key.epoch, key.step);
  } else if (deleted.code() == Code::kFailedPrecondition) {
    Say("refused {} {}", key.epoch, key.step);
  } else {
    Say("error {} {} delete: {}", key.epoch, key.step, deleted.ToString());
  }
}

// The oldest that neither a pin nor being the last good one protects.
Task<void> Scenario::DeleteOldest() {
  std::vector<CheckpointInfo> listed = co_await Listed();
  for (size_t i = 0; i + 1 < listed.size(); ++i) {
    if (listed[i].pinned) continue;
    co_await Delete(listed[i].key);
    co_return;
  }
}

Task<void> Scenario::Both() {
  bool deleted = false;
  host_.loop().Spawn([](Scenario& self, bool& done) -> Task<void> {
    co_await self.DeleteOldest();
    done = true;
    self.changed_.Notify();
  }(*this, deleted));
  co_await SaveNext();
  co_await changed_.WaitFor([&deleted] { return deleted; });
}

Task<void> Scenario::Pin(CheckpointKey key, bool pinned) {
  Say("pin {} {} {}", key.epoch, key.step, pinned ? 1 : 0);
  Status done = co_await host_.store().Pin(kTenant, kJob, key, pinned, pinned ? "kept" : "");
  if (done.ok()) {
    Say("pinned {} {} {}", key.epoch, key.step, pinned ? 1 : 0);
  } else {
    Say("error {} {} pin: {}", key.epoch, key.step, done.ToString());
  }
}

Task<void> Scenario::PinOldest() {
  std::vector<CheckpointInfo> listed = co_await Listed();
  if (!listed.empty()) co_await Pin(listed.front().key, true);
}

Task<void> Scenario::UnpinAll() {
  for (const CheckpointInfo& info : co_await Listed()) {
    if (info.pinned) co_await Pin(info.key, false);
  }
}

}  // namespace reprise::crash
