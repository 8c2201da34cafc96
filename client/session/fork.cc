#include "client/session/fork.h"

#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>

namespace reprise::client {
namespace {

// Zero-initialised before any code runs; a slot holds descriptor + 1.
constinit std::array<std::atomic<int>, 4096> descriptors{};
constinit std::atomic<uint64_t> generation{1};

void AfterForkInChild() {
  generation.fetch_add(1, std::memory_order_relaxed);
  for (std::atomic<int>& slot : descriptors) {
    int held = slot.exchange(0, std::memory_order_relaxed);
    if (held != 0) ::close(held - 1);
  }
}

void Install() {
  static const int installed = pthread_atfork(nullptr, nullptr, &AfterForkInChild);
  static_cast<void>(installed);
}

}  // namespace

uint64_t ForkGeneration() {
  Install();
  return generation.load(std::memory_order_relaxed);
}

bool IsForkChild(uint64_t made_in) { return generation.load(std::memory_order_relaxed) != made_in; }

void CloseInChildren(int descriptor) {
  Install();
  for (std::atomic<int>& slot : descriptors) {
    int empty = 0;
    if (slot.compare_exchange_strong(empty, descriptor + 1)) return;
  }
}

void ForgetDescriptor(int descriptor) {
  for (std::atomic<int>& slot : descriptors) {
    int held = descriptor + 1;
    if (slot.compare_exchange_strong(held, 0)) return;
  }
}

}  // namespace reprise::client
