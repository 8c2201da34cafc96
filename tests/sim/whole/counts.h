// Counts: what a simulated run did: injected faults by kind, and rare paths that were reached.
//
// SOMETIMES labels are listed in one place (kSometimes), so that a label nobody reaches within the
// seed budget is known by name; reaching an unlisted label is a failed CHECK.
//
// Thread rule: a value with one owner.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace reprise::sim {

enum class FaultKind : uint8_t {
  kDiskShort,
  kDiskWriteError,
  kDiskFlushError,
  kDiskReadError,
  kDiskFull,
  kDiskSlow,
  kDiskHang,
  kDiskMisdirected,
  kDiskStaleRead,
  kDiskRot,
  kSlabRot,
  kLostWrite,
  kTornWrite,
  kNetDelay,
  kNetReset,
  kNetPartition,
  kNetHalfOpen,
  kRpcLostRequest,
  kRpcLostReply,
  kRpcDuplicate,
  kRpcLate,
  kCrashStore,
  kPowerLossStore,
  kStopStore,
  kCrashNode,
  kPowerLossNode,
  kStopNode,
  kKillRank,
  kKillRun,
  kPause,
  kClockJump,
  kCount,
};
inline constexpr size_t kFaultKinds = static_cast<size_t>(FaultKind::kCount);
std::string_view FaultName(FaultKind kind);

// What the seed budget must reach at least once.
enum class Path : uint8_t {
  kCommitted,
  kAdopted,
  kResumedOlder,
  kRestoredFromSlab,
  kRestoredFromStore,
  kRestoredOverAWorldChange,
  kRejoined,
  kRejoinToldAState,
  kNoSlot,
  kSkipped,
  kStepAborted,
  kFencedBegin,
  kFencedRegister,
  kZombieLived,
  kStoreFailStopped,
  kJournalWrapped,
  kCommitUnseenByDeadRun,
  kDeleted,
  kDeleteRefusedPinned,
  kRetentionDeleted,
  kDiskFullSeen,
  kDamageReported,
  kDamageHealed,
  kEmptyReplacement,
  kSlotAdoptedAtRestart,
  kEpochWithoutResume,
  kLayoutByDigest,
  kRingWaited,
  kSettleConflictFree,
  kCount,
};
inline constexpr size_t kPaths = static_cast<size_t>(Path::kCount);
std::string_view PathName(Path path);

struct Counts {
  std::array<uint64_t, kFaultKinds> faults{};
  std::array<uint64_t, kPaths> reached{};

  void Fault(FaultKind kind, uint64_t count = 1) { faults[static_cast<size_t>(kind)] += count; }
  uint64_t of(FaultKind kind) const { return faults[static_cast<size_t>(kind)]; }
  uint64_t of(Path path) const { return reached[static_cast<size_t>(path)]; }
  uint64_t total_faults() const {
    uint64_t total = 0;
    for (uint64_t count : faults) total += count;
    return total;
  }
  void Add(const Counts& other) {
    for (size_t i = 0; i < kFaultKinds; ++i) faults[i] += other.faults[i];
    for (size_t i = 0; i < kPaths; ++i) reached[i] += other.reached[i];
  }
};
#define SOMETIMES(counts, path) ((void)++(counts).reached[static_cast<size_t>(path)])

}  // namespace reprise::sim
