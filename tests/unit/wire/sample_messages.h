// Messages with random but valid content, and a way to run a test over every kind of message.
//
// Thread rule: pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/random.h"
#include "core/wire/messages.h"

namespace reprise::wire {

// --- random fields; strings and lists stay within every limit of messages.cc
inline void Fill(Rng& rng, uint8_t& value) { value = static_cast<uint8_t>(rng.Next()); }
inline void Fill(Rng& rng, uint16_t& value) { value = static_cast<uint16_t>(rng.Next()); }
inline void Fill(Rng& rng, uint32_t& value) { value = static_cast<uint32_t>(rng.Next()); }
inline void Fill(Rng& rng, uint64_t& value) { value = rng.Next(); }
inline void Fill(Rng& rng, bool& value) { value = rng.Chance(1, 2); }
inline void Fill(Rng& rng, Id& value) { value = rng.NewId(); }
inline void Fill(Rng& rng, Digest& value) {
  for (uint8_t& byte : value.bytes) Fill(rng, byte);
}
inline void Fill(Rng& rng, CheckpointKey& value) { value = {rng.Next(), rng.Next()}; }
inline void Fill(Rng& rng, std::string& value) {
  value.resize(rng.Below(60));
  for (char& letter : value) letter = static_cast<char>('a' + rng.Below(26));
}
inline void Fill(Rng& rng, Code& value) { value = static_cast<Code>(3 + rng.Below(16)); }
inline void Fill(Rng& rng, SavePhase& value) { value = static_cast<SavePhase>(1 + rng.Below(5)); }
inline void Fill(Rng& rng, Source& value) { value = static_cast<Source>(rng.Below(6)); }
inline void Fill(Rng& rng, Durability& value) { value = static_cast<Durability>(1 + rng.Below(4)); }
inline void Fill(Rng& rng, Keep& value) {
  Fill(rng, value.last);
  Fill(rng, value.every);
}
inline void Fill(Rng& rng, format::ShardIdentity& value) {
  value = {rng.NewId(), {rng.Next(), rng.Next()}, rng.NewId(), 0, 0};
  Fill(rng, value.rank);
  Fill(rng, value.world);
}
inline void Fill(Rng& rng, format::SkippedCheckpoint& value) {
  Fill(rng, value.key);
  Fill(rng, value.reason);
}
template <typename T>
void Fill(Rng& rng, std::vector<T>& values) {
  values.resize(rng.Below(9));
  for (T& value : values) Fill(rng, value);
}
template <typename T>
void Fill(Rng& rng, std::optional<T>& value) {
  value.reset();
  if (rng.Chance(1, 2)) Fill(rng, value.emplace());
}

template <typename... Ts>
void FillAll(Rng& rng, Ts&... fields) {
  (Fill(rng, fields), ...);
}

// The number of fields is how structured bindings tell the messages apart.
template <typename Message>
concept HasFields6 = requires(Message m) { Message{{}, {}, {}, {}, {}, {}}; };
template <typename Message>
concept HasFields7 = requires(Message m) { Message{{}, {}, {}, {}, {}, {}, {}}; };

template <typename Message>
void FillMessage(Rng& rng, Message& message) {
  if constexpr (requires { Message{{}, {}, {}, {}, {}, {}, {}, {}, {}, {}}; }) {
    auto& [a, b, c, d, e, f, g, h, i, j] = message;
    FillAll(rng, a, b, c, d, e, f, g, h, i, j);
  } else if constexpr (HasFields7<Message>) {
    auto& [a, b, c, d, e, f, g] = message;
    FillAll(rng, a, b, c, d, e, f, g);
  } else if constexpr (HasFields6<Message>) {
    auto& [a, b, c, d, e, f] = message;
    FillAll(rng, a, b, c, d, e, f);
  } else if constexpr (requires { Message{{}, {}, {}, {}, {}}; }) {
    auto& [a, b, c, d, e] = message;
    FillAll(rng, a, b, c, d, e);
  } else if constexpr (requires { Message{{}, {}, {}, {}}; }) {
    auto& [a, b, c, d] = message;
    FillAll(rng, a, b, c, d);
  } else if constexpr (requires { Message{{}, {}, {}}; }) {
    auto& [a, b, c] = message;
    FillAll(rng, a, b, c);
  } else if constexpr (requires { Message{{}, {}}; }) {
    auto& [a, b] = message;
    FillAll(rng, a, b);
  } else {
    auto& [a] = message;
    FillAll(rng, a);
  }
}

template <typename Message>
Message RandomMessage(Rng& rng) {
  Message message;
  FillMessage(rng, message);
  return message;
}

// Calls `visit.operator()<Message>(name)` for every message of messages.h.
template <typename Visit>
void ForEachMessage(Visit visit) {
  visit.template operator()<Hello>("hello");
  visit.template operator()<HelloOk>("hello_ok");
  visit.template operator()<ErrorBody>("error");
  visit.template operator()<PutOpen>("put_open");
  visit.template operator()<PutGrant>("put_grant");
  visit.template operator()<PutSeal>("put_seal");
  visit.template operator()<Sealed>("sealed");
  visit.template operator()<ReadOpen>("read_open");
  visit.template operator()<ReadOk>("read_ok");
  visit.template operator()<ReadShard>("read_shard");
  visit.template operator()<ReadLayout>("read_layout");
  visit.template operator()<BlobBody>("blob");
  visit.template operator()<ReadChunks>("read_chunks");
  visit.template operator()<Register>("register");
  visit.template operator()<Registered>("registered");
  visit.template operator()<Attach>("attach");
  visit.template operator()<Attached>("attached");
  visit.template operator()<SlotInfo>("slot");
  visit.template operator()<SaveBegin>("save_begin");
  visit.template operator()<SaveGrant>("save_grant");
  visit.template operator()<SaveChunks>("save_chunks");
  visit.template operator()<SaveSeal>("save_seal");
  visit.template operator()<SaveSkip>("save_skip");
  visit.template operator()<SaveState>("save_state");
  visit.template operator()<RingAttach>("ring_attach");
  visit.template operator()<RingInfo>("ring");
  visit.template operator()<Fetch>("fetch");
  visit.template operator()<ChunkAt>("chunk_at");
  visit.template operator()<RingFree>("ring_free");
  visit.template operator()<Corrupt>("corrupt");
  visit.template operator()<SlotOf>("slot_of");
}

}  // namespace reprise::wire
