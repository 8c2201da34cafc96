// SimDisk: the files of one simulated host, and what a power cut does to them.
//
// The model is stricter than any real disk with a volatile cache. Content lives in cells of 4 KiB.
// A completed write is visible at once but *undecided* until a flush that was submitted after its
// completion returns OK (or at completion, when the file was opened dsync). Crash() asks a chooser,
// cell by cell, which of the candidate versions survived, torn at 512-byte sectors if it likes.
// File names are undecided until SyncDirectory of the parent, file sizes until a flush of the file.
// After a failed flush (or write) the covered cells stay undecided until they are overwritten and
// flushed: a later flush that returns OK proves nothing about them.
//
// The disk outlives the SimIo that uses it, and is copyable: cells are shared copy-on-write, so
// that an enumerator can fork it at each event (hooks are not copied). The disk has no clock: SimIo
// calls Begin... at submission and Finish... at completion.
//
// Thread rule: one thread. Errors are -errno, as from the kernel.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/random.h"
#include "core/io/io.h"

namespace reprise {

inline constexpr size_t kSimCellBytes = 4096;
inline constexpr size_t kSimSectorBytes = 512;
inline constexpr uint32_t kSimSectorsPerCell = kSimCellBytes / kSimSectorBytes;

// One version of a cell's content; null stands for zeros.
using SimCell = std::shared_ptr<const std::array<uint8_t, kSimCellBytes>>;

// Something whose state after a power cut is not determined yet.
struct SimUndecided {
  enum class Kind : uint8_t { kCell, kSize, kEntry };
  Kind kind = Kind::kCell;
  std::string path;
  uint64_t cell = 0;                // kCell: offset / kSimCellBytes
  std::vector<SimCell> candidates;  // kCell: distinct contents; [0] is what is surely on the medium
  std::vector<uint64_t> sizes;      // kSize: distinct sizes; [0] is the durable one
  std::vector<bool> exists;         // kEntry: whether the name exists; [0] is durable
  size_t newest = 0;                // the version of the last change, in flight or not

  // Number of versions; at least 2.
  size_t version_count() const;
};

// What a chooser decides: the version `newer`; of a cell, only the first `newer_sectors` sectors of
// it and the rest from version `older` (a torn write).
struct SimOutcome {
  size_t newer = 0;
  size_t older = 0;
  uint32_t newer_sectors = kSimSectorsPerCell;
};
using SimChooser = std::function<SimOutcome(const SimUndecided&)>;

// Ready-made choosers. RandomOutcome tears a quarter of the cells.
SimOutcome LoseUnflushed(const SimUndecided& undecided);
SimOutcome KeepUnflushed(const SimUndecided& undecided);
SimChooser RandomOutcome(uint64_t seed);
// Every outcome worth enumerating: each version and, with `torn`, half of each on each other one.
std::vector<SimOutcome> OutcomesOf(const SimUndecided& undecided, bool torn);

enum class SimEventKind : uint8_t {
  kWriteSubmit,
  kWriteDone,
  kFlushSubmit,
  kFlushDone,
  kSyncDirectorySubmit,
  kSyncDirectoryDone,
  kMetadata,  // create, remove, truncate, allocate, make directory
};
// `offset` and `size` in bytes; `result` is bytes or -errno (0 at submission).
struct SimEvent {
  SimEventKind kind;
  std::string path;
  uint64_t offset = 0;
  uint64_t size = 0;
  int64_t result = 0;
};

// Faults to inject. Everything is off by default: then operations take a fixed time and complete in
// the order of submission. "..._at" is the number (1 is the next) counted since ResetCounters().
// "..._ppm" are chances in a million, drawn from the disk's own generator.
struct SimDiskFaults {
  bool reorder = false;  // completions in any order, latency drawn from the range
  Nanos latency_min = std::chrono::microseconds(50);
  Nanos latency_max = std::chrono::microseconds(50);
  uint64_t fail_read_at = 0;      // -EIO
  uint64_t fail_write_at = 0;     // -EIO, content of the range undefined
  uint64_t fail_flush_at = 0;     // -EIO, covered writes undecided until overwritten
  uint64_t fail_allocate_at = 0;  // -ENOSPC
  uint64_t fail_growth_at = 0;    // n-th write into unallocated space: -ENOSPC
  uint64_t misdirect_at = 0;      // n-th write lands elsewhere in its file and reports success
  uint64_t stale_read_at = 0;     // n-th read returns what was there before the last write
  bool persistent = false;        // "at n" becomes "from n on"
  uint32_t slow_ppm = 0;          // operations that take up to slow_max more
  Nanos slow_max = std::chrono::milliseconds(50);
  uint32_t read_error_ppm = 0;
  uint32_t write_error_ppm = 0;
  uint32_t flush_error_ppm = 0;
  uint32_t short_ppm = 0;  // short reads and writes; whole cells on direct files
  uint32_t misdirect_ppm = 0;
  uint32_t stale_read_ppm = 0;
  bool lying_flush = false;  // flushes return OK and do nothing
  bool hang = false;         // operations do not complete until this is cleared
  uint64_t capacity_bytes = uint64_t{1} << 50;
};

struct SimDiskCounters {
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t flushes = 0;
  uint64_t allocates = 0;
  uint64_t growths = 0;  // writes into unallocated space
  uint64_t directory_syncs = 0;
  uint64_t faults_injected = 0;  // of all kinds
  uint64_t short_transfers = 0;
  uint64_t read_errors = 0;
  uint64_t write_errors = 0;
  uint64_t flush_errors = 0;
  uint64_t refused_space = 0;  // ENOSPC, injected or for want of capacity
  uint64_t misdirected = 0;
  uint64_t stale_reads = 0;
  uint64_t slow = 0;
};

class SimDisk {
 public:
  using InodeId = uint64_t;

  explicit SimDisk(uint64_t seed = 1);
  // A copy has the same files, in-flight writes and generator state, but no hook.
  SimDisk(const SimDisk& other);
  SimDisk& operator=(const SimDisk& other);

  // --- for tests
  SimDiskFaults faults;
  const SimDiskCounters& counters() const { return counters_; }
  void ResetCounters() { counters_ = {}; }
  // Called after every submission and completion of a write, flush or metadata change. May copy the
  // disk, and run another world on the copy; must not change this disk or crash its host.
  void OnEvent(std::function<void(const SimEvent&)> hook) { hook_ = std::move(hook); }

  // Everything a power cut now would leave undecided, in a deterministic order.
  std::vector<SimUndecided> UnflushedCells() const;
  // Power cut: resolves everything undecided, forgets open files, locks and in-flight operations.
  void Crash(const SimChooser& chooser);
  // The process died but the machine lives: in-flight writes take effect or not by the chooser,
  // completed ones stay visible and undecided.
  void SettleInFlight(const SimChooser& chooser);

  // What a read of the whole file would show now, or nothing when there is no such file.
  std::optional<Bytes> Contents(const std::string& path) const;
  bool Exists(const std::string& path) const;
  // Paths of all files, sorted.
  std::vector<std::string> Files() const;
  // Bit rot: inverts bit `bit` (0-7) of the byte at `offset` in every version of it.
  void FlipBit(const std::string& path, uint64_t offset, int bit);
  // Replaces bytes behind everybody's back, durably (misdirected or stale blocks in tests).
  void Tamper(const std::string& path, uint64_t offset, ByteView data);
  // Removes a file behind everybody's back, durably.
  void Destroy(const std::string& path);

  // --- for SimIo. Open: inode number or -errno; pairs with Release.
  int64_t Open(const std::string& path, const OpenOptions& options);
  void Release(InodeId inode, uint64_t lock_owner);
  uint64_t Size(InodeId inode) const;
  int64_t Allocate(InodeId inode, uint64_t offset, uint64_t length);
  int64_t Truncate(InodeId inode, uint64_t size);
  // False when another owner holds it.
  bool Lock(InodeId inode, uint64_t owner);
  int64_t MakeDirectory(const std::string& path);
  std::optional<std::vector<std::string>> List(const std::string& path) const;
  int64_t Remove(const std::string& path);
  // Begin...: a token for Finish..., which returns the operation's result.
  uint64_t BeginSyncDirectory(const std::string& path);
  int64_t FinishSyncDirectory(const std::string& path, uint64_t token);
  uint64_t BeginWrite(InodeId inode, uint64_t offset, ByteView data, const OpenOptions& options);
  // `buffer` must still hold what it held at submission (checked).
  int64_t FinishWrite(uint64_t token, ByteView buffer);
  uint64_t BeginFlush(InodeId inode);
  int64_t FinishFlush(uint64_t token);
  int64_t Read(InodeId inode, uint64_t offset, MutableByteView buffer, const OpenOptions& options);
  uint64_t FreeBytes() const;
  // How long the next operation takes.
  Nanos DrawLatency();
  // The path by which `inode` is known ("" when it has none).
  std::string PathOf(InodeId inode) const;

 private:
  // A completed write that no flush has covered. `doomed`: none ever will.
  struct Pending {
    uint64_t order;
    SimCell content;
    bool doomed;
  };
  struct CellState {
    SimCell durable;
    SimCell previous;  // what the last write replaced (stale reads)
    std::vector<Pending> pending;
    const SimCell& visible() const { return pending.empty() ? durable : pending.back().content; }
  };
  struct SizeChange {
    uint64_t order;
    uint64_t size;
    bool doomed;
  };
  struct Inode {
    std::map<uint64_t, CellState> cells;
    std::vector<SizeChange> sizes{{0, 0, false}};  // [0] durable, back() visible
    std::map<uint64_t, uint64_t> allocated;        // cell ranges [first, second), disjoint
    uint64_t size() const { return sizes.back().size; }
  };
  // What a name refers to. kNone: no such entry.
  struct Node {
    enum class Type : uint8_t { kNone, kFile, kDirectory } type = Type::kNone;
    InodeId inode = 0;
    bool operator==(const Node&) const = default;
  };
  struct EntryChange {
    uint64_t order;
    Node node;
  };
  using Entry = std::vector<EntryChange>;  // [0] durable, back() visible
  struct WriteInFlight {
    InodeId inode;
    uint64_t offset;
    std::shared_ptr<const Bytes> data;
    bool dsync;
    int64_t planned;  // result decided at submission
    bool misdirected;
  };
  struct FlushInFlight {
    InodeId inode;
    uint64_t order;  // covers what completed up to here
    int64_t planned;
  };

  Node Visible(const std::string& path) const;
  bool IsDirectory(const std::string& path) const;
  Inode& Mutable(InodeId inode);
  const Inode& Get(InodeId inode) const { return *inodes_.at(inode); }
  void SetEntry(const std::string& path, Node node);
  void SetSize(Inode& inode, uint64_t size);
  bool Hit(uint64_t count, uint64_t at, uint32_t ppm, uint64_t SimDiskCounters::* kind);
  int64_t PlanWrite(InodeId inode, uint64_t offset, ByteView data, const OpenOptions& options);
  void ApplyWrite(InodeId inode, uint64_t offset, ByteView data, bool dsync, bool doomed);
  uint64_t MissingCells(const Inode& inode, uint64_t first, uint64_t last) const;
  void MarkAllocated(Inode& inode, uint64_t first, uint64_t last);
  uint64_t UsedCells() const;
  void ApplyFailedWrite(InodeId inode, uint64_t offset, ByteView data);
  SimCell Overlay(const SimCell& base, uint64_t cell, uint64_t offset, ByteView data) const;
  SimCell ReadCell(InodeId inode, uint64_t cell, bool stale);
  void CollectCells(InodeId id, const std::string& path, std::vector<SimUndecided>& out) const;
  void ResolveEntries(const SimChooser& chooser);
  void ResolveInode(InodeId id, const std::string& path, const SimChooser& chooser);
  void DropUnreachable();
  void Emit(SimEvent event) const {
    if (hook_) hook_(event);
  }

  Rng rng_;
  SimDiskCounters counters_;
  uint64_t order_ = 0;  // of completions and metadata changes
  uint64_t next_token_ = 1;
  InodeId next_inode_ = 1;
  std::map<std::string, Entry> entries_;
  std::map<InodeId, std::shared_ptr<Inode>> inodes_;
  std::map<InodeId, uint64_t> open_counts_;
  std::map<InodeId, uint64_t> locks_;
  std::map<uint64_t, WriteInFlight> writes_;
  std::map<uint64_t, FlushInFlight> flushes_;
  std::function<void(const SimEvent&)> hook_;
};

}  // namespace reprise
