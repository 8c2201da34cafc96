#include "client/restore/ring.h"

namespace reprise::client {

ByteView RestoreRing::View::Buffer(uint32_t index, uint64_t length) const {
  if (index >= chunks || length > stride_bytes) return {};
  return mapping->view().subspan(index * stride_bytes, length);
}

Result<RestoreRing::View> RestoreRing::Ensure(uint64_t generation, Deadline deadline) {
  std::lock_guard lock(mutex_);
  if (generation == generation_) return view_;
  generation_ = 0;
  view_ = {};
  wire::RingAttach request{.chunks = 0};  // as many as the daemon gives
  REPRISE_ASSIGN(Reply reply, session_.Call(request, wire::Opcode::kRing, deadline,
                                            "memory for restoring", generation));
  REPRISE_ASSIGN(auto info, wire::Decode<wire::RingInfo>(reply.body));
  if (info.chunks == 0 || info.stride_bytes < session_.chunk_bytes() || !reply.descriptor.valid()) {
    return Fail(Code::kInternal, "the node daemon sent a restore ring of {} buffers of {} bytes",
                info.chunks, info.stride_bytes);
  }
  REPRISE_ASSIGN(Mapping mapping, Mapping::Map(reply.descriptor, info.chunks * info.stride_bytes,
                                               Mapping::Access::kRead));
  view_ = {.mapping = std::make_shared<const Mapping>(std::move(mapping)),
           .chunks = info.chunks,
           .stride_bytes = info.stride_bytes};
  generation_ = generation;
  return view_;
}

}  // namespace reprise::client
