// Status and Result<T>: how every Reprise call reports success or failure.
//
// One error type for the whole product. The code tells a *program* what it may do next; the message
// tells a *person* what happened and what to do. Codes carry gRPC's numbers, so that they cross the
// control API unchanged. A separate code exists only where a caller reacts differently.
//
// Thread rule: values, no shared state. Neither type throws. Both are [[nodiscard]]: an ignored
// failure is a compile-time warning (an error in our builds). In a tree built with
// REPRISE_CHECK_STATUS, a failed Status that is destroyed without anybody having looked at it aborts
// the program; IgnoreError() says that this is meant. The error inside a Result is exempt: has_value()
// looks at it without its knowledge.
#pragma once

#include <cstdint>
#include <expected>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

#include "reprise/export.h"

namespace reprise {

// What a caller can react to. Numbers are gRPC's; kOutcomeUnknown is ours (it travels as 17).
enum class Code : uint8_t {
  kOk = 0,
  kCancelled = 1,           // the caller, or shutdown, withdrew the operation
  kInvalidArgument = 3,     // the request can never succeed: fix it
  kDeadlineExceeded = 4,    // a named wait ran out; the setting to raise is in the message
  kNotFound = 5,            // no such job, checkpoint, tensor
  kAlreadyExists = 6,       // another attempt won this (epoch, step), or the job is alive elsewhere
  kPermissionDenied = 7,    // ticket or credential does not cover this
  kResourceExhausted = 8,   // disk, slab or quota is full: free some, or retry later
  kFailedPrecondition = 9,  // the object is in a state that does not allow this
  kAborted = 10,            // the attempt failed for the whole job; the next step may try again
  kOutOfRange = 11,         // beyond the end of a file, tensor or ring
  kUnimplemented = 12,      // the peer's version or this build lacks the feature
  kInternal = 13,           // a defect of Reprise
  kUnavailable = 14,        // peer or device away: retry
  kDataLoss = 15,           // stored bytes fail their digest and no intact copy is left
  kUnauthenticated = 16,    // no valid credential
  kOutcomeUnknown = 17,  // the effect may or may not have happened: ask again with the same op id
  kFenced = 18,          // a newer run of this job exists; this process must stop saving
};

// The code's name as logs, JSON and the CLI print it ("RESOURCE_EXHAUSTED").
REPRISE_EXPORT std::string_view CodeName(Code code);

namespace internal {

#ifdef REPRISE_CHECK_STATUS
// Whether somebody still has to look at a Status. One that is moved is handed on and owes anew; one that
// is copied has been looked at, and the copy (a cause that is kept, a reason for many) owes nothing.
class ReadMark {
 public:
  explicit ReadMark(bool failed = false) : state_(failed ? kOwed : kNever) {}
  ReadMark(const ReadMark& other) noexcept : state_(kNever) { other.Read(); }
  ReadMark(ReadMark&& other) noexcept : state_(other.state_ == kNever ? kNever : kOwed) {
    other.Read();
  }
  ReadMark& operator=(const ReadMark& other) noexcept { return *this = ReadMark(other); }
  ReadMark& operator=(ReadMark&& other) noexcept {
    AbortIfOwed();
    state_ = other.state_ == kNever ? kNever : kOwed;
    other.Read();
    return *this;
  }
  ~ReadMark() { AbortIfOwed(); }
  void Read() const {
    if (state_ == kOwed) state_ = kRead;
  }
  void Exempt() { state_ = kNever; }

 private:
  enum State : uint8_t { kNever, kOwed, kRead };
  void AbortIfOwed() const;
  mutable State state_;
};
#else
struct ReadMark {
  explicit ReadMark(bool = false) {}
  void Read() const {}
  void Exempt() {}
};
#endif

}  // namespace internal

class [[nodiscard]] REPRISE_EXPORT Status {
 public:
  // Success.
  Status() = default;
  // A failure; `code` must not be kOk. `message` says what happened and what to do.
  Status(Code code, std::string message) : mark_(true), code_(code), message_(std::move(message)) {}

  bool ok() const { return Read().code_ == Code::kOk; }
  Code code() const { return Read().code_; }
  const std::string& message() const { return Read().message_; }
  // "CODE_NAME: message", or "OK".
  std::string ToString() const;

  // The same failure with `context` put in front ("shard 3: ..."). No effect on success. Annotate
  // once, in the layer that knows the object's name.
  Status Annotate(std::string_view context) const;

  // Nothing depends on this failure; say in a comment why.
  void IgnoreError() const { static_cast<void>(Read()); }

  friend bool operator==(const Status& left, const Status& right) {
    return left.code() == right.code() && left.message() == right.message();
  }
  friend std::ostream& operator<<(std::ostream& out, const Status& status) {
    return out << status.ToString();
  }

 private:
  const Status& Read() const {
    mark_.Read();
    return *this;
  }
  friend std::unexpected<Status> Error(Status status);

  [[no_unique_address]] internal::ReadMark mark_;
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status OkStatus() { return {}; }

// Either a T or the Status that explains why there is none. `*result` on an error is a programming
// error (checked in release builds through libstdc++ assertions).
template <typename T>
using Result = std::expected<T, Status>;

// Turns a failure into the error side of any Result: `return Error(Code::kNotFound, "...")`.
inline std::unexpected<Status> Error(Status status) {
  status.mark_.Exempt();
  return std::unexpected<Status>(std::move(status));
}
inline std::unexpected<Status> Error(Code code, std::string message) {
  return Error(Status(code, std::move(message)));
}

// The Status of a Result: OK when it holds a value.
template <typename T>
Status StatusOf(const Result<T>& result) {
  return result.has_value() ? Status() : result.error();
}

}  // namespace reprise
