#include "server/rpc/convert.h"

#include <charconv>
#include <cstring>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/text.h"

namespace reprise::rpc {
namespace {

constexpr int kGrpcCodeMax = 16;

std::string ToProto(const Digest& digest) { return std::string(TextOf(digest.view())); }

Result<Digest> DigestFromProto(std::string_view bytes, std::string_view field) {
  REPRISE_ASSIGN(Id id, IdFromProto(bytes, field));
  return Digest{id.bytes};
}

}  // namespace

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  int code = static_cast<int>(status.code());
  if (status.code() == Code::kFenced) code = grpc::StatusCode::FAILED_PRECONDITION;
  if (status.code() == Code::kOutcomeUnknown) code = grpc::StatusCode::UNKNOWN;
  return grpc::Status(static_cast<grpc::StatusCode>(code), status.message());
}

Status FromGrpc(const grpc::Status& status, const grpc::ClientContext& context,
                std::string_view call) {
  if (status.ok()) return OkStatus();
  const auto& trailers = context.GetServerTrailingMetadata();
  auto found = trailers.find(grpc::string_ref(kCodeKey.data(), kCodeKey.size()));
  int code = static_cast<int>(status.error_code());
  if (found != trailers.end()) {
    int told = 0;
    std::from_chars(found->second.begin(), found->second.end(), told);
    if (told > kGrpcCodeMax && told <= static_cast<int>(Code::kFenced)) code = told;
  } else if (code == grpc::StatusCode::UNKNOWN) {
    code = static_cast<int>(Code::kOutcomeUnknown);
  }
  if (code == static_cast<int>(Code::kUnavailable)) {
    return FailStatus(Code::kUnavailable, "{}: the store does not answer ({})", call,
                      status.error_message());
  }
  return Status(static_cast<Code>(code), status.error_message());
}

std::string ToProto(const Id& id) { return std::string(TextOf(id.bytes)); }

Result<Id> IdFromProto(std::string_view bytes, std::string_view field) {
  Id id;
  if (bytes.size() != id.bytes.size()) {
    return Fail(Code::kInvalidArgument, "field '{}' must be 16 bytes, not {}", field, bytes.size());
  }
  std::memcpy(id.bytes.data(), bytes.data(), bytes.size());
  return id;
}

v1::Key ToProto(const CheckpointKey& key) {
  v1::Key message;
  message.set_epoch(key.epoch);
  message.set_step(key.step);
  return message;
}
CheckpointKey FromProto(const v1::Key& key) { return {key.epoch(), key.step()}; }

v1::RegisterRequest ToProto(const lifecycle::RegisterRequest& request) {
  v1::RegisterRequest message;
  message.set_tenant(Utf8Text(request.who.tenant));
  message.set_job(Utf8Text(request.who.job));
  message.set_rank(request.who.rank);
  message.set_world(request.who.world);
  message.set_process(ToProto(request.who.process));
  message.set_launcher(Utf8Text(request.who.launcher));
  message.set_host(Utf8Text(request.who.host));
  message.set_pid(request.who.pid);
  message.set_node(ToProto(request.node));
  message.set_takeover(request.takeover);
  message.set_epoch(request.epoch);
  return message;
}

Result<lifecycle::RegisterRequest> FromProto(const v1::RegisterRequest& message) {
  lifecycle::RegisterRequest request;
  request.who.tenant = message.tenant();
  request.who.job = message.job();
  request.who.rank = message.rank();
  request.who.world = message.world();
  REPRISE_ASSIGN(request.who.process, IdFromProto(message.process(), "process"));
  request.who.launcher = message.launcher();
  request.who.host = message.host();
  request.who.pid = message.pid();
  REPRISE_ASSIGN(request.node, IdFromProto(message.node(), "node"));
  request.takeover = message.takeover();
  request.epoch = message.epoch();
  return request;
}

v1::RegisterReply ToProto(const lifecycle::RegisterAnswer& answer) {
  v1::RegisterReply message;
  message.set_job(ToProto(answer.job));
  message.set_epoch(answer.epoch);
  if (answer.resume.has_value()) *message.mutable_resume() = ToProto(*answer.resume);
  for (const auto& skipped : answer.skipped) {
    v1::Skipped* item = message.add_skipped();
    *item->mutable_key() = ToProto(skipped.key);
    item->set_reason(Utf8Text(skipped.reason));
  }
  return message;
}

Result<lifecycle::RegisterAnswer> FromProto(const v1::RegisterReply& message) {
  lifecycle::RegisterAnswer answer;
  REPRISE_ASSIGN(answer.job, IdFromProto(message.job(), "job"));
  answer.epoch = message.epoch();
  if (message.has_resume()) answer.resume = FromProto(message.resume());
  for (const v1::Skipped& item : message.skipped()) {
    answer.skipped.push_back({FromProto(item.key()), item.reason()});
  }
  return answer;
}

v1::BeginRequest ToProto(const lifecycle::BeginRequest& request) {
  v1::BeginRequest message;
  message.set_job(ToProto(request.job));
  *message.mutable_key() = ToProto(CheckpointKey{request.epoch, request.step});
  message.set_rank(request.rank);
  message.set_process(ToProto(request.process));
  message.set_metadata(Utf8Text(request.metadata));
  message.set_keep_last(request.keep.last);
  message.set_keep_every(request.keep.every);
  return message;
}

Result<lifecycle::BeginRequest> FromProto(const v1::BeginRequest& message) {
  lifecycle::BeginRequest request;
  REPRISE_ASSIGN(request.job, IdFromProto(message.job(), "job"));
  request.epoch = message.key().epoch();
  request.step = message.key().step();
  request.rank = message.rank();
  REPRISE_ASSIGN(request.process, IdFromProto(message.process(), "process"));
  request.metadata = message.metadata();
  request.keep = {message.keep_last(), message.keep_every()};
  return request;
}

v1::SkipRequest ToProto(const lifecycle::SkipRequest& request) {
  v1::SkipRequest message;
  message.set_job(ToProto(request.job));
  *message.mutable_key() = ToProto(CheckpointKey{request.epoch, request.step});
  message.set_rank(request.rank);
  message.set_reason(Utf8Text(request.reason));
  return message;
}

Result<lifecycle::SkipRequest> FromProto(const v1::SkipRequest& message) {
  lifecycle::SkipRequest request;
  REPRISE_ASSIGN(request.job, IdFromProto(message.job(), "job"));
  request.epoch = message.key().epoch();
  request.step = message.key().step();
  request.rank = message.rank();
  request.reason = message.reason();
  return request;
}

v1::InventoryReport ToProto(const lifecycle::InventoryReport& report) {
  v1::InventoryReport message;
  message.set_node(ToProto(report.node));
  message.set_incarnation(ToProto(report.incarnation));
  message.set_address(Utf8Text(report.address));
  message.set_settle_token(report.settle_token);
  for (const lifecycle::InventoryItem& item : report.items) {
    v1::InventoryItem* out = message.add_items();
    out->set_job(ToProto(item.shard.job));
    *out->mutable_key() = ToProto(item.shard.key);
    out->set_attempt(ToProto(item.shard.attempt));
    out->set_rank(item.shard.rank);
    out->set_world(item.shard.world);
    out->set_root(ToProto(item.root));
    out->set_length(item.length);
  }
  return message;
}

Result<lifecycle::InventoryReport> FromProto(const v1::InventoryReport& message) {
  lifecycle::InventoryReport report;
  REPRISE_ASSIGN(report.node, IdFromProto(message.node(), "node"));
  REPRISE_ASSIGN(report.incarnation, IdFromProto(message.incarnation(), "incarnation"));
  report.address = message.address();
  report.settle_token = message.settle_token();
  for (const v1::InventoryItem& in : message.items()) {
    lifecycle::InventoryItem item;
    REPRISE_ASSIGN(item.shard.job, IdFromProto(in.job(), "items.job"));
    item.shard.key = FromProto(in.key());
    REPRISE_ASSIGN(item.shard.attempt, IdFromProto(in.attempt(), "items.attempt"));
    item.shard.rank = in.rank();
    item.shard.world = in.world();
    REPRISE_ASSIGN(item.root, DigestFromProto(in.root(), "items.root"));
    item.length = in.length();
    report.items.push_back(std::move(item));
  }
  return report;
}

v1::RankGone ToProto(const lifecycle::RankGone& gone) {
  v1::RankGone message;
  message.set_job(ToProto(gone.job));
  message.set_epoch(gone.epoch);
  message.set_rank(gone.rank);
  message.set_process(ToProto(gone.process));
  message.set_reason(Utf8Text(gone.reason));
  return message;
}

Result<lifecycle::RankGone> FromProto(const v1::RankGone& message) {
  lifecycle::RankGone gone;
  REPRISE_ASSIGN(gone.job, IdFromProto(message.job(), "job"));
  gone.epoch = message.epoch();
  gone.rank = message.rank();
  REPRISE_ASSIGN(gone.process, IdFromProto(message.process(), "process"));
  gone.reason = message.reason();
  return gone;
}

v1::PollRequest ToProto(const lifecycle::PollRequest& request) {
  v1::PollRequest message;
  message.set_node(ToProto(request.node));
  message.set_incarnation(ToProto(request.incarnation));
  message.set_after(request.after);
  return message;
}

Result<lifecycle::PollRequest> FromProto(const v1::PollRequest& message) {
  lifecycle::PollRequest request;
  REPRISE_ASSIGN(request.node, IdFromProto(message.node(), "node"));
  REPRISE_ASSIGN(request.incarnation, IdFromProto(message.incarnation(), "incarnation"));
  request.after = message.after();
  return request;
}

v1::PollReply ToProto(const lifecycle::PollAnswer& answer) {
  v1::PollReply message;
  message.set_cursor(answer.cursor);
  message.set_lost(answer.lost);
  for (const lifecycle::NodeEvent& event : answer.events) {
    v1::NodeEvent* out = message.add_events();
    out->set_kind(static_cast<uint32_t>(event.kind));
    out->set_job(ToProto(event.job));
    *out->mutable_key() = ToProto(event.key);
    out->set_attempt(ToProto(event.attempt));
    out->set_reason(Utf8Text(event.reason));
    out->set_token(event.token);
  }
  return message;
}

Result<lifecycle::PollAnswer> FromProto(const v1::PollReply& message) {
  lifecycle::PollAnswer answer;
  answer.cursor = message.cursor();
  answer.lost = message.lost();
  for (const v1::NodeEvent& in : message.events()) {
    lifecycle::NodeEvent event;
    if (in.kind() < 1 ||
        in.kind() > static_cast<uint32_t>(lifecycle::NodeEvent::Kind::kLocalSealed)) {
      return Fail(Code::kUnimplemented,
                  "the store sent event kind {}, which this daemon does not know: upgrade it",
                  in.kind());
    }
    event.kind = static_cast<lifecycle::NodeEvent::Kind>(in.kind());
    REPRISE_ASSIGN(event.job, IdFromProto(in.job(), "events.job"));
    event.key = FromProto(in.key());
    REPRISE_ASSIGN(event.attempt, IdFromProto(in.attempt(), "events.attempt"));
    event.reason = in.reason();
    event.token = in.token();
    answer.events.push_back(std::move(event));
  }
  return answer;
}

v1::JobInfo ToProto(const lifecycle::JobInfo& info) {
  v1::JobInfo message;
  message.set_tenant(Utf8Text(info.tenant));
  message.set_name(Utf8Text(info.name));
  message.set_job(ToProto(info.job));
  message.set_epoch(info.epoch);
  message.set_world(info.world);
  message.set_alive(info.alive);
  if (info.latest.has_value()) *message.mutable_latest() = ToProto(*info.latest);
  if (info.resume.has_value()) *message.mutable_resume() = ToProto(*info.resume);
  message.set_checkpoint_count(info.checkpoint_count);
  message.set_stored_bytes(info.stored_bytes);
  for (const lifecycle::RankInfo& rank : info.ranks) {
    v1::RankInfo* out = message.add_ranks();
    out->set_rank(rank.rank);
    out->set_host(Utf8Text(rank.host));
    out->set_pid(rank.pid);
    out->set_alive(rank.alive);
    out->set_last_step(rank.last_step);
  }
  return message;
}

Result<lifecycle::JobInfo> FromProto(const v1::JobInfo& message) {
  lifecycle::JobInfo info;
  info.tenant = message.tenant();
  info.name = message.name();
  REPRISE_ASSIGN(info.job, IdFromProto(message.job(), "job"));
  info.epoch = message.epoch();
  info.world = message.world();
  info.alive = message.alive();
  if (message.has_latest()) info.latest = FromProto(message.latest());
  if (message.has_resume()) info.resume = FromProto(message.resume());
  info.checkpoint_count = message.checkpoint_count();
  info.stored_bytes = message.stored_bytes();
  for (const v1::RankInfo& rank : message.ranks()) {
    info.ranks.push_back({rank.rank(), rank.host(), rank.pid(), rank.alive(), rank.last_step()});
  }
  return info;
}

v1::CheckpointInfo ToProto(const lifecycle::CheckpointInfo& info) {
  v1::CheckpointInfo message;
  *message.mutable_key() = ToProto(info.key);
  message.set_attempt(ToProto(info.attempt));
  message.set_state(static_cast<uint32_t>(info.state));
  message.set_level(static_cast<uint32_t>(info.level));
  message.set_world(info.world);
  message.set_length(info.length);
  message.set_wall_micros(info.wall_micros);
  message.set_pinned(info.pinned);
  message.set_adopted(info.adopted);
  message.set_root(ToProto(info.root));
  message.set_note(Utf8Text(info.note));
  return message;
}

Result<lifecycle::CheckpointInfo> FromProto(const v1::CheckpointInfo& message) {
  lifecycle::CheckpointInfo info;
  info.key = FromProto(message.key());
  REPRISE_ASSIGN(info.attempt, IdFromProto(message.attempt(), "attempt"));
  info.state = static_cast<lifecycle::CheckpointState>(message.state());
  info.level = static_cast<Durability>(message.level());
  info.world = message.world();
  info.length = message.length();
  info.wall_micros = message.wall_micros();
  info.pinned = message.pinned();
  info.adopted = message.adopted();
  REPRISE_ASSIGN(info.root, DigestFromProto(message.root(), "root"));
  info.note = message.note();
  return info;
}

v1::CheckpointQuery ToProto(std::string tenant, std::string job,
                            const lifecycle::Selector& selector) {
  v1::CheckpointQuery query;
  query.set_tenant(Utf8Text(std::move(tenant)));
  query.set_job(Utf8Text(std::move(job)));
  if (selector.step.has_value()) query.set_step(*selector.step);
  if (selector.epoch.has_value()) query.set_epoch(*selector.epoch);
  return query;
}

lifecycle::Selector SelectorOf(const v1::CheckpointQuery& query) {
  lifecycle::Selector selector;
  if (query.has_step()) selector.step = query.step();
  if (query.has_epoch()) selector.epoch = query.epoch();
  return selector;
}

Result<CheckpointKey> KeyOf(const v1::CheckpointQuery& query) {
  if (!query.has_step() || !query.has_epoch()) {
    return Error(Code::kInvalidArgument, "name one checkpoint: both step and epoch are needed");
  }
  return CheckpointKey{query.epoch(), query.step()};
}

}  // namespace reprise::rpc
