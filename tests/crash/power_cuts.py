"""Power cuts under the real store on real ext4 and XFS.

A FUSE file (crash_disk) plays a disk with a volatile write cache; a loop device with direct I/O, a file
system and the product's store (crash_store) live on it. Power fails at a seeded write or flush: the
disk answers nothing any more, the store is killed, the file system unmounted. When power is back a seed
has decided which sectors of the cache were lost, kept, reordered or torn; the kernel replays the
file system's journal, the store recovers on the other I/O engine, and the oracle outside judges
what it shows. Both file systems run side by side, each on a disk that lives through many cuts.

    power_cuts.py [--cuts N] [--filesystems ext4,xfs] [--seed S] [--mutate NAME] [--json FILE]

Needs root, /dev/fuse, loop devices and the mkfs programs: `why_not()` says what is missing.
`--mutate` removes one barrier of the store: the run must then find violations.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from broken_store import BUILD, Ended, Promises, engines, finish, start  # noqa: E402
from oracle import Violation  # noqa: E402

DISK_PROGRAM = BUILD / "tests" / "crash_disk"
MEBIBYTES = {"ext4": 64, "xfs": 320}  # XFS makes nothing smaller
MKFS = {"ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1"],
        "xfs": ["mkfs.xfs", "-q", "-f", "-K"]}
CUTS_PER_DISK = 60
# The cut comes within so many writes and flushes of the disk: a recovery has about a hundred.
OPERATIONS = (100, 300, 900)
VIOLATIONS_MAX = 8
TIMEOUT_S = 30


def why_not(filesystems=("ext4", "xfs")):
    """Why power cuts cannot be tested here, or "" when they can."""
    if os.geteuid() != 0:
        return "power cuts need root: to mount, and for loop devices"
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(path):
            return f"power cuts need {path}"
    for tool in ["losetup", "fusermount3", *(MKFS[each][0] for each in filesystems)]:
        if shutil.which(tool) is None:
            return f"power cuts need {tool}: tools/dev setup"
    if not DISK_PROGRAM.exists():
        return f"power cuts need {DISK_PROGRAM}: build with libfuse3"
    known = pathlib.Path("/proc/filesystems").read_text()
    for each in filesystems:
        if f"\t{each}\n" not in known:
            return f"power cuts need {each} in the kernel"
    return ""


def run(*command):
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60,
                           check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {ended.stderr.strip()}")
    return ended.stdout.strip()


@dataclasses.dataclass
class Status:
    """Counters of a disk. `pending`: writes that no flush has covered."""

    writes: int
    flushes: int
    pending: int
    on: bool


class Disk:
    """crash_disk, the loop device on it, and a file system that is mounted or not."""

    def __init__(self, directory, filesystem, direct_io=True):
        self.filesystem = filesystem
        self.directory = directory
        self.fuse, self.mounted = directory / "fuse", directory / "mounted"
        self.fuse.mkdir(parents=True)
        self.mounted.mkdir()
        self.device = None
        self.is_mounted = False
        self.was_cut = threading.Event()
        self.answers = queue.Queue()
        self.process = subprocess.Popen([DISK_PROGRAM, self.fuse, str(MEBIBYTES[filesystem])],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._expect("serving")
            self.device = run("losetup", "--find", "--show",
                              f"--direct-io={'on' if direct_io else 'off'}", self.fuse / "disk")
            run(*MKFS[filesystem], self.device)
        except BaseException:
            self.close()
            raise

    def _listen(self):
        for line in self.process.stdout:
            if line == "cut\n":
                self.was_cut.set()
            else:
                self.answers.put(line.rstrip("\n"))

    def _expect(self, word):
        answer = self.answers.get(timeout=TIMEOUT_S)
        if not answer.startswith(word):
            raise RuntimeError(f"crash_disk says {answer}, not {word}")
        return answer

    def _tell(self, line, answer):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._expect(answer)

    def mount(self):
        run("mount", "-t", self.filesystem, self.device, self.mounted)
        self.is_mounted = True

    def unmount(self):
        """Waits until nothing uses it any more: a killed process may still have requests."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.is_mounted:
            try:
                run("umount", self.mounted)
                self.is_mounted = False
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def arm(self, operations):
        self.was_cut.clear()
        self._tell(f"arm {operations}", "armed")

    def cut(self):
        self._tell("cut", "off")

    def power_on(self, seed):
        return self._tell(f"on {seed}", "on")

    def status(self):
        writes, flushes, pending, on = self._tell("status", "status").split(" ")[1:]
        return Status(int(writes), int(flushes), int(pending), on == "1")

    def close(self):
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.mounted)], check=False, capture_output=True)
        if self.device is not None:
            subprocess.run(["losetup", "-d", self.device], check=False, capture_output=True)
        subprocess.run(["fusermount3", "-u", "-z", str(self.fuse)], check=False,
                       capture_output=True)
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Lane:
    """Cuts on one file system, disk after disk."""

    def __init__(self, directory, filesystem, arguments):
        self.directory = directory
        self.filesystem = filesystem
        self.arguments = arguments
        self.cuts = 0
        self.outcomes = collections.Counter()
        self.engines = collections.Counter()
        self.moments = collections.Counter()
        self.violations = []
        self.acknowledged = 0
        self.failure = None  # of the test's own machinery

    def run(self, cuts):
        try:
            number = 0
            enough = 1 if self.arguments.mutate else VIOLATIONS_MAX
            while self.cuts < cuts and len(self.violations) < enough:
                self.run_disk(number, min(CUTS_PER_DISK, cuts - self.cuts))
                number += 1
        except Exception as problem:  # pylint: disable=broad-except
            self.failure = problem

    def run_disk(self, number, cuts):
        disk = Disk(self.directory / f"{self.filesystem}-{number}", self.filesystem)
        promises = Promises()
        # A short journal makes the index flush often, which flushes all that a file system holds back.
        slots = 16 if number % 2 == 0 and not self.arguments.mutate else 256
        before = len(self.violations)
        try:
            for cycle in range(cuts):
                label = f"{self.filesystem}/{number}/{cycle}"
                self.run_cut(disk, promises, slots, label)
                if len(self.violations) > before:
                    return
            self.judge_last(disk, promises, f"{self.filesystem}/{number}/end")
        finally:
            self.acknowledged += promises.oracle.acknowledged_commits
            disk.close()

    def run_cut(self, disk, promises, slots, label):
        rng = random.Random(f"{self.arguments.seed}/{label}")
        engine = engines()[self.cuts % len(engines())]
        script = "".join(rng.choices("sbdPUR", weights=[3, 5, 3, 1, 1, 1], k=24))
        options = ["--script", script, "--show", "--slots", str(slots)]
        if rng.random() < 0.3 and not self.arguments.mutate:
            options.append("--prewrite")
        if self.arguments.mutate:
            options += ["--mutate", self.arguments.mutate]
        disk.mount()
        disk.arm(rng.randint(1, rng.choice(OPERATIONS)))
        process = start("run", disk.mounted / "store", *options, engine=engine)
        watcher = threading.Thread(target=self.kill_when_cut, args=(disk, process))
        watcher.start()
        ended = finish(process)
        by_itself = not disk.status().on
        disk.cut()
        disk.was_cut.set()
        watcher.join()
        self.judge(promises, ended, by_itself, label)
        disk.unmount()
        self.outcomes[disk.power_on(rng.randrange(1 << 60)).split(" ")[1]] += 1
        self.cuts += 1
        self.engines[engine] += 1
        self.moments["at rest" if not by_itself else "while it worked" if "shown" in ended.lines
                     else "while it recovered"] += 1

    def kill_when_cut(self, disk, process):
        disk.was_cut.wait(timeout=120)
        process.kill()

    def judge(self, promises, ended, was_cut, label):
        """First what the start showed of earlier promises, then what this life promised."""
        if "shown" not in ended.lines:
            # A cut came first, and the next start will show it all.
            if not was_cut:
                self.add([Violation("manual_repair", ended.error)], label)
            return
        at = ended.lines.index("shown")
        # A disk that went away while the store read from it: that is no verdict on the bytes.
        went_away = was_cut and any("UNAVAILABLE" in line for line in ended.lines[:at])
        if not went_away:
            self.add(promises.judge(Ended(0, ended.lines[:at], "")), label)
        promises.hear(Ended(0, ended.lines[at:], ""))

    def judge_last(self, disk, promises, label):
        """The disk is left alone once: everything must be well, and a save must work."""
        disk.mount()
        ended = finish(start("check", disk.mounted / "store"))
        self.add(promises.judge(ended), label)
        disk.unmount()

    def add(self, found, label):
        for violation in found:
            self.violations.append((label, violation))
            print(f"VIOLATION at {label}: {violation.kind}: {violation.text}", flush=True)


def document(lanes, seconds):
    kinds = collections.Counter(v.kind for lane in lanes for _, v in lane.violations)
    return {"power_cuts": {lane.filesystem: lane.cuts for lane in lanes},
            "acknowledged": sum(lane.acknowledged for lane in lanes),
            "lost": kinds["lost"] + kinds["wrong"] + kinds["behind"],
            "resurrected": kinds["resurrected"],
            "manual_repairs": kinds["manual_repair"],
            "stuck": kinds["stuck"], "leaks": kinds["leak"],
            "moments": dict(sum((lane.moments for lane in lanes), collections.Counter())),
            "caches": dict(sum((lane.outcomes for lane in lanes), collections.Counter())),
            "engines": dict(sum((lane.engines for lane in lanes), collections.Counter())),
            "seconds": {"power_cuts": round(seconds, 1)}}


def campaign(directory, arguments):
    """One thread for each file system; returns the lanes."""
    filesystems = arguments.filesystems.split(",")
    engines()  # asked once, before there are threads
    lanes = [Lane(directory, each, arguments) for each in filesystems]
    threads = []
    for number, lane in enumerate(lanes):
        cuts = arguments.cuts // len(lanes) + (number < arguments.cuts % len(lanes))
        threads.append(threading.Thread(target=lane.run, args=(cuts,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane in lanes:
        if lane.failure is not None:
            raise lane.failure
    return lanes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=520)
    parser.add_argument("--filesystems", default="ext4,xfs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutate", default="", help="remove one barrier: must be found")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    reason = why_not(arguments.filesystems.split(","))
    if reason:
        print(f"SKIPPED power cuts: {reason}", flush=True)
        if arguments.json:
            figures = {"power_cuts": {}, "skipped": reason, "seconds": {"power_cuts": 0}}
            pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
        return 0
    directory = pathlib.Path(tempfile.mkdtemp(prefix="reprise-power-"))
    began = time.monotonic()
    try:
        lanes = campaign(directory, arguments)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    figures = document(lanes, time.monotonic() - began)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(f"power cuts: {figures['power_cuts']}, acknowledged: {figures['acknowledged']}, lost: "
          f"{figures['lost']}, resurrected: {figures['resurrected']}, manual_repairs: "
          f"{figures['manual_repairs']}, stuck: {figures['stuck']}; fell {figures['moments']}, "
          f"caches {figures['caches']}; {figures['seconds']}", flush=True)
    bad = any(lane.violations for lane in lanes)
    if bad:
        print(f"repeat: tests/crash/power_cuts.py --cuts {arguments.cuts} --seed "
              f"{arguments.seed}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
