// Mutations: the barriers and checks that can be planted away, and what must find each.
//
// `seeds` is the budget: the simulator must find it within so many seeds. Where the simulator is not
// the right tool, an exhaustive enumeration is named instead; where another check gives the same
// protection, the reason why the flag is redundant.
//
// Thread rule: constants.
#pragma once

#include <span>
#include <string_view>

#include "tests/sim/whole/plan.h"

namespace reprise::sim {

struct Mutation {
  std::string_view name;
  void (*plant)(Plan& plan);
  uint64_t seeds = 400;
  std::string_view enumeration = {};  // test case that finds it for sure
  std::string_view redundant = {};    // why nothing can find it
  bool in_every_run = false;          // found fast enough for a plain test run
};
std::span<const Mutation> Mutations();
const Mutation* FindMutation(std::string_view name);

}  // namespace reprise::sim
