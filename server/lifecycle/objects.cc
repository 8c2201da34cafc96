#include "server/lifecycle/objects.h"

#include <utility>
#include <vector>

#include "core/base/aligned_buffer.h"
#include "core/base/log.h"

namespace reprise::lifecycle {
namespace {

// Tries a few times: what came back in pieces is set aside until one piece is large enough.
constexpr int kContiguousTries = 8;

Result<format::Run> ReserveContiguous(tier::Tier& tier, uint64_t bytes) {
  std::vector<format::Run> aside;
  Result<format::Run> found =
      Fail(Code::kResourceExhausted, "no contiguous {} free for a manifest: delete old checkpoints",
           HumanBytes(bytes));
  for (int i = 0; i < kContiguousTries; ++i) {
    Result<std::vector<format::Run>> runs = tier.Reserve(bytes, /*for_commit=*/true);
    if (!runs.has_value()) {
      found = Error(runs.error());
      break;
    }
    if (runs->size() == 1) {
      found = runs->front();
      break;
    }
    aside.insert(aside.end(), runs->begin(), runs->end());
  }
  if (!aside.empty()) tier.Free(aside);
  return found;
}

}  // namespace

Task<Result<format::ObjectRef>> WriteObject(tier::Tier& tier, Bytes content, uint64_t tail_bytes) {
  AlignedBuffer buffer = AlignedBuffer::CopyOf(content);
  format::ObjectRef object;
  REPRISE_CO_ASSIGN(object.run, ReserveContiguous(tier, buffer.size() + tail_bytes));
  object.length = content.size();
  object.digest = DigestOf(content);
  Status written = co_await tier.Write({object.run}, 0, buffer.view());
  if (!written.ok()) {
    tier.Free({object.run});
    co_return Error(std::move(written));
  }
  co_return object;
}

Task<Result<Bytes>> ReadObject(tier::Tier& tier, format::ObjectRef object, std::string what) {
  if (object.length > object.run.length || object.length > kObjectBytesMax) {
    co_return Fail(Code::kDataLoss, "{}: its reference is malformed", what);
  }
  AlignedBuffer buffer(object.length);
  Status read = co_await tier.Read({object.run}, 0, buffer.span());
  if (!read.ok()) co_return Error(read.Annotate(what));
  ByteView content = buffer.view().first(object.length);
  if (DigestOf(content) != object.digest) {
    co_return Fail(Code::kDataLoss, "{}: stored bytes (segment {}, offset {}) fail their digest",
                   what, object.run.segment, object.run.offset);
  }
  co_return Bytes(content.begin(), content.end());
}

}  // namespace reprise::lifecycle
