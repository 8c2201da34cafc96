// The vocabulary of Reprise: identities, element types, pieces of tensors, durability levels.
//
// Identities: a *job* runs in *epochs* (one per run: the fence); in each epoch its *ranks*
// 0..world-1 save *steps*; each (epoch, step) has one *attempt*, and a committed attempt is a
// *checkpoint*. Checkpoints are ordered by (epoch, step). A *shard* is one rank's contribution.
//
// Thread rule: plain values.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "reprise/export.h"

namespace reprise {

// Element types, numbered for good (they are stored). Names follow safetensors where it has them.
enum class Dtype : uint8_t {
  kBool = 1,
  kU8 = 2,
  kI8 = 3,
  kU16 = 4,
  kI16 = 5,
  kU32 = 6,
  kI32 = 7,
  kU64 = 8,
  kI64 = 9,
  kF16 = 10,
  kBF16 = 11,
  kF32 = 12,
  kF64 = 13,
  kF8E4M3 = 14,
  kF8E5M2 = 15,
  kF8E8M0 = 16,      // not in safetensors: stored as U8, true type in metadata
  kComplex64 = 17,   // likewise
  kComplex128 = 18,  // likewise
};
// Bytes of one element; 0 for a value that is no Dtype.
REPRISE_EXPORT uint32_t DtypeBytes(Dtype dtype);
// "F32", "BF16", ...; "" for a value that is no Dtype.
REPRISE_EXPORT std::string_view DtypeName(Dtype dtype);
REPRISE_EXPORT std::optional<Dtype> DtypeFromName(std::string_view name);

// How far a checkpoint has come: each level survives more than the one before.
enum class Durability : uint8_t {
  kLocal = 1,   // in the slab of every rank's node: survives the training processes
  kPeer = 2,    // in RAM of another failure domain: survives a node
  kServer = 3,  // flushed to a store's NVMe, committed: survives all nodes
  kObject = 4,  // in the object store: survives the cluster
};
// "local", "peer", "server", "object".
REPRISE_EXPORT std::string_view DurabilityName(Durability durability);
REPRISE_EXPORT std::optional<Durability> DurabilityFromName(std::string_view name);

// A half-open axis-aligned region of a tensor: [offset[i], offset[i] + extent[i]) along axis i.
// A scalar's box has no axes and one element.
struct Box {
  std::vector<uint64_t> offset;
  std::vector<uint64_t> extent;
  bool operator==(const Box&) const = default;
};

// Whose tensor this is (docs/format.md, Scope).
enum class Scope : uint8_t {
  kGlobal = 1,      // a distributed tensor: pieces of all ranks together cover it
  kReplicated = 2,  // the same bytes on every rank that has the name
  kRank = 3,        // belongs to this rank only; restored to the same rank of an equal world
};

// What happens to a rank-scoped item when the restoring world differs from the saved one.
enum class WorldPolicy : uint8_t {
  kSameWorld = 1,  // refuse
  kBroadcast = 2,  // every rank takes rank 0's
  kSplit = 3,      // the item is a list that is concatenated and dealt out again by the caller
  kDrop = 4,       // left out, and said so
};

// 128 random bits made by the coordinator.
struct REPRISE_EXPORT Id {
  std::array<uint8_t, 16> bytes{};
  bool IsZero() const { return *this == Id{}; }
  std::string ToHex() const;
  static std::optional<Id> FromHex(std::string_view text);
  auto operator<=>(const Id&) const = default;
};

// Names a checkpoint within its job.
struct CheckpointKey {
  uint64_t epoch = 0;
  uint64_t step = 0;
  auto operator<=>(const CheckpointKey&) const = default;
};

// Which checkpoints of a job stay when a newer one commits. The default keeps all. Pinned ones, one that
// is being read, the one the run resumed from (until it has one of its own) and the last good one stay
// whatever this says.
struct Keep {
  uint32_t last = 0;   // the newest so many of the run's lineage; 0: all
  uint64_t every = 0;  // and those whose step is a multiple of it; 0: no others
  bool operator==(const Keep&) const = default;
};

// True when `name` matches [A-Za-z0-9._-]{1,128} and has no leading dot.
REPRISE_EXPORT bool IsValidName(std::string_view name);

}  // namespace reprise
