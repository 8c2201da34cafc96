// Digests: XXH3-128 for everything a parent vouches for, CRC32C for what vouches for itself.
//
// XXH3-128 (xxHash, seed 0, canonical big-endian bytes) is the digest of chunks, manifests and roots.
// CRC32C (Castagnoli, crc32c.cc) guards frame headers, journal slots and superblocks. Neither is
// cryptographic: they detect damage, not an adversary (docs/format.md).
//
// Thread rule: pure functions; DigestStream is a value owned by one thread.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>

#include "core/base/bytes.h"
#include "reprise/status.h"

namespace reprise {

// A 128-bit digest in canonical byte order. All zero means "none".
struct Digest {
  std::array<uint8_t, 16> bytes{};

  bool IsZero() const { return *this == Digest{}; }
  ByteView view() const { return bytes; }
  // 32 lower-case hexadecimal digits.
  std::string ToHex() const { return HexOf(bytes); }
  static Result<Digest> FromHex(std::string_view text);
  auto operator<=>(const Digest&) const = default;
};

struct DigestHash {
  size_t operator()(const Digest& digest) const {
    size_t value;
    std::memcpy(&value, digest.bytes.data(), sizeof(value));
    return value;
  }
};

// XXH3-128 of `data`.
Digest DigestOf(ByteView data);
// The same with the instructions that every processor has, for its test.
Digest DigestWithoutAvx2(ByteView data);
// Copies `source` to `target` (as long) and returns the digest of what `target` holds then, also when
// somebody changes `source` meanwhile. One pass over memory: each block is hashed while it is cached.
Digest CopyAndDigest(MutableByteView target, ByteView source);

// XXH3-128 over pieces that arrive one after another; equal to DigestOf of their concatenation.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(DigestStream&&) noexcept;
  DigestStream& operator=(DigestStream&&) noexcept;

  void Update(ByteView data);
  // The digest of everything so far; more may follow.
  Digest Finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// CRC32C of `data`, continuing from `seed` (a previous result) when given.
uint32_t Crc32c(ByteView data, uint32_t seed = 0);
// The same without the processor's instruction, for its test.
uint32_t Crc32cByTable(ByteView data, uint32_t seed = 0);

inline void Put(ByteWriter& writer, const Digest& digest) { writer.Data(digest.bytes); }
inline Digest GetDigest(ByteReader& reader) {
  Digest digest;
  ByteView view = reader.Data(digest.bytes.size());
  if (view.size() == digest.bytes.size()) {
    std::memcpy(digest.bytes.data(), view.data(), view.size());
  }
  return digest;
}

}  // namespace reprise
