// Control: the CLI's blocking view of a store's control API.
//
// Every call has the command's deadline. UNAVAILABLE says which address did not answer and how to
// name another.
//
// Thread rule: one thread. Blocking.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "reprise/status.h"
#include "reprise/v1/control.grpc.pb.h"

namespace reprise::cli {

class Control {
 public:
  Control(std::string address, std::chrono::milliseconds timeout);

  Result<v1::JobList> ListJobs(const std::string& tenant);
  Result<v1::JobInfo> GetJob(const std::string& tenant, const std::string& job);
  Result<v1::CheckpointList> ListCheckpoints(const std::string& tenant, const std::string& job,
                                             bool all);
  Result<v1::CheckpointInfo> Resolve(const v1::CheckpointQuery& query);
  Result<v1::StoreInfo> GetStore();
  Status Delete(const v1::CheckpointQuery& query);
  Status Pin(const v1::PinRequest& request);
  Status SetMark(const v1::MarkRequest& request);

  const std::string& address() const { return address_; }

 private:
  template <typename Request, typename Reply>
  using Method = grpc::Status (v1::Control::StubInterface::*)(grpc::ClientContext*, const Request&,
                                                              Reply*);
  template <typename Request, typename Reply>
  Result<Reply> Call(Method<Request, Reply> method, const Request& request);

  std::string address_;
  std::chrono::milliseconds timeout_;
  std::unique_ptr<v1::Control::Stub> stub_;
};

}  // namespace reprise::cli
