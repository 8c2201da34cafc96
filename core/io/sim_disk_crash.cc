// The part of SimDisk that tests steer: what is undecided, power cuts, and tampering.
//
// A crash resolves in this order: names (a lost name takes its file along, a lost directory its
// children), then the size of each surviving file, then its cells. Writes in flight are candidates
// on top of the version they would have replaced.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/io/sim_disk.h"

namespace reprise {
namespace {

bool SameContent(const SimCell& left, const SimCell& right) {
  if (left == right) return true;
  static const std::array<uint8_t, kSimCellBytes> zeros{};
  return (left ? *left : zeros) == (right ? *right : zeros);
}

// Appends `value` unless an equal one is there; returns its index.
template <typename T, typename Equal>
size_t AddDistinct(std::vector<T>& values, const T& value, Equal equal) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (equal(values[i], value)) return i;
  }
  values.push_back(value);
  return values.size() - 1;
}

// The content that `outcome` leaves in a cell.
SimCell Resolve(const SimUndecided& undecided, const SimOutcome& outcome) {
  const SimCell& newer = undecided.candidates.at(outcome.newer);
  if (outcome.newer_sectors >= kSimSectorsPerCell) return newer;
  const SimCell& older = undecided.candidates.at(outcome.older);
  auto torn = std::make_shared<std::array<uint8_t, kSimCellBytes>>();
  torn->fill(0);
  if (older != nullptr) *torn = *older;
  size_t kept = outcome.newer_sectors * kSimSectorBytes;
  if (newer != nullptr) {
    std::memcpy(torn->data(), newer->data(), kept);
  } else {
    std::memset(torn->data(), 0, kept);
  }
  return torn;
}

}  // namespace

size_t SimUndecided::version_count() const {
  switch (kind) {
    case Kind::kCell: return candidates.size();
    case Kind::kSize: return sizes.size();
    case Kind::kEntry: return exists.size();
  }
  return 0;
}

SimOutcome LoseUnflushed(const SimUndecided&) { return {}; }

SimOutcome KeepUnflushed(const SimUndecided& undecided) {
  return {undecided.newest, 0, kSimSectorsPerCell};
}

SimChooser RandomOutcome(uint64_t seed) {
  return [rng = Rng(seed)](const SimUndecided& undecided) mutable {
    SimOutcome outcome{rng.Below(undecided.version_count()), rng.Below(undecided.version_count()),
                       kSimSectorsPerCell};
    bool tear = undecided.kind == SimUndecided::Kind::kCell && rng.Chance(1, 4);
    if (tear) outcome.newer_sectors = static_cast<uint32_t>(1 + rng.Below(kSimSectorsPerCell - 1));
    return outcome;
  };
}

std::vector<SimOutcome> OutcomesOf(const SimUndecided& undecided, bool torn) {
  std::vector<SimOutcome> outcomes;
  for (size_t newer = 0; newer < undecided.version_count(); ++newer) {
    outcomes.push_back({newer, 0, kSimSectorsPerCell});
    if (!torn || undecided.kind != SimUndecided::Kind::kCell) continue;
    for (size_t older = 0; older < undecided.version_count(); ++older) {
      if (older != newer) outcomes.push_back({newer, older, kSimSectorsPerCell / 2});
    }
  }
  return outcomes;
}

void SimDisk::CollectCells(InodeId id, const std::string& path,
                           std::vector<SimUndecided>& out) const {
  const Inode& inode = Get(id);
  SimUndecided size{SimUndecided::Kind::kSize, path};
  for (const SizeChange& change : inode.sizes) {
    size.newest = AddDistinct(size.sizes, change.size, std::equal_to<>());
  }
  std::map<uint64_t, SimUndecided> cells;
  auto at = [&](uint64_t cell) -> SimUndecided& {
    auto [place, added] = cells.try_emplace(cell);
    if (!added) return place->second;
    place->second = {SimUndecided::Kind::kCell, path, cell};
    auto found = inode.cells.find(cell);
    SimCell durable = found == inode.cells.end() ? nullptr : found->second.durable;
    place->second.candidates.push_back(durable);
    if (found == inode.cells.end()) return place->second;
    for (const Pending& pending : found->second.pending) {
      place->second.newest = AddDistinct(place->second.candidates, pending.content, SameContent);
    }
    return place->second;
  };
  for (const auto& [cell, state] : inode.cells) {
    if (!state.pending.empty()) at(cell);
  }
  for (const auto& [token, write] : writes_) {
    if (write.inode != id || write.data->empty()) continue;
    if (write.planned < 0 && write.planned != -EIO) continue;
    uint64_t last = (write.offset + write.data->size() - 1) / kSimCellBytes;
    for (uint64_t cell = write.offset / kSimCellBytes; cell <= last; ++cell) {
      auto found = inode.cells.find(cell);
      SimCell base = found == inode.cells.end() ? nullptr : found->second.visible();
      SimCell content = Overlay(base, cell, write.offset, *write.data);
      SimUndecided& undecided = at(cell);
      undecided.newest = AddDistinct(undecided.candidates, content, SameContent);
    }
    uint64_t end = std::max(inode.size(), write.offset + write.data->size());
    size.newest = AddDistinct(size.sizes, end, std::equal_to<>());
  }
  if (size.sizes.size() > 1) out.push_back(std::move(size));
  for (auto& [cell, undecided] : cells) {
    if (undecided.candidates.size() > 1) out.push_back(std::move(undecided));
  }
}

std::vector<SimUndecided> SimDisk::UnflushedCells() const {
  std::vector<SimUndecided> out;
  std::map<InodeId, std::string> files;
  for (const auto& [path, entry] : entries_) {
    SimUndecided undecided{SimUndecided::Kind::kEntry, path};
    std::vector<Node> nodes;
    for (const EntryChange& change : entry) {
      undecided.newest = AddDistinct(nodes, change.node, std::equal_to<>());
      if (change.node.type == Node::Type::kFile) files.emplace(change.node.inode, path);
    }
    for (const Node& node : nodes) undecided.exists.push_back(node.type != Node::Type::kNone);
    if (nodes.size() > 1) out.push_back(std::move(undecided));
  }
  for (const auto& [inode, path] : files) CollectCells(inode, path, out);
  return out;
}

void SimDisk::ResolveEntries(const SimChooser& chooser) {
  for (auto& [path, entry] : entries_) {
    SimUndecided undecided{SimUndecided::Kind::kEntry, path};
    std::vector<Node> nodes;
    for (const EntryChange& change : entry) {
      undecided.newest = AddDistinct(nodes, change.node, std::equal_to<>());
    }
    for (const Node& node : nodes) undecided.exists.push_back(node.type != Node::Type::kNone);
    Node kept = nodes.size() > 1 ? nodes.at(chooser(undecided).newer) : nodes.front();
    entry = {{0, kept}};
  }
  // Sorted by path, so that a directory is looked at before what lies in it.
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    size_t slash = entry->first.rfind('/');
    std::string parent = slash == std::string::npos ? "." : entry->first.substr(0, slash);
    bool gone = entry->second.back().node.type == Node::Type::kNone || !IsDirectory(parent);
    entry = gone ? entries_.erase(entry) : std::next(entry);
  }
}

void SimDisk::ResolveInode(InodeId id, const std::string& path, const SimChooser& chooser) {
  std::vector<SimUndecided> undecided;
  CollectCells(id, path, undecided);
  Inode& inode = Mutable(id);
  uint64_t size = inode.sizes.front().size;
  for (const SimUndecided& item : undecided) {
    SimOutcome outcome = chooser(item);
    if (item.kind == SimUndecided::Kind::kSize) {
      size = item.sizes.at(outcome.newer);
    } else {
      CellState& state = inode.cells[item.cell];
      state.durable = Resolve(item, outcome);
    }
  }
  inode.sizes = {{0, size, false}};
  uint64_t end = CeilDiv(size, kSimCellBytes);
  inode.cells.erase(inode.cells.lower_bound(end), inode.cells.end());
  for (auto& [cell, state] : inode.cells) {
    state.pending.clear();
    state.previous = state.durable;
  }
  // Bytes behind the end of the last cell must read as zeros when the file grows again.
  auto last = inode.cells.find(size / kSimCellBytes);
  if (last != inode.cells.end() && size % kSimCellBytes != 0) {
    Bytes zeros(kSimCellBytes - size % kSimCellBytes, 0);
    last->second.durable = Overlay(last->second.durable, last->first, size, zeros);
  }
  std::map<uint64_t, uint64_t> kept;
  for (const auto& [first, limit] : inode.allocated) {
    if (first < end) kept.emplace(first, std::min(limit, end));
  }
  inode.allocated = std::move(kept);
}

void SimDisk::DropUnreachable() {
  std::map<InodeId, std::shared_ptr<Inode>> kept;
  for (const auto& [path, entry] : entries_) {
    for (const EntryChange& change : entry) {
      if (change.node.type != Node::Type::kFile) continue;
      kept[change.node.inode] = inodes_.at(change.node.inode);
    }
  }
  inodes_ = std::move(kept);
}

void SimDisk::Crash(const SimChooser& chooser) {
  ResolveEntries(chooser);
  for (const auto& [path, entry] : entries_) {
    if (entry.back().node.type == Node::Type::kFile) {
      ResolveInode(entry.back().node.inode, path, chooser);
    }
  }
  DropUnreachable();
  writes_.clear();
  flushes_.clear();
  open_counts_.clear();
  locks_.clear();
}

void SimDisk::SettleInFlight(const SimChooser& chooser) {
  std::map<uint64_t, WriteInFlight> writes = std::exchange(writes_, {});
  for (const auto& [token, write] : writes) {
    if (write.planned < 0) continue;
    // The chooser sees the write as one cell with two versions: not done, done.
    SimUndecided undecided{SimUndecided::Kind::kCell, PathOf(write.inode),
                           write.offset / kSimCellBytes};
    undecided.candidates = {nullptr, nullptr};
    undecided.newest = 1;
    SimOutcome outcome = chooser(undecided);
    size_t kept = outcome.newer == 0 ? 0 : write.data->size();
    if (kept > 0 && outcome.newer_sectors < kSimSectorsPerCell) {
      kept = std::min<size_t>(kept, AlignUp(kept / 2, kSimSectorBytes));
    }
    if (kept > 0) {
      ApplyWrite(write.inode, write.offset, ByteView(*write.data).first(kept), false, false);
    }
  }
  flushes_.clear();
  open_counts_.clear();
  locks_.clear();
}

std::optional<Bytes> SimDisk::Contents(const std::string& path) const {
  Node node = Visible(path);
  if (node.type != Node::Type::kFile) return std::nullopt;
  const Inode& inode = Get(node.inode);
  Bytes content(inode.size(), 0);
  for (const auto& [cell, state] : inode.cells) {
    uint64_t begin = cell * kSimCellBytes;
    if (begin >= content.size() || state.visible() == nullptr) continue;
    size_t size = std::min<uint64_t>(kSimCellBytes, content.size() - begin);
    std::memcpy(content.data() + begin, state.visible()->data(), size);
  }
  return content;
}

bool SimDisk::Exists(const std::string& path) const {
  return Visible(path).type != Node::Type::kNone;
}

std::vector<std::string> SimDisk::Files() const {
  std::vector<std::string> files;
  for (const auto& [path, entry] : entries_) {
    if (entry.back().node.type == Node::Type::kFile) files.push_back(path);
  }
  return files;
}

void SimDisk::FlipBit(const std::string& path, uint64_t offset, int bit) {
  Node node = Visible(path);
  REPRISE_CHECK(node.type == Node::Type::kFile, path);
  uint64_t cell = offset / kSimCellBytes;
  CellState& state = Mutable(node.inode).cells[cell];
  auto flip = [&](SimCell& content) {
    Bytes byte = {static_cast<uint8_t>(
        (content == nullptr ? 0 : (*content)[offset % kSimCellBytes]) ^ (1u << bit))};
    content = Overlay(content, cell, offset, byte);
  };
  flip(state.durable);
  for (Pending& pending : state.pending) flip(pending.content);
}

void SimDisk::Tamper(const std::string& path, uint64_t offset, ByteView data) {
  Node node = Visible(path);
  REPRISE_CHECK(node.type == Node::Type::kFile, path);
  ApplyWrite(node.inode, offset, data, true, false);
}

void SimDisk::Destroy(const std::string& path) {
  entries_.erase(path);
  DropUnreachable();
}

}  // namespace reprise
