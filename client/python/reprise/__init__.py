"""Reprise: fault-tolerant checkpoints for training jobs.

    ckpt = reprise.Checkpointer("file:///data/ckpts/llm-7b")
    state = {"model": model, "optim": optimizer, "rng": reprise.rng()}
    start = ckpt.restore(state) or 0
    for step in range(start, total):
        ...
        ckpt.save(step + 1, state, every=50)
    ckpt.save(total, state, force=True)
    ckpt.close()

See docs/python.md. Needs nothing but libreprise; torch and numpy are used when they are imported.
"""

from ._errors import (AlreadyExists, DataLoss, DeadlineExceeded, FailedPrecondition, Fenced,
                      InvalidArgument, NotFound, RepriseError, ResourceExhausted, SaveAborted,
                      Unavailable)
from ._rng import Rng, rng
from .checkpointer import Checkpointer, Keep, Save
from .loading import load

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists", "Checkpointer", "DataLoss", "DeadlineExceeded", "FailedPrecondition", "Fenced",
    "InvalidArgument", "Keep", "NotFound", "RepriseError", "ResourceExhausted", "Rng", "Save", "SaveAborted",
    "Unavailable", "load", "rng",
]
