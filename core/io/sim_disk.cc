#include "core/io/sim_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/limits.h"

namespace reprise {
namespace {

std::string ParentOf(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Calls `visit(cell)` for each cell that [offset, offset + size) touches.
template <typename Visitor>
void ForEachCell(uint64_t offset, uint64_t size, Visitor visit) {
  if (size == 0) return;
  uint64_t last = (offset + size - 1) / kSimCellBytes;
  for (uint64_t cell = offset / kSimCellBytes; cell <= last; ++cell) visit(cell);
}

}  // namespace

SimDisk::SimDisk(uint64_t seed) : rng_(seed) {}

SimDisk::SimDisk(const SimDisk& other)
    : faults(other.faults),
      rng_(other.rng_),
      counters_(other.counters_),
      order_(other.order_),
      next_token_(other.next_token_),
      next_inode_(other.next_inode_),
      entries_(other.entries_),
      inodes_(other.inodes_),
      open_counts_(other.open_counts_),
      locks_(other.locks_),
      writes_(other.writes_),
      flushes_(other.flushes_) {}

SimDisk& SimDisk::operator=(const SimDisk& other) {
  if (this == &other) return *this;
  auto hook = std::move(hook_);
  std::destroy_at(this);
  std::construct_at(this, other);
  hook_ = std::move(hook);
  return *this;
}

// --- names ---

SimDisk::Node SimDisk::Visible(const std::string& path) const {
  auto found = entries_.find(path);
  return found == entries_.end() ? Node{} : found->second.back().node;
}

bool SimDisk::IsDirectory(const std::string& path) const {
  return path.empty() || path == "." || path == "/" || Visible(path).type == Node::Type::kDirectory;
}

void SimDisk::SetEntry(const std::string& path, Node node) {
  Entry& entry = entries_.try_emplace(path, Entry{{0, Node{}}}).first->second;
  entry.push_back({++order_, node});
}

std::string SimDisk::PathOf(InodeId inode) const {
  for (const auto& [path, entry] : entries_) {
    for (const EntryChange& change : entry) {
      if (change.node == Node{Node::Type::kFile, inode}) return path;
    }
  }
  return "";
}

int64_t SimDisk::Open(const std::string& path, const OpenOptions& options) {
  Node node = Visible(path);
  if (node.type == Node::Type::kDirectory) return -EISDIR;
  if (node.type == Node::Type::kFile && options.create && options.exclusive) return -EEXIST;
  if (node.type == Node::Type::kNone) {
    if (!options.create || !IsDirectory(ParentOf(path))) return -ENOENT;
    node = {Node::Type::kFile, next_inode_++};
    inodes_.emplace(node.inode, std::make_shared<Inode>());
    SetEntry(path, node);
    Emit({SimEventKind::kMetadata, path});
  }
  ++open_counts_[node.inode];
  return static_cast<int64_t>(node.inode);
}

void SimDisk::Release(InodeId inode, uint64_t lock_owner) {
  auto lock = locks_.find(inode);
  if (lock != locks_.end() && lock->second == lock_owner) locks_.erase(lock);
  auto count = open_counts_.find(inode);
  // After a crash nothing is open any more, whatever the old process thinks.
  if (count != open_counts_.end() && --count->second == 0) open_counts_.erase(count);
}

bool SimDisk::Lock(InodeId inode, uint64_t owner) {
  return locks_.try_emplace(inode, owner).first->second == owner;
}

int64_t SimDisk::MakeDirectory(const std::string& path) {
  if (IsDirectory(path)) return 0;
  if (Visible(path).type == Node::Type::kFile) return -EEXIST;
  if (!IsDirectory(ParentOf(path))) return -ENOENT;
  SetEntry(path, {Node::Type::kDirectory, 0});
  Emit({SimEventKind::kMetadata, path});
  return 0;
}

std::optional<std::vector<std::string>> SimDisk::List(const std::string& path) const {
  if (!IsDirectory(path)) return std::nullopt;
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) {
    if (entry.back().node.type == Node::Type::kNone || ParentOf(name) != path) continue;
    names.push_back(name.substr(name.rfind('/') + 1));
  }
  std::sort(names.begin(), names.end());
  return names;
}

int64_t SimDisk::Remove(const std::string& path) {
  Node node = Visible(path);
  if (node.type == Node::Type::kNone) return -ENOENT;
  if (node.type == Node::Type::kDirectory && !List(path)->empty()) return -ENOTEMPTY;
  SetEntry(path, Node{});
  Emit({SimEventKind::kMetadata, path});
  return 0;
}

uint64_t SimDisk::BeginSyncDirectory(const std::string& path) {
  ++counters_.directory_syncs;
  Emit({SimEventKind::kSyncDirectorySubmit, path});
  return order_;
}

int64_t SimDisk::FinishSyncDirectory(const std::string& path, uint64_t token) {
  int64_t result = IsDirectory(path) ? 0 : -ENOENT;
  for (auto& [name, entry] : entries_) {
    if (result != 0 || faults.lying_flush || ParentOf(name) != path) continue;
    size_t covered = entry.size() - 1;
    while (covered > 0 && entry[covered].order > token) --covered;
    entry.erase(entry.begin(), entry.begin() + static_cast<ptrdiff_t>(covered));
  }
  Emit({SimEventKind::kSyncDirectoryDone, path, 0, 0, result});
  return result;
}

// --- space and sizes ---

SimDisk::Inode& SimDisk::Mutable(InodeId inode) {
  std::shared_ptr<Inode>& shared = inodes_.at(inode);
  if (shared.use_count() > 1) shared = std::make_shared<Inode>(*shared);
  return *shared;
}

uint64_t SimDisk::Size(InodeId inode) const { return Get(inode).size(); }

void SimDisk::SetSize(Inode& inode, uint64_t size) {
  if (size != inode.size()) inode.sizes.push_back({order_, size, false});
}

uint64_t SimDisk::MissingCells(const Inode& inode, uint64_t first, uint64_t last) const {
  uint64_t present = 0;
  for (const auto& [begin, end] : inode.allocated) {
    uint64_t from = std::max(begin, first);
    uint64_t to = std::min(end, last);
    if (from < to) present += to - from;
  }
  return last - first - present;
}

void SimDisk::MarkAllocated(Inode& inode, uint64_t first, uint64_t last) {
  auto range = inode.allocated.begin();
  while (range != inode.allocated.end()) {
    if (range->second < first || range->first > last) {
      ++range;
      continue;
    }
    first = std::min(first, range->first);
    last = std::max(last, range->second);
    range = inode.allocated.erase(range);
  }
  if (first < last) inode.allocated.emplace(first, last);
}

uint64_t SimDisk::UsedCells() const {
  uint64_t used = 0;
  auto add = [&](InodeId id) {
    for (const auto& [begin, end] : Get(id).allocated) used += end - begin;
  };
  for (const auto& [path, entry] : entries_) {
    if (entry.back().node.type == Node::Type::kFile) add(entry.back().node.inode);
  }
  // Removed but still open: the space is not free yet.
  for (const auto& [id, count] : open_counts_) {
    std::string path = PathOf(id);
    if (path.empty() || Visible(path) != Node{Node::Type::kFile, id}) add(id);
  }
  return used;
}

uint64_t SimDisk::FreeBytes() const {
  uint64_t used = UsedCells() * kSimCellBytes;
  return used >= faults.capacity_bytes ? 0 : faults.capacity_bytes - used;
}

int64_t SimDisk::Allocate(InodeId inode, uint64_t offset, uint64_t length) {
  uint64_t first = offset / kSimCellBytes;
  uint64_t last = CeilDiv(offset + length, kSimCellBytes);
  uint64_t missing = MissingCells(Get(inode), first, last);
  ++counters_.allocates;
  if (Hit(counters_.allocates, faults.fail_allocate_at, 0, &SimDiskCounters::refused_space)) {
    return -ENOSPC;
  }
  if (missing * kSimCellBytes > FreeBytes()) {
    ++counters_.refused_space;
    return -ENOSPC;
  }
  Inode& target = Mutable(inode);
  MarkAllocated(target, first, last);
  ++order_;
  SetSize(target, std::max(target.size(), offset + length));
  if (hook_) Emit({SimEventKind::kMetadata, PathOf(inode), offset, length});
  return 0;
}

int64_t SimDisk::Truncate(InodeId inode, uint64_t size) {
  Inode& target = Mutable(inode);
  ++order_;
  // Cut cells become zeros, which is as undecided as the size until the next flush.
  for (auto& [cell, state] : target.cells) {
    uint64_t begin = cell * kSimCellBytes;
    if (begin + kSimCellBytes <= size) continue;
    SimCell cut;
    if (begin < size) {
      Bytes zeros(begin + kSimCellBytes - size, 0);
      cut = Overlay(state.visible(), cell, size, zeros);
    }
    state.pending.push_back({order_, std::move(cut), false});
  }
  uint64_t end = CeilDiv(size, kSimCellBytes);
  std::map<uint64_t, uint64_t> kept;
  for (const auto& [first, last] : target.allocated) {
    if (first < end) kept.emplace(first, std::min(last, end));
  }
  target.allocated = std::move(kept);
  SetSize(target, size);
  if (hook_) Emit({SimEventKind::kMetadata, PathOf(inode), size});
  return 0;
}

// --- data ---

// True when a fault fires for the operation that is the `count`-th of its kind.
bool SimDisk::Hit(uint64_t count, uint64_t at, uint32_t ppm, uint64_t SimDiskCounters::* kind) {
  bool hit = at != 0 && (faults.persistent ? count >= at : count == at);
  if (!hit && ppm != 0) hit = rng_.Chance(ppm, 1'000'000);
  if (hit) {
    ++counters_.faults_injected;
    ++(counters_.*kind);
  }
  return hit;
}

Nanos SimDisk::DrawLatency() {
  Nanos span = faults.latency_max - faults.latency_min;
  if (Hit(0, 0, faults.slow_ppm, &SimDiskCounters::slow)) span += faults.slow_max;
  if (span <= Nanos{0}) return faults.latency_min;
  return faults.latency_min + Nanos{rng_.Below(static_cast<uint64_t>(span.count()) + 1)};
}

SimCell SimDisk::Overlay(const SimCell& base, uint64_t cell, uint64_t offset, ByteView data) const {
  uint64_t begin = cell * kSimCellBytes;
  auto content = std::make_shared<std::array<uint8_t, kSimCellBytes>>();
  if (base != nullptr) {
    *content = *base;
  } else {
    content->fill(0);
  }
  uint64_t from = std::max(begin, offset);
  uint64_t to = std::min<uint64_t>(begin + kSimCellBytes, offset + data.size());
  if (from < to)
    std::memcpy(content->data() + (from - begin), data.data() + (from - offset), to - from);
  return content;
}

// The result a write will have, decided at its submission.
int64_t SimDisk::PlanWrite(InodeId inode, uint64_t offset, ByteView data,
                           const OpenOptions& options) {
  ++counters_.writes;
  auto size = static_cast<int64_t>(data.size());
  if (!options.write) return -EBADF;
  if (options.direct &&
      !(IsAligned(offset, limits::kIoAlignment) && IsAligned(data.size(), limits::kIoAlignment) &&
        IsAligned(reinterpret_cast<uintptr_t>(data.data()), limits::kIoAlignment))) {
    return -EINVAL;
  }
  uint64_t first = offset / kSimCellBytes;
  uint64_t last = CeilDiv(offset + data.size(), kSimCellBytes);
  uint64_t missing = data.empty() ? 0 : MissingCells(Get(inode), first, last);
  if (missing > 0) {
    ++counters_.growths;
    if (Hit(counters_.growths, faults.fail_growth_at, 0, &SimDiskCounters::refused_space)) {
      return -ENOSPC;
    }
    if (missing * kSimCellBytes > FreeBytes()) {
      ++counters_.refused_space;
      return -ENOSPC;
    }
    MarkAllocated(Mutable(inode), first, last);
  }
  if (Hit(counters_.writes, faults.fail_write_at, faults.write_error_ppm,
          &SimDiskCounters::write_errors)) {
    return -EIO;
  }
  uint64_t unit = options.direct ? limits::kIoAlignment : 1;
  if (data.size() > unit && Hit(0, 0, faults.short_ppm, &SimDiskCounters::short_transfers)) {
    size = static_cast<int64_t>((1 + rng_.Below(data.size() / unit - 1)) * unit);
  }
  return size;
}

uint64_t SimDisk::BeginWrite(InodeId inode, uint64_t offset, ByteView data,
                             const OpenOptions& options) {
  int64_t planned = PlanWrite(inode, offset, data, options);
  bool misdirected = planned > 0 && Hit(counters_.writes, faults.misdirect_at, faults.misdirect_ppm,
                                        &SimDiskCounters::misdirected);
  uint64_t token = next_token_++;
  writes_.emplace(
      token, WriteInFlight{inode, offset, std::make_shared<const Bytes>(data.begin(), data.end()),
                           options.dsync, planned, misdirected});
  if (hook_) Emit({SimEventKind::kWriteSubmit, PathOf(inode), offset, data.size()});
  return token;
}

int64_t SimDisk::FinishWrite(uint64_t token, ByteView buffer) {
  auto found = writes_.find(token);
  REPRISE_CHECK(found != writes_.end());
  WriteInFlight write = std::move(found->second);
  writes_.erase(found);
  REPRISE_CHECK(std::ranges::equal(*write.data, buffer),
                "the buffer of a write was changed while the write was in flight");
  if (write.planned == -EIO) {
    ApplyFailedWrite(write.inode, write.offset, *write.data);
  } else if (write.planned > 0) {
    ByteView moved = ByteView(*write.data).first(static_cast<size_t>(write.planned));
    uint64_t offset = write.offset;
    uint64_t cells = Get(write.inode).size() / kSimCellBytes;
    // Somewhere else in the file; the right place keeps what it had.
    if (write.misdirected && cells > 0) offset = rng_.Below(cells) * kSimCellBytes;
    ApplyWrite(write.inode, offset, moved, write.dsync, false);
  }
  if (hook_) {
    Emit({SimEventKind::kWriteDone, PathOf(write.inode), write.offset, write.data->size(),
          write.planned});
  }
  return write.planned;
}

void SimDisk::ApplyWrite(InodeId inode, uint64_t offset, ByteView data, bool dsync, bool doomed) {
  Inode& target = Mutable(inode);
  ++order_;
  ForEachCell(offset, data.size(), [&](uint64_t cell) {
    CellState& state = target.cells[cell];
    SimCell content = Overlay(state.visible(), cell, offset, data);
    state.previous = state.visible();
    if (dsync) {
      state.durable = std::move(content);
      state.pending.clear();
    } else {
      state.pending.push_back({order_, std::move(content), doomed});
    }
  });
  SetSize(target, std::max(target.size(), offset + data.size()));
  if (dsync) target.sizes.erase(target.sizes.begin(), target.sizes.end() - 1);
}

// Each cell shows old or new content, and no flush will ever decide which one is on the medium.
void SimDisk::ApplyFailedWrite(InodeId inode, uint64_t offset, ByteView data) {
  Inode& target = Mutable(inode);
  ++order_;
  ForEachCell(offset, data.size(), [&](uint64_t cell) {
    CellState& state = target.cells[cell];
    SimCell old = state.visible();
    SimCell content = Overlay(old, cell, offset, data);
    state.pending.push_back({order_, std::move(content), true});
    if (rng_.Chance(1, 2)) state.pending.push_back({order_, std::move(old), true});
  });
  if (target.size() < offset + data.size() && rng_.Chance(1, 2)) {
    target.sizes.push_back({order_, offset + data.size(), true});
  }
}

uint64_t SimDisk::BeginFlush(InodeId inode) {
  ++counters_.flushes;
  bool fails = Hit(counters_.flushes, faults.fail_flush_at, faults.flush_error_ppm,
                   &SimDiskCounters::flush_errors);
  int64_t planned = fails ? -EIO : 0;
  uint64_t token = next_token_++;
  flushes_.emplace(token, FlushInFlight{inode, order_, planned});
  if (hook_) Emit({SimEventKind::kFlushSubmit, PathOf(inode)});
  return token;
}

int64_t SimDisk::FinishFlush(uint64_t token) {
  auto found = flushes_.find(token);
  REPRISE_CHECK(found != flushes_.end());
  FlushInFlight flush = found->second;
  flushes_.erase(found);
  Inode& target = Mutable(flush.inode);
  // Decides one history: everything up to the newest covered change that is not doomed.
  auto settle = [&](auto& history, size_t first, auto commit) {
    size_t end = first;
    for (size_t i = first; i < history.size() && history[i].order <= flush.order; ++i) {
      if (flush.planned != 0) history[i].doomed = true;
      if (!history[i].doomed) end = i + 1;
    }
    if (end > first) commit(end);
  };
  if (!faults.lying_flush || flush.planned != 0) {
    for (auto& [cell, state] : target.cells) {
      settle(state.pending, 0, [&](size_t end) {
        state.durable = state.pending[end - 1].content;
        state.pending.erase(state.pending.begin(),
                            state.pending.begin() + static_cast<ptrdiff_t>(end));
      });
    }
    settle(target.sizes, 1, [&](size_t end) {
      target.sizes.erase(target.sizes.begin(),
                         target.sizes.begin() + static_cast<ptrdiff_t>(end - 1));
    });
  }
  if (hook_) Emit({SimEventKind::kFlushDone, PathOf(flush.inode), 0, 0, flush.planned});
  return flush.planned;
}

// What a read of one cell sees; a write in flight over it may show old, new or half of each.
SimCell SimDisk::ReadCell(InodeId inode, uint64_t cell, bool stale) {
  const Inode& source = Get(inode);
  auto found = source.cells.find(cell);
  SimCell content;
  if (found != source.cells.end()) {
    content = stale ? found->second.previous : found->second.visible();
  }
  for (const auto& [token, write] : writes_) {
    uint64_t begin = cell * kSimCellBytes;
    if (write.inode != inode || write.offset >= begin + kSimCellBytes ||
        write.offset + write.data->size() <= begin || write.planned < 0) {
      continue;
    }
    size_t shown = write.data->size();
    if (rng_.Chance(1, 2)) shown = rng_.Chance(1, 2) ? 0 : AlignUp(shown / 2, kSimSectorBytes);
    content = Overlay(content, cell, write.offset, ByteView(*write.data).first(shown));
  }
  return content;
}

int64_t SimDisk::Read(InodeId inode, uint64_t offset, MutableByteView buffer,
                      const OpenOptions& options) {
  ++counters_.reads;
  if (options.direct &&
      !(IsAligned(offset, limits::kIoAlignment) && IsAligned(buffer.size(), limits::kIoAlignment) &&
        IsAligned(reinterpret_cast<uintptr_t>(buffer.data()), limits::kIoAlignment))) {
    return -EINVAL;
  }
  if (Hit(counters_.reads, faults.fail_read_at, faults.read_error_ppm,
          &SimDiskCounters::read_errors)) {
    return -EIO;
  }
  uint64_t end = Get(inode).size();
  if (offset >= end) return 0;
  uint64_t size = std::min<uint64_t>(buffer.size(), end - offset);
  uint64_t unit = options.direct ? limits::kIoAlignment : 1;
  if (size > unit && Hit(0, 0, faults.short_ppm, &SimDiskCounters::short_transfers)) {
    size = (1 + rng_.Below(size / unit - 1 + (size % unit != 0))) * unit;
  }
  bool stale = Hit(counters_.reads, faults.stale_read_at, faults.stale_read_ppm,
                   &SimDiskCounters::stale_reads);
  ForEachCell(offset, size, [&](uint64_t cell) {
    SimCell content = ReadCell(inode, cell, stale);
    uint64_t begin = cell * kSimCellBytes;
    uint64_t from = std::max(begin, offset);
    uint64_t to = std::min(begin + kSimCellBytes, offset + size);
    uint8_t* target = buffer.data() + (from - offset);
    if (content == nullptr) {
      std::memset(target, 0, to - from);
    } else {
      std::memcpy(target, content->data() + (from - begin), to - from);
    }
  });
  return static_cast<int64_t>(size);
}

}  // namespace reprise
