#include "server/node/save.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::node {
namespace {

// Stays in the second-level cache between two digests.
constexpr size_t kHashBlockBytes = 64 * 1024;

}  // namespace

PieceHasher::PieceHasher(std::shared_ptr<const format::Layout> layout)
    : layout_(std::move(layout)) {
  if (layout_ != nullptr) digests_.resize(layout_->pieces.size());
}

void PieceHasher::CloseFinishedPieces(uint64_t end) {
  const std::vector<format::Piece>& pieces = layout_->pieces;
  while (piece_ < pieces.size()) {
    const format::Piece& piece = pieces[piece_];
    if (piece.position + format::BytesOf(piece) > end) return;
    if (piece.scope == Scope::kReplicated) {
      digests_[piece_] = stream_.Finish();
      stream_ = DigestStream();
    }
    ++piece_;
  }
}

void PieceHasher::Update(uint64_t offset, ByteView bytes) {
  const std::vector<format::Piece>& pieces = layout_->pieces;
  uint64_t end = offset + bytes.size();
  for (size_t index = piece_; index < pieces.size() && pieces[index].position < end; ++index) {
    const format::Piece& piece = pieces[index];
    uint64_t begin = std::max(piece.position, offset);
    uint64_t until = std::min(piece.position + format::BytesOf(piece), end);
    if (piece.scope == Scope::kReplicated && begin < until) {
      stream_.Update(bytes.subspan(begin - offset, until - begin));
    }
    // Before the next piece's bytes enter the one stream.
    CloseFinishedPieces(until);
    if (piece_ <= index) return;
  }
}

std::vector<Digest> PieceHasher::Finish() {
  // Empty pieces at the end, or of a shard without bytes, never saw an Update.
  CloseFinishedPieces(layout_->shard_bytes);
  REPRISE_CHECK(piece_ == layout_->pieces.size());
  return digests_;
}

Save::Save(Loop& loop, uint64_t save_id, SaveSpec save_spec, std::shared_ptr<Slot> save_slot)
    : id(save_id),
      spec(std::move(save_spec)),
      slot(std::move(save_slot)),
      digests(format::ChunkCount(spec.length, spec.chunk_bytes)),
      changed(loop),
      taken_(slot->takes()),
      is_ready_(digests.size()),
      is_hashed_(digests.size()),
      pieces_(spec.layout) {
  hashed_order.reserve(digests.size());
}

std::shared_ptr<Save> Save::OfSealedSlot(Loop& loop, uint64_t id, std::shared_ptr<Slot> slot) {
  std::shared_ptr<const format::ShardManifest> manifest = slot->manifest();
  SaveSpec spec;
  spec.shard = manifest->identity;
  spec.who = fmt::format("rank {} (snapshot kept over a restart of the node daemon)",
                         manifest->identity.rank);
  spec.length = manifest->length;
  spec.chunk_bytes = manifest->chunk_bytes;
  spec.layout_digest = manifest->layout;
  spec.layout_bytes = slot->layout();
  auto save = std::make_shared<Save>(loop, id, std::move(spec), std::move(slot));
  save->digests = manifest->chunk_digests;
  save->ready_count = save->digests.size();
  for (uint64_t i = 0; i < save->digests.size(); ++i) save->hashed_order.push_back(i);
  save->seal_requested = true;
  save->manifest = std::move(manifest);
  save->phase = wire::SavePhase::kLocalSealed;
  return save;
}

ByteView Save::Chunk(uint64_t index) const {
  uint64_t length = format::ChunkLength(spec.length, spec.chunk_bytes, index);
  return ByteView(slot->data()).subspan(index * spec.chunk_bytes, length);
}

Status Save::AddReady(uint64_t first, uint64_t count) {
  if (count > chunk_count() || first > chunk_count() - count) {
    return FailStatus(Code::kInvalidArgument,
                      "chunks [{}, {} + {}) are outside the shard, which has {} chunks", first,
                      first, count, chunk_count());
  }
  for (uint64_t i = first; i < first + count; ++i) {
    if (is_ready_[i]) {
      return FailStatus(Code::kInvalidArgument, "chunk {} was announced twice in step {}", i,
                        spec.shard.key.step);
    }
    is_ready_[i] = true;
    to_hash.push_back(i);
  }
  ready_count += count;
  return OkStatus();
}

void Save::HashOne() {
  uint64_t index = to_hash.front();
  to_hash.pop_front();
  is_hashed_[index] = true;
  hashed_order.push_back(index);
  if (index != pieces_prefix_) {
    digests[index] = DigestOf(Chunk(index));
    return;
  }
  // In order, as nearly always: both digests in one pass over memory.
  DigestStream chunk;
  ByteView bytes = Chunk(index);
  for (size_t at = 0; at < bytes.size(); at += kHashBlockBytes) {
    ByteView block = bytes.subspan(at, std::min(kHashBlockBytes, bytes.size() - at));
    chunk.Update(block);
    pieces_.Update(index * spec.chunk_bytes + at, block);
  }
  digests[index] = chunk.Finish();
  ++pieces_prefix_;
  AdvancePieces();  // catches up with chunks that came early
}

bool Save::AdvancePieces() {
  if (pieces_prefix_ == chunk_count() || !is_hashed_[pieces_prefix_]) return false;
  pieces_.Update(pieces_prefix_ * spec.chunk_bytes, Chunk(pieces_prefix_));
  ++pieces_prefix_;
  return true;
}

format::ShardManifest Save::MakeManifest() {
  REPRISE_CHECK(pieces_prefix_ == chunk_count() && has_attempt());
  format::ShardManifest made;
  made.identity = spec.shard;
  made.layout = spec.layout_digest;
  made.length = spec.length;
  made.chunk_bytes = spec.chunk_bytes;
  made.chunk_digests = digests;
  made.piece_digests = pieces_.Finish();
  made.root = format::ShardRoot(made);
  return made;
}

void Save::Emit(wire::SavePhase new_phase) {
  phase = new_phase;
  if (observer) observer(State());
}

wire::SaveState Save::State() const {
  wire::SaveState state;
  state.save = id;
  state.step = spec.shard.key.step;
  state.phase = phase;
  state.code = failure.code();
  state.message = failure.message();
  state.bytes_sent = bytes_sent;
  return state;
}

}  // namespace reprise::node
