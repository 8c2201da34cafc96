#include "core/base/random.h"

#include <sys/random.h>

#include <bit>

#include "core/base/check.h"

namespace reprise {

Rng::Rng(uint64_t seed) {
  // splitmix64 spreads a small seed over the whole state.
  for (uint64_t& word : state_) {
    seed += 0x9e3779b97f4a7c15;
    uint64_t mixed = seed;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    word = mixed ^ (mixed >> 31);
  }
}

uint64_t Rng::Next() {
  uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

uint64_t Rng::Below(uint64_t bound) {
  REPRISE_CHECK(bound > 0);
  // The bias of a 128-bit product is below 2^-64 for every bound used here.
  return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * bound) >> 64);
}

Id Rng::NewId() {
  Id id;
  uint64_t words[2] = {Next(), Next()};
  std::memcpy(id.bytes.data(), words, sizeof(words));
  return id;
}

uint64_t RandomSeed() {
  uint64_t seed = 0;
  REPRISE_CHECK(getrandom(&seed, sizeof(seed), 0) == sizeof(seed));
  return seed;
}

}  // namespace reprise
