#include "client/items.h"

#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/base/log.h"

namespace reprise::client {
namespace {

using Json = nlohmann::json;

const char* NameOf(Scope scope) {
  switch (scope) {
    case Scope::kGlobal: return "global";
    case Scope::kReplicated: return "replicated";
    case Scope::kRank: return "rank";
  }
  return "";
}

const char* NameOf(WorldPolicy policy) {
  switch (policy) {
    case WorldPolicy::kSameWorld: return "same_world";
    case WorldPolicy::kBroadcast: return "broadcast";
    case WorldPolicy::kSplit: return "split";
    case WorldPolicy::kDrop: return "drop";
  }
  return "";
}

struct Item {
  const format::Piece* piece = nullptr;  // of the first rank that has it
  std::vector<uint32_t> ranks;
  std::vector<uint64_t> sizes;
  Json shapes = Json::array();  // by rank: rank-scoped items may differ
  Json dtypes = Json::array();
};

Json JsonOf(const Item& item) {
  const format::Piece& piece = *item.piece;
  bool own = piece.scope == Scope::kRank || piece.auxiliary;
  uint64_t whole = format::ElementsOf(piece.global_shape) * DtypeBytes(piece.dtype);
  Json json = {{"name", piece.name},          {"dtype", DtypeName(piece.dtype)},
               {"shape", piece.global_shape}, {"scope", NameOf(piece.scope)},
               {"aux", piece.auxiliary},      {"policy", NameOf(piece.world_policy)},
               {"ranks", item.ranks},         {"bytes", own ? item.sizes[0] : whole}};
  if (own) {
    json["sizes"] = item.sizes;
    json["shapes"] = item.shapes;
    json["dtypes"] = item.dtypes;
  }
  return json;
}

}  // namespace

std::string ItemsJson(const format::CheckpointManifest& manifest, const SavedState& saved) {
  std::map<std::string_view, Item> items;
  for (uint32_t rank = 0; rank < saved.world(); ++rank) {
    for (const format::Piece& piece : saved.layouts[saved.layout_of_rank[rank]].pieces) {
      Item& item = items[piece.name];
      if (item.piece == nullptr) item.piece = &piece;
      item.ranks.push_back(rank);
      item.sizes.push_back(format::BytesOf(piece));
      if (piece.scope != Scope::kRank && !piece.auxiliary) continue;
      item.shapes.push_back(piece.global_shape);
      item.dtypes.push_back(DtypeName(piece.dtype));
    }
  }
  Json list = Json::array();
  for (const auto& [name, item] : items) list.push_back(JsonOf(item));
  Json metadata = Json::parse(manifest.metadata, nullptr, /*allow_exceptions=*/false);
  Json document = {{"step", manifest.key.step},
                   {"epoch", manifest.key.epoch},
                   {"world", manifest.world},
                   {"metadata", metadata.is_discarded() ? Json::object() : metadata},
                   {"items", std::move(list)}};
  return document.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Status CheckMetadata(std::string_view text) {
  if (text.empty()) return OkStatus();
  if (text.size() > format::kMetadataBytesMax) {
    return FailStatus(Code::kInvalidArgument, "metadata of {} bytes is over the limit of {}",
                      text.size(), format::kMetadataBytesMax);
  }
  if (!Json::parse(text, nullptr, /*allow_exceptions=*/false).is_object()) {
    return Status(Code::kInvalidArgument, "metadata must be a JSON object");
  }
  return OkStatus();
}

}  // namespace reprise::client
