// SimNet: byte streams between the hosts of a SimWorld, with delays, partitions and resets.
//
// Streams behave like TCP: bytes arrive in order or not at all, cut into arbitrary pieces; a window
// bounds what is sent and unread, so that a slow reader stops its sender. A one-way partition holds
// segments (as retransmission would) until it is healed. After a power loss the peer hears nothing
// (half-open) until the host is back and answers with a reset; after a process death it gets a
// reset. Unix sockets are streams within a host: they are never reset by chance, and carry descriptors
// of this process, as the kernel does: with the first byte of a send, never merged with another.
//
// Addresses: "host:port", where host is a SimIo's name; "localhost", "127.0.0.1", "0.0.0.0", "[::]"
// and "[::1]" mean the own host. "unix:/path" is local to the host.
//
// Thread rule: one thread. Owner: SimWorld.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/clock.h"
#include "core/io/io.h"

namespace reprise {

class SimIo;
class SimWorld;

// Everything random is off by default.
struct SimNetFaults {
  Nanos latency_min = std::chrono::microseconds(50);
  Nanos latency_max = std::chrono::microseconds(50);
  bool segment = false;    // sends and receives move arbitrary pieces
  uint32_t reset_ppm = 0;  // chance per segment that the connection is reset instead
  uint32_t slow_ppm = 0;   // chance per segment of up to slow_max more (lost and sent again)
  Nanos slow_max = std::chrono::milliseconds(300);
  size_t window_bytes = 256 * 1024;
};

enum class SimCrash : uint8_t {
  kPowerLoss,     // peers hear nothing
  kProcessDeath,  // the kernel resets the connections
};

class SimNet {
 public:
  explicit SimNet(SimWorld& world) : world_(world) {}
  SimNet(const SimNet&) = delete;
  SimNet& operator=(const SimNet&) = delete;

  // --- for tests
  SimNetFaults faults;
  // Stops segments from `from` to `to`; "*" stands for every host.
  void Partition(const std::string& from, const std::string& to) { blocked_.emplace(from, to); }
  // Both directions between `host` and everybody else.
  void Isolate(const std::string& host);
  void Heal(const std::string& from, const std::string& to);
  void HealAll();
  // A segment from `from` to `to` would be held.
  bool Blocks(const std::string& from, const std::string& to) const;
  // Resets every connection between the two hosts.
  void Reset(const std::string& first, const std::string& second);
  // Sockets of `host` that are not closed (leak check).
  size_t OpenSockets(const std::string& host) const;

  // Faults that chance has injected so far.
  uint64_t resets() const { return resets_; }
  uint64_t slow_segments() const { return slow_segments_; }

  // --- for SimIo
  void HostUp(SimIo& io);
  // Drops every request and socket of `io`.
  void HostDown(SimIo& io, SimCrash crash);
  Result<int> Listen(SimIo& io, const std::string& address);
  // A connected socket, an error, or nothing when no answer came back.
  std::optional<Result<int>> TryConnect(SimIo& io, const std::string& address);
  void Submit(SimIo& io, IoRequest& request);
  // Completes `request` with -ECANCELED if it is waiting.
  void Cancel(IoRequest& request);
  std::string LocalAddress(int socket) const;
  bool IsUnix(int socket) const;
  // Names the process (SimIo) at the other end, also after its death; 0 when there is none.
  uint64_t PeerProcess(int socket) const;
  bool Has(SimIo& io, int socket) const;
  void Shutdown(int socket);
  void Close(int socket);

 private:
  // A descriptor on its way; closed when nobody took it.
  class PassedFd {
   public:
    PassedFd() = default;
    explicit PassedFd(int fd) : fd_(fd) {}
    PassedFd(PassedFd&& other) noexcept : fd_(other.Take()) {}
    PassedFd& operator=(PassedFd&& other) noexcept {
      std::swap(fd_, other.fd_);
      return *this;
    }
    ~PassedFd();
    bool valid() const { return fd_ >= 0; }
    int Take() { return std::exchange(fd_, -1); }

   private:
    int fd_ = -1;
  };
  struct Segment {
    TimePoint when;
    Bytes data;
    PassedFd fd = {};  // comes with the first byte
    bool fin = false;
    bool reset = false;
  };
  struct Socket {
    SimIo* owner = nullptr;
    std::string host;
    std::string remote_host;
    std::string address;  // local
    bool listener = false;
    int peer = -1;
    std::deque<int> backlog;
    std::deque<IoRequest*> accepts, receives, sends;
    Bytes inbound;
    uint64_t received = 0;                                  // bytes ever taken out of `inbound`
    std::deque<std::pair<uint64_t, PassedFd>> descriptors;  // by the position of their byte
    uint64_t peer_process = 0;
    uint64_t unread = 0;  // bytes sent that the peer has not consumed
    TimePoint last_segment{};
    std::deque<Segment> outgoing;
    bool peer_ended = false;
    bool ended = false;  // Shutdown here
    bool reset = false;
    bool closed = false;
    bool dead = false;  // lost with its host's power
  };

  Socket* Find(int id);
  bool IsUp(const std::string& host) const;
  std::string Resolve(const SimIo& io, const std::string& address, std::string& host) const;
  int Add(Socket socket);
  void Finish(Socket& socket, IoRequest& request, int64_t result);
  void FinishAll(Socket& socket, std::deque<IoRequest*>& requests, int64_t result);
  void ServeAccepts(Socket& socket);
  void ServeReceives(Socket& socket);
  size_t TakeInbound(Socket& socket, IoRequest& request);
  void ServeSends(int id);
  void Push(int id, Segment segment);
  void Pump(int id);
  void Deliver(int id, Segment segment);
  void ResetSocket(Socket& socket);
  void Forget(int id);

  SimWorld& world_;
  std::map<int, Socket> sockets_;
  std::map<std::string, int> listeners_;  // by resolved address
  std::map<std::string, int> hosts_;      // name -> SimIos that are up
  std::set<std::pair<std::string, std::string>> blocked_;
  uint64_t resets_ = 0;
  uint64_t slow_segments_ = 0;
  int next_socket_ = 1000;
  uint16_t next_port_ = 40000;
};

}  // namespace reprise
