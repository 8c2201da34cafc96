// reprise-bench: the limits of this machine, against which tools/bench/run.py measures Reprise.
//
//   reprise-bench disk-write FILE BYTES   O_DIRECT writes at depth 16 into an already written file
//   reprise-bench disk-read FILE BYTES    O_DIRECT reads at depth 16
//   reprise-bench tcp BYTES               loopback TCP, sender and receiver in this process
//   reprise-bench memcpy BYTES            one thread, and all cores together
//
// Each prints one JSON object with bytes_per_s (and core_s_per_GB where it matters). The I/O goes
// through the same engine and buffers as the daemon's.

#include <sys/mman.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "core/async/loop.h"
#include "core/async/sync.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/io/buffer_pool.h"
#include "core/io/io.h"
#include "core/io/transfer.h"

namespace reprise {
namespace {

constexpr size_t kBlockBytes = 4 << 20;
constexpr size_t kDepth = 16;

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Prints the figures of moving `bytes` since construction.
class Measurement {
 public:
  explicit Measurement(uint64_t bytes) : bytes_(bytes), began_(clock_.Now()), cpu_(CpuSeconds()) {}
  void Print() const {
    double seconds = SecondsOf(clock_.Now() - began_);
    double gigabytes = static_cast<double>(bytes_) / 1e9;
    std::cout << fmt::format(
        R"({{"bytes": {}, "seconds": {}, "bytes_per_s": {}, "core_s_per_GB": {}}})"
        "\n",
        bytes_, seconds, static_cast<double>(bytes_) / seconds, (CpuSeconds() - cpu_) / gigabytes);
  }

 private:
  SystemClock clock_;
  uint64_t bytes_;
  TimePoint began_;
  double cpu_;
};

Task<void> MoveBlock(Io& io, FileId file, bool write, uint64_t offset, BufferPool::Buffer buffer,
                     Gate::Hold /*counted until done*/, Status& failure) {
  Status status = write ? co_await WriteFully(io, file, buffer.span(), offset)
                        : co_await ReadFully(io, file, buffer.span(), offset);
  if (!status.ok()) failure = status;
}

// Bytes that no layer below can compress or leave out: random pages, each with its place in the file.
void Stamp(MutableByteView block, uint64_t offset) {
  for (size_t at = 0; at < block.size(); at += 4096) {
    uint64_t place = offset + at;
    std::memcpy(block.data() + at, &place, sizeof(place));
  }
}

Task<Status> FillWithRandom(BufferPool& pool) {
  Rng rng(1);
  std::vector<BufferPool::Buffer> all;
  for (size_t i = 0; i < kDepth; ++i) {
    all.push_back(co_await pool.Acquire());
    MutableByteView bytes = all.back().span();
    for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
      uint64_t value = rng.Next();
      std::memcpy(bytes.data() + at, &value, sizeof(value));
    }
  }
  co_return OkStatus();
}

Task<Status> MoveFile(Io& io, std::string path, uint64_t bytes, bool write) {
  REPRISE_CO_ASSIGN_STATUS(FileId file,
                           co_await io.Open(path, {.write = true, .create = true, .direct = true}));
  REPRISE_CO_ASSIGN_STATUS(auto pool, BufferPool::Create(io, {kBlockBytes, kDepth}));
  REPRISE_CO_ASSIGN_STATUS(uint64_t size, co_await io.Size(file));
  REPRISE_CO_RETURN_IF_ERROR(co_await FillWithRandom(*pool));
  Status failure;
  // A new file is written once before it counts: extents must be written ones.
  for (int pass = size < bytes ? 0 : 1; pass < 2; ++pass) {
    bool measured = pass == 1;
    Measurement measurement(bytes);
    Gate gate(io.loop());
    for (uint64_t offset = 0; offset < bytes && failure.ok(); offset += kBlockBytes) {
      BufferPool::Buffer buffer = co_await pool->Acquire();
      if (write || !measured) Stamp(buffer.span(), offset);
      io.loop().Spawn(MoveBlock(io, file, write || !measured, offset, std::move(buffer),
                                gate.Enter(), failure));
    }
    co_await gate.Close();
    if (write || !measured) REPRISE_CO_RETURN_IF_ERROR(co_await FlushFile(io, file));
    if (measured) measurement.Print();
  }
  REPRISE_CO_RETURN_IF_ERROR(failure);
  co_return co_await io.Close(file);
}

Task<Status> SendAll(Io& io, std::string address, uint64_t bytes) {
  REPRISE_CO_ASSIGN_STATUS(
      SocketId socket, co_await io.Connect(address, io.loop().Now() + std::chrono::seconds(10)));
  Bytes block(1 << 20, 1);
  for (uint64_t sent = 0; sent < bytes; sent += block.size()) {
    REPRISE_CO_RETURN_IF_ERROR(co_await SendFully(io, socket, block));
  }
  io.CloseSocket(socket);
  co_return OkStatus();
}

// The receiver counts; the sender runs on a thread and loop of its own.
Task<Status> ReceiveAll(Io& io, SocketId listener, uint64_t bytes) {
  int64_t accepted = co_await io.Accept(listener);
  if (accepted < 0) co_return StatusFromErrno(static_cast<int>(-accepted), "accept");
  SocketId socket{static_cast<int>(accepted)};
  Bytes block(1 << 20);
  Measurement measurement(bytes);
  for (uint64_t got = 0; got < bytes; got += block.size()) {
    REPRISE_CO_RETURN_IF_ERROR(co_await RecvFully(io, socket, block));
  }
  measurement.Print();
  io.CloseSocket(socket);
  co_return OkStatus();
}

Status MeasureTcp(uint64_t bytes) {
  SystemClock clock;
  Loop loop(clock);
  REPRISE_ASSIGN_STATUS(auto io, CreateIo(loop));
  REPRISE_ASSIGN_STATUS(SocketId listener, loop.RunTask(io->Listen("127.0.0.1:0")));
  REPRISE_ASSIGN_STATUS(std::string address, io->LocalAddress(listener));
  Status sent;
  std::thread sender([&] {
    Loop sender_loop(clock);
    auto sender_io = CreateIo(sender_loop);
    sent = sender_io.has_value() ? sender_loop.RunTask(SendAll(**sender_io, address, bytes))
                                 : sender_io.error();
  });
  Status received = loop.RunTask(ReceiveAll(*io, listener, bytes));
  sender.join();
  io->CloseSocket(listener);
  return sent.ok() ? received : sent;
}

Status MeasureFile(const std::string& path, uint64_t bytes, bool write) {
  SystemClock clock;
  Loop loop(clock);
  REPRISE_ASSIGN_STATUS(auto io, CreateIo(loop));
  return loop.RunTask(MoveFile(*io, path, bytes, write));
}

Status MeasureMemcpy(uint64_t bytes) {
  auto map = [bytes] {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<uint8_t*>(memory);
  };
  uint8_t* source = map();
  uint8_t* target = map();
  if (source == nullptr || target == nullptr) {
    return Status(Code::kResourceExhausted, "not enough memory for two blocks of that size");
  }
  Measurement measurement(bytes);
  std::memcpy(target, source, bytes);
  measurement.Print();
  return OkStatus();
}

int Run(int argc, char** argv) {
  SetLogLevel(LogLevel::kWarn);
  std::string what = argc > 1 ? argv[1] : "";
  uint64_t bytes = argc > 2 ? std::strtoull(argv[argc - 1], nullptr, 10) : 0;
  bytes = AlignUp(bytes, kBlockBytes);
  Status status(Code::kInvalidArgument,
                "usage: reprise-bench disk-write FILE BYTES | disk-read FILE BYTES | tcp BYTES | "
                "memcpy BYTES");
  if (bytes > 0 && argc == 4 && (what == "disk-write" || what == "disk-read")) {
    status = MeasureFile(argv[2], bytes, what == "disk-write");
  } else if (bytes > 0 && argc == 3 && what == "tcp") {
    status = MeasureTcp(bytes);
  } else if (bytes > 0 && argc == 3 && what == "memcpy") {
    status = MeasureMemcpy(bytes);
  }
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace reprise

int main(int argc, char** argv) { return reprise::Run(argc, argv); }
