#include "client/session/inbox.h"

#include <utility>

#include "core/base/log.h"
#include "core/wire/messages.h"

namespace reprise::client {
namespace {

Status StatusOfError(const Reply& reply) {
  Result<wire::ErrorBody> error = wire::Decode<wire::ErrorBody>(reply.body);
  if (!error.has_value()) return error.error();
  if (error->code == Code::kOk)
    return Status(Code::kInternal, "the daemon answered an error of OK");
  return Status(error->code, std::move(error->message));
}

}  // namespace

Result<Reply> Inbox::Next(Deadline deadline, std::string_view what) {
  std::unique_lock lock(mutex_);
  auto ready = [&] { return closed_ || !replies_.empty() || failure_.has_value(); };
  if (deadline.never()) {
    arrived_.wait(lock, ready);
  } else if (!arrived_.wait_until(lock, deadline.point(), ready)) {
    return reprise::Fail(Code::kDeadlineExceeded,
                         "the daemon did not answer in time while waiting for {}", what);
  }
  if (closed_) return Error(Code::kCancelled, "the wait was withdrawn");
  if (replies_.empty()) return Error(failure_->Annotate(what));
  Reply reply = std::move(replies_.front());
  replies_.pop_front();
  lock.unlock();
  if (reply.header.opcode == wire::Opcode::kError) return Error(StatusOfError(reply));
  return reply;
}

void Inbox::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  arrived_.notify_all();
}

std::deque<Reply> Inbox::TakeRest() {
  std::lock_guard lock(mutex_);
  return std::exchange(replies_, {});
}

void Inbox::Deliver(Reply reply) {
  std::lock_guard lock(mutex_);
  replies_.push_back(std::move(reply));
  arrived_.notify_one();
}

void Inbox::Fail(const Status& status) {
  status.IgnoreError();  // the first is kept: Next returns it
  std::lock_guard lock(mutex_);
  if (!failure_.has_value()) failure_ = status;
  arrived_.notify_all();
}

}  // namespace reprise::client
