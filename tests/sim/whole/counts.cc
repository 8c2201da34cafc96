#include "tests/sim/whole/counts.h"

#include "core/base/check.h"

namespace reprise::sim {
namespace {

constexpr std::array<std::string_view, kFaultKinds> kFaultNames = {
    "disk_short",      "disk_write_error", "disk_flush_error", "disk_read_error", "disk_full",
    "disk_slow",       "disk_hang",        "disk_misdirected", "disk_stale_read", "disk_rot",
    "slab_rot",        "disk_lost_write",  "disk_torn_write",  "net_delay",       "net_reset",
    "net_partition",   "net_half_open",    "rpc_lost_request", "rpc_lost_reply",  "rpc_duplicate",
    "rpc_late",        "crash_store",      "power_loss_store", "stop_store",      "crash_node",
    "power_loss_node", "stop_node",        "kill_rank",        "kill_run",        "pause",
    "clock_jump",
};
constexpr std::array<std::string_view, kPaths> kPathNames = {
    "a step is committed",
    "a snapshot sealed in RAM is adopted at settle",
    "a run resumes from an older step than the newest saved",
    "a chunk is restored from a slab",
    "a chunk is restored from the store",
    "a checkpoint is restored in a world of another size",
    "a rank joins its epoch again after its node daemon died",
    "a rank that joins again is told how a sealed save stands",
    "no slot is free for a save",
    "a rank skips a step",
    "a step is aborted for all ranks",
    "a save is refused as FENCED",
    "a registration is refused as FENCED",
    "a process of an older run goes on saving",
    "the store stops itself after a failed journal write",
    "the journal's ring has wrapped",
    "a step commits after every process of its run died",
    "a checkpoint is deleted by an operator",
    "a delete of a pinned checkpoint is refused",
    "retention deletes a checkpoint",
    "the store is full",
    "damage is reported as DATA_LOSS",
    "damage of one copy is healed from another",
    "a node is replaced by an empty one",
    "a slot is adopted by a restarted node daemon",
    "a run dies before its epoch has settled",
    "a save names its layout by digest only",
    "a fetch waits for the restore ring",
    "settle finds every rank of an attempt in inventories",
};

}  // namespace

std::string_view FaultName(FaultKind kind) { return kFaultNames[static_cast<size_t>(kind)]; }
std::string_view PathName(Path path) { return kPathNames[static_cast<size_t>(path)]; }

}  // namespace reprise::sim
