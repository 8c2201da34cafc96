// FdMessage: the kernel structures of one sendmsg or recvmsg that carries a descriptor.
//
// It must stay in place until the call completes. At most one descriptor travels; more than one
// received is a protocol violation of the peer, and the surplus is closed.
//
// Thread rule: a value with one owner.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

#include "core/io/io.h"

namespace reprise {

struct FdMessage {
  msghdr header{};
  iovec vector{};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};

  explicit FdMessage(const IoRequest& request) {
    vector = {request.data, request.size};
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    if (request.op != IoOp::kSend) return;
    cmsghdr* item = CMSG_FIRSTHDR(&header);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(item), &request.pass_fd, sizeof(int));
  }
  FdMessage(const FdMessage&) = delete;
  FdMessage& operator=(const FdMessage&) = delete;

  // The descriptor that was received, or -1.
  int TakeFd() {
    int taken = -1;
    for (cmsghdr* item = CMSG_FIRSTHDR(&header); item != nullptr;
         item = CMSG_NXTHDR(&header, item)) {
      if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
      size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof(int));
        if (taken < 0) {
          taken = fd;
        } else {
          close(fd);
        }
      }
    }
    return taken;
  }
};

}  // namespace reprise
