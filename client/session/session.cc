#include "client/session/session.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace reprise::client {
namespace {

// Refusals that a further attempt would only repeat.
bool IsFinal(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
    case Code::kAlreadyExists:
    case Code::kPermissionDenied:
    case Code::kUnauthenticated:
    case Code::kUnimplemented:
    case Code::kFenced: return true;
    default: return false;
  }
}

constexpr Nanos kReplayTimeout = std::chrono::seconds(10);

}  // namespace

Session::Session(Options options)
    : options_(std::move(options)),
      fork_generation_(ForkGeneration()),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      away_since_(SteadyClock::now()) {}

Result<std::unique_ptr<Session>> Session::Open(Options options) {
  Nanos timeout = options.connect_timeout;
  std::unique_ptr<Session> session(new Session(std::move(options)));
  session->thread_ = std::thread([raw = session.get()] { raw->Run(); });
  Result<uint64_t> connected = session->WaitConnected(Deadline::After(timeout));
  if (!connected.has_value()) return Error(connected.error());
  return session;
}

Session::~Session() {
  if (IsForkChild(fork_generation_)) {
    // The thread exists in the parent only: neither join nor terminate.
    new std::thread(std::move(thread_));
    return;
  }
  SendFrames(wire::Session::PackBody(wire::Opcode::kBye, {}, 0), 0).IgnoreError();
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
    changed_.notify_all();
  }
  Wake();
  if (thread_.joinable()) thread_.join();
}

void Session::SetListener(SessionListener* listener) {
  std::lock_guard lock(listener_mutex_);
  listener_ = listener;
}

void Session::SetReplay(wire::Register registration) {
  std::lock_guard lock(mutex_);
  replay_ = std::move(registration);
}

std::optional<SteadyPoint> Session::away_since() const {
  std::lock_guard lock(mutex_);
  if (connection_ != nullptr) return std::nullopt;
  return away_since_;
}

Result<uint64_t> Session::WaitConnected(Deadline deadline) {
  std::unique_lock lock(mutex_);
  auto ready = [&] { return generation() != 0 || refused_.has_value() || closing_; };
  if (deadline.never()) {
    changed_.wait(lock, ready);
  } else {
    changed_.wait_until(lock, deadline.point(), ready);
  }
  if (refused_.has_value()) return Error(*refused_);
  if (generation() != 0) return generation();
  return Fail(Code::kUnavailable, "the node daemon has been away for {:.1f} s: {}",
              MillisSince(away_since_) / 1000, away_why_.message());
}

void Session::Forget(uint64_t request) {
  std::lock_guard lock(mutex_);
  inboxes_.erase(request);
}

Status Session::SendFrames(ByteView bytes, uint64_t generation) {
  std::lock_guard lock(mutex_);
  return SendLocked(bytes, generation);
}

Result<uint64_t> Session::StartFrames(ByteView bytes, uint64_t request,
                                      const std::shared_ptr<Inbox>& inbox, uint64_t generation) {
  std::lock_guard lock(mutex_);
  inboxes_[request] = inbox;
  Status sent = SendLocked(bytes, generation);
  if (!sent.ok()) {
    inboxes_.erase(request);
    return Error(std::move(sent));
  }
  return request;
}

Status Session::SendLocked(ByteView bytes, uint64_t generation) {
  if (IsForkChild(fork_generation_)) return Status(Code::kFailedPrecondition, kForkMessage);
  if (refused_.has_value()) return *refused_;
  uint64_t current = this->generation();
  if (current == 0 || (generation != 0 && generation != current)) {
    return FailStatus(Code::kUnavailable, "the node daemon is away: {}", away_why_.message());
  }
  if (out_.size() - out_sent_ + bytes.size() > kOutBytesMax) {
    return FailStatus(Code::kUnavailable, "the node daemon does not read: {} wait for it",
                      HumanBytes(out_.size() - out_sent_));
  }
  if (out_.empty()) {
    Result<size_t> sent = connection_->TrySend(bytes);
    if (!sent.has_value()) {
      // This generation is over, although the thread that serves it has not seen that yet: whoever
      // tries again must wait for the next one.
      generation_.store(0, std::memory_order_release);
      away_why_ = sent.error();
      Wake();
      return sent.error();
    }
    bytes = bytes.subspan(*sent);
  }
  if (bytes.empty()) return OkStatus();
  out_.insert(out_.end(), bytes.begin(), bytes.end());
  Wake();
  return OkStatus();
}

void Session::Wake() {
  uint64_t one = 1;
  // A full counter means that a wake-up is pending already.
  [[maybe_unused]] ssize_t written = ::write(wake_.get(), &one, sizeof(one));
}

void Session::Run() {
  Nanos pause = options_.backoff_min;
  std::unique_ptr<Connection> replaced;
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (closing_ || refused_.has_value()) return;
    }
    Status connected = ConnectOnce(Deadline::After(options_.connect_timeout));
    if (connected.ok()) {
      pause = options_.backoff_min;
      replaced.reset();
      replaced = Serve();
      continue;
    }
    {
      std::unique_lock lock(mutex_);
      away_why_ = connected;
      if (IsFinal(connected.code())) {
        refused_ = connected;
        changed_.notify_all();
        return;
      }
      changed_.wait_for(lock, pause, [&] { return closing_; });
    }
    pause = std::min(pause * 2, options_.backoff_max);
  }
}

Status Session::ConnectOnce(Deadline deadline) {
  REPRISE_ASSIGN_STATUS(std::unique_ptr<Connection> connection,
                        Connection::Connect(options_.socket_path, options_.hello, deadline));
  std::optional<wire::Register> replay;
  {
    std::lock_guard lock(mutex_);
    replay = replay_;
  }
  if (replay.has_value()) REPRISE_RETURN_IF_ERROR(Replay(*connection, *replay));
  std::lock_guard lock(mutex_);
  chunk_bytes_.store(connection->peer().chunk_bytes, std::memory_order_relaxed);
  connection_ = std::move(connection);
  generation_.store(++generations_, std::memory_order_release);
  changed_.notify_all();
  return OkStatus();
}

Status Session::Replay(Connection& connection, const wire::Register& registration) {
  uint64_t request = next_request_.fetch_add(1, std::memory_order_relaxed);
  Deadline deadline = Deadline::After(kReplayTimeout);
  REPRISE_RETURN_IF_ERROR(connection.SendAll(wire::Session::Pack(registration, request), deadline));
  while (true) {
    REPRISE_ASSIGN_STATUS(Reply reply,
                          connection.ReadReply(deadline, "its answer to a replayed REGISTER"));
    if (reply.header.request != request) {
      Dispatch(std::move(reply));
      continue;
    }
    if (reply.header.opcode == wire::Opcode::kRegistered) return OkStatus();
    REPRISE_ASSIGN_STATUS(auto error, wire::Decode<wire::ErrorBody>(reply.body));
    return Status(error.code == Code::kOk ? Code::kInternal : error.code, error.message);
  }
}

void Session::Reconnect(uint64_t generation) {
  std::lock_guard lock(mutex_);
  if (this->generation() != generation) return;
  // At once, so that nobody sends on the old connection any more.
  generation_.store(0, std::memory_order_release);
  replacing_ = true;
  Wake();
}

std::unique_ptr<Connection> Session::Serve() {
  Status status;
  bool replacing = false;
  while (status.ok()) {
    short events = POLLIN;
    {
      std::lock_guard lock(mutex_);
      replacing = std::exchange(replacing_, false);
      if (closing_ || replacing) break;
      if (!out_.empty()) events |= POLLOUT;
    }
    pollfd entries[2] = {{.fd = connection_->descriptor(), .events = events, .revents = 0},
                         {.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) {
      status = FailStatus(Code::kInternal, "poll: {}", strerror(errno));
      break;
    }
    if (entries[1].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] ssize_t got = ::read(wake_.get(), &count, sizeof(count));
    }
    status = PumpOnce();
  }
  if (status.ok()) {
    status = Status(Code::kCancelled, replacing ? "slots of another size are attached anew"
                                                : "this client was closed");
  }
  std::unique_ptr<Connection> ended = Disconnect(status);
  return replacing ? std::move(ended) : nullptr;
}

Status Session::PumpOnce() {
  {
    std::lock_guard lock(mutex_);
    while (!out_.empty()) {
      REPRISE_ASSIGN_STATUS(size_t sent, connection_->TrySend(ByteView(out_).subspan(out_sent_)));
      if (sent == 0) break;
      out_sent_ += sent;
      if (out_sent_ == out_.size()) {
        out_.clear();
        out_sent_ = 0;
      }
    }
  }
  while (true) {
    REPRISE_ASSIGN_STATUS(std::optional<Reply> reply, connection_->ReadSome());
    if (!reply.has_value()) return OkStatus();
    Dispatch(std::move(*reply));
  }
}

void Session::Dispatch(Reply reply) {
  if (reply.header.opcode == wire::Opcode::kSaveState) {
    Result<wire::SaveState> state = wire::Decode<wire::SaveState>(reply.body);
    if (!state.has_value()) {
      LogWarn("the node daemon sent a save state that cannot be read: {}",
              state.error().ToString());
      return;
    }
    std::lock_guard lock(listener_mutex_);
    if (listener_ != nullptr) listener_->OnSaveState(*state);
    return;
  }
  std::lock_guard lock(mutex_);
  auto found = inboxes_.find(reply.header.request);
  std::shared_ptr<Inbox> inbox = found == inboxes_.end() ? nullptr : found->second.lock();
  if (inbox != nullptr) {
    inbox->Deliver(std::move(reply));
  } else if (reply.header.opcode == wire::Opcode::kChunkAt) {
    // Nobody waits for it any more, but its ring buffer is this process's until it is given back.
    GiveBackLocked(reply);
  }
}

void Session::GiveBack(const Reply& reply, uint64_t generation) {
  std::lock_guard lock(mutex_);
  // The ring of another connection has a buffer of the same index, and somebody may be reading it.
  if (generation_.load(std::memory_order_acquire) == generation) GiveBackLocked(reply);
}

void Session::GiveBackLocked(const Reply& reply) {
  Result<wire::ChunkAt> at = wire::Decode<wire::ChunkAt>(reply.body);
  if (!at.has_value()) return;
  wire::RingFree free{.ring_indices = {at->ring_index}};
  SendLocked(wire::Session::Pack(free, 0), 0).IgnoreError();
}

std::unique_ptr<Connection> Session::Disconnect(const Status& why) {
  uint64_t ended = 0;
  std::map<uint64_t, std::weak_ptr<Inbox>> waiting;
  std::unique_ptr<Connection> dead;
  {
    std::lock_guard lock(mutex_);
    generation_.store(0, std::memory_order_release);
    ended = generations_;
    dead = std::move(connection_);
    out_.clear();
    out_sent_ = 0;
    waiting.swap(inboxes_);
    away_since_ = SteadyClock::now();
    away_why_ = why;
    changed_.notify_all();
  }
  Status lost(Code::kUnavailable, "the node daemon went away: " + why.message());
  lost.IgnoreError();  // for whoever waits; perhaps nobody
  for (auto& [request, inbox] : waiting) {
    if (std::shared_ptr<Inbox> alive = inbox.lock()) alive->Fail(lost);
  }
  std::lock_guard lock(listener_mutex_);
  if (listener_ != nullptr) listener_->OnDisconnected(ended, lost);
  return dead;
}

}  // namespace reprise::client
