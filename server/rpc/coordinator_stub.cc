#include "server/rpc/coordinator_stub.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <utility>

#include "core/base/log.h"
#include "reprise/v1/control.grpc.pb.h"
#include "server/rpc/convert.h"

namespace reprise::rpc {
namespace {

constexpr auto kCallTimeout = std::chrono::seconds(10);
// gRPC's own deadline runs a little after ours, so that the server's detailed error arrives first.
constexpr auto kTransportMargin = std::chrono::milliseconds(500);
constexpr int kBackoffMaxMs = 2000;
constexpr int kKeepaliveMs = 10000;
constexpr int kKeepaliveTimeoutMs = 5000;

// Contexts of calls in progress, so that destruction can cancel them and wait.
class CallSet {
 public:
  void Add(grpc::ClientContext* context) {
    std::lock_guard lock(mutex_);
    contexts_.insert(context);
  }
  void Remove(grpc::ClientContext* context) {
    std::lock_guard lock(mutex_);
    contexts_.erase(context);
    if (contexts_.empty()) none_.notify_all();
  }
  void CancelAndWait() {
    std::unique_lock lock(mutex_);
    for (grpc::ClientContext* context : contexts_) context->TryCancel();
    none_.wait(lock, [this] { return contexts_.empty(); });
  }

 private:
  std::mutex mutex_;
  std::condition_variable none_;
  std::set<grpc::ClientContext*> contexts_;
};

// One call: everything gRPC needs until its callback has run.
template <typename Request, typename Reply>
struct Call {
  grpc::ClientContext context;
  Request request;
  Reply reply;
  grpc::Status status;
};

class Stub final : public CoordinatorStub {
 public:
  Stub(Loop& loop, const std::string& address) : loop_(loop), address_(address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kBackoffMaxMs);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Control::NewStub(channel_);
  }
  ~Stub() override { calls_.CancelAndWait(); }

  Task<Result<lifecycle::RegisterAnswer>> Register(lifecycle::RegisterRequest request,
                                                   TimePoint deadline) override {
    auto reply = co_await Unary<v1::RegisterReply>(&AsyncStub::Register, ToProto(request),
                                                   "Register", deadline);
    if (!reply.has_value()) co_return Error(reply.error());
    co_return FromProto(*reply);
  }
  Task<Result<lifecycle::BeginAnswer>> Begin(lifecycle::BeginRequest request) override {
    auto reply = co_await Unary<v1::BeginReply>(&AsyncStub::Begin, ToProto(request), "Begin");
    if (!reply.has_value()) co_return Error(reply.error());
    lifecycle::BeginAnswer answer;
    REPRISE_CO_ASSIGN(answer.attempt, IdFromProto(reply->attempt(), "attempt"));
    co_return answer;
  }
  Task<Status> Skip(lifecycle::SkipRequest request) override {
    co_return StatusOf(co_await Unary<v1::Empty>(&AsyncStub::Skip, ToProto(request), "Skip"));
  }
  Task<Status> ReportInventory(lifecycle::InventoryReport report) override {
    co_return StatusOf(
        co_await Unary<v1::Empty>(&AsyncStub::ReportInventory, ToProto(report), "ReportInventory"));
  }
  Task<Status> ReportRankGone(lifecycle::RankGone gone) override {
    co_return StatusOf(
        co_await Unary<v1::Empty>(&AsyncStub::ReportRankGone, ToProto(gone), "ReportRankGone"));
  }
  Task<Result<lifecycle::PollAnswer>> PollEvents(lifecycle::PollRequest request,
                                                 TimePoint deadline) override {
    auto reply = co_await Unary<v1::PollReply>(&AsyncStub::PollEvents, ToProto(request),
                                               "PollEvents", deadline);
    if (!reply.has_value()) co_return Error(reply.error());
    co_return FromProto(*reply);
  }

  Task<Result<std::vector<lifecycle::JobInfo>>> ListJobs(std::string tenant) override {
    v1::JobQuery query;
    query.set_tenant(tenant);
    auto reply = co_await Unary<v1::JobList>(&AsyncStub::ListJobs, std::move(query), "ListJobs");
    if (!reply.has_value()) co_return Error(reply.error());
    std::vector<lifecycle::JobInfo> jobs;
    for (const v1::JobInfo& message : reply->jobs()) {
      REPRISE_CO_ASSIGN(lifecycle::JobInfo info, FromProto(message));
      jobs.push_back(std::move(info));
    }
    co_return jobs;
  }
  Task<Result<lifecycle::JobInfo>> GetJob(std::string tenant, std::string job) override {
    v1::JobQuery query;
    query.set_tenant(tenant);
    query.set_job(job);
    auto reply = co_await Unary<v1::JobInfo>(&AsyncStub::GetJob, std::move(query), "GetJob");
    if (!reply.has_value()) co_return Error(reply.error());
    co_return FromProto(*reply);
  }
  Task<Result<std::vector<lifecycle::CheckpointInfo>>> ListCheckpoints(std::string tenant,
                                                                       std::string job,
                                                                       bool all) override {
    v1::CheckpointQuery query = ToProto(tenant, job, lifecycle::Selector{});
    query.set_all(all);
    auto reply = co_await Unary<v1::CheckpointList>(&AsyncStub::ListCheckpoints, std::move(query),
                                                    "ListCheckpoints");
    if (!reply.has_value()) co_return Error(reply.error());
    std::vector<lifecycle::CheckpointInfo> list;
    for (const v1::CheckpointInfo& message : reply->checkpoints()) {
      REPRISE_CO_ASSIGN(lifecycle::CheckpointInfo info, FromProto(message));
      list.push_back(std::move(info));
    }
    co_return list;
  }
  Task<Result<lifecycle::CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                                  lifecycle::Selector selector) override {
    auto reply = co_await Unary<v1::CheckpointInfo>(&AsyncStub::Resolve,
                                                    ToProto(tenant, job, selector), "Resolve");
    if (!reply.has_value()) co_return Error(reply.error());
    co_return FromProto(*reply);
  }
  Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) override {
    co_return StatusOf(co_await Unary<v1::Empty>(
        &AsyncStub::Delete, ToProto(tenant, job, {key.step, key.epoch}), "Delete"));
  }
  Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                   std::string reason) override {
    v1::PinRequest request;
    *request.mutable_checkpoint() = ToProto(tenant, job, {key.step, key.epoch});
    request.set_pinned(pinned);
    request.set_reason(reason);
    co_return StatusOf(co_await Unary<v1::Empty>(&AsyncStub::Pin, std::move(request), "Pin"));
  }
  Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key, format::Mark mark,
                       std::string reason) override {
    v1::MarkRequest request;
    *request.mutable_checkpoint() = ToProto(tenant, job, {key.step, key.epoch});
    request.set_mark(static_cast<uint32_t>(mark));
    request.set_reason(reason);
    co_return StatusOf(
        co_await Unary<v1::Empty>(&AsyncStub::SetMark, std::move(request), "SetMark"));
  }
  Task<Result<std::string>> DataAddress() override {
    auto reply = co_await Unary<v1::StoreInfo>(&AsyncStub::GetStore, v1::Empty(), "GetStore");
    if (!reply.has_value()) co_return Error(reply.error());
    co_return reply->data_address();
  }

 private:
  using AsyncStub = v1::Control::StubInterface::async_interface;
  template <typename Request, typename Reply>
  using Method = void (AsyncStub::*)(grpc::ClientContext*, const Request*, Reply*,
                                     std::function<void(grpc::Status)>);

  // Makes one call and resumes the caller on the loop with the reply.
  template <typename Reply, typename Request>
  Task<Result<Reply>> Unary(Method<Request, Reply> method, Request request, std::string_view name,
                            std::optional<TimePoint> deadline = {}) {
    // Shared with gRPC's callback, which may outlive this coroutine when its loop is torn down.
    auto call = std::make_shared<Call<Request, Reply>>();
    // As does this coroutine the stub, when a call that is cancelled by its destruction returns.
    std::string address = address_;
    call->request = std::move(request);
    Nanos left =
        deadline.has_value() ? std::max(*deadline - loop_.Now(), Nanos{0}) : Nanos(kCallTimeout);
    call->context.set_deadline(
        std::chrono::system_clock::time_point(
            std::chrono::microseconds(loop_.clock().WallMicros())) +
        std::chrono::duration_cast<std::chrono::microseconds>(left + kTransportMargin));
    struct Awaiter {
      Stub& stub;
      Method<Request, Reply> method;
      std::shared_ptr<Call<Request, Reply>> call;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> caller) {
        stub.calls_.Add(&call->context);
        (stub.stub_->async()->*method)(
            &call->context, &call->request, &call->reply,
            [&stub = stub, call = call, caller](grpc::Status status) {
              call->status = std::move(status);
              stub.loop_.Post([&loop = stub.loop_, caller] { loop.Schedule(caller); });
              stub.calls_.Remove(&call->context);
            });
      }
      void await_resume() const noexcept {}
    };
    co_await Awaiter{*this, method, call};
    Status status = FromGrpc(call->status, call->context, name);
    if (!status.ok()) co_return Error(status.Annotate("store " + address));
    co_return std::move(call->reply);
  }

  Loop& loop_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Control::Stub> stub_;
  CallSet calls_;
};

}  // namespace

std::unique_ptr<CoordinatorStub> CoordinatorStub::Create(Loop& loop, std::string address) {
  return std::make_unique<Stub>(loop, address);
}

}  // namespace reprise::rpc
