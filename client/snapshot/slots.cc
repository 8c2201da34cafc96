#include "client/snapshot/slots.h"

#include <algorithm>

namespace reprise::client {

Status Slots::Ensure(uint64_t generation, uint64_t shard_bytes) {
  if (generation == generation_ && shard_bytes <= slot_bytes_) return OkStatus();
  bool regrow = generation == generation_;
  Release();
  wire::Attach attach;
  // At least 2 MiB, so that huge pages are possible; a sixteenth more than now, so that a state that
  // grows a little does not attach anew.
  attach.slot_bytes = AlignUp(shard_bytes + shard_bytes / 16,
                              std::max<uint64_t>(session_.chunk_bytes(), 2 * limits::kMiB));
  attach.slots = options_.count;
  auto inbox = std::make_shared<Inbox>();
  {
    std::lock_guard lock(mutex_);
    if (interrupted_) return Status(Code::kCancelled, "the client is being closed");
    waiting_ = inbox;
  }
  Deadline deadline = Deadline::After(options_.attach_timeout);
  REPRISE_ASSIGN_STATUS(uint64_t request, session_.Start(attach, inbox, generation));
  Status status = [&]() -> Status {
    REPRISE_ASSIGN_STATUS(Reply reply, inbox->Next(deadline, "slots in the node's slab"));
    REPRISE_ASSIGN_STATUS(auto attached, wire::Decode<wire::Attached>(reply.body));
    for (uint32_t i = 0; i < attached.slots; ++i) {
      REPRISE_ASSIGN_STATUS(Reply slot, inbox->Next(deadline, "slots in the node's slab"));
      if (slot.header.opcode != wire::Opcode::kSlot || !slot.descriptor.valid()) {
        return FailStatus(Code::kInternal, "the node daemon announced {} slots and sent {}",
                          attached.slots, wire::OpcodeName(slot.header.opcode));
      }
      REPRISE_ASSIGN_STATUS(auto info, wire::Decode<wire::SlotInfo>(slot.body));
      if (info.file_bytes < info.data_offset ||
          info.file_bytes - info.data_offset < attached.slot_bytes) {
        return FailStatus(Code::kInternal, "slot {} has no room for the {} that were granted",
                          info.index, HumanBytes(attached.slot_bytes));
      }
      REPRISE_ASSIGN_STATUS(
          Mapping mapping, Mapping::Map(slot.descriptor, info.file_bytes, Mapping::Access::kWrite));
      slots_[info.index] = Slot{.mapping = std::move(mapping), .data_offset = info.data_offset};
    }
    slot_bytes_ = attached.slot_bytes;
    return OkStatus();
  }();
  session_.Forget(request);
  if (!status.ok()) {
    Release();
    if (status.code() == Code::kFailedPrecondition && regrow) {
      // A connection has one set of slots: larger ones need a new connection.
      session_.Reconnect(generation);
      return Status(Code::kUnavailable, "connecting anew for larger slots");
    }
    return status.Annotate("attaching " + std::to_string(attach.slots) + " slots of " +
                           HumanBytes(attach.slot_bytes));
  }
  generation_ = generation;
  return OkStatus();
}

Result<MutableByteView> Slots::Data(uint32_t index, uint64_t shard_bytes) const {
  auto found = slots_.find(index);
  if (found == slots_.end() || shard_bytes > slot_bytes_) {
    return Fail(Code::kInternal, "the node daemon granted slot {}, which it did not pass", index);
  }
  return found->second.mapping.span().subspan(found->second.data_offset, shard_bytes);
}

bool Slots::ClaimZeroedGaps(uint32_t index, const Digest& layout) {
  Digest& held = gaps_[index];
  if (held == layout) return true;
  held = layout;
  return false;
}

void Slots::Interrupt() {
  std::lock_guard lock(mutex_);
  interrupted_ = true;
  if (waiting_ != nullptr) waiting_->Close();
}

void Slots::ReleaseUpTo(uint64_t ended) {
  if (generation_ <= ended) Release();
}

void Slots::Release() {
  slots_.clear();
  gaps_.clear();
  slot_bytes_ = 0;
  generation_ = 0;
}

}  // namespace reprise::client
