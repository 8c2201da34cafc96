// One description of the fields of each message serves both directions: Fields(codec, message) is
// run with a Writer by Encode and with a Reader by Decode.
#include "core/wire/messages.h"

#include <type_traits>

#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/format/fields.h"

namespace reprise::wire {
namespace {

using limits::kTextBytesMax;

class Writer {
 public:
  void Number(uint8_t value) { out_.U8(value); }
  void Number(uint16_t value) { out_.U16(value); }
  void Number(uint32_t value) { out_.U32(value); }
  void Number(uint64_t value) { out_.U64(value); }
  void Flag(bool value) { out_.U8(value ? 1 : 0); }
  void Value(const Id& value) { format::Put(out_, value); }
  void Value(const Digest& value) { reprise::Put(out_, value); }
  void Value(const CheckpointKey& value) { format::Put(out_, value); }
  void Value(const format::ShardIdentity& value) { format::Put(out_, value); }
  template <typename Enum>
  void Choice(Enum value, Enum, Enum) {
    out_.U8(static_cast<uint8_t>(value));
  }
  void Reason(Code value, Code) { out_.U8(static_cast<uint8_t>(value)); }
  // Free text is shortened; names and data are not: the receiver refuses what is too long.
  void Text(const std::string& value, size_t size_max) { out_.String(CutText(value, size_max)); }
  void Name(const std::string& value, size_t) { out_.String(value); }
  void Blob(const Bytes& value, size_t) { out_.Blob(value); }
  template <typename T, typename Put>
  void Maybe(const std::optional<T>& value, Put put) {
    Flag(value.has_value());
    if (value.has_value()) put(*value);
  }
  template <typename T, typename Put>
  void List(const std::vector<T>& values, size_t, size_t, Put put) {
    out_.U32(static_cast<uint32_t>(values.size()));
    for (const T& value : values) put(value);
  }
  Bytes Take() { return out_.Take(); }

 private:
  ByteWriter out_;
};

class Reader {
 public:
  explicit Reader(ByteView body) : in_(body) {}
  void Number(uint8_t& value) { value = in_.U8(); }
  void Number(uint16_t& value) { value = in_.U16(); }
  void Number(uint32_t& value) { value = in_.U32(); }
  void Number(uint64_t& value) { value = in_.U64(); }
  void Flag(bool& value) { value = format::GetBool(in_); }
  void Value(Id& value) { value = format::GetId(in_); }
  void Value(Digest& value) { value = GetDigest(in_); }
  void Value(CheckpointKey& value) { value = format::GetKey(in_); }
  void Value(format::ShardIdentity& value) { value = format::GetShardIdentity(in_); }
  template <typename Enum>
  void Choice(Enum& value, Enum minimum, Enum maximum) {
    value = format::GetEnum(in_, minimum, maximum);
  }
  void Reason(Code& value, Code minimum) {
    value = format::GetEnum(in_, minimum, Code::kFenced);
    if (static_cast<uint8_t>(value) == 2) in_.Fail();  // gRPC's UNKNOWN: not one of ours
  }
  void Text(std::string& value, size_t size_max) { value = in_.String(size_max); }
  void Name(std::string& value, size_t size_max) { value = in_.String(size_max); }
  void Blob(Bytes& value, size_t size_max) {
    ByteView view = in_.Blob(size_max);
    value.assign(view.begin(), view.end());
  }
  template <typename T, typename Get>
  void Maybe(std::optional<T>& value, Get get) {
    bool present = false;
    Flag(present);
    if (present) get(value.emplace());
  }
  template <typename T, typename Get>
  void List(std::vector<T>& values, size_t count_max, size_t element_size_min, Get get) {
    uint32_t count = in_.Count(element_size_min);
    if (count > count_max) in_.Fail();
    if (!in_.ok()) return;
    values.reserve(count);
    for (uint32_t i = 0; i < count && in_.ok(); ++i) get(values.emplace_back());
  }
  const ByteReader& in() const { return in_; }

 private:
  ByteReader in_;
};

// M is `Message` for a Reader and `const Message` for a Writer.
template <typename M, typename Message>
concept Is = std::is_same_v<std::remove_const_t<M>, Message>;

template <typename Codec>
auto Digests(Codec& codec) {
  return [&codec](auto& digest) { codec.Value(digest); };
}

template <typename Codec>
auto Numbers(Codec& codec) {
  return [&codec](auto& number) { codec.Number(number); };
}

// --- every connection

template <typename Codec, Is<Hello> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.version_min);
  codec.Number(message.version_max);
  codec.Number(message.required_features);
  codec.Value(message.peer);
  codec.Text(message.description, kTextBytesMax);
}
template <typename Codec, Is<HelloOk> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.version);
  codec.Value(message.self);
  codec.Number(message.chunk_bytes);
  codec.Text(message.description, kTextBytesMax);
}
template <typename Codec, Is<ErrorBody> M>
void Fields(Codec& codec, M& message) {
  codec.Reason(message.code, Code::kCancelled);
  codec.Text(message.message, limits::kErrorMessageMax);
}

// --- putting a shard

template <typename Codec, Is<PutOpen> M>
void Fields(Codec& codec, M& message) {
  codec.Value(message.shard);
  codec.Number(message.length);
  codec.Number(message.chunk_bytes);
  codec.Value(message.layout);
  codec.Value(message.root_if_sealed);
}
template <typename Codec, Is<PutGrant> M>
void Fields(Codec& codec, M& message) {
  codec.Flag(message.already_sealed);
  codec.Flag(message.needs_layout);
  codec.Number(message.credits);
}
template <typename Codec, Is<PutSeal> M>
void Fields(Codec& codec, M& message) {
  codec.List(message.piece_digests, limits::kPiecesPerLayoutMax, sizeof(Digest), Digests(codec));
  codec.Blob(message.layout, limits::kLayoutBytesMax);
  codec.Value(message.root);
}
template <typename Codec, Is<Sealed> M>
void Fields(Codec& codec, M& message) {
  codec.Value(message.root);
}

// --- reading a checkpoint

template <typename Codec, Is<ReadOpen> M>
void Fields(Codec& codec, M& message) {
  codec.Value(message.job);
  codec.Value(message.key);
  codec.Name(message.tenant, limits::kNameLengthMax);
  codec.Name(message.job_name, limits::kNameLengthMax);
  codec.Maybe(message.step, Numbers(codec));
  codec.Maybe(message.epoch, Numbers(codec));
}
template <typename Codec, Is<ReadOk> M>
void Fields(Codec& codec, M& message) {
  codec.Value(message.key);
  codec.Blob(message.checkpoint_manifest, limits::kBodyBytesMax);
}
template <typename Codec, Is<ReadShard> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.rank);
}
template <typename Codec, Is<ReadLayout> M>
void Fields(Codec& codec, M& message) {
  codec.Value(message.layout);
}
template <typename Codec, Is<BlobBody> M>
void Fields(Codec& codec, M& message) {
  codec.Blob(message.data, limits::kBodyBytesMax);
}
template <typename Codec, Is<ReadChunks> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.rank);
  codec.Number(message.first);
  codec.Number(message.count);
}

// --- local socket

template <typename Codec, Is<Register> M>
void Fields(Codec& codec, M& message) {
  codec.Name(message.tenant, limits::kNameLengthMax);
  codec.Name(message.job, limits::kNameLengthMax);
  codec.Number(message.rank);
  codec.Number(message.world);
  codec.Value(message.process);
  codec.Name(message.launcher, kTextBytesMax);
  codec.Text(message.host, kTextBytesMax);
  codec.Flag(message.takeover);
  codec.Number(message.timeout_ms);
  codec.Number(message.epoch);
}
template <typename Codec, Is<Registered> M>
void Fields(Codec& codec, M& message) {
  codec.Value(message.job);
  codec.Number(message.epoch);
  codec.Maybe(message.resume, [&codec](auto& key) { codec.Value(key); });
  codec.List(message.skipped, format::kSkippedMax, 20, [&codec](auto& skipped) {
    codec.Value(skipped.key);
    codec.Text(skipped.reason, format::kReasonBytesMax);
  });
}
template <typename Codec, Is<Attach> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.slot_bytes);
  codec.Number(message.slots);
}
template <typename Codec, Is<Attached> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.slots);
  codec.Number(message.slot_bytes);
  codec.Number(message.data_offset);
  codec.Number(message.chunk_bytes);
}
template <typename Codec, Is<SlotInfo> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.index);
  codec.Number(message.file_bytes);
  codec.Number(message.data_offset);
  codec.Flag(message.read_only);
}
template <typename Codec, Is<SaveBegin> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.step);
  codec.Number(message.length);
  codec.Value(message.layout);
  codec.Blob(message.layout_bytes, limits::kLayoutBytesMax);
  codec.Name(message.metadata, format::kMetadataBytesMax);
  codec.Choice(message.durability, Durability::kLocal, Durability::kObject);
  codec.Number(message.keep.last);
  codec.Number(message.keep.every);
}
template <typename Codec, Is<SaveGrant> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.save);
  codec.Number(message.slot);
}
template <typename Codec, Is<SaveChunks> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.save);
  codec.Number(message.first);
  codec.Number(message.count);
}
template <typename Codec, Is<SaveSeal> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.save);
}
template <typename Codec, Is<SaveSkip> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.step);
  codec.Maybe(message.save, Numbers(codec));
  codec.Text(message.reason, limits::kErrorMessageMax);
}
template <typename Codec, Is<SaveState> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.save);
  codec.Number(message.step);
  codec.Choice(message.phase, SavePhase::kTransferring, SavePhase::kFailed);
  codec.Reason(message.code, Code::kOk);
  codec.Text(message.message, limits::kErrorMessageMax);
  codec.Number(message.bytes_sent);
}
template <typename Codec, Is<RingAttach> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.chunks);
}
template <typename Codec, Is<RingInfo> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.chunks);
  codec.Number(message.stride_bytes);
}
template <typename Codec, Is<Fetch> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.rank);
  codec.Number(message.first);
  codec.Number(message.count);
}
template <typename Codec, Is<ChunkAt> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.rank);
  codec.Number(message.index);
  codec.Number(message.ring_index);
  codec.Number(message.length);
  codec.Choice(message.source, Source::kNone, Source::kObject);
}
template <typename Codec, Is<RingFree> M>
void Fields(Codec& codec, M& message) {
  codec.List(message.ring_indices, limits::kRingChunksMax, sizeof(uint32_t), Numbers(codec));
}
template <typename Codec, Is<Corrupt> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.rank);
  codec.Number(message.index);
  codec.Number(message.ring_index);
  codec.Choice(message.source, Source::kNone, Source::kObject);
}
template <typename Codec, Is<SlotOf> M>
void Fields(Codec& codec, M& message) {
  codec.Number(message.rank);
}

template <typename Message>
std::string_view NameOf() {
  if constexpr (std::is_same_v<Message, ErrorBody>) return "ERROR";
  if constexpr (std::is_same_v<Message, BlobBody>) return "SHARD_MANIFEST or LAYOUT";
  return OpcodeName(kOpcodeOf<Message>);
}

}  // namespace

std::string_view SourceName(Source source) {
  switch (source) {
    case Source::kNone: return "none";
    case Source::kLocalSlab: return "slab";
    case Source::kPeer: return "peer";
    case Source::kStoreRam: return "ram";
    case Source::kNvme: return "nvme";
    case Source::kObject: return "object";
  }
  return "?";
}

template <typename Message>
Bytes Encode(const Message& message) {
  Writer writer;
  Fields(writer, message);
  return writer.Take();
}

template <typename Message>
Result<Message> Decode(ByteView body) {
  Reader reader(body);
  Message message;
  Fields(reader, message);
  if (!reader.in().ok()) {
    return Fail(Code::kInvalidArgument,
                "{} of {} bytes is malformed: cut short, or a field out of its limits",
                NameOf<Message>(), body.size());
  }
  if (!reader.in().AtEnd()) {
    return Fail(Code::kInvalidArgument, "{} of {} bytes is malformed: {} bytes too long",
                NameOf<Message>(), body.size(), reader.in().remaining());
  }
  return message;
}

#define REPRISE_WIRE_MESSAGE(Message)             \
  template Bytes Encode<Message>(const Message&); \
  template Result<Message> Decode<Message>(ByteView);
REPRISE_WIRE_MESSAGE(Hello)
REPRISE_WIRE_MESSAGE(HelloOk)
REPRISE_WIRE_MESSAGE(ErrorBody)
REPRISE_WIRE_MESSAGE(PutOpen)
REPRISE_WIRE_MESSAGE(PutGrant)
REPRISE_WIRE_MESSAGE(PutSeal)
REPRISE_WIRE_MESSAGE(Sealed)
REPRISE_WIRE_MESSAGE(ReadOpen)
REPRISE_WIRE_MESSAGE(ReadOk)
REPRISE_WIRE_MESSAGE(ReadShard)
REPRISE_WIRE_MESSAGE(ReadLayout)
REPRISE_WIRE_MESSAGE(BlobBody)
REPRISE_WIRE_MESSAGE(ReadChunks)
REPRISE_WIRE_MESSAGE(Register)
REPRISE_WIRE_MESSAGE(Registered)
REPRISE_WIRE_MESSAGE(Attach)
REPRISE_WIRE_MESSAGE(Attached)
REPRISE_WIRE_MESSAGE(SlotInfo)
REPRISE_WIRE_MESSAGE(SaveBegin)
REPRISE_WIRE_MESSAGE(SaveGrant)
REPRISE_WIRE_MESSAGE(SaveChunks)
REPRISE_WIRE_MESSAGE(SaveSeal)
REPRISE_WIRE_MESSAGE(SaveSkip)
REPRISE_WIRE_MESSAGE(SaveState)
REPRISE_WIRE_MESSAGE(RingAttach)
REPRISE_WIRE_MESSAGE(RingInfo)
REPRISE_WIRE_MESSAGE(Fetch)
REPRISE_WIRE_MESSAGE(ChunkAt)
REPRISE_WIRE_MESSAGE(RingFree)
REPRISE_WIRE_MESSAGE(Corrupt)
REPRISE_WIRE_MESSAGE(SlotOf)
#undef REPRISE_WIRE_MESSAGE

}  // namespace reprise::wire
