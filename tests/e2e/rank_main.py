"""A training process that does what it is told: one JSON command a line on stdin, one JSON answer a
line on stdout. Its state is numpy arrays made from a seed, so that a test knows every byte.

Commands: open, restore, fill, save, wait, status, digest, close. Run by rank.py's Rank.
"""

import hashlib
import json
import sys

import numpy

import reprise


class Worker:
    def __init__(self):
        self.state = {}
        self.saves = {}
        self.checkpointer = None

    def open(self, uri, rank, world, elements, names=("w", "m"), keep=None, **options):
        self.rank, self.world = rank, world
        tree = {f"{name}{rank}": numpy.zeros(elements, dtype=numpy.float32) for name in names}
        tree["count"] = 0
        self.state = {"model": tree}
        keep = reprise.Keep(*keep) if keep else None
        self.checkpointer = reprise.Checkpointer(uri, rank=rank, world=world, keep=keep, **options)
        return {}

    def fill(self, step):
        """The state a given step has, everywhere the same function of (rank, name, step)."""
        for name, value in self.state["model"].items():
            if isinstance(value, numpy.ndarray):
                seed = [self.rank, step, *name.encode()]
                value[:] = numpy.random.default_rng(seed).random(value.shape, dtype=numpy.float32)
        self.state["model"]["count"] = step
        return self.digest()

    def digest(self):
        digest = hashlib.sha256()
        for name, value in sorted(self.state["model"].items()):
            digest.update(name.encode() + (value.tobytes() if isinstance(value, numpy.ndarray)
                                           else str(value).encode()))
        return {"digest": digest.hexdigest()}

    def add(self, name, seed, elements=16):
        """One more plain tensor, under the same name on every rank."""
        self.state["model"][name] = numpy.random.default_rng(seed).random(elements,
                                                                          dtype=numpy.float32)
        return {}

    def restore(self, step="latest", strict=True):
        found = self.checkpointer.restore(self.state, step=step, strict=strict)
        return {"step": found, "epoch": self.checkpointer.epoch,
                "skipped": self.checkpointer.skipped, "stats": self.checkpointer.restore_stats,
                **self.digest()}

    def save(self, step):
        save = self.checkpointer.save(step, self.state)
        if save is None:
            return {"started": False}
        self.saves[step] = save
        return {"started": True, "blocked_ms": save.blocked_ms}

    def wait(self, step, durability="server", timeout=30):
        self.saves[step].wait(durability, timeout)
        return self.saves[step].status()

    def wait_copied(self, step, timeout=30):
        self.saves[step].wait_copied(timeout)
        return {}

    def status(self, step):
        return self.saves[step].status()

    def close(self, timeout=30):
        self.checkpointer.close(timeout)
        return {}


def main():
    worker = Worker()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:  # told to the test, which decides
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
