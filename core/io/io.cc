#include "core/io/io.h"

#include <cerrno>
#include <utility>

namespace reprise {

void Io::Operation::await_suspend(std::coroutine_handle<> caller) {
  request_.waiter = caller;
  if (deadline_.has_value()) {
    timer_ = loop_.AddTimer(*deadline_, [this] {
      timer_ = 0;
      timed_out_ = true;
      io_.Cancel(request_);
    });
  }
  io_.Submit(request_);
}

int64_t Io::Operation::await_resume() {
  if (timer_ != 0) loop_.CancelTimer(std::exchange(timer_, 0));
  // A request that finished although it was being cancelled counts as finished.
  if (timed_out_ && request_.result < 0) return -ETIME;
  return request_.result;
}

}  // namespace reprise
