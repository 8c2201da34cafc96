// Randomness as an argument. Rng is a seedable xoshiro256** generator (Blackman and Vigna, public
// domain algorithm); the same seed gives the same sequence on every machine. RandomSeed and
// RandomDigest read the kernel's entropy and are called at composition roots only.
//
// Thread rule: an Rng has one owner. Non-blocking.
#pragma once

#include <array>
#include <cstdint>

#include "core/base/digest.h"
#include "reprise/types.h"

namespace reprise {

class Rng {
 public:
  explicit Rng(uint64_t seed);
  uint64_t Next();
  // Uniform in [0, bound); bound must be positive.
  uint64_t Below(uint64_t bound);
  // True with probability `numerator` / `denominator`.
  bool Chance(uint64_t numerator, uint64_t denominator) { return Below(denominator) < numerator; }
  // 128 random bits: identities of jobs, attempts, stores.
  Id NewId();

 private:
  std::array<uint64_t, 4> state_;
};

// 64 bits of kernel entropy (getrandom).
uint64_t RandomSeed();

}  // namespace reprise
