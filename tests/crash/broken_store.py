"""A store in a process that is broken on purpose (crash_store), and the judgement of what is left.

What the process promised is in the lines it wrote before it died (store/scenario.h); they are fed to
the oracle (oracle.py), and so is what the next process shows after it has recovered. Nothing in
here knows how or when the process was broken.
"""

import dataclasses
import functools
import os
import pathlib
import subprocess
import tempfile

from oracle import Oracle, Violation, name

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("REPRISE_BUILD_DIR", ROOT / "build" / "release"))
PROGRAM = BUILD / "tests" / "crash_store"
HIT = "fault point hit"  # said by a process whose operation was failed
TIMEOUT_S = 60
KILLED = -9
ABORTED = -6
STOPPED = 3  # the store does not open, or stopped itself (store/main.cc)
WORLD = 2


@dataclasses.dataclass
class Ended:
    """How a process ended: exit code (negative: signal) and what it said."""

    code: int
    lines: list
    log: str

    def said(self, word):
        return [line.split(" ") for line in self.lines if line.split(" ")[0] == word]

    @property
    def error(self):
        text = "; ".join(line for line in self.lines if line.startswith("error"))
        return f"exit {self.code}: {text} {self.log[-600:]}"


def complete_lines(text):
    """All but a last line that was cut off: a write of a dying process may be."""
    return text.split("\n")[:-1]


def start(command, directory, *arguments, engine="threads", faults=None):
    """Starts `crash_store COMMAND` and returns the process."""
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith("REPRISE_")}
    environment |= {"REPRISE_IO": engine, **(faults or {})}
    return subprocess.Popen([PROGRAM, command, "--directory", directory, *map(str, arguments)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment)


def finish(process, timeout=TIMEOUT_S):
    try:
        out, log = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, log = process.communicate()
        return Ended(124, complete_lines(out), f"still running after {timeout} s; {log}")
    return Ended(process.returncode, complete_lines(out), log)


@functools.cache
def engines():
    """The I/O engines that run here; says so when io_uring does not."""
    with tempfile.TemporaryDirectory() as directory:
        ended = finish(start("run", f"{directory}/store", "--script", "", engine="uring"))
    if ended.code == 0:
        return ("uring", "threads")
    if "io_uring" not in ended.error:
        raise RuntimeError(f"crash_store does not run: {ended.error}")
    print(f"SKIPPED io_uring: {ended.error}", flush=True)
    return ("threads",)


class Promises:
    """What one store directory has promised over the lives of its processes."""

    def __init__(self):
        self.oracle = Oracle(WORLD)
        self.pins = {}  # key -> answered pin, or None while a request has no answer
        self.repairs = 0

    def hear(self, ended):
        """Takes in what a process asked for and was answered."""
        for line in ended.lines:
            word, *rest = line.split(" ")
            handler = getattr(self, f"_{word}", None)
            if handler is not None:
                handler((int(rest[0]), int(rest[1])), rest[2:])

    def _begin(self, key, rest):
        self.oracle.begins(key, int(rest[0]))

    def _committed(self, key, _):
        self.oracle.acknowledge(key)

    def _delete(self, key, _):
        self.oracle.begins_delete(key)

    def _deleted(self, key, _):
        self.oracle.acknowledge_delete(key)

    def _refused(self, key, _):
        self.oracle.refuse_delete(key)

    def _pin(self, key, _):
        self.pins[key] = None

    def _pinned(self, key, rest):
        self.pins[key] = rest[0] == "1"

    def judge(self, ended):
        """Violations in what a `check` shows; its own save is heard as well."""
        if ended.code != 0:
            return [Violation("manual_repair", f"the store does not work again: {ended.error}")]
        self.repairs += len(ended.said("repair"))
        listed, found = {}, []
        for _, epoch, step, root, pinned, *verdict in ended.said("visible"):
            key = (int(epoch), int(step))
            listed[key] = root
            if verdict != ["ok"]:
                found.append(Violation("wrong", f"{name(key)}: {' '.join(verdict)}"))
            found += self._judge_pin(key, pinned == "1")
        latest = [tuple(map(int, line[1:])) for line in ended.said("latest") if line[1] != "none"]
        found += self.oracle.check(listed, latest[0] if latest else None)
        self.hear(ended)
        if ended.said("begin") and not ended.said("committed"):
            found.append(Violation("stuck", f"no new save: {ended.error}"))
        for line in ended.said("usage"):
            if len(set(line[1:])) != 1:
                text = "bytes taken, in the ledger, needed: " + ", ".join(line[1:])
                found.append(Violation("leak", text))
        return found

    def _judge_pin(self, key, pinned):
        promised = self.pins.get(key, False)
        self.pins[key] = pinned
        if promised is None or promised == pinned:
            return []
        return [Violation("lost", f"{name(key)}: pinned is {pinned}, {promised} was answered")]
