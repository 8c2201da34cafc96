// The control API as a stranger may call it: bytes that claim to be the messages of control.proto go
// through convert.cc into the coordinator of a store with a history, in any order.
//
// Input: a script of calls; each is an opcode, the time that passes before the next call, and the
// message. Every call ends with an answer within its deadline; every answer, converted back, survives
// its own encoding (texts from a trainer included).
#include <google/protobuf/stubs/logging.h>

#include <chrono>
#include <functional>
#include <optional>

#include "core/base/log.h"
#include "reprise/v1/control.pb.h"
#include "server/rpc/convert.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/store_base.h"
#include "tests/fuzz/target.h"

namespace reprise::rpc {
namespace {

using namespace std::chrono_literals;
using lifecycle::StoreHost;

enum Op : uint8_t {
  kRegister,
  kBegin,
  kSkip,
  kReportInventory,
  kReportRankGone,
  kPollEvents,
  kListJobs,
  kGetJob,
  kListCheckpoints,
  kResolve,
  kDelete,
  kPin,
  kSetMark,
  kLocalCall,  // from the node in the store's own process: texts as a trainer sent them
  kOps,
};
constexpr size_t kCallsMax = 12;
constexpr Nanos kCallDeadline = 30s;

// What crosses the network arrives as it was sent.
template <typename Message>
void CheckTravels(const Message& message) {
  std::string bytes;
  REPRISE_CHECK(message.SerializeToString(&bytes));
  Message received;
  REPRISE_CHECK(received.ParseFromString(bytes), "an answer that its receiver cannot parse");
}

// Converts, and checks that a second round trip changes nothing.
template <typename Request, typename Message>
std::optional<Request> Converted(const Message& message) {
  Result<Request> request = FromProto(message);
  if (!request.has_value()) {
    fuzz::CheckRefusal(request.error());
    REPRISE_CHECK(ToGrpc(request.error()).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    return std::nullopt;
  }
  Message once = ToProto(*request);
  CheckTravels(once);
  Result<Request> again = FromProto(once);
  REPRISE_CHECK(again.has_value());
  REPRISE_CHECK(ToProto(*again).SerializeAsString() == once.SerializeAsString());
  return std::move(*request);
}

class Caller {
 public:
  explicit Caller(StoreHost& host) : host_(host) {}

  void Call(Op op, ByteView bytes) {
    lifecycle::CoordinatorApi& api = host_.store();
    TimePoint deadline = host_.In(kCallDeadline);
    switch (op) {
      case kRegister:
        return Answer<v1::RegisterRequest, lifecycle::RegisterRequest>(
            bytes, [&](auto request) { return api.Register(std::move(request), deadline); });
      case kBegin:
        return Answer<v1::BeginRequest, lifecycle::BeginRequest>(
            bytes, [&](auto request) { return api.Begin(std::move(request)); });
      case kSkip:
        return Answer<v1::SkipRequest, lifecycle::SkipRequest>(
            bytes, [&](auto request) { return api.Skip(std::move(request)); });
      case kReportInventory:
        return Answer<v1::InventoryReport, lifecycle::InventoryReport>(
            bytes, [&](auto report) { return api.ReportInventory(std::move(report)); });
      case kReportRankGone:
        return Answer<v1::RankGone, lifecycle::RankGone>(
            bytes, [&](auto gone) { return api.ReportRankGone(std::move(gone)); });
      case kPollEvents:
        return Answer<v1::PollRequest, lifecycle::PollRequest>(
            bytes, [&](auto request) { return api.PollEvents(std::move(request), deadline); });
      case kListJobs:
      case kGetJob: return CallJob(op, bytes);
      case kLocalCall: return CallLocally(bytes);
      default: return CallCheckpoint(op, bytes);
    }
  }
  // Lets every call come to its end.
  void Finish() {
    host_.RunFor(kCallDeadline + 1s);
    REPRISE_CHECK(running_ == 0, "a call outlived its deadline");
  }

 private:
  static void CheckAnswer(const Status& status) {
    if (!status.ok()) fuzz::CheckRefusal(status);
    CheckMessage(status);
  }
  // The text of a failure travels in the gRPC status; gRPC takes any bytes there.
  static void CheckMessage(const Status& status) {
    REPRISE_CHECK(ToGrpc(status).ok() == status.ok());
  }
  static void CheckAnswer(const Result<lifecycle::BeginAnswer>& answer) {
    CheckAnswer(StatusOf(answer));
    if (answer.has_value()) REPRISE_CHECK(!answer->attempt.IsZero());
  }
  template <typename T>
  static void CheckAnswer(const Result<T>& answer) {
    CheckAnswer(StatusOf(answer));
    if (!answer.has_value()) return;
    CheckOne(*answer);
  }
  template <typename T>
  static void CheckOne(const T& answer) {
    auto message = ToProto(answer);
    CheckTravels(message);
    REPRISE_CHECK(FromProto(message).has_value());
  }
  template <typename T>
  static void CheckOne(const std::vector<T>& answers) {
    for (const T& answer : answers) CheckOne(answer);
  }

  template <typename T>
  void Start(Task<T> task) {
    ++running_;
    host_.loop().Spawn([](Caller& self, Task<T> call) -> Task<void> {
      T answer = co_await std::move(call);
      --self.running_;
      CheckAnswer(answer);
    }(*this, std::move(task)));
  }
  template <typename Message, typename Request, typename Make>
  void Answer(ByteView bytes, Make make) {
    Message message;
    if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
    if (auto request = Converted<Request>(message)) Start(make(std::move(*request)));
  }
  void CallLocally(ByteView bytes) {
    fuzz::Script script(bytes);
    const lifecycle::TestRun& run = fuzz::BaseOfStore().run;
    lifecycle::CoordinatorApi& api = host_.store();
    uint32_t rank = script.Byte() % 3;
    uint64_t step = script.Byte();
    size_t kind = script.Below(3);
    std::string text(TextOf(script.Rest()));
    if (kind == 0) return Start(api.Skip({run.answer.job, run.answer.epoch, step, rank, text}));
    if (kind == 1) {
      Id process = run.RequestOf(rank).who.process;
      return Start(api.ReportRankGone({run.answer.job, run.answer.epoch, rank, process, text}));
    }
    lifecycle::RegisterRequest request = run.RequestOf(rank);
    request.who.job = "local";
    request.who.world = 1;
    request.who.host = request.who.launcher = text;
    Start(api.Register(request, host_.In(kCallDeadline)));
  }
  void CallJob(Op op, ByteView bytes) {
    v1::JobQuery query;
    if (!query.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
    if (op == kListJobs) return Start(host_.store().ListJobs(query.tenant()));
    Start(host_.store().GetJob(query.tenant(), query.job()));
  }
  void CallCheckpoint(Op op, ByteView bytes) {
    v1::PinRequest pin;
    v1::MarkRequest mark;
    int size = static_cast<int>(bytes.size());
    bool parsed = op == kPin       ? pin.ParseFromArray(bytes.data(), size)
                  : op == kSetMark ? mark.ParseFromArray(bytes.data(), size)
                                   : pin.mutable_checkpoint()->ParseFromArray(bytes.data(), size);
    if (!parsed) return;
    const v1::CheckpointQuery& query = op == kSetMark ? mark.checkpoint() : pin.checkpoint();
    lifecycle::CoordinatorApi& api = host_.store();
    const std::string& tenant = query.tenant();
    const std::string& job = query.job();
    if (op == kListCheckpoints) return Start(api.ListCheckpoints(tenant, job, query.all()));
    if (op == kResolve) return Start(api.Resolve(tenant, job, SelectorOf(query)));
    Result<CheckpointKey> key = KeyOf(query);
    if (!key.has_value()) return fuzz::CheckRefusal(key.error());
    if (op == kDelete) return Start(api.Delete(tenant, job, *key));
    if (op == kPin) return Start(api.Pin(tenant, job, *key, pin.pinned(), pin.reason()));
    if (mark.mark() > static_cast<uint32_t>(format::Mark::kRecovered)) return;
    Start(api.SetMark(tenant, job, *key, static_cast<format::Mark>(mark.mark()), mark.reason()));
  }

  StoreHost& host_;
  int running_ = 0;
};

// A client must survive any answer, too.
void RunAnswer(fuzz::Script& script) {
  size_t kind = script.Below(4);
  ByteView bytes = script.Rest();
  int size = static_cast<int>(bytes.size());
  v1::RegisterReply registered;
  v1::PollReply poll;
  v1::JobInfo job;
  v1::CheckpointInfo checkpoint;
  if (kind == 0 && registered.ParseFromArray(bytes.data(), size)) {
    if (auto answer = FromProto(registered); answer.has_value()) CheckTravels(ToProto(*answer));
  }
  if (kind == 1 && poll.ParseFromArray(bytes.data(), size)) {
    if (auto answer = FromProto(poll); answer.has_value()) CheckTravels(ToProto(*answer));
  }
  if (kind == 2 && job.ParseFromArray(bytes.data(), size)) {
    if (auto answer = FromProto(job); answer.has_value()) CheckTravels(ToProto(*answer));
  }
  if (kind == 3 && checkpoint.ParseFromArray(bytes.data(), size)) {
    auto answer = FromProto(checkpoint);
    if (!answer.has_value()) return;
    REPRISE_CHECK(CheckpointStateName(answer->state) != "?" && DurabilityName(answer->level) != "");
    REPRISE_CHECK(ToProto(*answer).state() == checkpoint.state());
    REPRISE_CHECK(ToProto(*answer).level() == checkpoint.level());
  }
}

void RunInput(ByteView input) {
  // What it cannot parse it also prints.
  static const auto* silenced = new google::protobuf::LogSilencer;
  static_cast<void>(silenced);
  fuzz::Script script(input);
  if (script.Chance(24)) return RunAnswer(script);
  const fuzz::StoreBase& base = fuzz::BaseOfStore();
  StoreHost host(base.disk, base.index, 7);
  REPRISE_CHECK(host.Open().ok());
  Caller caller(host);
  for (size_t calls = 0; calls < kCallsMax && !script.AtEnd(); ++calls) {
    auto op = static_cast<Op>(script.Below(kOps));
    Nanos pause = std::chrono::milliseconds(script.Byte() * uint64_t{20});
    caller.Call(op, script.Blob());
    host.RunFor(pause);
  }
  caller.Finish();
  REPRISE_CHECK(!host.store().failed());
  host.Close();
  REPRISE_CHECK(host.Open().ok(), "the store does not open again");
  host.Close();
}

class SeedWriter {
 public:
  SeedWriter() { writer_.U8(255); }
  template <typename Message>
  SeedWriter& Add(Op op, const Message& message, uint8_t pause = 1) {
    writer_.U8(op);
    writer_.U8(pause);
    std::string bytes = message.SerializeAsString();
    writer_.U16(static_cast<uint16_t>(bytes.size()));
    writer_.Data(ViewOf(bytes));
    return *this;
  }
  void AddLocal(const Bytes& script) {
    writer_.U8(kLocalCall);
    writer_.U8(1);
    writer_.U16(static_cast<uint16_t>(script.size()));
    writer_.Data(script);
  }
  Bytes Take() { return writer_.Take(); }

 private:
  ByteWriter writer_;
};

template <typename Message>
Message WithReason(Message message, const v1::CheckpointQuery& query) {
  *message.mutable_checkpoint() = query;
  message.set_reason("because");
  return message;
}

std::vector<Bytes> Seeds() {
  const fuzz::StoreBase& base = fuzz::BaseOfStore();
  const lifecycle::TestRun& run = base.run;
  std::vector<Bytes> seeds;
  v1::PollRequest poll = ToProto(lifecycle::PollRequest{lifecycle::IdOf(900000), Id{{5}}, 0});
  SeedWriter saves;
  for (uint32_t rank : {0, 1}) saves.Add(kRegister, ToProto(run.RequestOf(rank)), 5);
  for (uint32_t rank : {0, 1}) saves.Add(kBegin, ToProto(run.BeginOf(rank, 7)));
  saves.Add(kPollEvents, poll);
  saves.Add(kSkip, ToProto(lifecycle::SkipRequest{run.answer.job, run.answer.epoch, 7, 1, "no"}));
  for (uint8_t kind : {0, 1, 2}) {
    saves.AddLocal({0, 8, kind, 'n', 'o'});
    saves.Add(kPollEvents, poll);
  }
  seeds.push_back(saves.Take());
  lifecycle::RankGone gone{run.answer.job, run.answer.epoch, 0, lifecycle::IdOf(2000), "killed"};
  lifecycle::InventoryItem item{run.Identity(1, 4, base.attempt), Digest{{1}}, 12288};
  lifecycle::InventoryReport report{lifecycle::IdOf(900001), Id{{6}}, "host", {item}, 0};
  lifecycle::TestRun next = run;
  next.launch = 5;
  SeedWriter launch;
  launch.Add(kReportRankGone, ToProto(gone)).Add(kReportInventory, ToProto(report), 100);
  for (uint32_t rank : {0, 1}) launch.Add(kRegister, ToProto(next.RequestOf(rank)), 50);
  seeds.push_back(launch.Add(kPollEvents, poll).Take());
  for (const auto& [key, seed] : base.seeds) {
    v1::CheckpointQuery query = ToProto("team", run.job, {.step = key.step, .epoch = key.epoch});
    v1::JobQuery job;
    job.set_tenant("team");
    job.set_job(run.job);
    v1::PinRequest pin;
    pin.set_pinned(true);
    v1::MarkRequest mark;
    mark.set_mark(1);
    seeds.push_back(SeedWriter()
                        .Add(kListJobs, job)
                        .Add(kGetJob, job)
                        .Add(kResolve, query)
                        .Add(kPin, WithReason(pin, query))
                        .Add(kDelete, query)
                        .Add(kListCheckpoints, query)
                        .Take());
    seeds.push_back(SeedWriter()
                        .Add(kSetMark, WithReason(mark, query))
                        .Add(kResolve, query)
                        .Add(kListCheckpoints, query)
                        .Add(kDelete, query)
                        .Take());
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::rpc

REPRISE_FUZZ_TARGET(control_api) = {.name = "control_api",
                                    .run = reprise::rpc::RunInput,
                                    .seeds = reprise::rpc::Seeds,
                                    .input_bytes_max = 1024};
