// SlabMutations: checks of the slab that tests take away, one at a time, to show that each is needed.
//
// All false in production; NodeOptions carries them to the slab.
//
// Thread rule: a value.
#pragma once

namespace reprise::node {

struct SlabMutations {
  bool reuse_uncommitted = false;    // a sealed slot is handed out before a newer commit
  bool discard_reused_slot = false;  // the end of a save frees its slot although a later one has it
  bool skip_companion = false;       // sealed is said before the companion is written
};

}  // namespace reprise::node
