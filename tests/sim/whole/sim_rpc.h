// SimRpc: the control API between simulated hosts, with the faults that a gRPC client sees.
//
// SimCoordinator is a CoordinatorApi on a node's loop; each call becomes a request that travels to
// the store's host, runs there on the store's loop, and travels back. Requests and replies are
// delayed (and so reordered), held by partitions, lost (UNAVAILABLE, the effect may have happened),
// executed twice, or so late that the caller has given up. The death of the store's process fails
// its calls at once, that of its machine after the keepalive. Deadlines are those of the gRPC stub.
//
// Thread rule: one thread. SimRpc outlives every SimCoordinator and every call.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/async/sync.h"
#include "core/io/sim_world.h"
#include "server/lifecycle/coordinator_api.h"
#include "tests/sim/whole/counts.h"

namespace reprise::sim {

struct RpcFaults {
  Nanos delay_min = std::chrono::microseconds(60);
  Nanos delay_max = std::chrono::microseconds(120);
  uint32_t lost_request_ppm = 0;
  uint32_t lost_reply_ppm = 0;
  uint32_t duplicate_ppm = 0;
  uint32_t late_ppm = 0;  // up to late_max more
  Nanos late_max = std::chrono::seconds(12);
};

class SimRpc {
 public:
  SimRpc(SimWorld& world, std::string store_host, Counts& counts)
      : world_(world), store_host_(std::move(store_host)), counts_(counts) {}

  RpcFaults faults;
  // The store's process serves calls from now on.
  void Up(lifecycle::CoordinatorApi& api, Loop& loop);
  // It does not any more; calls under way fail.
  void Down(SimCrash crash);
  bool is_up() const { return api_ != nullptr; }

  template <typename T>
  struct Call {
    Call(Loop& loop, std::string host, std::function<Task<T>(lifecycle::CoordinatorApi&)> run)
        : from(std::move(host)), make(std::move(run)), changed(loop) {}
    std::string from;
    uint64_t ticket = 0;
    uint64_t life = 0;  // of the store's process that the connection leads to
    std::function<Task<T>(lifecycle::CoordinatorApi&)> make;
    std::optional<T> answer;
    bool left = false;  // nobody waits for the answer any more
    Notifier changed;
    // What reaches nobody is lost on purpose: in a world of faults that is no unread error.
    ~Call() {
      if (answer.has_value()) Forget(*answer);
    }
    void Answer(T value) {
      if (answer.has_value()) return Forget(value);
      answer.emplace(std::move(value));
      changed.Notify();
    }
  };
  template <typename T>
  void Send(std::shared_ptr<Call<T>> call, std::string_view name);

  SimWorld& world() { return world_; }
  template <typename T>
  static void Forget([[maybe_unused]] const T& value) {
    if constexpr (std::is_same_v<T, Status>) value.IgnoreError();
  }
  template <typename T>
  static T Failure(Status status) {
    if constexpr (std::is_same_v<T, Status>) {
      return status;
    } else {
      return T(Error(std::move(status)));
    }
  }

 private:
  template <typename T>
  void Arrive(std::shared_ptr<Call<T>> call);
  template <typename T>
  void Return(std::shared_ptr<Call<T>> call, std::shared_ptr<T> value);
  template <typename T>
  static Task<void> Execute(SimRpc* rpc, std::shared_ptr<Call<T>> call);
  Nanos Delay();
  bool Draws(uint32_t ppm, FaultKind kind);
  bool Held(const std::string& from, const std::string& to) const {
    return world_.net().Blocks(from, to);
  }
  static Status Away(std::string_view why) {
    return Status(Code::kUnavailable, "store: " + std::string(why));
  }

  SimWorld& world_;
  const std::string store_host_;
  Counts& counts_;
  lifecycle::CoordinatorApi* api_ = nullptr;
  Loop* loop_ = nullptr;
  bool powered_ = true;
  uint64_t life_ = 0;  // rises with each Down
  uint64_t next_ticket_ = 1;
  std::map<uint64_t, std::function<void()>> running_;  // by ticket: fails the call, sent or running
};

class SimCoordinator final : public lifecycle::CoordinatorApi {
 public:
  SimCoordinator(SimRpc& rpc, Loop& loop, std::string host)
      : rpc_(rpc), loop_(loop), host_(std::move(host)) {}

  Task<Result<lifecycle::RegisterAnswer>> Register(lifecycle::RegisterRequest request,
                                                   TimePoint deadline) override {
    return Carry<Result<lifecycle::RegisterAnswer>>(
        "register", deadline, [=](auto& api) { return api.Register(request, deadline); });
  }
  Task<Result<lifecycle::BeginAnswer>> Begin(lifecycle::BeginRequest request) override {
    return Carry<Result<lifecycle::BeginAnswer>>("begin", {},
                                                 [=](auto& api) { return api.Begin(request); });
  }
  Task<Status> Skip(lifecycle::SkipRequest request) override {
    return Carry<Status>("skip", {}, [=](auto& api) { return api.Skip(request); });
  }
  Task<Status> ReportInventory(lifecycle::InventoryReport report) override {
    return Carry<Status>("inventory", {}, [=](auto& api) { return api.ReportInventory(report); });
  }
  Task<Status> ReportRankGone(lifecycle::RankGone gone) override {
    return Carry<Status>("gone", {}, [=](auto& api) { return api.ReportRankGone(gone); });
  }
  Task<Result<lifecycle::PollAnswer>> PollEvents(lifecycle::PollRequest request,
                                                 TimePoint deadline) override {
    return Carry<Result<lifecycle::PollAnswer>>(
        "poll", deadline, [=](auto& api) { return api.PollEvents(request, deadline); });
  }
  Task<Result<std::vector<lifecycle::JobInfo>>> ListJobs(std::string tenant) override {
    return Carry<Result<std::vector<lifecycle::JobInfo>>>(
        "jobs", {}, [=](auto& api) { return api.ListJobs(tenant); });
  }
  Task<Result<lifecycle::JobInfo>> GetJob(std::string tenant, std::string job) override {
    return Carry<Result<lifecycle::JobInfo>>("job", {},
                                             [=](auto& api) { return api.GetJob(tenant, job); });
  }
  Task<Result<std::vector<lifecycle::CheckpointInfo>>> ListCheckpoints(std::string tenant,
                                                                       std::string job,
                                                                       bool all) override {
    return Carry<Result<std::vector<lifecycle::CheckpointInfo>>>(
        "list", {}, [=](auto& api) { return api.ListCheckpoints(tenant, job, all); });
  }
  Task<Result<lifecycle::CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                                  lifecycle::Selector selector) override {
    return Carry<Result<lifecycle::CheckpointInfo>>(
        "resolve", {}, [=](auto& api) { return api.Resolve(tenant, job, selector); });
  }
  Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) override {
    return Carry<Status>("delete", {}, [=](auto& api) { return api.Delete(tenant, job, key); });
  }
  Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                   std::string reason) override {
    return Carry<Status>("pin", {},
                         [=](auto& api) { return api.Pin(tenant, job, key, pinned, reason); });
  }
  Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key, format::Mark mark,
                       std::string reason) override {
    return Carry<Status>("mark", {},
                         [=](auto& api) { return api.SetMark(tenant, job, key, mark, reason); });
  }

 private:
  static constexpr Nanos kCallTimeout = std::chrono::seconds(10);
  static constexpr Nanos kTransportMargin = std::chrono::milliseconds(500);

  template <typename T, typename Make>
  Task<T> Carry(std::string_view name, std::optional<TimePoint> deadline, Make make) {
    auto call = std::make_shared<SimRpc::Call<T>>(loop_, host_, std::move(make));
    TimePoint until = deadline.value_or(loop_.Now() + kCallTimeout) + kTransportMargin;
    return Await<T>(&rpc_, std::move(call), name, until);
  }
  // Touches nothing of this object after it began, as a call may outlive it.
  template <typename T>
  static Task<T> Await(SimRpc* rpc, std::shared_ptr<SimRpc::Call<T>> call, std::string_view name,
                       TimePoint until) {
    struct Leave {
      std::shared_ptr<SimRpc::Call<T>> call;
      ~Leave() { call->left = true; }
    } leave{call};
    rpc->Send(call, name);
    bool answered =
        co_await call->changed.WaitFor([call] { return call->answer.has_value(); }, until);
    if (!answered) {
      co_return SimRpc::Failure<T>(
          Status(Code::kDeadlineExceeded, std::string(name) + ": no answer from the store"));
    }
    co_return std::move(*call->answer);
  }

  SimRpc& rpc_;
  Loop& loop_;
  const std::string host_;
};

// --- templates

template <typename T>
void SimRpc::Send(std::shared_ptr<Call<T>> call, std::string_view name) {
  world_.Trace(call->from, name);
  call->life = life_;
  if (Draws(faults.lost_request_ppm, FaultKind::kRpcLostRequest)) {
    world_.At(world_.clock().Now() + Delay(), 0,
              [call] { call->Answer(Failure<T>(Away("connection lost"))); });
    return;
  }
  uint64_t ticket = next_ticket_++;
  running_[ticket] = [call] { call->Answer(Failure<T>(Away("connection reset"))); };
  call->ticket = ticket;
  int copies = Draws(faults.duplicate_ppm, FaultKind::kRpcDuplicate) ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    Nanos delay = Delay();
    if (Draws(faults.late_ppm, FaultKind::kRpcLate)) {
      delay += Nanos{world_.rng().Below(static_cast<uint64_t>(faults.late_max.count()))};
    }
    world_.At(world_.clock().Now() + delay, 0, [this, call] { Arrive(call); });
  }
}

template <typename T>
void SimRpc::Arrive(std::shared_ptr<Call<T>> call) {
  if (call->life != life_) return;  // the connection has ended with the process: failed by Down
  if (Held(call->from, store_host_) || (!powered_ && api_ == nullptr)) {
    // As retransmission would; the caller's deadline ends it.
    if (call->left) return;
    world_.At(world_.clock().Now() + std::chrono::milliseconds(20), 0,
              [this, call] { Arrive(call); });
    return;
  }
  world_.Trace(store_host_, "serve");
  if (api_ == nullptr) {
    auto refused = std::make_shared<T>(Failure<T>(Away("connection refused")));
    Return(call, std::move(refused));
    return;
  }
  loop_->Spawn(Execute(this, std::move(call)));
}

template <typename T>
Task<void> SimRpc::Execute(SimRpc* rpc, std::shared_ptr<Call<T>> call) {
  if (rpc->api_ == nullptr) co_return;  // it began to stop: Down has answered
  auto forget = [](T* unread) {
    Forget(*unread);
    delete unread;
  };
  T answer = co_await call->make(*rpc->api_);
  std::shared_ptr<T> value(new T(std::move(answer)), forget);
  rpc->running_.erase(call->ticket);
  if (rpc->Draws(rpc->faults.lost_reply_ppm, FaultKind::kRpcLostReply)) {
    Forget(*value);
    *value = Failure<T>(Away("connection lost before the reply"));
  }
  rpc->world_.At(rpc->world_.clock().Now() + rpc->Delay(), 0,
                 [rpc, call, value] { rpc->Return(call, value); });
}

template <typename T>
void SimRpc::Return(std::shared_ptr<Call<T>> call, std::shared_ptr<T> value) {
  if (Held(store_host_, call->from)) {
    if (call->left) return;
    world_.At(world_.clock().Now() + std::chrono::milliseconds(20), 0,
              [this, call, value] { Return(call, value); });
    return;
  }
  world_.Trace(call->from, "reply");
  call->Answer(std::move(*value));
}

}  // namespace reprise::sim
