// FaultPoints: kills or fails this process at a chosen disk operation. For crash tests only.
//
// Off unless the environment asks for it, and then said in the log at every start:
//
//   REPRISE_CRASH_AT_IO=K[:before|after]   SIGKILL right before the K-th operation that changes a
//                                          disk is handed to the kernel (default), or right after
//                                          it has completed. K = 0 only counts.
//   REPRISE_FAIL_AT_IO=N:KIND:ERRNO[:on]   the N-th operation of a kind is not done and answers
//                                          EIO or ENOSPC; with `on` every later one as well. KIND
//                                          is read, write, flush, space (what may need room on the
//                                          disk) or change (anything but a read).
//
// The numbers count over the whole process: both real Io engines and RocksDB's files. They count
// up in the order in which operations begin, which between threads differs from run to run.
//
// Owner: the process (one instance, made at the first use). Thread rule: any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>

namespace reprise {

enum class DiskOperation : uint8_t {
  kRead,
  kWrite,
  kFlush,
  kAllocate,
  kCreate,
  kTruncate,
  kMakeDirectory,
  kRemove,
  kRename,
  kSyncDirectory,
};

// What the environment asks for.
struct FaultPlan {
  enum class Kind : uint8_t { kRead, kWrite, kFlush, kSpace, kChange };
  uint64_t crash_at = 0;  // 0: never
  bool crash_after = false;
  uint64_t fail_at = 0;  // 0: never
  Kind fail_kind = Kind::kChange;
  int fail_errno = 0;
  bool fail_on = false;  // every later one as well

  // None when the text is malformed. Null or empty: nothing asked for.
  static std::optional<FaultPlan> Parse(const char* crash_at_io, const char* fail_at_io);
};

class FaultPoints {
 public:
  // The points of this process, or null when the environment asks for none. Stops the process when
  // what it asks for is malformed: a test must not pass because its fault never came.
  static FaultPoints* FromEnvironment();

  explicit FaultPoints(FaultPlan plan) : plan_(plan) {}

  // One operation on its way. `error`: answer this errno instead of doing it (0: do it).
  struct Point {
    uint64_t number = 0;  // among those that change a disk; 0: a read
    int error = 0;
  };
  // Before the operation is handed to the kernel. May not return.
  Point Begin(DiskOperation operation);
  // After its completion was seen. May not return. Not for operations that were failed by Begin.
  void End(Point point) const;

  // Operations so far that change a disk.
  uint64_t changes() const { return changes_; }

 private:
  bool IsKind(DiskOperation operation) const;

  const FaultPlan plan_;
  std::atomic<uint64_t> changes_{0};
  std::atomic<uint64_t> of_kind_{0};
};

}  // namespace reprise
