// What survives fork(): nothing. Training scripts fork data-loader workers; a child must neither
// speak on its parent's socket nor hold it open, nor join threads it does not have.
//
// Handlers installed with pthread_atfork close registered descriptors in the child and advance the
// fork generation. Objects remember the generation they were made in: IsForkChild(theirs) is true in
// a child, where every call fails and every destructor does nothing. Mappings are MADV_DONTFORK.
//
// Thread rule: any thread. Async-signal-safe where it runs in the child. The table is process-wide
// because pthread_atfork is.
#pragma once

#include <cstdint>

namespace reprise::client {

// The generation of this process; installs the handlers on first use.
uint64_t ForkGeneration();
// True when this process is a fork() child of the one that made `generation`.
bool IsForkChild(uint64_t generation);
// Why calls fail in a child.
inline constexpr const char kForkMessage[] =
    "this handle was made before fork() and is dead in the child: open a client of its own here, "
    "or "
    "use it in the parent";

// Children close `descriptor` when they are forked. Past 4,096 descriptors the call has no effect.
void CloseInChildren(int descriptor);
// Ends that; call it before closing the descriptor.
void ForgetDescriptor(int descriptor);

}  // namespace reprise::client
