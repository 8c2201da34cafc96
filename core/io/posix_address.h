// Socket addresses in Reprise's notation ("host:port", "[v6]:port", "unix:/path"), and the blocking
// calls that need them.
//
// Thread rule: any thread; everything here may block (name resolution, connect). For the I/O
// engines only.
#pragma once

#include <sys/socket.h>

#include <string>
#include <vector>

#include "core/base/clock.h"
#include "reprise/status.h"

namespace reprise {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  int family() const { return storage.ss_family; }
  const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

// What `address` stands for; several when a name has several. `passive`: for listening.
Result<std::vector<SocketAddress>> ResolveAddress(const std::string& address, bool passive);
// The notation of the address that `socket` is bound to.
Result<std::string> AddressOf(int socket);
// A listening socket. A Unix socket's file is replaced only when nobody answers there.
Result<int> ListenOn(const std::string& address, int extra_flags);
// A connected socket, or DEADLINE_EXCEEDED once `until` passed on `clock`.
Result<int> ConnectTo(const std::string& address, const Clock& clock, TimePoint until,
                      bool nonblocking);

}  // namespace reprise
