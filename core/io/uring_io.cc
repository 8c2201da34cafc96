// The adapter to liburing. How a request travels:
//   1. Submit fills a submission entry; its user data is the IoRequest's address. Full queue: what
//   is
//      there is submitted first, completions are reaped to make room, then it goes on.
//   2. Poll hands all entries to the kernel and waits in the same system call.
//   3. Reap copies each result into its request and schedules the coroutine.
// Wake-ups are a poll request on an eventfd, so that no memory of ours is in the kernel's hands
// when the engine is destroyed.
#include "core/io/uring_io.h"

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/io/fd_message.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

// User data that are no request (requests are aligned addresses).
constexpr uint64_t kWakeTag = 1;
constexpr uint64_t kCancelTag = 3;

constexpr unsigned kFixedSlots = 512;
// 3 GiB in one piece is EFAULT.
constexpr size_t kFixedBytesMax = limits::kGiB;

constexpr int kOpsNeeded[] = {IORING_OP_READ,        IORING_OP_WRITE,    IORING_OP_READ_FIXED,
                              IORING_OP_WRITE_FIXED, IORING_OP_FSYNC,    IORING_OP_RECV,
                              IORING_OP_SEND,        IORING_OP_RECVMSG,  IORING_OP_SENDMSG,
                              IORING_OP_ACCEPT,      IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};

// Best first; older kernels refuse unknown flags with EINVAL.
constexpr unsigned kRingFlags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN |
        IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN,
    0,
};

bool IsTransient(int result) {
  return result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY ||
         result == -ETIME;
}

}  // namespace

struct UringIo::Ring {
  io_uring ring{};
  bool ready = false;
  unsigned flags = 0;
  bool has_fixed = false;
  int wake_fd = -1;

  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (ready) io_uring_queue_exit(&ring);
    if (wake_fd >= 0) close(wake_fd);
  }

  // 0 or -errno.
  int Open(uint32_t depth) {
    int result = -EINVAL;
    for (unsigned wanted : kRingFlags) {
      io_uring_params params{};
      params.flags = wanted | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
      params.cq_entries = depth * 4;
      result = io_uring_queue_init_params(depth, &ring, &params);
      if (result == -EINVAL) continue;
      if (result < 0) return result;
      ready = true;
      flags = wanted;
      return ring.features & IORING_FEAT_EXT_ARG && ring.features & IORING_FEAT_NODROP ? 0
                                                                                       : -ENOSYS;
    }
    return result;
  }

  bool HasOps() {
    io_uring_probe* probe = io_uring_get_probe_ring(&ring);
    if (probe == nullptr) return false;
    bool all = std::ranges::all_of(
        kOpsNeeded, [probe](int op) { return io_uring_opcode_supported(probe, op) != 0; });
    io_uring_free_probe(probe);
    return all;
  }
};

Result<std::unique_ptr<UringIo>> UringIo::Create(Loop& loop, const IoOptions& options) {
  auto ring = std::make_unique<Ring>();
  int result = ring->Open(std::max(options.queue_depth, 8u));
  if (result < 0) {
    Status failure = StatusFromErrno(-result, "io_uring_setup");
    return Error(Code::kUnavailable, failure.message() + " (blocked by seccomp or too old?)");
  }
  if (!ring->HasOps()) {
    return Error(Code::kUnavailable, "io_uring: the kernel lacks operations that Reprise needs");
  }
  ring->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (ring->wake_fd < 0) return Error(StatusFromErrno(errno, "eventfd"));
  ring->has_fixed = io_uring_register_buffers_sparse(&ring->ring, kFixedSlots) == 0;
  return std::unique_ptr<UringIo>(new UringIo(loop, options, std::move(ring)));
}

UringIo::UringIo(Loop& loop, const IoOptions& options, std::unique_ptr<Ring> ring)
    : PosixIo(loop, options.file_threads, /*nonblocking=*/false), ring_(std::move(ring)) {
  loop_.SetReactor(this);
}

UringIo::~UringIo() { Stop(); }

std::string UringIo::Name() const {
  std::string_view mode = ring_->flags & IORING_SETUP_DEFER_TASKRUN  ? ", deferred task run"
                          : ring_->flags & IORING_SETUP_COOP_TASKRUN ? ", cooperative task run"
                                                                     : "";
  return fmt::format("io_uring (registered buffers: {}{})", ring_->has_fixed ? "yes" : "no", mode);
}

// --- the loop's side ---

// Binds the ring to the calling thread, once.
void UringIo::Enable() {
  if (thread_.has_value()) {
    REPRISE_CHECK(*thread_ == std::this_thread::get_id(),
                  "a loop with an io_uring engine must be run by one thread for its whole life");
    return;
  }
  thread_ = std::this_thread::get_id();
  // liburing 2.3 declares io_uring_enable_rings but does not export it.
  long result = syscall(__NR_io_uring_register, ring_->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                        nullptr, 0);
  REPRISE_CHECK(result == 0, "the io_uring could not be enabled");
}

void UringIo::Wake() {
  if (woken_.exchange(true, std::memory_order_acq_rel)) return;
  uint64_t one = 1;
  ssize_t written = write(ring_->wake_fd, &one, sizeof(one));
  REPRISE_CHECK(written == sizeof(one) || errno == EAGAIN);
}

void UringIo::ArmWake() {
  if (wake_armed_) return;
  wake_armed_ = true;
  IoRequest unused;
  unused.engine_slot = kWakeTag;
  Prepare(unused);
}

void UringIo::Poll(std::optional<Nanos> timeout) {
  Enable();
  ArmWake();
  int result;
  if (timeout == Nanos{0}) {
    result = io_uring_submit_and_get_events(&ring_->ring);
  } else if (timeout.has_value()) {
    io_uring_cqe* unused = nullptr;
    __kernel_timespec limit{};
    limit.tv_sec = timeout->count() / 1'000'000'000;
    limit.tv_nsec = timeout->count() % 1'000'000'000;
    result = io_uring_submit_and_wait_timeout(&ring_->ring, &unused, 1, &limit, nullptr);
  } else {
    result = io_uring_submit_and_wait(&ring_->ring, 1);
  }
  REPRISE_CHECK(IsTransient(result), "io_uring_enter failed");
  Reap();
}

void UringIo::Reap() {
  io_uring_cqe* batch[64];
  unsigned count;
  while ((count = io_uring_peek_batch_cqe(&ring_->ring, batch, 64)) > 0) {
    for (unsigned i = 0; i < count; ++i) {
      uint64_t tag = batch[i]->user_data;
      if (tag == kWakeTag) {
        wake_armed_ = false;
        uint64_t value;
        (void)!read(ring_->wake_fd, &value, sizeof(value));
        // Pairs with the exchange in Wake: whoever found `true` has its work seen by this turn.
        woken_.exchange(false, std::memory_order_acq_rel);
      } else if (tag != kCancelTag) {
        Complete(*reinterpret_cast<IoRequest*>(tag), batch[i]->res);
      }
    }
    io_uring_cq_advance(&ring_->ring, count);
  }
}

void UringIo::Complete(IoRequest& request, int64_t result) {
  --in_flight_;
  PassFaultPoint(request);
  if (request.op == IoOp::kAccept) result = AcceptResult(result);
  if (request.engine_slot != 0) {
    std::unique_ptr<FdMessage> message(reinterpret_cast<FdMessage*>(request.engine_slot));
    request.engine_slot = 0;
    if (request.want_fd && result >= 0) request.pass_fd = message->TakeFd();
  }
  request.result = result;
  loop_.Schedule(request.waiter);
}

// --- requests ---

void UringIo::SubmitQueued() {
  int result = io_uring_submit(&ring_->ring);
  REPRISE_CHECK(IsTransient(result), "io_uring_enter failed");
}

void UringIo::Submit(IoRequest& request) {
  Enable();
  if (AnsweredByFault(request)) return;
  ++in_flight_;
  if (request.op == IoOp::kRecv && request.want_fd) {
    request.engine_slot = reinterpret_cast<uint64_t>(new FdMessage(request));
  } else if (request.op == IoOp::kSend && request.pass_fd >= 0) {
    request.engine_slot = reinterpret_cast<uint64_t>(new FdMessage(request));
  }
  Prepare(request);
}

void UringIo::Cancel(IoRequest& request) {
  IoRequest cancel;
  cancel.engine_slot = kCancelTag;
  cancel.data = reinterpret_cast<uint8_t*>(&request);
  Prepare(cancel);
}

std::optional<uint16_t> UringIo::FixedIndex(const IoRequest& request) const {
  for (size_t i = 0; i < fixed_.size(); ++i) {
    const Fixed& fixed = fixed_[i];
    if (fixed.data != nullptr && request.data >= fixed.data && request.size <= fixed.size &&
        static_cast<size_t>(request.data - fixed.data) <= fixed.size - request.size) {
      return static_cast<uint16_t>(i);
    }
  }
  return std::nullopt;
}

// Fills one submission entry.
void UringIo::Prepare(IoRequest& request) {
  io_uring_sqe* entry;
  while ((entry = io_uring_get_sqe(&ring_->ring)) == nullptr) {
    SubmitQueued();
    Reap();  // a full completion queue makes the kernel refuse submissions
  }
  if (request.engine_slot == kWakeTag) {
    io_uring_prep_poll_add(entry, ring_->wake_fd, POLLIN);
    entry->user_data = kWakeTag;
    return;
  }
  if (request.engine_slot == kCancelTag) {
    io_uring_prep_cancel64(entry, reinterpret_cast<uint64_t>(request.data), 0);
    entry->user_data = kCancelTag;
    return;
  }
  auto size = static_cast<unsigned>(std::min<size_t>(request.size, limits::kGiB));
  auto* message = reinterpret_cast<FdMessage*>(request.engine_slot);
  std::optional<uint16_t> fixed;
  switch (request.op) {
    case IoOp::kRead:
      fixed = FixedIndex(request);
      if (fixed.has_value()) {
        io_uring_prep_read_fixed(entry, request.handle, request.data, size, request.offset, *fixed);
      } else {
        io_uring_prep_read(entry, request.handle, request.data, size, request.offset);
      }
      break;
    case IoOp::kWrite:
      fixed = FixedIndex(request);
      if (fixed.has_value()) {
        io_uring_prep_write_fixed(entry, request.handle, request.data, size, request.offset,
                                  *fixed);
      } else {
        io_uring_prep_write(entry, request.handle, request.data, size, request.offset);
      }
      break;
    case IoOp::kFlush: io_uring_prep_fsync(entry, request.handle, IORING_FSYNC_DATASYNC); break;
    case IoOp::kAccept:
      io_uring_prep_accept(entry, request.handle, nullptr, nullptr, SOCK_CLOEXEC);
      break;
    case IoOp::kRecv:
      if (message != nullptr) {
        io_uring_prep_recvmsg(entry, request.handle, &message->header, MSG_CMSG_CLOEXEC);
      } else {
        io_uring_prep_recv(entry, request.handle, request.data, size, 0);
      }
      break;
    case IoOp::kSend:
      if (message != nullptr) {
        io_uring_prep_sendmsg(entry, request.handle, &message->header, MSG_NOSIGNAL);
      } else {
        io_uring_prep_send(entry, request.handle, request.data, size, MSG_NOSIGNAL);
      }
      break;
  }
  entry->user_data = reinterpret_cast<uint64_t>(&request);
}

void UringIo::CloseSocket(SocketId socket) {
  // An entry still in our queue names the descriptor by number: the kernel must look it up before
  // the number can mean something else.
  if (thread_.has_value() && io_uring_sq_ready(&ring_->ring) > 0) SubmitQueued();
  Shutdown(socket);
  close(socket.value);
}

// --- fixed buffers ---

uint64_t UringIo::RegisterBuffers(std::vector<MutableByteView> regions) {
  if (!ring_->has_fixed) return 0;
  uint64_t total = 0;
  size_t slot = 0;
  for (MutableByteView region : regions) {
    for (size_t begin = 0; begin < region.size(); begin += kFixedBytesMax) {
      MutableByteView piece =
          region.subspan(begin, std::min(kFixedBytesMax, region.size() - begin));
      while (slot < fixed_.size() && fixed_[slot].data != nullptr) ++slot;
      if (slot == kFixedSlots) return total;
      if (slot == fixed_.size()) fixed_.emplace_back();
      iovec vector{piece.data(), piece.size()};
      __u64 tag = 0;
      int result = io_uring_register_buffers_update_tag(&ring_->ring, static_cast<unsigned>(slot),
                                                        &vector, &tag, 1);
      if (result != 1) {
        LogWarn("io_uring: {} of buffers are not registered: {} (raise the memlock limit)",
                HumanBytes(piece.size()), StatusFromErrno(-result, "register").message());
        return total;
      }
      fixed_[slot] = {piece.data(), piece.size()};
      total += piece.size();
    }
  }
  return total;
}

void UringIo::UnregisterBuffers(std::vector<MutableByteView> regions) {
  for (size_t slot = 0; slot < fixed_.size(); ++slot) {
    Fixed& fixed = fixed_[slot];
    bool inside =
        fixed.data != nullptr && std::ranges::any_of(regions, [&fixed](MutableByteView region) {
          return fixed.data >= region.data() &&
                 fixed.data + fixed.size <= region.data() + region.size();
        });
    if (!inside) continue;
    iovec none{nullptr, 0};
    __u64 tag = 0;
    int result = io_uring_register_buffers_update_tag(&ring_->ring, static_cast<unsigned>(slot),
                                                      &none, &tag, 1);
    REPRISE_CHECK(result == 1, "a registered buffer could not be given back");
    fixed = {};
  }
}

}  // namespace reprise
