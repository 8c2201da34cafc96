// Inbox: where the answers to one request, or to several, arrive.
//
// Made by Session. A kError answer comes out of Next as that Status; a lost connection as UNAVAILABLE.
// Must be destroyed before its session.
//
// Thread rule: Next from any number of threads, each answer goes to one of them. Next blocks until an
// answer, the deadline, or Close.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string_view>

#include "client/session/deadline.h"
#include "client/session/descriptor.h"
#include "core/base/bytes.h"
#include "core/wire/frame.h"
#include "reprise/status.h"

namespace reprise::client {

struct Reply {
  wire::FrameHeader header;
  Bytes body;
  Descriptor descriptor;  // what came along with kSlot and kRing
};

class Inbox {
 public:
  // The next answer. DEADLINE_EXCEEDED says that `what` was waited for. CANCELLED: Close was called.
  // An error of the daemon ends only its own request; later answers to others still come.
  Result<Reply> Next(Deadline deadline, std::string_view what);
  // Wakes every waiter; all further calls of Next fail.
  void Close();
  // What arrived and was not taken. No thread may wait in Next.
  std::deque<Reply> TakeRest();

  // Called by the session.
  void Deliver(Reply reply);
  void Fail(const Status& status);

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Reply> replies_;
  std::optional<Status> failure_;
  bool closed_ = false;
};

}  // namespace reprise::client
