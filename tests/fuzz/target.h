// A fuzz target: what one input is fed to, and which properties must hold of every input.
//
// Each <name>_target.cc defines one with REPRISE_FUZZ_TARGET(<name>). The same object code runs under
// libFuzzer (fuzz_main.cc: program fuzz_<name>, sanitizer builds with REPRISE_FUZZ) and, in every
// build, under fuzz_replay, an ordinary test. How to run and how to add one: docs/testing.md.
//
// A target must be a function of its input: no clock, no randomness, no state kept between inputs. A
// property that does not hold is a REPRISE_CHECK.
//
// Thread rule: one input at a time.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "core/base/bytes.h"

namespace reprise::fuzz {

struct Target {
  std::string_view name;
  // Runs one input; aborts when a property does not hold.
  void (*run)(ByteView input);
  // Well-formed inputs to begin with, made by the encoders: the seed corpus.
  std::vector<Bytes> (*seeds)();
  // Makes checksums right, in place, so that mutated bytes get past them. Null: nothing to repair.
  void (*repair)(Bytes& input) = nullptr;
  // What is worth trying; longer inputs are run as well.
  size_t input_bytes_max = 4096;
};

// Every target of this build, in alphabetical order. (The list is made by CMake of the file names.)
const std::vector<const Target*>& AllTargets();

}  // namespace reprise::fuzz

// REPRISE_FUZZ_TARGET(wire_frame) = {.name = "wire_frame", .run = Run, .seeds = Seeds};
#define REPRISE_FUZZ_TARGET(name)    \
  namespace reprise::fuzz {          \
  extern const Target target_##name; \
  }                                  \
  const reprise::fuzz::Target reprise::fuzz::target_##name
