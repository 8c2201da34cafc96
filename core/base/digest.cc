#include "core/base/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/check.h"

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

Digest DigestOf(ByteView data) { return Canonical(XXH3_128bits(data.data(), data.size())); }

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
  REPRISE_CHECK(XXH3_128bits_update(&state_->xxh, data.data(), data.size()) == XXH_OK);
}
Digest DigestStream::Finish() const { return Canonical(XXH3_128bits_digest(&state_->xxh)); }

}  // namespace reprise
