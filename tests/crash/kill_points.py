"""SIGKILL before and after every I/O index of a reference scenario, and the same scenario with every
n-th write, flush, read or allocation failing.

The scenario (save, commit, delete, reuse of space, pin, restart) runs in `crash_store`: the
product's own store with its real I/O engine and RocksDB, on a tiny volume. The process kills itself
at operation k (REPRISE_CRASH_AT_IO, core/base/fault_points.h); another one then recovers the
directory on the other engine, shows what it holds, and saves once more; the oracle outside
judges. Every fourth recovery is killed at an operation of its own first.

    kill_points.py [--points N] [--errors N] [--seed S] [--at "uring 17:after"] [--json FILE]
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from broken_store import (ABORTED, HIT, KILLED, STOPPED, Promises, engines,  # noqa: E402
                          finish, start)
from oracle import Violation  # noqa: E402

# Letters: store/scenario.h. Segments hold little: saves reuse what deletes free.
SCRIPT = "sssPdbRbUsd"
FAILURES = ("write:EIO", "flush:EIO", "read:EIO", "space:ENOSPC", "space:ENOSPC:on", "write:EIO:on")
NESTED_EVERY = 4
RECOVERY_CHANGES = 60  # about as many operations as a recovery has
AT_ONCE = 2 * (os.cpu_count() or 1)  # a process waits for a disk most of its time


class Trial:
    """One directory: broken once (or twice), recovered, judged."""

    # Removes one barrier of the store in all trials, to show that they notice.
    mutation = ""

    def __init__(self, parent, label, engine, seed):
        self.label = label
        self.engine = engine
        self.other = engines()[engines().index(engine) - 1]
        self.rng = random.Random(f"{seed}/{label}")
        self.directory = pathlib.Path(tempfile.mkdtemp(dir=parent))
        self.promises = Promises()
        self.violations = []
        self.broken = False
        self.stopped = False
        self.nested = False

    def run(self, faults, *arguments):
        options = ["--prewrite"] if self.rng.random() < 0.5 else []
        options += ["--mutate", self.mutation] if self.mutation else []
        process = start("run", self.directory / "store", "--script", SCRIPT, *options, *arguments,
                        engine=self.engine, faults=faults)
        ended = finish(process)
        self.promises.hear(ended)
        return ended

    def check(self, nested):
        if nested:
            self.nested = True
            when = self.rng.choice(["before", "after"])
            at = f"{self.rng.randint(1, RECOVERY_CHANGES)}:{when}"
            ended = finish(start("check", self.directory / "store", engine=self.engine,
                                 faults={"REPRISE_CRASH_AT_IO": at}))
            if ended.code == KILLED:
                self.promises.hear(ended)
            else:
                self.violations += self.promises.judge(ended)
        ended = finish(start("check", self.directory / "store", engine=self.other))
        self.violations += self.promises.judge(ended)

    def end(self, keep):
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)
        return self


def kill_trial(parent, engine, at, seed, number):
    trial = Trial(parent, f"{engine} {at}", engine, seed)
    ended = trial.run({"REPRISE_CRASH_AT_IO": at})
    trial.broken = ended.code == KILLED
    if ended.code not in (0, KILLED):
        trial.violations.append(Violation("stuck", ended.error))
    trial.check(nested=number % NESTED_EVERY == 0)
    return trial.end(bool(trial.violations))


def error_trial(parent, engine, failure, index, seed):
    """An I/O error: the store may refuse, or stop itself; it may not die or forget."""
    trial = Trial(parent, f"{engine} {index}:{failure}", engine, seed)
    ended = trial.run({"REPRISE_FAIL_AT_IO": f"{index}:{failure}"})
    trial.broken = HIT in ended.log
    trial.stopped = ended.code == STOPPED
    if ended.code not in (0, STOPPED):
        trial.violations.append(Violation("crash", ended.error))
    trial.check(nested=False)
    return trial.end(bool(trial.violations))


def allocation_trial(parent, engine, index, seed):
    """Out of memory: the process may abort; the next one finds everything."""
    trial = Trial(parent, f"{engine} allocation {index}", engine, seed)
    ended = trial.run({}, "--fail-allocation", index)
    trial.broken = HIT in ended.log
    trial.stopped = ended.code == ABORTED
    if ended.code not in (0, STOPPED, ABORTED):
        trial.violations.append(Violation("crash", ended.error))
    trial.check(nested=False)
    return trial.end(bool(trial.violations))


def reference(parent, engine):
    """(operations that change a disk, allocations) of an undisturbed run."""
    trial = Trial(parent, f"{engine} reference", engine, 0)
    trial.mutation = ""
    ended = trial.run({"REPRISE_CRASH_AT_IO": "0"})
    if ended.code != 0:
        raise RuntimeError(f"the reference scenario does not run: {ended.error}")
    trial.check(nested=False)
    if trial.violations:
        raise RuntimeError(f"the reference scenario breaks promises: {trial.violations}")
    trial.end(False)
    return tuple(int(number) for number in ended.said("done")[0][1:])


def spread(count, last):
    """About `count` numbers of [1, last], evenly."""
    step = max(1.0, last / max(count, 1))
    return sorted({1 + int(i * step) for i in range(int(last / step) + 1)} & set(range(1, last + 1)))


def kill_jobs(points, counts):
    """Every index before and after on both engines, thinned to about `points`."""
    jobs = []
    for engine in engines():
        for number in spread(points // (2 * len(engines())), counts[engine][0] + 8):
            jobs += [(engine, f"{number}:before"), (engine, f"{number}:after")]
    return jobs


def error_jobs(errors, counts):
    """Every index of every kind of failure on both engines, thinned to about `errors`."""
    jobs = []
    each = errors // (len(engines()) * (len(FAILURES) + 1))
    for engine in engines():
        changes, allocations = counts[engine]
        for failure in FAILURES:
            # Roughly, of the operations; what never comes is not counted.
            last = changes // (4 if failure.startswith(("flush", "read")) else 2)
            jobs += [(error_trial, engine, failure, index) for index in spread(each, last)]
        jobs += [(allocation_trial, engine, index) for index in spread(each, allocations)]
    return jobs


def document(trials, errors, counts, seconds):
    kinds = collections.Counter(v.kind for t in trials + errors for v in t.violations)
    return {"kill_points": sum(t.broken for t in trials),
            "kill_points_missed": sum(not t.broken for t in trials),
            "kills_of_a_recovery": sum(t.nested for t in trials),
            "kill_points_by_engine": dict(collections.Counter(t.label.split(" ")[0]
                                                              for t in trials if t.broken)),
            "errors_injected": sum(t.broken for t in errors),
            "stopped_by_errors": sum(t.stopped for t in errors),
            "acknowledged": sum(t.promises.oracle.acknowledged_commits for t in trials + errors),
            "lost": kinds["lost"] + kinds["wrong"] + kinds["behind"],
            "resurrected": kinds["resurrected"],
            "manual_repairs": kinds["manual_repair"],
            "stuck": kinds["stuck"], "leaks": kinds["leak"], "crashes": kinds["crash"],
            "operations": {engine: counts[engine][0] for engine in counts},
            "allocations": {engine: counts[engine][1] for engine in counts},
            "seconds": seconds}


def say_violations(trials):
    bad = [trial for trial in trials if trial.violations]
    for trial in bad[:12]:
        for violation in trial.violations:
            print(f"VIOLATION at {trial.label}: {violation.kind}: {violation.text}", flush=True)
        print(f"  directory: {trial.directory}; repeat: tests/crash/kill_points.py "
              f"--at \"{trial.label}\"", flush=True)
    return bool(bad)


def repeat(parent, at, seed):
    """One trial, by its label."""
    engine, *rest = at.split(" ")
    if rest[0] == "allocation":
        return [], [allocation_trial(parent, engine, int(rest[1]), seed)]
    number, *what = rest[0].split(":")
    if what[0] in ("before", "after"):
        return [kill_trial(parent, engine, rest[0], seed, n) for n in (0, 1)], []
    return [], [error_trial(parent, engine, ":".join(what), int(number), seed)]


def campaign(parent, points, errors, seed):
    counts = {engine: reference(parent, engine) for engine in engines()}
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(kill_trial, parent, *job, seed, number)
                   for number, job in enumerate(kill_jobs(points, counts))]
        trials = [each.result() for each in running]
        kills_took = time.monotonic() - began
        running = [pool.submit(job[0], parent, *job[1:], seed)
                   for job in (error_jobs(errors, counts) if errors else [])]
        failed = [each.result() for each in running]
    seconds = {"kill_points": round(kills_took, 1),
               "errors": round(time.monotonic() - began - kills_took, 1)}
    return trials, failed, counts, seconds


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100000, help="kill points, at most")
    parser.add_argument("--errors", type=int, default=600, help="errors to inject, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutate", default="", help="remove one barrier: must be found")
    parser.add_argument("--at", help="one point again, as a violation names it")
    parser.add_argument("--directory", help="where to work (default: shared memory)")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    base = arguments.directory or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    parent = pathlib.Path(tempfile.mkdtemp(prefix="reprise-kill-", dir=base))
    Trial.mutation = arguments.mutate
    counts, seconds = {}, {}
    if arguments.at:
        trials, failed = repeat(parent, arguments.at, arguments.seed)
    else:
        trials, failed, counts, seconds = campaign(parent, arguments.points, arguments.errors,
                                                   arguments.seed)
    bad = say_violations(trials + failed)
    figures = document(trials, failed, counts, seconds)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    if not bad or arguments.mutate:  # what a removed barrier left is of no interest
        shutil.rmtree(parent, ignore_errors=True)
    print(f"kill points: {figures['kill_points']} (recoveries killed too: "
          f"{figures['kills_of_a_recovery']}), errors injected: {figures['errors_injected']}, "
          f"acknowledged: {figures['acknowledged']}, lost: {figures['lost']}, resurrected: "
          f"{figures['resurrected']}, manual_repairs: {figures['manual_repairs']}, stuck: "
          f"{figures['stuck']}, crashes: {figures['crashes']}; {seconds}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
