"""The processes of a crash run: real daemons, two ranks, and the CLI. Knows how to kill and start
them again; knows nothing of what must be true (oracle.py) or of when to kill (crash_driver.py)."""

import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent / "e2e"), str(ROOT / "client" / "python")]

from rank import Rank, RankError, all_do  # noqa: E402, F401
from reprise import _aux  # noqa: E402

BUILD = pathlib.Path(os.environ.get("REPRISE_BUILD_DIR", ROOT / "build" / "release"))
JOB = "crash/job"
WORLD = 2
ELEMENTS = 1 << 19  # of each of two float arrays: 4 MiB a rank
START_TIMEOUT_S = 60
EXIT_USAGE, EXIT_NOT_FOUND = 2, 4


class ManualRepairNeeded(Exception):
    """A daemon did not start again on its own directory."""


def salt(key):
    """The number that the bytes of a checkpoint are made from; rank_main.py calls it its step."""
    epoch, step = key
    return epoch * 1_000_000 + step


def expected_values(key, rank):
    """What rank_main.py's `fill` leaves in rank `rank`: name to value, in its order."""
    values = {}
    for name in (f"w{rank}", f"m{rank}"):
        seed = [rank, salt(key), *name.encode()]
        values[name] = numpy.random.default_rng(seed).random(ELEMENTS, dtype=numpy.float32)
    values["count"] = salt(key)
    return values


def expected_files(key):
    """What `reprise restore` must write: {file: {item: bytes}}."""
    shared, files = {}, {}
    for rank in range(WORLD):
        values = expected_values(key, rank)
        count = {"count": values.pop("count")}
        files[f"rank-{rank:05}.safetensors"] = {"model": _aux.encode(count)}
        shared |= {f"model.{name}": value.tobytes() for name, value in values.items()}
    return {"checkpoint.safetensors": shared, **files}


def read_safetensors(path):
    """{name: bytes} of a .safetensors file."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8:8 + size]), raw[8 + size:]
    return {name: body[slice(*item["data_offsets"])] for name, item in header.items()
            if name != "__metadata__"}


def last_document(text):
    """The last of several JSON documents: a slow command says every second how far it is."""
    document = None
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        text = text[end:].lstrip()
    return document


class World:
    """One store directory, its daemons and ranks. `both`: one daemon holds both roles."""

    def __init__(self, directory, both, number):
        self.directory = directory
        self.both = both
        self.starts = 0
        self.processes = []
        self.store = self.node = None
        self.ranks = []
        # An address of our own: nobody takes the store's port while it is down.
        pid = os.getpid()
        self.address = f"127.{1 + pid // 250 % 250}.{1 + pid % 250}.{1 + number}"
        self.control = self.data = f"{self.address}:0"
        shm = pathlib.Path("/dev/shm")
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="reprise-crash-",
                                                     dir=shm if shm.is_dir() else None))
        self.socket = directory / "node.sock"
        self.unexpected_ends = []

    # ---- daemons ----------------------------------------------------------------------------

    def _store_settings(self):
        return {"store.directory": self.directory / "store", "store.control_listen": self.control,
                "store.data_listen": self.data, "store.capacity": "384MiB",
                "store.segment_size": "16MiB", "store.chunk_size": "256KiB",
                "store.journal_slots": "64", "store.prewrite": "false",
                "store.inventory_grace": "200ms", "store.begin_window": "3s"}

    def _node_settings(self):
        return {"node.store": self.control, "node.socket": self.socket,
                "node.slab_directory": self.scratch / "slab", "node.slab_bytes": "128MiB"}

    def _launch(self, role, engine, settings, environment=None):
        self.starts += 1
        name = f"{role}-{self.starts:04}"
        ready = self.directory / f"{name}.ready"
        command = [BUILD / "bin" / "reprised", "--role", role, "--ready-file", ready]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                       env={**os.environ, "REPRISE_IO": engine,
                                            **(environment or {})})
        process.ready, process.name = ready, name
        self.processes.append(process)
        return process

    def _await_ready(self, process):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not process.ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (self.directory / f"{process.name}.log").read_text()[-3000:]
                raise ManualRepairNeeded(f"{process.name} (exit {process.poll()}):\n{log}")
            time.sleep(0.005)
        return json.loads(process.ready.read_text())

    def launch_store(self, engine, crash_at_io=None):
        """Starts the store (in one daemon with the node when `both`), without waiting for it.

        `crash_at_io`: it kills itself there (core/base/fault_points.h)."""
        settings = self._store_settings()
        if self.both:
            settings |= self._node_settings()
        environment = {"REPRISE_CRASH_AT_IO": crash_at_io} if crash_at_io else None
        self.store = self._launch("both" if self.both else "store", engine, settings, environment)
        if self.both:
            self.node = self.store

    def await_store(self):
        ready = self._await_ready(self.store)
        self.control, self.data = ready["control"], ready["data"]

    def store_has_killed_itself(self, within_s=0.0):
        """Waits so long for the store's end; its own SIGKILL is no unexpected end."""
        try:
            return self.store.wait(timeout=within_s) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def start_node(self, engine):
        if not self.both:
            self.node = self._launch("node", engine, self._node_settings())
            self._await_ready(self.node)

    def kill_store(self):
        self._kill(self.store)

    def kill_rest(self, lose_memory):
        """Node daemon and ranks; `lose_memory` as when the host lost power."""
        for rank in self.ranks:
            rank.kill()
        self.ranks = []
        if not self.both:
            self._kill(self.node)
        if lose_memory:
            shutil.rmtree(self.scratch / "slab", ignore_errors=True)

    def _kill(self, process):
        if process.poll() is not None:
            log = (self.directory / f"{process.name}.log").read_text()[-2000:]
            self.unexpected_ends.append(f"{process.name} exited with {process.poll()}:\n{log}")
            return
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def stop_store(self):
        """The orderly end, for once."""
        self.store.terminate()
        return self.store.wait(timeout=START_TIMEOUT_S)

    def close(self):
        for rank in self.ranks:
            rank.kill()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- ranks ------------------------------------------------------------------------------

    def start_ranks(self):
        """Starts a new run of the job; returns each rank's answer of its restore."""
        for number in range(WORLD):
            self.ranks.append(Rank(f"reprise://{JOB}", number, WORLD, elements=ELEMENTS,
                                   names=("w", "m"), socket=str(self.socket),
                                   log=self.directory / f"rank{number}.log"))
        return all_do(self.ranks, "restore", timeout=120)

    # ---- the command line -------------------------------------------------------------------

    def command(self, *arguments):
        """Starts `reprise ...` and returns the process."""
        return subprocess.Popen([BUILD / "bin" / "reprise", "--store", self.control, "--timeout",
                                 "20", *map(str, arguments)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def cli(self, *arguments):
        """(exit code, stdout, stderr) of `reprise ...`."""
        process = self.command(*arguments)
        out, error = process.communicate(timeout=120)
        return process.returncode, out, error

    def listing(self):
        """{key: root} of everything that counts as a checkpoint, whatever run made it."""
        code, out, error = self.cli("ls", JOB, "--all", "-o", "json")
        if code == EXIT_NOT_FOUND:
            return {}
        if code != 0:
            raise RuntimeError(f"reprise ls: exit {code}: {error}")
        return {(row["epoch"], row["step"]): row["root"]
                for row in json.loads(out)["checkpoints"] if row["state"] != "saving"}

    def verify(self, references):
        """For each reference (key or None, what is wrong or "") of `reprise verify`."""
        running = [self.command("verify", f"{JOB}@{reference}", "-o", "json")
                   for reference in references]
        answers = []
        for reference, process in zip(references, running):
            out, error = process.communicate(timeout=120)
            if process.returncode == 0:
                document = last_document(out)
                answers.append(((document["epoch"], document["step"]), ""))
            else:
                answers.append((None, f"verify {reference}: exit {process.returncode}: "
                                      f"{error.strip()}"))
        return answers

    def compare(self, keys):
        """For each key what differs between the stored bytes and what was saved, or ""."""
        running = []
        for key in keys:
            target = pathlib.Path(tempfile.mkdtemp(dir=self.scratch))
            reference = f"{JOB}@{key[1]}~{key[0]}"
            running.append((key, target, self.command("restore", reference, "--to", target)))
        return [self._compare(*item) for item in running]

    def _compare(self, key, target, process):
        try:
            _, error = process.communicate(timeout=120)
            if process.returncode != 0:
                return f"restore {key[1]}~{key[0]}: exit {process.returncode}: {error.strip()}"
            for file, wanted in expected_files(key).items():
                saved = read_safetensors(target / file)
                wrong = [name for name in sorted(saved.keys() | wanted.keys())
                         if saved.get(name) != wanted.get(name)]
                if wrong:
                    return f"{key[1]}~{key[0]}: {wrong} in {file} is not what was saved"
            return ""
        finally:
            shutil.rmtree(target, ignore_errors=True)
