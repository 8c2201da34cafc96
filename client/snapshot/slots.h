// Slots: this rank's part of the daemon's slab, mapped for writing.
//
// Attached on first use and again, larger, when a later state has outgrown them; the daemon frees the
// old ones once what they hold is committed or superseded. Slots belong to one connection: when it ends
// they are unmapped, so that a restarted daemon can seal what they hold.
//
// Thread rule: the copy thread. Blocking rule: Ensure for as long as the daemon allocates pages (about
// 0.3 s per GiB, first save only), at most attach_timeout.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "client/session/mapping.h"
#include "client/session/session.h"

namespace reprise::client {

class Slots {
 public:
  struct Options {
    uint32_t count = 2;
    Nanos attach_timeout = std::chrono::minutes(5);
  };
  Slots(Session& session, Options options) : session_(session), options_(options) {}

  // Makes sure that slots of connection `generation` with room for `shard_bytes` are mapped.
  // RESOURCE_EXHAUSTED is the daemon's arithmetic about its budget. UNAVAILABLE: a new connection is on
  // its way, try again on that one.
  Status Ensure(uint64_t generation, uint64_t shard_bytes);
  // The bytes of a granted slot. INTERNAL: the daemon granted a slot it did not pass.
  Result<MutableByteView> Data(uint32_t index, uint64_t shard_bytes) const;
  // Whether the gaps of layout `layout` are zero in slot `index` already; remembers it for next time.
  bool ClaimZeroedGaps(uint32_t index, const Digest& layout);
  // The slot's content is undefined (a copy was given up).
  void ForgetGaps(uint32_t index) { gaps_.erase(index); }
  // Unmaps slots of connection `ended` or an older one; those of a newer one stay.
  void ReleaseUpTo(uint64_t ended);
  // Ends a wait in Ensure, now and from now on. Any thread.
  void Interrupt();

 private:
  void Release();
  struct Slot {
    Mapping mapping;
    uint64_t data_offset = 0;
  };
  Session& session_;
  const Options options_;
  uint64_t generation_ = 0;
  uint64_t slot_bytes_ = 0;
  std::map<uint32_t, Slot> slots_;
  std::map<uint32_t, Digest> gaps_;

  std::mutex mutex_;
  std::shared_ptr<Inbox> waiting_;  // guarded by mutex_
  bool interrupted_ = false;        // guarded by mutex_
};

}  // namespace reprise::client
