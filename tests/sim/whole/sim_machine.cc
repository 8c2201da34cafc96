#include "tests/sim/whole/sim_machine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/check.h"
#include "core/base/log.h"
#include "server/node/slot_format.h"

namespace reprise::sim {

SharedMemory::SharedMemory(node::OwnedFd fd, bool writable) {
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0 || info.st_size == 0) return;
  auto size = static_cast<size_t>(info.st_size);
  int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* address = ::mmap(nullptr, size, protection, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return;
  data_ = static_cast<uint8_t*>(address);
  size_ = size;
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void ProcessTable::End(uint64_t pid) {
  alive_.erase(pid);
  auto first = watchers_.lower_bound({pid, 0});
  while (first != watchers_.end() && first->first.first == pid) {
    Watcher watcher = std::move(first->second);
    first = watchers_.erase(first);
    watcher.loop->Post(std::move(watcher.on_death));
  }
}

class SimPidWatch final : public node::PidWatch {
 public:
  SimPidWatch(Loop& loop, ProcessTable& table) : loop_(loop), table_(table) {}
  ~SimPidWatch() override {
    for (const auto& [watch, pid] : own_) table_.watchers_.erase({pid, watch});
  }
  Result<WatchId> Watch(pid_t pid, std::function<void()> on_death) override {
    auto process = static_cast<uint64_t>(pid);
    if (!table_.alive_.contains(process)) return Error(Code::kNotFound, "no such process");
    uint64_t watch = table_.next_watch_++;
    table_.watchers_[{process, watch}] = {&loop_, std::move(on_death)};
    own_[watch] = process;
    return watch;
  }
  void Unwatch(WatchId id) override {
    auto found = own_.find(id);
    if (found == own_.end()) return;
    table_.watchers_.erase({found->second, id});
    own_.erase(found);
  }

 private:
  Loop& loop_;
  ProcessTable& table_;
  std::map<uint64_t, uint64_t> own_;  // watch -> pid
};

Result<node::SlabMapping> SimMachine::Map(const std::string& path, uint64_t bytes_min) {
  SimDisk& files = world_.disk(host_);
  std::erase_if(memory_, [&](const auto& item) { return !files.Exists(item.first); });
  auto found = memory_.find(path);
  if (found == memory_.end()) {
    int64_t inode = files.Open(path, {.write = false, .direct = false});
    if (inode < 0) return Fail(Code::kNotFound, "map {}: no such file", path);
    uint64_t size = files.Size(static_cast<SimDisk::InodeId>(inode));
    Bytes head(std::min<uint64_t>(size, node::kSlotHeaderBytes));
    files.Read(static_cast<SimDisk::InodeId>(inode), 0, head, {.write = false, .direct = false});
    files.Release(static_cast<SimDisk::InodeId>(inode), 0);
    node::OwnedFd made(::memfd_create("slot", MFD_CLOEXEC));
    REPRISE_CHECK(made.valid());
    REPRISE_CHECK(::ftruncate(made.get(), static_cast<off_t>(size)) == 0);
    REPRISE_CHECK(::pwrite(made.get(), head.data(), head.size(), 0) ==
                  static_cast<ssize_t>(head.size()));
    found = memory_.emplace(path, std::move(made)).first;
  }
  node::OwnedFd copy(::fcntl(found->second.get(), F_DUPFD_CLOEXEC, 3));
  REPRISE_CHECK(copy.valid());
  return node::SlabMapping::MapOpen(std::move(copy), path, bytes_min);
}

// Of a sealed slot that still has its name.
std::optional<node::SlotHeader> SimMachine::HeaderOf(const std::string& path, int fd) const {
  if (!path.ends_with(".slot") || !world_.disk(host_).Exists(path)) return std::nullopt;
  Bytes head(node::kSlotHeaderBytes);
  if (::pread(fd, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size())) {
    return std::nullopt;
  }
  auto header = node::DecodeSlotHeader(head);
  if (!header.has_value() || header->state != node::SlotState::kSealed) return std::nullopt;
  return *header;
}

std::vector<std::string> SimMachine::Sealed() const {
  CheckpointKey committed;
  for (const auto& [path, fd] : memory_) {
    auto header = HeaderOf(path, fd.get());
    if (header.has_value() && header->committed) {
      committed = std::max(committed, header->identity.key);
    }
  }
  std::vector<std::string> paths;
  for (const auto& [path, fd] : memory_) {
    auto header = HeaderOf(path, fd.get());
    if (header.has_value() && committed < header->identity.key) paths.push_back(path);
  }
  return paths;
}

bool SimMachine::FlipBit(uint64_t draw) {
  for (const auto& [path, fd] : memory_) {
    auto header = HeaderOf(path, fd.get());
    if (!header.has_value() || header->length == 0) continue;
    auto at = static_cast<off_t>(node::kSlotDataOffset + draw % header->length);
    uint8_t byte = 0;
    if (::pread(fd.get(), &byte, 1, at) != 1) continue;
    byte ^= static_cast<uint8_t>(1 << (draw >> 16) % 8);
    return ::pwrite(fd.get(), &byte, 1, at) == 1;
  }
  return false;
}

Result<std::unique_ptr<node::PidWatch>> SimMachine::WatchProcesses(Loop& loop) {
  return std::make_unique<SimPidWatch>(loop, processes_);
}

}  // namespace reprise::sim
