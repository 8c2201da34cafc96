#include "tools/cli/control.h"

#include <charconv>
#include <utility>

#include "core/base/check.h"
#include "core/base/clock.h"
#include "core/base/log.h"

namespace reprise::cli {
namespace {

Status StatusOfCall(const grpc::Status& status, const grpc::ClientContext& context,
                    const std::string& address) {
  if (status.ok()) return OkStatus();
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return FailStatus(Code::kUnavailable,
                      "no store answers at {} ({}): is `reprised` running? Name another with "
                      "--store or REPRISE_STORE",
                      address, status.error_message());
  }
  int code = static_cast<int>(status.error_code());
  const auto& trailers = context.GetServerTrailingMetadata();
  auto told = trailers.find("reprise-code");
  if (told != trailers.end()) std::from_chars(told->second.begin(), told->second.end(), code);
  return Status(static_cast<Code>(code), status.error_message());
}

}  // namespace

Control::Control(std::string address, std::chrono::milliseconds timeout)
    : address_(std::move(address)), timeout_(timeout) {
  stub_ = v1::Control::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
}

template <typename Request, typename Reply>
Result<Reply> Control::Call(Method<Request, Reply> method, const Request& request) {
  grpc::ClientContext context;
  SystemClock clock;
  context.set_deadline(
      std::chrono::system_clock::time_point(std::chrono::microseconds(clock.WallMicros())) +
      timeout_);
  Reply reply;
  grpc::Status status =
      (static_cast<v1::Control::StubInterface*>(stub_.get())->*method)(&context, request, &reply);
  REPRISE_TRY(StatusOfCall(status, context, address_));
  return reply;
}

Result<v1::JobList> Control::ListJobs(const std::string& tenant) {
  v1::JobQuery query;
  query.set_tenant(tenant);
  return Call(&v1::Control::StubInterface::ListJobs, query);
}

Result<v1::JobInfo> Control::GetJob(const std::string& tenant, const std::string& job) {
  v1::JobQuery query;
  query.set_tenant(tenant);
  query.set_job(job);
  return Call(&v1::Control::StubInterface::GetJob, query);
}

Result<v1::CheckpointList> Control::ListCheckpoints(const std::string& tenant,
                                                    const std::string& job, bool all) {
  v1::CheckpointQuery query;
  query.set_tenant(tenant);
  query.set_job(job);
  query.set_all(all);
  return Call(&v1::Control::StubInterface::ListCheckpoints, query);
}

Result<v1::CheckpointInfo> Control::Resolve(const v1::CheckpointQuery& query) {
  return Call(&v1::Control::StubInterface::Resolve, query);
}

Result<v1::StoreInfo> Control::GetStore() {
  return Call(&v1::Control::StubInterface::GetStore, v1::Empty());
}

Status Control::Delete(const v1::CheckpointQuery& query) {
  return StatusOf(Call(&v1::Control::StubInterface::Delete, query));
}

Status Control::Pin(const v1::PinRequest& request) {
  return StatusOf(Call(&v1::Control::StubInterface::Pin, request));
}

Status Control::SetMark(const v1::MarkRequest& request) {
  return StatusOf(Call(&v1::Control::StubInterface::SetMark, request));
}

}  // namespace reprise::cli
