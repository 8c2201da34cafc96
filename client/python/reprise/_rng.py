"""The random number generators of this process as one saveable object."""

from __future__ import annotations

import array
import random
import sys


class Rng:
    """State of Python's, numpy's and torch's generators (CPU, and every CUDA device in use).

    Belongs to its rank: restored to the same rank of an equal world, left alone (with a warning)
    when the world has changed, because there is no right answer then.
    """

    reprise_world_policy = "drop"

    def state_dict(self):
        version, words, gauss = random.getstate()
        state = {"python": (version, array.array("I", words).tobytes(), gauss)}
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            state["numpy"] = numpy.random.get_state()
        torch = sys.modules.get("torch")
        if torch is not None:
            state["torch"] = torch.get_rng_state()
            if torch.cuda.is_initialized():
                state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state):
        version, raw, gauss = state["python"]
        words = array.array("I")
        words.frombytes(raw)
        random.setstate((version, tuple(words), gauss))
        if "numpy" in state:
            import numpy
            numpy.random.set_state(state["numpy"])
        if "torch" in state:
            import torch
            torch.set_rng_state(state["torch"])
            if "cuda" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["cuda"][:torch.cuda.device_count()])


def rng():
    """The process's random number generators, to put into a state: ``{"rng": reprise.rng()}``."""
    return Rng()
