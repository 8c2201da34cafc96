#include "client/restore/planner.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/format/boxes.h"
#include "core/format/manifest.h"

namespace reprise::client {
namespace {

constexpr size_t kDefectsShown = 20;

// A box and where its bytes begin in its piece.
struct PlacedBox {
  Box box;
  uint64_t begin = 0;
};

std::vector<PlacedBox> PlacedBoxesOf(const format::Piece& piece) {
  std::vector<Box> boxes = piece.boxes;
  if (piece.kind == format::PieceKind::kFlat) {
    boxes = format::BoxesOfRange(piece.global_shape, piece.flat_begin, piece.flat_end);
  }
  std::vector<PlacedBox> placed;
  uint64_t begin = 0;
  for (Box& box : boxes) {
    uint64_t bytes = format::ElementsOf(box) * DtypeBytes(piece.dtype);
    if (bytes != 0) placed.push_back({std::move(box), begin});
    begin += bytes;
  }
  return placed;
}

std::optional<Box> Intersect(const Box& left, const Box& right) {
  Box both;
  both.offset.reserve(left.offset.size());
  both.extent.reserve(left.offset.size());
  for (size_t a = 0; a < left.offset.size(); ++a) {
    uint64_t begin = std::max(left.offset[a], right.offset[a]);
    uint64_t end = std::min(left.offset[a] + left.extent[a], right.offset[a] + right.extent[a]);
    if (begin >= end) return std::nullopt;
    both.offset.push_back(begin);
    both.extent.push_back(end - begin);
  }
  return both;
}

// Appends what is left of `whole` without `hole` (inside it): at most two boxes an axis.
void Subtract(Box whole, const Box& hole, std::vector<Box>& rest) {
  for (size_t a = 0; a < whole.offset.size(); ++a) {
    uint64_t end = whole.offset[a] + whole.extent[a];
    uint64_t hole_end = hole.offset[a] + hole.extent[a];
    if (hole.offset[a] > whole.offset[a]) {
      Box below = whole;
      below.extent[a] = hole.offset[a] - whole.offset[a];
      rest.push_back(std::move(below));
    }
    if (end > hole_end) {
      Box above = whole;
      above.offset[a] = hole_end;
      above.extent[a] = end - hole_end;
      rest.push_back(std::move(above));
    }
    whole.offset[a] = hole.offset[a];
    whole.extent[a] = hole.extent[a];
  }
}

std::string TextOfShape(const std::vector<uint64_t>& numbers) {
  std::string text;
  for (uint64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return "[" + text + "]";
}

// What is wrong, in the order it was found; shown up to a limit.
class Defects {
 public:
  void Add(Code code, std::string line) {
    ++count_;
    if (code == Code::kNotFound) missing_ = true;
    if (count_ <= kDefectsShown) text_ += "\n  " + line;
  }
  Status ToStatus() const {
    if (count_ == 0) return OkStatus();
    std::string more;
    if (count_ > kDefectsShown) more = fmt::format("\n  and {} more", count_ - kDefectsShown);
    return FailStatus(missing_ ? Code::kNotFound : Code::kInvalidArgument,
                      "the checkpoint does not fit what is wanted; nothing was read:{}{}", text_,
                      more);
  }

 private:
  size_t count_ = 0;
  bool missing_ = false;
  std::string text_;
};

class Planner {
 public:
  Planner(const SavedState& saved, std::span<const WantedPiece> wanted, const PlanOptions& options)
      : saved_(saved), wanted_(wanted), options_(options) {
    ranks_of_layout_.resize(saved.layouts.size());
    for (uint32_t rank = 0; rank < saved.world(); ++rank) {
      ranks_of_layout_[saved.layout_of_rank[rank]].push_back(rank);
    }
    for (uint32_t layout = 0; layout < saved.layouts.size(); ++layout) {
      const auto& pieces = saved.layouts[layout].pieces;
      for (uint32_t i = 0; i < pieces.size(); ++i) holders_[pieces[i].name].push_back({layout, i});
    }
  }

  Result<RestorePlan> Make() {
    for (uint32_t i = 0; i < wanted_.size(); ++i) PlanPiece(i);
    REPRISE_TRY(defects_.ToStatus());
    RestorePlan plan;
    for (auto& [rank, copies] : copies_) plan.shards.push_back(MakeShard(rank, std::move(copies)));
    for (const ShardPlan& shard : plan.shards) {
      for (const StridedCopy& copy : shard.copies) plan.bytes += copy.bytes();
    }
    auto own = std::ranges::find(plan.shards, options_.rank, &ShardPlan::rank);
    if (own != plan.shards.end()) std::rotate(plan.shards.begin(), own, own + 1);
    return plan;
  }

 private:
  struct Holder {
    uint32_t layout = 0;
    uint32_t piece = 0;
  };
  struct Source {
    uint32_t rank = 0;
    const format::Piece* piece = nullptr;
  };

  const format::Piece& PieceAt(const Holder& holder) const {
    return saved_.layouts[holder.layout].pieces[holder.piece];
  }

  // The rank that a kRank piece comes from; reports a defect and yields none when there is none.
  std::optional<uint32_t> RankFor(const WantedPiece& want, WorldPolicy policy) {
    const std::string& name = want.piece.name;
    uint32_t world = saved_.world();
    if (want.source_rank >= 0) {
      if (static_cast<uint32_t>(want.source_rank) < world) return want.source_rank;
      defects_.Add(Code::kInvalidArgument, fmt::format("{}: wanted from rank {} of a world of {}",
                                                       name, want.source_rank, world));
      return std::nullopt;
    }
    if (world == options_.world) return options_.rank;
    if (policy == WorldPolicy::kBroadcast) return 0;
    const char* advice =
        policy == WorldPolicy::kDrop ? "its policy is to be left out then: leave it out"
        : policy == WorldPolicy::kSplit
            ? "its policy is split: read every rank's part (source_rank) and deal them out"
            : "it belongs to its rank: restore with the saved world, name a source_rank, or leave "
              "it out";
    defects_.Add(Code::kInvalidArgument,
                 fmt::format("{}: saved by a world of {}, this is one of {}; {}", name, world,
                             options_.world, advice));
    return std::nullopt;
  }

  // Who may deliver parts of `want`, the preferred first.
  std::vector<Source> SourcesOf(const WantedPiece& want) {
    auto found = holders_.find(want.piece.name);
    if (found == holders_.end()) {
      defects_.Add(Code::kNotFound, want.piece.name + ": is not in the checkpoint");
      return {};
    }
    const std::vector<Holder>& holders = found->second;
    const format::Piece& example = PieceAt(holders[0]);
    std::vector<Source> sources;
    if (want.source_rank >= 0 || example.scope == Scope::kRank) {
      std::optional<uint32_t> rank = RankFor(want, example.world_policy);
      if (!rank.has_value()) return {};
      for (const Holder& holder : holders) {
        if (holder.layout == saved_.layout_of_rank[*rank]) {
          sources.push_back({*rank, &PieceAt(holder)});
        }
      }
      if (sources.empty()) {
        defects_.Add(Code::kNotFound,
                     fmt::format("{}: was not saved by rank {}", want.piece.name, *rank));
      }
      return sources;
    }
    for (const Holder& holder : holders) {
      const std::vector<uint32_t>& ranks = ranks_of_layout_[holder.layout];
      if (ranks.empty()) continue;
      bool own = std::ranges::binary_search(ranks, options_.rank);
      uint32_t rank = own ? options_.rank : ranks[options_.rank % ranks.size()];
      sources.push_back({rank, &PieceAt(holder)});
    }
    // Readers begin at different copies, so that no rank's shard is everybody's first choice.
    std::ranges::rotate(sources, sources.begin() + options_.rank % sources.size());
    auto own = std::ranges::find(sources, options_.rank, &Source::rank);
    if (own != sources.end()) std::rotate(sources.begin(), own, own + 1);
    return sources;
  }

  bool Fits(const WantedPiece& want, const Source& source) {
    const format::Piece& piece = *source.piece;
    if (piece.auxiliary != want.piece.auxiliary) {
      defects_.Add(Code::kInvalidArgument,
                   fmt::format("{}: saved as {}", piece.name,
                               piece.auxiliary ? "an auxiliary value, wanted as a tensor"
                                               : "a tensor, wanted as an auxiliary value"));
      return false;
    }
    if (piece.dtype != want.piece.dtype) {
      defects_.Add(Code::kInvalidArgument,
                   fmt::format("{}: saved as {}, wanted as {}", piece.name, DtypeName(piece.dtype),
                               DtypeName(want.piece.dtype)));
      return false;
    }
    if (piece.global_shape != want.piece.global_shape) {
      defects_.Add(Code::kInvalidArgument, fmt::format("{}: saved with shape {}, wanted with {}",
                                                       piece.name, TextOfShape(piece.global_shape),
                                                       TextOfShape(want.piece.global_shape)));
      return false;
    }
    return true;
  }

  void PlanPiece(uint32_t index) {
    const WantedPiece& want = wanted_[index];
    std::vector<Source> sources = SourcesOf(want);
    if (sources.empty()) return;
    for (const Source& source : sources) {
      if (!Fits(want, source)) return;
    }
    uint64_t element_bytes = DtypeBytes(want.piece.dtype);
    for (const PlacedBox& target : PlacedBoxesOf(want.piece)) {
      std::vector<Box> open{target.box};
      for (const Source& source : sources) {
        if (open.empty()) break;
        for (const PlacedBox& box : SavedBoxes(source.piece)) {
          TakeFrom(source, box, index, target, element_bytes, open);
        }
      }
      if (open.empty()) continue;
      defects_.Add(Code::kNotFound,
                   fmt::format("{}: no rank saved the region at {} of extent {}", want.piece.name,
                               TextOfShape(open[0].offset), TextOfShape(open[0].extent)));
    }
  }

  // Covers what `box` of `source` can of the regions still `open`.
  void TakeFrom(const Source& source, const PlacedBox& box, uint32_t index, const PlacedBox& target,
                uint64_t element_bytes, std::vector<Box>& open) {
    std::vector<Box> rest;
    for (Box& region : open) {
      std::optional<Box> overlap = Intersect(region, box.box);
      if (!overlap.has_value()) {
        rest.push_back(std::move(region));
        continue;
      }
      StridedCopy copy = MakeStridedCopy(box.box, source.piece->position + box.begin, target.box,
                                         target.begin, *overlap, element_bytes);
      copy.target = index;
      copies_[source.rank].push_back(std::move(copy));
      Subtract(std::move(region), *overlap, rest);
    }
    open = std::move(rest);
  }

  const std::vector<PlacedBox>& SavedBoxes(const format::Piece* piece) {
    auto [entry, fresh] = boxes_.try_emplace(piece);
    if (fresh) entry->second = PlacedBoxesOf(*piece);
    return entry->second;
  }

  ShardPlan MakeShard(uint32_t rank, std::vector<StridedCopy> copies) const {
    const format::Layout& layout = saved_.layouts[saved_.layout_of_rank[rank]];
    ShardPlan shard{.rank = rank,
                    .chunk_bytes = layout.chunk_bytes,
                    .length = layout.shard_bytes,
                    .copies = std::move(copies),
                    .uses = {}};
    for (uint32_t i = 0; i < shard.copies.size(); ++i) AddUses(shard, i);
    std::ranges::sort(shard.uses);
    return shard;
  }

  // Visits each chunk the copy touches once, jumping from chunk to chunk.
  static void AddUses(ShardPlan& shard, uint32_t index) {
    const StridedCopy& copy = shard.copies[index];
    uint64_t runs = copy.runs();
    uint64_t offset = copy.source_begin;
    for (uint64_t run = 0; run < runs; run = copy.FirstRunAfter(offset)) {
      offset = std::max(offset, copy.RunAt(run).source);
      uint64_t chunk = offset / shard.chunk_bytes;
      shard.uses.push_back({chunk, index});
      offset = (chunk + 1) * shard.chunk_bytes;
    }
  }

  const SavedState& saved_;
  const std::span<const WantedPiece> wanted_;
  const PlanOptions options_;
  std::vector<std::vector<uint32_t>> ranks_of_layout_;
  std::unordered_map<std::string_view, std::vector<Holder>> holders_;
  std::unordered_map<const format::Piece*, std::vector<PlacedBox>> boxes_;
  std::map<uint32_t, std::vector<StridedCopy>> copies_;  // by source rank
  Defects defects_;
};

}  // namespace

Result<RestorePlan> PlanRestore(const SavedState& saved, std::span<const WantedPiece> wanted,
                                const PlanOptions& options) {
  return Planner(saved, wanted, options).Make();
}

}  // namespace reprise::client
