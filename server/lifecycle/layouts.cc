#include "server/lifecycle/layouts.h"

#include <algorithm>
#include <utility>

#include "server/lifecycle/objects.h"

namespace reprise::lifecycle {
namespace {

Digest KeyOfSet(const std::vector<Digest>& by_rank) {
  DigestStream stream;
  for (const Digest& digest : by_rank) stream.Update(digest.view());
  return stream.Finish();
}

}  // namespace

bool HasReplicated(const format::Layout& layout) {
  return std::any_of(layout.pieces.begin(), layout.pieces.end(),
                     [](const format::Piece& piece) { return piece.scope == Scope::kReplicated; });
}

Result<LayoutPtr> Layouts::Take(const Digest& digest, ByteView encoded) {
  // Before the cache is asked: what was sent will be stored.
  if (DigestOf(encoded) != digest) {
    return Fail(Code::kInvalidArgument, "the layout sent does not have the digest announced");
  }
  if (auto found = cached_.find(digest); found != cached_.end()) return found->second.layout;
  Result<format::Layout> layout = format::DecodeLayout(encoded);
  if (!layout.has_value()) {
    return Error(Code::kInvalidArgument, "layout refused: " + layout.error().message());
  }
  auto shared = std::make_shared<const format::Layout>(std::move(*layout));
  Keep(digest, shared, encoded.size());
  return shared;
}

Task<Result<LayoutPtr>> Layouts::Get(Digest digest) {
  if (auto found = cached_.find(digest); found != cached_.end()) {
    recent_.splice(recent_.begin(), recent_, found->second.place);
    co_return found->second.layout;
  }
  const format::LayoutEntry* stored = core_.state.FindLayout(digest);
  if (stored == nullptr) {
    co_return Fail(Code::kNotFound, "layout {} is not stored", digest.ToHex());
  }
  REPRISE_CO_ASSIGN(Bytes encoded,
                    co_await ReadObject(core_.tier, stored->object, "layout " + digest.ToHex()));
  Result<LayoutPtr> layout = Take(digest, encoded);
  if (!layout.has_value()) co_return Error(Code::kDataLoss, layout.error().message());
  co_return layout;
}

void Layouts::Keep(const Digest& digest, LayoutPtr layout, uint64_t size_bytes) {
  recent_.push_front(digest);
  cached_[digest] = {std::move(layout), size_bytes, recent_.begin()};
  cached_bytes_ += size_bytes;
  while (cached_.size() > 1 &&
         (cached_.size() > kLayoutsCachedMax || cached_bytes_ > kLayoutCacheBytesMax)) {
    auto oldest = cached_.find(recent_.back());
    cached_bytes_ -= oldest->second.size_bytes;
    cached_.erase(oldest);
    recent_.pop_back();
  }
}

bool Layouts::KnownCovered(const std::vector<Digest>& by_rank) const {
  return covered_.contains(KeyOfSet(by_rank));
}

void Layouts::NoteCovered(const std::vector<Digest>& by_rank) {
  if (covered_.size() >= kCoverageVerdictsMax) covered_.clear();
  covered_.insert(KeyOfSet(by_rank));
}

}  // namespace reprise::lifecycle
