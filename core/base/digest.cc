#include "core/base/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "core/base/check.h"
#include "core/base/digest_avx2.h"

namespace reprise {
namespace {

Digest Canonical(XXH128_hash_t hash) {
  Digest digest;
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  static_assert(sizeof(canonical.digest) == sizeof(digest.bytes));
  std::memcpy(digest.bytes.data(), canonical.digest, sizeof(canonical.digest));
  return digest;
}

#if defined(__x86_64__)
bool HasAvx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}
#endif

// Large enough to amortise a call, small enough to stay in the second-level cache.
constexpr size_t kBlockBytes = 64 * 1024;

int HexValue(char character) {
  if (character >= '0' && character <= '9') return character - '0';
  if (character >= 'a' && character <= 'f') return character - 'a' + 10;
  return -1;
}

}  // namespace

Result<Digest> Digest::FromHex(std::string_view text) {
  Digest digest;
  if (text.size() != digest.bytes.size() * 2) {
    return Error(Code::kInvalidArgument, "a digest is 32 hexadecimal digits");
  }
  for (size_t i = 0; i < digest.bytes.size(); ++i) {
    int high = HexValue(text[2 * i]);
    int low = HexValue(text[2 * i + 1]);
    if (high < 0 || low < 0) {
      return Error(Code::kInvalidArgument, "a digest holds only the digits 0-9 and a-f");
    }
    digest.bytes[i] = static_cast<uint8_t>(high * 16 + low);
  }
  return digest;
}

Digest DigestOf(ByteView data) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    Digest digest;
    internal::Xxh3Avx2(data.data(), data.size(), digest.bytes.data());
    return digest;
  }
#endif
  return DigestWithoutAvx2(data);
}

Digest DigestWithoutAvx2(ByteView data) {
  return Canonical(XXH3_128bits(data.data(), data.size()));
}

Digest CopyAndDigest(MutableByteView target, ByteView source) {
  REPRISE_CHECK(target.size() == source.size());
  DigestStream stream;
  for (size_t at = 0; at < source.size(); at += kBlockBytes) {
    size_t length = std::min(kBlockBytes, source.size() - at);
    std::memcpy(target.data() + at, source.data() + at, length);
    stream.Update(target.subspan(at, length));
  }
  return stream.Finish();
}

struct DigestStream::State {
  XXH3_state_t xxh;
};

// XXH3_state_t wants 64-byte alignment; make_unique honours the type's own alignas.
DigestStream::DigestStream() : state_(std::make_unique<State>()) {
  REPRISE_CHECK(XXH3_128bits_reset(&state_->xxh) == XXH_OK);
}
DigestStream::~DigestStream() = default;
DigestStream::DigestStream(DigestStream&&) noexcept = default;
DigestStream& DigestStream::operator=(DigestStream&&) noexcept = default;

void DigestStream::Update(ByteView data) {
#if defined(__x86_64__)
  if (HasAvx2()) {
    internal::Xxh3UpdateAvx2(&state_->xxh, data.data(), data.size());
    return;
  }
#endif
  REPRISE_CHECK(XXH3_128bits_update(&state_->xxh, data.data(), data.size()) == XXH_OK);
}
Digest DigestStream::Finish() const { return Canonical(XXH3_128bits_digest(&state_->xxh)); }

}  // namespace reprise
