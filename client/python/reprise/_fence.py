"""The automatic fence: before any torch optimizer changes parameters, snapshots in progress finish
copying.

torch runs global optimizer pre-step hooks before those of the instance, so the fence does not depend
on the user remembering it. Only tensors of optimizers that the hook has seen may be copied behind
save(); everything else is copied inside it.
"""

from __future__ import annotations

import threading
import weakref

_lock = threading.Lock()
_checkpointers = weakref.WeakSet()
_observed = weakref.WeakSet()
_installed = False


def install(checkpointer):
    """Fences `checkpointer`'s snapshots from now on. Needs torch to be imported already."""
    global _installed
    with _lock:
        _checkpointers.add(checkpointer)
        if not _installed:
            from torch.optim.optimizer import register_optimizer_step_pre_hook
            register_optimizer_step_pre_hook(_before_step)
            _installed = True


def _before_step(optimizer, args, kwargs):
    _observed.add(optimizer)
    for checkpointer in list(_checkpointers):
        checkpointer.wait_before_mutation()


def is_observed(optimizer):
    return optimizer in _observed


def guarded_parameters(optimizers):
    """ids of the parameters whose changes pass through the fence."""
    return {id(parameter) for optimizer in optimizers if is_observed(optimizer)
            for group in optimizer.param_groups for parameter in group["params"]}
