// crash_disk: a file that is a disk with a volatile write cache (disk_cache.h), through FUSE.
//
//   crash_disk MOUNTPOINT MEBIBYTES
//
// Serves MOUNTPOINT/disk until standard input ends or the mount goes away. A loop device with direct
// I/O on it turns a flush of the block layer into a flush of this cache. Obeys lines on standard
// input and answers each with one line on standard output:
//
//   arm N        power fails at the N-th write or flush from now    -> armed
//   cut          power fails now                                    -> off
//   on SEED      power is back                                      -> on WHAT-BECAME-OF-THE-CACHE
//   status       -> status WRITES FLUSHES PENDING 0|1 (power)
//
// A cut that comes by itself says `cut`.
#define FUSE_USE_VERSION 32
#include <fuse.h>

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "tests/crash/disk/disk_cache.h"

namespace reprise::crash {
namespace {

constexpr char kName[] = "/disk";

std::unique_ptr<DiskCache> g_disk;  // FUSE's callbacks are plain functions

void Answer(std::string line) {
  line += '\n';
  (void)!write(STDOUT_FILENO, line.data(), line.size());
}

int GetAttributes(const char* path, struct stat* info, fuse_file_info*) {
  std::memset(info, 0, sizeof(*info));
  if (std::strcmp(path, "/") == 0) {
    info->st_mode = S_IFDIR | 0700;
    info->st_nlink = 2;
    return 0;
  }
  if (std::strcmp(path, kName) != 0) return -ENOENT;
  info->st_mode = S_IFREG | 0600;
  info->st_nlink = 1;
  info->st_size = static_cast<off_t>(g_disk->size());
  return 0;
}

int OpenDisk(const char* path, fuse_file_info* file) {
  if (std::strcmp(path, kName) != 0) return -ENOENT;
  file->direct_io = 1;  // no page cache between the block layer and the disk's own
  return 0;
}

int ReadDisk(const char*, char* data, size_t size, off_t offset, fuse_file_info*) {
  return static_cast<int>(g_disk->Read(offset, reinterpret_cast<uint8_t*>(data), size));
}

int WriteDisk(const char*, const char* data, size_t size, off_t offset, fuse_file_info*) {
  return static_cast<int>(g_disk->Write(offset, reinterpret_cast<const uint8_t*>(data), size));
}

int FlushDisk(const char*, int, fuse_file_info*) { return g_disk->Flush(); }

void Obey(const std::string& line) {
  uint64_t number = std::strtoull(line.c_str() + line.find(' ') + 1, nullptr, 10);
  if (line.starts_with("arm ")) {
    g_disk->Arm(number);
    Answer("armed");
  } else if (line == "cut") {
    g_disk->Cut();
    Answer("off");
  } else if (line.starts_with("on ")) {
    Answer("on " + g_disk->PowerOn(number));
  } else if (line == "status") {
    DiskCache::Counters counters = g_disk->counters();
    Answer("status " + std::to_string(counters.writes) + " " + std::to_string(counters.flushes) +
           " " + std::to_string(counters.pending) + (counters.on ? " 1" : " 0"));
  } else {
    Answer("what? " + line);
  }
}

int Serve(const char* mountpoint, uint64_t mebibytes) {
  g_disk = std::make_unique<DiskCache>(mebibytes << 20, [] { Answer("cut"); });
  fuse_operations operations{};
  operations.getattr = GetAttributes;
  operations.open = OpenDisk;
  operations.read = ReadDisk;
  operations.write = WriteDisk;
  operations.fsync = FlushDisk;
  char name[] = "crash_disk";
  char* arguments[] = {name, nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, arguments);
  fuse* session = fuse_new(&args, &operations, sizeof(operations), nullptr);
  if (session == nullptr || fuse_mount(session, mountpoint) != 0) return 1;
  std::thread control([session] {
    std::string line;
    while (std::getline(std::cin, line)) Obey(line);
    fuse_exit(session);
  });
  control.detach();  // blocked in its read when the mount goes away first
  Answer("serving");
  fuse_loop_config config{};
  config.max_idle_threads = 4;
  int result = fuse_loop_mt(session, &config);
  fuse_unmount(session);
  std::_Exit(result == 0 ? 0 : 1);
}

}  // namespace
}  // namespace reprise::crash

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  return reprise::crash::Serve(argv[1], std::strtoull(argv[2], nullptr, 10));
}
