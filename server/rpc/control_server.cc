#include "server/rpc/control_server.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "core/async/task.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "reprise/v1/control.grpc.pb.h"
#include "server/rpc/convert.h"

namespace reprise::rpc {
namespace {

constexpr auto kDefaultDeadline = std::chrono::seconds(60);
constexpr auto kDeadlineMax = std::chrono::hours(24);
// A long poll answers this much before the caller's deadline, so that the answer arrives in time.
constexpr auto kAnswerMargin = std::chrono::milliseconds(200);
constexpr int kMessageBytesMax = 4 * 1024 * 1024;

// Calls between decode and answer; Stop waits until there are none.
class CallCount {
 public:
  void Enter() {
    std::lock_guard lock(mutex_);
    ++count_;
  }
  void Leave() {
    std::lock_guard lock(mutex_);
    if (--count_ == 0) none_.notify_all();
  }
  void WaitForNone() {
    std::unique_lock lock(mutex_);
    none_.wait(lock, [this] { return count_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable none_;
  uint64_t count_ = 0;
};

class Service final : public v1::Control::CallbackService {
 public:
  Service(Loop& loop, lifecycle::CoordinatorApi& coordinator,
          std::function<StoreDescription()> describe)
      : loop_(loop), coordinator_(coordinator), describe_(std::move(describe)) {}

  void WaitForCalls() { calls_.WaitForNone(); }

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* Register(Context* context, const v1::RegisterRequest* in,
                    v1::RegisterReply* out) override {
    TimePoint deadline = DeadlineOf(context);
    return Convert<lifecycle::RegisterRequest>(
        context, *in, [this, out, deadline](auto request) -> Task<Status> {
          auto answer = co_await coordinator_.Register(std::move(request), deadline);
          if (answer.has_value()) *out = ToProto(*answer);
          co_return StatusOf(answer);
        });
  }
  Reactor* Begin(Context* context, const v1::BeginRequest* in, v1::BeginReply* out) override {
    return Convert<lifecycle::BeginRequest>(
        context, *in, [this, out](auto request) -> Task<Status> {
          auto answer = co_await coordinator_.Begin(std::move(request));
          if (answer.has_value()) out->set_attempt(ToProto(answer->attempt));
          co_return StatusOf(answer);
        });
  }
  Reactor* Skip(Context* context, const v1::SkipRequest* in, v1::Empty*) override {
    return Convert<lifecycle::SkipRequest>(context, *in, [this](auto request) -> Task<Status> {
      co_return co_await coordinator_.Skip(std::move(request));
    });
  }
  Reactor* ReportInventory(Context* context, const v1::InventoryReport* in, v1::Empty*) override {
    return Convert<lifecycle::InventoryReport>(context, *in, [this](auto report) -> Task<Status> {
      co_return co_await coordinator_.ReportInventory(std::move(report));
    });
  }
  Reactor* ReportRankGone(Context* context, const v1::RankGone* in, v1::Empty*) override {
    return Convert<lifecycle::RankGone>(context, *in, [this](auto gone) -> Task<Status> {
      co_return co_await coordinator_.ReportRankGone(std::move(gone));
    });
  }
  Reactor* PollEvents(Context* context, const v1::PollRequest* in, v1::PollReply* out) override {
    TimePoint deadline = DeadlineOf(context);
    return Convert<lifecycle::PollRequest>(
        context, *in, [this, out, deadline](auto request) -> Task<Status> {
          auto answer = co_await coordinator_.PollEvents(std::move(request), deadline);
          if (answer.has_value()) *out = ToProto(*answer);
          co_return StatusOf(answer);
        });
  }

  Reactor* ListJobs(Context* context, const v1::JobQuery* in, v1::JobList* out) override {
    return Run(context, [this, in, out]() -> Task<Status> {
      auto jobs = co_await coordinator_.ListJobs(in->tenant());
      if (!jobs.has_value()) co_return jobs.error();
      for (const lifecycle::JobInfo& job : *jobs) *out->add_jobs() = ToProto(job);
      co_return OkStatus();
    });
  }
  Reactor* GetJob(Context* context, const v1::JobQuery* in, v1::JobInfo* out) override {
    return Run(context, [this, in, out]() -> Task<Status> {
      auto job = co_await coordinator_.GetJob(in->tenant(), in->job());
      if (job.has_value()) *out = ToProto(*job);
      co_return StatusOf(job);
    });
  }
  Reactor* ListCheckpoints(Context* context, const v1::CheckpointQuery* in,
                           v1::CheckpointList* out) override {
    return Run(context, [this, in, out]() -> Task<Status> {
      auto list = co_await coordinator_.ListCheckpoints(in->tenant(), in->job(), in->all());
      if (!list.has_value()) co_return list.error();
      for (const lifecycle::CheckpointInfo& info : *list) *out->add_checkpoints() = ToProto(info);
      co_return OkStatus();
    });
  }
  Reactor* Resolve(Context* context, const v1::CheckpointQuery* in,
                   v1::CheckpointInfo* out) override {
    return Run(context, [this, in, out]() -> Task<Status> {
      auto info = co_await coordinator_.Resolve(in->tenant(), in->job(), SelectorOf(*in));
      if (info.has_value()) *out = ToProto(*info);
      co_return StatusOf(info);
    });
  }
  Reactor* Delete(Context* context, const v1::CheckpointQuery* in, v1::Empty*) override {
    return Run(context, [this, in]() -> Task<Status> {
      REPRISE_CO_ASSIGN_STATUS(CheckpointKey key, KeyOf(*in));
      co_return co_await coordinator_.Delete(in->tenant(), in->job(), key);
    });
  }
  Reactor* Pin(Context* context, const v1::PinRequest* in, v1::Empty*) override {
    return Run(context, [this, in]() -> Task<Status> {
      const v1::CheckpointQuery& query = in->checkpoint();
      REPRISE_CO_ASSIGN_STATUS(CheckpointKey key, KeyOf(query));
      co_return co_await coordinator_.Pin(query.tenant(), query.job(), key, in->pinned(),
                                          in->reason());
    });
  }
  Reactor* SetMark(Context* context, const v1::MarkRequest* in, v1::Empty*) override {
    return Run(context, [this, in]() -> Task<Status> {
      const v1::CheckpointQuery& query = in->checkpoint();
      REPRISE_CO_ASSIGN_STATUS(CheckpointKey key, KeyOf(query));
      if (in->mark() > static_cast<uint32_t>(format::Mark::kRecovered)) {
        co_return FailStatus(Code::kInvalidArgument, "mark {} is unknown to this version",
                             in->mark());
      }
      co_return co_await coordinator_.SetMark(query.tenant(), query.job(), key,
                                              static_cast<format::Mark>(in->mark()), in->reason());
    });
  }
  Reactor* GetStore(Context* context, const v1::Empty*, v1::StoreInfo* out) override {
    return Run(context, [this, out]() -> Task<Status> {
      StoreDescription description = describe_();
      out->set_store(ToProto(description.store));
      out->set_version(description.version);
      out->set_data_address(description.data_address);
      out->set_chunk_bytes(description.chunk_bytes);
      out->set_capacity_bytes(description.capacity_bytes);
      out->set_used_bytes(description.used_bytes);
      out->set_suspect_bytes(description.suspect_bytes);
      out->set_io_engine(description.io_engine);
      for (std::string& line : description.recovery) {
        out->add_recovery(Utf8Text(std::move(line)));
      }
      co_return OkStatus();
    });
  }

 private:
  TimePoint DeadlineOf(Context* context) const {
    auto left = context->deadline() - std::chrono::system_clock::time_point(
                                          std::chrono::microseconds(loop_.clock().WallMicros()));
    Nanos span = left > kDeadlineMax ? Nanos(kDefaultDeadline)
                                     : std::chrono::duration_cast<Nanos>(left) - kAnswerMargin;
    return loop_.Now() + std::max(span, Nanos{0});
  }

  // Decodes `in`, then runs `body(request)` on the coordinator's loop.
  template <typename Request, typename Message, typename Body>
  Reactor* Convert(Context* context, const Message& in, Body body) {
    Result<Request> request = FromProto(in);
    if (!request.has_value()) {
      Reactor* reactor = context->DefaultReactor();
      reactor->Finish(ToGrpc(request.error()));
      return reactor;
    }
    auto shared = std::make_shared<Request>(std::move(*request));
    return Run(context, [body = std::move(body), shared]() -> Task<Status> {
      return body(std::move(*shared));
    });
  }

  // Runs `body` on the coordinator's loop and finishes the call with its status. The request and
  // reply messages live until Finish.
  Reactor* Run(Context* context, std::function<Task<Status>()> body) {
    Reactor* reactor = context->DefaultReactor();
    calls_.Enter();
    loop_.Post([this, context, reactor, body = std::move(body)]() mutable {
      loop_.Spawn(Execute(context, reactor, std::move(body)));
    });
    return reactor;
  }

  Task<void> Execute(Context* context, Reactor* reactor, std::function<Task<Status>()> body) {
    Status status = co_await body();
    if (status.code() == Code::kFenced || status.code() == Code::kOutcomeUnknown) {
      context->AddTrailingMetadata(std::string(kCodeKey),
                                   std::to_string(static_cast<int>(status.code())));
    }
    reactor->Finish(ToGrpc(status));
    calls_.Leave();
  }

  Loop& loop_;
  lifecycle::CoordinatorApi& coordinator_;
  std::function<StoreDescription()> describe_;
  CallCount calls_;
};

class Server final : public ControlServer {
 public:
  Server(Loop& loop, lifecycle::CoordinatorApi& coordinator,
         std::function<StoreDescription()> describe)
      : service_(loop, coordinator, std::move(describe)) {}
  ~Server() override { Stop(); }

  Status Listen(const std::string& address) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
    builder.SetMaxReceiveMessageSize(kMessageBytesMax);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    bool is_unix = address.starts_with("unix:");
    if (server_ == nullptr || (port == 0 && !is_unix)) {
      return FailStatus(Code::kUnavailable,
                        "cannot listen at '{}': is another daemon running there?", address);
    }
    size_t colon = address.rfind(':');
    address_ = is_unix ? address : address.substr(0, colon + 1) + std::to_string(port);
    return OkStatus();
  }

  std::string address() const override { return address_; }

  void Stop() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::time_point::min());
    service_.WaitForCalls();
    server_->Wait();
    server_.reset();
  }

 private:
  Service service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::Start(
    Loop& loop, lifecycle::CoordinatorApi& coordinator, std::string address,
    std::function<StoreDescription()> describe) {
  auto server = std::make_unique<Server>(loop, coordinator, std::move(describe));
  REPRISE_TRY(server->Listen(address));
  return server;
}

}  // namespace reprise::rpc
