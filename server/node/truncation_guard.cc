#include "server/node/truncation_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>

namespace reprise::node {
namespace {

uintptr_t page_bytes = 0;  // set before the handler is installed

// A place in the table is free while `end` is 0; it is published by the store to `end`.
struct Range {
  std::atomic<bool> taken{false};
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> damaged{false};
};
std::array<Range, TruncationGuard::kRangesMax> ranges;

void OnBusError(int signal, siginfo_t* info, void*) {
  int saved_errno = errno;
  auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Range& range : ranges) {
    uintptr_t end = range.end.load(std::memory_order_acquire);
    if (address < range.begin.load(std::memory_order_relaxed) || address >= end) continue;
    range.damaged.store(true, std::memory_order_release);
    uintptr_t page = address & ~(page_bytes - 1);
    void* zeros = ::mmap(reinterpret_cast<void*>(page), end - page, PROT_READ | PROT_WRITE,
                         MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    errno = saved_errno;
    if (zeros != MAP_FAILED) return;
    break;
  }
  // Not ours: the access is repeated on return, and now ends the process.
  ::signal(signal, SIG_DFL);
}

void InstallOnce() {
  static const bool installed = [] {
    page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    struct sigaction action{};
    action.sa_sigaction = OnBusError;
    action.sa_flags = SA_SIGINFO;
    return ::sigaction(SIGBUS, &action, nullptr) == 0;
  }();
  static_cast<void>(installed);
}

}  // namespace

TruncationGuard::TruncationGuard(void* address, size_t bytes) {
  InstallOnce();
  for (size_t i = 0; i < kRangesMax; ++i) {
    if (ranges[i].taken.exchange(true, std::memory_order_acquire)) continue;
    ranges[i].damaged.store(false, std::memory_order_relaxed);
    ranges[i].begin.store(reinterpret_cast<uintptr_t>(address), std::memory_order_relaxed);
    ranges[i].end.store(reinterpret_cast<uintptr_t>(address) + bytes, std::memory_order_release);
    index_ = i;
    return;
  }
}

TruncationGuard::~TruncationGuard() {
  if (index_ == kRangesMax) return;
  ranges[index_].end.store(0, std::memory_order_release);
  ranges[index_].taken.store(false, std::memory_order_release);
}

bool TruncationGuard::damaged() const {
  return index_ != kRangesMax && ranges[index_].damaged.load(std::memory_order_acquire);
}

}  // namespace reprise::node
