// Between the control API's messages and the structs of lifecycle::CoordinatorApi, and between gRPC's
// status and ours. No logic: every field is carried, and identities of a wrong size are refused.
//
// Thread rule: pure functions.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <string_view>

#include "reprise/status.h"
#include "reprise/v1/control.pb.h"
#include "server/lifecycle/coordinator_api.h"

namespace reprise::rpc {

// Trailing metadata key for codes gRPC does not have.
inline constexpr std::string_view kCodeKey = "reprise-code";

grpc::Status ToGrpc(const Status& status);
// `context` is the finished call's, for the trailing metadata.
Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context,
                std::string_view call);

std::string ToProto(const Id& id);
// INVALID_ARGUMENT names `field` when the bytes are no identity.
Result<Id> IdFromProto(std::string_view bytes, std::string_view field);
v1::Key ToProto(const CheckpointKey& key);
CheckpointKey FromProto(const v1::Key& key);

v1::RegisterRequest ToProto(const lifecycle::RegisterRequest& request);
Result<lifecycle::RegisterRequest> FromProto(const v1::RegisterRequest& message);
v1::RegisterReply ToProto(const lifecycle::RegisterAnswer& answer);
Result<lifecycle::RegisterAnswer> FromProto(const v1::RegisterReply& message);

v1::BeginRequest ToProto(const lifecycle::BeginRequest& request);
Result<lifecycle::BeginRequest> FromProto(const v1::BeginRequest& message);
v1::SkipRequest ToProto(const lifecycle::SkipRequest& request);
Result<lifecycle::SkipRequest> FromProto(const v1::SkipRequest& message);
v1::InventoryReport ToProto(const lifecycle::InventoryReport& report);
Result<lifecycle::InventoryReport> FromProto(const v1::InventoryReport& message);
v1::RankGone ToProto(const lifecycle::RankGone& gone);
Result<lifecycle::RankGone> FromProto(const v1::RankGone& message);
v1::PollRequest ToProto(const lifecycle::PollRequest& request);
Result<lifecycle::PollRequest> FromProto(const v1::PollRequest& message);
v1::PollReply ToProto(const lifecycle::PollAnswer& answer);
Result<lifecycle::PollAnswer> FromProto(const v1::PollReply& message);

v1::JobInfo ToProto(const lifecycle::JobInfo& info);
Result<lifecycle::JobInfo> FromProto(const v1::JobInfo& message);
v1::CheckpointInfo ToProto(const lifecycle::CheckpointInfo& info);
Result<lifecycle::CheckpointInfo> FromProto(const v1::CheckpointInfo& message);
v1::CheckpointQuery ToProto(std::string tenant, std::string job,
                            const lifecycle::Selector& selector);
lifecycle::Selector SelectorOf(const v1::CheckpointQuery& query);
// The exact key a query names; INVALID_ARGUMENT when step or epoch is missing.
Result<CheckpointKey> KeyOf(const v1::CheckpointQuery& query);

}  // namespace reprise::rpc
