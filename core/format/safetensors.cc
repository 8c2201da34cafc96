#include "core/format/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_set>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/format/fields.h"

namespace reprise::format {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kMetadataName = "__metadata__";
constexpr std::string_view kDtypeKeyPrefix = "reprise.dtype:";
constexpr size_t kPrefixBytes = sizeof(uint64_t);
constexpr size_t kHeaderBytesMax = limits::kLayoutBytesMax;

bool IsForeign(Dtype dtype) {
  return dtype == Dtype::kF8E8M0 || dtype == Dtype::kComplex64 || dtype == Dtype::kComplex128;
}

// The shape of `item` as bytes: one more axis for the bytes of an element of more than one byte.
std::vector<uint64_t> ByteShape(const SafetensorsItem& item) {
  std::vector<uint64_t> shape = item.shape;
  if (DtypeBytes(item.dtype) > 1) shape.push_back(DtypeBytes(item.dtype));
  return shape;
}

template <typename... Args>
Status Malformed(fmt::format_string<Args...> format, Args&&... args) {
  return FailStatus(Code::kInvalidArgument, "safetensors header: {}",
                    fmt::format(format, std::forward<Args>(args)...));
}

Status CheckItem(const SafetensorsItem& item, uint64_t expected_begin) {
  if (item.name == kMetadataName || !IsUtf8(item.name)) {
    return Malformed("a tensor name is reserved or not UTF-8");
  }
  if (DtypeBytes(item.dtype) == 0) return Malformed("tensor \"{}\" has no known dtype", item.name);
  if (item.begin != expected_begin) {
    return Malformed("tensor \"{}\" begins at {} instead of {}: the file has a hole or an overlap",
                     item.name, item.begin, expected_begin);
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(ElementsOf(item.shape), uint64_t{DtypeBytes(item.dtype)}, &bytes) ||
      item.end < item.begin || item.end - item.begin != bytes) {
    return Malformed("tensor \"{}\": its offsets do not match its dtype and shape", item.name);
  }
  return OkStatus();
}

Status CheckHeader(const SafetensorsHeader& header) {
  uint64_t end = 0;
  std::unordered_set<std::string_view> names;
  for (const SafetensorsItem& item : header.items) {
    REPRISE_RETURN_IF_ERROR(CheckItem(item, end));
    if (!names.insert(item.name).second) return Malformed("tensor \"{}\" is twice", item.name);
    end = item.end;
  }
  for (const auto& [key, value] : header.metadata) {
    if (!IsUtf8(key) || !IsUtf8(value)) return Malformed("metadata is not UTF-8");
    if (key.starts_with(kDtypeKeyPrefix)) return Malformed("metadata key \"{}\" is reserved", key);
  }
  return OkStatus();
}

// Watches a parse: keeps the top-level names in file order, and notes duplicate names and nesting
// that no header has (the DOM keeps neither).
class ParseWatch {
 public:
  bool Observe(int depth, Json::parse_event_t event, const Json& parsed) {
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (depth == 1) {
        inner_.clear();
        if (!seen_.insert(key).second) duplicate_ = key;
        names_.push_back(key);
      } else if (!inner_.insert(key).second) {
        duplicate_ = key;
      }
    }
    if (depth > kDepthMax) too_deep_ = true;
    return depth <= kDepthMax;
  }
  Status Check() const {
    if (too_deep_) return Malformed("it is nested too deeply");
    if (duplicate_.has_value()) return Malformed("the name \"{}\" is twice", *duplicate_);
    return OkStatus();
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  static constexpr int kDepthMax = 3;
  std::vector<std::string> names_;
  std::unordered_set<std::string> seen_;
  std::set<std::string> inner_;
  std::optional<std::string> duplicate_;
  bool too_deep_ = false;
};

bool IsNumberList(const Json& json) {
  return json.is_array() && std::ranges::all_of(json, [](const Json& element) {
           return element.is_number_unsigned();
         });
}

Result<SafetensorsItem> ItemOf(const std::string& name, const Json& json) {
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets") || !json["dtype"].is_string() ||
      !IsNumberList(json["shape"]) || !IsNumberList(json["data_offsets"]) ||
      json["data_offsets"].size() != 2) {
    return Error(Malformed("tensor \"{}\" does not have dtype, shape and data_offsets", name));
  }
  const auto& dtype_name = json["dtype"].get_ref<const std::string&>();
  std::optional<Dtype> dtype = DtypeFromName(dtype_name);
  if (!dtype.has_value()) {
    return Error(Malformed("tensor \"{}\" has dtype {}, which this build lacks", name, dtype_name));
  }
  return SafetensorsItem{.name = name,
                         .dtype = *dtype,
                         .shape = json["shape"].get<std::vector<uint64_t>>(),
                         .begin = json["data_offsets"][0].get<uint64_t>(),
                         .end = json["data_offsets"][1].get<uint64_t>()};
}

Result<std::map<std::string, std::string>> MetadataOf(const Json& json) {
  std::map<std::string, std::string> metadata;
  if (!json.is_object()) return Error(Malformed("__metadata__ is not an object"));
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) return Error(Malformed("metadata \"{}\" is not a string", key));
    metadata.emplace(key, value.get_ref<const std::string&>());
  }
  return metadata;
}

// Gives items their true dtypes and takes the keys that tell them out of the metadata.
Status RestoreDtypes(SafetensorsHeader& header) {
  for (SafetensorsItem& item : header.items) {
    auto entry = header.metadata.find(std::string(kDtypeKeyPrefix) + item.name);
    if (entry == header.metadata.end()) continue;
    std::optional<Dtype> dtype = DtypeFromName(entry->second);
    uint64_t element_bytes = dtype.has_value() ? DtypeBytes(*dtype) : 0;
    bool fits = element_bytes == 1 || (!item.shape.empty() && item.shape.back() == element_bytes);
    if (item.dtype != Dtype::kU8 || !dtype.has_value() || !IsForeign(*dtype) || !fits) {
      return Malformed("\"{}\" cannot be {}", item.name, entry->second);
    }
    item.dtype = *dtype;
    if (element_bytes > 1) item.shape.pop_back();
    header.metadata.erase(entry);
  }
  auto left = header.metadata.lower_bound(std::string(kDtypeKeyPrefix));
  if (left != header.metadata.end() && left->first.starts_with(kDtypeKeyPrefix)) {
    return Malformed("metadata \"{}\" names no tensor", left->first);
  }
  return OkStatus();
}

std::string JsonOf(const SafetensorsHeader& header) {
  std::map<std::string, std::string> metadata = header.metadata;
  for (const SafetensorsItem& item : header.items) {
    if (IsForeign(item.dtype)) {
      metadata.emplace(std::string(kDtypeKeyPrefix) + item.name, DtypeName(item.dtype));
    }
  }
  std::string json = "{";
  if (!metadata.empty()) json += fmt::format("\"{}\":{}", kMetadataName, Json(metadata).dump());
  for (const SafetensorsItem& item : header.items) {
    bool foreign = IsForeign(item.dtype);
    std::vector<uint64_t> shape = foreign ? ByteShape(item) : item.shape;
    json += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        json.size() == 1 ? "" : ",", Json(item.name).dump(),
                        foreign ? "U8" : DtypeName(item.dtype), fmt::join(shape, ","), item.begin,
                        item.end);
  }
  return json + "}";
}

std::string BoxText(const Box& box) {
  std::string text;
  for (size_t axis = 0; axis < box.offset.size(); ++axis) {
    text += fmt::format("{}{}:{}", axis == 0 ? "" : "x", box.offset[axis], box.extent[axis]);
  }
  return text;
}

// `name` without the character that separates name and offsets in a file.
std::string Escaped(const std::string& name) {
  std::string escaped;
  for (char character : name) {
    if (character == '#') {
      escaped += "%23";
    } else if (character == '%') {
      escaped += "%25";
    } else {
      escaped += character;
    }
  }
  return escaped;
}

std::vector<uint64_t> FileShape(const Piece& piece) {
  if (IsWhole(piece)) return piece.global_shape;
  if (piece.kind == PieceKind::kBoxes && piece.boxes.size() == 1) return piece.boxes[0].extent;
  return {ElementsOf(piece)};
}

}  // namespace

Result<Bytes> EncodeSafetensorsHeader(const SafetensorsHeader& header) {
  REPRISE_TRY(CheckHeader(header));
  std::string json = JsonOf(header);
  json.resize(AlignUp(json.size(), kPrefixBytes), ' ');
  if (json.size() > kHeaderBytesMax) {
    return Error(Malformed("{} is over the limit of {}: use fewer tensors", HumanBytes(json.size()),
                           HumanBytes(kHeaderBytesMax)));
  }
  ByteWriter writer;
  writer.U64(json.size());
  writer.Data(ViewOf(json));
  return writer.Take();
}

Result<uint64_t> SafetensorsHeaderBytes(ByteView prefix) {
  ByteReader reader(prefix);
  uint64_t json_bytes = reader.U64();
  if (!reader.ok()) return Error(Malformed("a file of {} bytes has none", prefix.size()));
  if (json_bytes < 2 || json_bytes > kHeaderBytesMax) {
    return Error(Malformed("a length of {} bytes is out of range", json_bytes));
  }
  return kPrefixBytes + json_bytes;
}

Result<SafetensorsHeader> DecodeSafetensorsHeader(ByteView bytes) {
  REPRISE_ASSIGN(uint64_t header_bytes, SafetensorsHeaderBytes(bytes));
  if (header_bytes > bytes.size()) {
    return Error(Malformed("it is cut short: {} of {} bytes", bytes.size(), header_bytes));
  }
  std::string_view text = TextOf(bytes.subspan(kPrefixBytes, header_bytes - kPrefixBytes));
  if (text.front() != '{') return Error(Malformed("it does not begin with a brace"));
  ParseWatch watch;
  Json json = Json::parse(
      text,
      [&](int depth, Json::parse_event_t event, Json& parsed) {
        return watch.Observe(depth, event, parsed);
      },
      /*allow_exceptions=*/false);
  REPRISE_TRY(watch.Check());
  if (json.is_discarded() || !json.is_object()) return Error(Malformed("it is not a JSON object"));

  SafetensorsHeader header;
  for (const std::string& name : watch.names()) {
    if (name == kMetadataName) {
      REPRISE_ASSIGN(header.metadata, MetadataOf(json[name]));
    } else {
      REPRISE_ASSIGN(SafetensorsItem item, ItemOf(name, json[name]));
      header.items.push_back(std::move(item));
    }
  }
  // Items without bytes share an offset with their neighbours: file order decides among them.
  std::vector<size_t> order(header.items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::sort(order, {}, [&](size_t i) {
    return std::tuple(header.items[i].begin, header.items[i].end, i);
  });
  std::vector<SafetensorsItem> items;
  items.reserve(order.size());
  for (size_t index : order) items.push_back(std::move(header.items[index]));
  header.items = std::move(items);
  REPRISE_TRY(RestoreDtypes(header));
  REPRISE_TRY(CheckHeader(header));
  return header;
}

std::string PieceFileName(const Piece& piece) {
  std::string name = Escaped(piece.name);
  if (IsWhole(piece)) return name;
  name += '#';
  if (piece.kind == PieceKind::kFlat) {
    return name + fmt::format("flat{}:{}", piece.flat_begin, ElementsOf(piece));
  }
  if (piece.boxes.empty()) return name + "empty";
  for (size_t i = 0; i < piece.boxes.size(); ++i) {
    if (i != 0) name += '+';
    name += BoxText(piece.boxes[i]);
  }
  return name;
}

SafetensorsHeader HeaderOfLayout(const Layout& layout,
                                 std::map<std::string, std::string> metadata) {
  SafetensorsHeader header;
  header.metadata = std::move(metadata);
  header.items.reserve(layout.pieces.size());
  uint64_t end = 0;
  for (const Piece& piece : layout.pieces) {
    uint64_t begin = end;
    end += BytesOf(piece);
    header.items.push_back({.name = PieceFileName(piece),
                            .dtype = piece.dtype,
                            .shape = FileShape(piece),
                            .begin = begin,
                            .end = end});
  }
  return header;
}

}  // namespace reprise::format
