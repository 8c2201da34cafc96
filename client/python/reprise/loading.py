"""Reading a checkpoint without being a run of the job: evaluation, fine-tuning, inspection."""

from __future__ import annotations

from . import _native, _restore
from ._errors import InvalidArgument
from .checkpointer import rank_and_world


def load(uri, into, step="latest", rename=None, strict=False, *, rank=None, world=None,
         socket=None, daemon=None, timeout=600.0):
    """Fills `into` from a checkpoint of the job at `uri` and returns its step.

    Registers no run and fences nobody: the job may be training meanwhile. `rename` maps names of
    `into` to names in the checkpoint (a dict of prefixes, or a function). Items that are missing on
    either side are left as they are, unless `strict`. NotFound when there is no such checkpoint.
    """
    found_rank, found_world = rank_and_world()
    rank = found_rank if rank is None else rank
    world = found_world if world is None else world
    if isinstance(rename, dict):
        prefixes = sorted(rename.items(), key=lambda pair: -len(pair[0]))

        def renamed(name):
            for prefix, target in prefixes:
                if name.startswith(prefix):
                    return target + name[len(prefix):]
            return name
    else:
        renamed = rename
    client = _native.Client(uri, rank=rank, world=world, socket=socket, daemon=daemon)
    try:
        reader = client.open_reader(-1 if step == "latest" else int(step), -1, timeout)
        try:
            return _restore.fill(reader, into, rank=rank, world=world, strict=strict,
                                 timeout=timeout, rename=renamed)
        except _restore.Refused as refused:
            raise InvalidArgument(str(refused)) from None
        finally:
            reader.close()
    finally:
        client.close(0)
