// Descriptor: an owned file descriptor that fork() children do not keep.
//
// Thread rule: a movable value with one owner. Closing may block on what the descriptor is.
#pragma once

#include <unistd.h>

#include <utility>

#include "client/session/fork.h"

namespace reprise::client {

class Descriptor {
 public:
  Descriptor() = default;
  // Takes ownership of `value`.
  explicit Descriptor(int value) : value_(value), generation_(ForkGeneration()) {
    if (value_ >= 0) CloseInChildren(value_);
  }
  ~Descriptor() { Reset(); }
  Descriptor(Descriptor&& other) noexcept
      : value_(std::exchange(other.value_, -1)), generation_(other.generation_) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      Reset();
      value_ = std::exchange(other.value_, -1);
      generation_ = other.generation_;
    }
    return *this;
  }

  int get() const { return value_; }
  bool valid() const { return value_ >= 0; }
  void Reset() {
    if (value_ < 0) return;
    // In a child the number is closed already and may name something else by now.
    if (!IsForkChild(generation_)) {
      ForgetDescriptor(value_);
      ::close(value_);
    }
    value_ = -1;
  }

 private:
  int value_ = -1;
  uint64_t generation_ = 0;
};

}  // namespace reprise::client
