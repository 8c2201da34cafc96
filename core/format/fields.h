// Field encodings that several formats share: identities, runs, object references, magics, features.
//
// Internal to core/format; the formats themselves are what docs/format.md describes. Each Put has a
// Get that reads the same bytes back; a Get on a failed reader yields zero values.
//
// Thread rule: pure functions; no I/O.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "core/base/bytes.h"
#include "core/base/digest.h"
#include "core/base/text.h"
#include "core/format/manifest.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::format {

// Eight letters as the u64 whose little-endian bytes spell them.
constexpr uint64_t MagicOf(const char (&letters)[9]) {
  uint64_t magic = 0;
  for (int i = 7; i >= 0; --i) magic = magic << 8 | static_cast<uint8_t>(letters[i]);
  return magic;
}

inline void Put(ByteWriter& writer, const Id& id) { writer.Data(id.bytes); }
inline Id GetId(ByteReader& reader) {
  Id id;
  ByteView view = reader.Data(id.bytes.size());
  if (view.size() == id.bytes.size()) std::memcpy(id.bytes.data(), view.data(), view.size());
  return id;
}

inline void Put(ByteWriter& writer, const CheckpointKey& key) {
  writer.U64(key.epoch);
  writer.U64(key.step);
}
inline CheckpointKey GetKey(ByteReader& reader) {
  CheckpointKey key;
  key.epoch = reader.U64();
  key.step = reader.U64();
  return key;
}

inline constexpr size_t kRunBytes = 20;
inline void Put(ByteWriter& writer, const Run& run) {
  writer.U32(run.segment);
  writer.U64(run.offset);
  writer.U64(run.length);
}
inline Run GetRun(ByteReader& reader) {
  Run run;
  run.segment = reader.U32();
  run.offset = reader.U64();
  run.length = reader.U64();
  return run;
}

inline constexpr size_t kObjectRefBytes = kRunBytes + 24;
inline void Put(ByteWriter& writer, const ObjectRef& object) {
  Put(writer, object.run);
  writer.U64(object.length);
  Put(writer, object.digest);
}
inline ObjectRef GetObjectRef(ByteReader& reader) {
  ObjectRef object;
  object.run = GetRun(reader);
  object.length = reader.U64();
  object.digest = GetDigest(reader);
  return object;
}

inline void Put(ByteWriter& writer, const ShardIdentity& identity) {
  Put(writer, identity.job);
  Put(writer, identity.key);
  Put(writer, identity.attempt);
  writer.U32(identity.rank);
  writer.U32(identity.world);
}
inline ShardIdentity GetShardIdentity(ByteReader& reader) {
  ShardIdentity identity;
  identity.job = GetId(reader);
  identity.key = GetKey(reader);
  identity.attempt = GetId(reader);
  identity.rank = reader.U32();
  identity.world = reader.U32();
  return identity;
}

// A byte that must be 0 or 1.
inline bool GetBool(ByteReader& reader) {
  uint8_t value = reader.U8();
  if (value > 1) reader.Fail();
  return value == 1;
}

// An enumerator stored as one byte in [minimum, maximum].
template <typename Enum>
Enum GetEnum(ByteReader& reader, Enum minimum, Enum maximum) {
  uint8_t value = reader.U8();
  if (value < static_cast<uint8_t>(minimum) || value > static_cast<uint8_t>(maximum)) {
    reader.Fail();
    return minimum;
  }
  return static_cast<Enum>(value);
}

// The head of layouts and manifests: magic, version, a u32 of the format's own, required features.
void PutHead(ByteWriter& writer, uint64_t magic, uint32_t own_field);
// The format's own u32. DATA_LOSS: not a `what`. UNIMPLEMENTED: a version or feature this build
// lacks.
Result<uint32_t> GetHead(ByteReader& reader, uint64_t magic, std::string_view what);

// UNIMPLEMENTED naming the bits of `required` outside `known`.
Status CheckFeatures(uint64_t required, uint64_t known, std::string_view what);

}  // namespace reprise::format
