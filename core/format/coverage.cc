#include "core/format/coverage.h"

#include <algorithm>
#include <deque>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/format/boxes.h"

namespace reprise::format {
namespace {

// A piece and whose it is.
struct Part {
  uint32_t rank = 0;
  const Piece* piece = nullptr;
  Digest digest;
};

// A box of a tensor and one rank that holds it.
struct HeldBox {
  const Box* box = nullptr;
  uint32_t rank = 0;
};

template <typename... Args>
Status Refuse(fmt::format_string<Args...> format, Args&&... args) {
  return FailStatus(Code::kInvalidArgument, format, std::forward<Args>(args)...);
}

std::string_view ScopeName(Scope scope) {
  switch (scope) {
    case Scope::kGlobal: return "global";
    case Scope::kReplicated: return "replicated";
    case Scope::kRank: return "rank";
  }
  return "unknown";
}

std::string TypeText(const Piece& piece) {
  return fmt::format("{} [{}]", DtypeName(piece.dtype), fmt::join(piece.global_shape, ", "));
}

// "[0, 4) x [8, 16)".
std::string BoxText(const Box& box) {
  std::string text;
  for (size_t axis = 0; axis < box.offset.size(); ++axis) {
    text += fmt::format("{}[{}, {})", axis == 0 ? "" : " x ", box.offset[axis],
                        box.offset[axis] + box.extent[axis]);
  }
  return text.empty() ? "the scalar" : text;
}

bool BoxPrecedes(const Box& left, const Box& right) {
  return std::tie(left.offset, left.extent) < std::tie(right.offset, right.extent);
}

// A total order of pieces of one tensor by what they cover; equal means replicas.
std::weak_ordering CompareRegions(const Piece& left, const Piece& right) {
  auto head = [](const Piece& piece) {
    return std::tuple(piece.kind, piece.flat_begin, piece.flat_end);
  };
  if (auto order = head(left) <=> head(right); order != 0) return order;
  if (std::ranges::lexicographical_compare(left.boxes, right.boxes, BoxPrecedes)) {
    return std::weak_ordering::less;
  }
  return left.boxes == right.boxes ? std::weak_ordering::equivalent : std::weak_ordering::greater;
}

Status CheckAgreement(std::span<const Part> parts) {
  const Part& first = parts[0];
  for (const Part& part : parts.subspan(1)) {
    if (part.piece->scope != first.piece->scope) {
      return Refuse(
          "tensor \"{}\" has scope \"{}\" on rank {} and \"{}\" on rank {}; save it with one scope",
          first.piece->name, ScopeName(first.piece->scope), first.rank,
          ScopeName(part.piece->scope), part.rank);
    }
  }
  if (first.piece->scope == Scope::kRank) return OkStatus();
  for (const Part& part : parts.subspan(1)) {
    if (part.piece->dtype != first.piece->dtype ||
        part.piece->global_shape != first.piece->global_shape ||
        part.piece->auxiliary != first.piece->auxiliary) {
      return Refuse(
          "tensor \"{}\" is {} on rank {} and {} on rank {}; "
          "save it with scope \"rank\" if each rank has its own",
          first.piece->name, TypeText(*first.piece), first.rank, TypeText(*part.piece), part.rank);
    }
  }
  return OkStatus();
}

Status CheckReplicated(std::span<const Part> parts) {
  const Part* whole = nullptr;   // any that has all of it
  const Part* proven = nullptr;  // one of those with a digest
  for (const Part& part : parts) {
    if (!IsWhole(*part.piece)) {
      if (ElementsOf(*part.piece) == 0) continue;
      return Refuse(
          "tensor \"{}\" is marked replicated but rank {} holds only a part of it; "
          "save it with scope \"global\"",
          part.piece->name, part.rank);
    }
    whole = &part;
    if (part.digest.IsZero()) continue;
    if (proven != nullptr && proven->digest != part.digest) {
      return Refuse(
          "tensor \"{}\" is marked replicated but ranks {} and {} hold different contents; "
          "save it with scope \"rank\" if each rank has its own",
          part.piece->name, proven->rank, part.rank);
    }
    if (proven == nullptr) proven = &part;
  }
  if (whole != nullptr) return OkStatus();
  return Refuse("tensor \"{}\" is marked replicated but no rank holds it; save it from one rank",
                parts[0].piece->name);
}

// Leaves one part of each region in `parts`, or refuses replicas that differ.
Status MergeReplicas(std::vector<Part>& parts) {
  std::ranges::sort(parts, [](const Part& left, const Part& right) {
    auto order = CompareRegions(*left.piece, *right.piece);
    return order != 0 ? order < 0 : left.rank < right.rank;
  });
  size_t kept = 0;
  for (size_t i = 1; i < parts.size(); ++i) {
    Part& group = parts[kept];
    if (CompareRegions(*group.piece, *parts[i].piece) != 0) {
      parts[++kept] = parts[i];
      continue;
    }
    if (group.digest.IsZero()) {
      // Without a digest it proves nothing: the group is represented by the one that has one.
      if (!parts[i].digest.IsZero()) group = parts[i];
    } else if (!parts[i].digest.IsZero() && parts[i].digest != group.digest) {
      return Refuse(
          "tensor \"{}\": ranks {} and {} hold the same part with different contents; "
          "replicas must be equal when a step is saved, check the gradient synchronisation",
          group.piece->name, group.rank, parts[i].rank);
    }
  }
  parts.resize(kept + 1);
  return OkStatus();
}

// What is missing, as far as it can be said in one range: boxes that differ along one axis only.
std::string MissingText(const std::vector<HeldBox>& held, const std::vector<uint64_t>& shape) {
  uint64_t end = 0;
  if (shape.empty()) return "";
  for (const HeldBox& item : held) {
    const Box& box = *item.box;
    if (!std::equal(shape.begin() + 1, shape.end(), box.extent.begin() + 1)) return "";
    if (box.offset[0] > end) return fmt::format("; [{}, {}) is missing", end, box.offset[0]);
    end = box.offset[0] + box.extent[0];
  }
  return fmt::format("; [{}, {}) is missing", end, shape[0]);
}

// `held` is sorted; identical boxes of several ranks are there once.
Status CheckBoxes(const Piece& example, const std::vector<HeldBox>& held,
                  const std::vector<uint64_t>& shape) {
  std::vector<const Box*> boxes;
  boxes.reserve(held.size());
  for (const HeldBox& item : held) boxes.push_back(item.box);
  if (auto overlap = FindOverlap(boxes); overlap.has_value()) {
    const HeldBox& left = held[overlap->first];
    const HeldBox& right = held[overlap->second];
    return Refuse(
        "tensor \"{}\": ranks {} and {} hold overlapping parts, {} and {}; "
        "parts of one tensor must be disjoint or identical, check how it is sharded",
        example.name, left.rank, right.rank, BoxText(*left.box), BoxText(*right.box));
  }
  uint64_t elements = 0;
  for (const Box* box : boxes) elements += ElementsOf(*box);
  uint64_t elements_expected = ElementsOf(shape);
  if (elements == elements_expected) return OkStatus();
  return Refuse(
      "tensor \"{}\" is incomplete: all ranks together hold {} of its {} elements{}; "
      "save it on every rank that has a part of it",
      example.name, elements, elements_expected, MissingText(held, shape));
}

Status CheckGlobal(std::vector<Part> parts) {
  REPRISE_RETURN_IF_ERROR(MergeReplicas(parts));
  const Piece& example = *parts[0].piece;
  bool all_flat = std::ranges::all_of(
      parts, [](const Part& part) { return part.piece->kind == PieceKind::kFlat; });
  // Flat ranges among themselves are intervals of one axis; beside boxes they become boxes.
  std::vector<uint64_t> shape =
      all_flat ? std::vector<uint64_t>{ElementsOf(example.global_shape)} : example.global_shape;
  std::deque<Box> made;
  std::vector<HeldBox> held;
  auto hold = [&held](const Box& box, uint32_t rank) {
    if (ElementsOf(box) != 0) held.push_back({&box, rank});
  };
  for (const Part& part : parts) {
    const Piece& piece = *part.piece;
    if (piece.kind == PieceKind::kBoxes) {
      for (const Box& box : piece.boxes) hold(box, part.rank);
    } else if (all_flat) {
      hold(made.emplace_back(Box{{piece.flat_begin}, {ElementsOf(piece)}}), part.rank);
    } else {
      for (Box& box : BoxesOfRange(shape, piece.flat_begin, piece.flat_end)) {
        hold(made.emplace_back(std::move(box)), part.rank);
      }
    }
  }
  std::ranges::sort(held, [](const HeldBox& left, const HeldBox& right) {
    if (*left.box != *right.box) return BoxPrecedes(*left.box, *right.box);
    return left.rank < right.rank;
  });
  auto duplicates = std::ranges::unique(
      held, [](const HeldBox& left, const HeldBox& right) { return *left.box == *right.box; });
  held.erase(duplicates.begin(), duplicates.end());
  return CheckBoxes(example, held, shape);
}

}  // namespace

Status CheckCoverage(std::span<const RankLayout> ranks) {
  std::unordered_map<std::string_view, std::vector<Part>> parts_of;
  for (const RankLayout& rank : ranks) {
    const std::vector<Piece>& pieces = rank.layout->pieces;
    for (size_t i = 0; i < pieces.size(); ++i) {
      bool has_digest = rank.piece_digests != nullptr && i < rank.piece_digests->size();
      parts_of[pieces[i].name].push_back(
          {.rank = rank.rank,
           .piece = &pieces[i],
           .digest = has_digest ? (*rank.piece_digests)[i] : Digest{}});
    }
  }
  std::vector<std::string_view> names;
  names.reserve(parts_of.size());
  for (const auto& [name, parts] : parts_of) names.push_back(name);
  std::ranges::sort(names);
  for (std::string_view name : names) {
    std::vector<Part>& parts = parts_of[name];
    std::ranges::sort(parts, {}, &Part::rank);
    REPRISE_RETURN_IF_ERROR(CheckAgreement(parts));
    Scope scope = parts[0].piece->scope;
    if (scope == Scope::kReplicated) REPRISE_RETURN_IF_ERROR(CheckReplicated(parts));
    if (scope == Scope::kGlobal) REPRISE_RETURN_IF_ERROR(CheckGlobal(std::move(parts)));
  }
  return OkStatus();
}

}  // namespace reprise::format
