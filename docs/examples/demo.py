"""The main job, end to end, on one machine: train, save, lose a node in mid-save, resume, compare.

Two "nodes" (a node daemon and two ranks each) train train_gpt.py against one store over TCP. While a
snapshot is on its way, every process of node B is killed with SIGKILL. A replacement node joins, the
ranks that hang on node A are killed, and all four ranks resume from the one resume point of the new
run. The end state must equal, bit for bit, that of a run that nobody disturbed.

    tools/dev demo [--json FILE] [--steps N] [--every N]
"""

import argparse
import dataclasses
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = ROOT / "build" / "release" / "bin"
RANKS_PER_NODE = 2
WAIT_S = 240


def say(text):
    print(f"{time.monotonic() - BEGAN:7.1f} s  {text}", flush=True)


BEGAN = time.monotonic()


class Failed(Exception):
    """The demo cannot go on; the text says why."""


@dataclasses.dataclass
class Daemon:
    """One reprised process and where it can be reached."""

    name: str
    process: subprocess.Popen
    ready: dict
    log: pathlib.Path
    slab: pathlib.Path | None = None


class Cluster:
    """Starts daemons and ranks, and ends every one of them at the end."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = []
        self.slabs = []
        self.store = None

    def start_daemon(self, name, role, **settings):
        ready = self.directory / f"{name}.ready"
        log = self.directory / f"{name}.log"
        command = [BIN / "reprised", "--role", role, "--ready-file", ready]
        for key, value in settings.items():
            command += ["--set", f"{key.replace('__', '.')}={value}"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{name} did not start:\n" + log.read_text()[-2000:])
            time.sleep(0.02)
        return Daemon(name, process, json.loads(ready.read_text()), log)

    def start_store(self):
        self.store = self.start_daemon(
            "store", "store", store__directory=self.directory / "store",
            store__control_listen="127.0.0.1:0", store__data_listen="127.0.0.1:0",
            store__capacity="4GiB", store__segment_size="64MiB",
            store__prewrite="false")  # a short life: not worth writing 4 GiB of zeros first
        return self.store

    def start_node(self, name):
        shm = pathlib.Path("/dev/shm")
        slab = pathlib.Path(tempfile.mkdtemp(prefix=f"reprise-demo-{name}-",
                                             dir=shm if shm.is_dir() else None))
        self.slabs.append(slab)
        node = self.start_daemon(
            f"node-{name}", "node", node__store=self.store.ready["control"],
            node__socket=self.directory / f"{name}.sock", node__slab_directory=slab,
            node__slab_bytes="1GiB")
        node.slab = slab
        return node

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for slab in self.slabs:
            shutil.rmtree(slab, ignore_errors=True)


class Run:
    """Four ranks of train_gpt.py; their events arrive in one queue, in order of arrival."""

    def __init__(self, cluster, name, nodes, arguments, uri):
        self.cluster = cluster
        self.events = queue.Queue()
        self.seen = []
        self.ranks = []
        self.name = name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        world = 2 * RANKS_PER_NODE
        for rank in range(world):
            environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                           "OMP_NUM_THREADS": "1", "REPRISE_LAUNCHER": "demo",
                           "PYTHONPATH": str(ROOT / "client" / "python")}
            command = [sys.executable, str(HERE / "train_gpt.py"), "--steps",
                       str(arguments.steps), "--every", str(arguments.every)]
            if uri:
                command += ["--uri", uri, "--socket",
                            nodes[rank // RANKS_PER_NODE].ready["socket"]]
            error = (cluster.directory / f"{name}-rank{rank}.err").open("wb")
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error,
                                       env=environment, start_new_session=True)
            error.close()
            cluster.processes.append(process)
            self.ranks.append(process)
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process):
        for line in process.stdout:
            if line.startswith(b"{"):
                self.events.put(json.loads(line))

    def wait_for(self, name, count, condition=lambda event: True):
        """Collects events until `count` of them match; Failed when a rank dies before."""
        found = [e for e in self.seen if e["event"] == name and condition(e)]
        deadline = time.monotonic() + WAIT_S
        while len(found) < count:
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                dead = [r for r, p in enumerate(self.ranks) if p.poll() not in (None, 0)]
                if dead or time.monotonic() > deadline:
                    raise Failed(self._explain(dead, name)) from None
                continue
            self.seen.append(event)
            if event["event"] == name and condition(event):
                found.append(event)
        return found

    def _explain(self, dead, name):
        text = f"{self.name}: waited for '{name}'"
        for rank in dead[:1]:
            error = self.cluster.directory / f"{self.name}-rank{rank}.err"
            text += f"; rank {rank} ended with {self.ranks[rank].returncode}:\n"
            text += error.read_text()[-2000:]
        return text

    def drain(self):
        while not self.events.empty():
            self.seen.append(self.events.get())

    def finish(self):
        done = self.wait_for("done", len(self.ranks))
        for process in self.ranks:
            if process.wait(timeout=60) != 0:
                raise Failed(f"{self.name}: a rank ended with {process.returncode}")
        return {event["rank"]: event for event in done}

    def kill(self, ranks):
        for rank in ranks:
            if self.ranks[rank].poll() is None:
                os.kill(self.ranks[rank].pid, signal.SIGKILL)
            self.ranks[rank].wait()


def percentile(values, fraction):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0.0


def describe_saves(run):
    """One line a committed or failed save, slowest rank counts; returns rows for the JSON."""
    rows = {}
    for event in run.seen:
        if event["event"] == "save":
            row = rows.setdefault(event["step"], {"step": event["step"], "phases": set(),
                                                  "blocked_ms": 0, "copied_ms": 0,
                                                  "committed_ms": 0, "bytes": 0})
            row["phases"].add(event["phase"])
            row["bytes"] += event["bytes"]
            for key in ("blocked_ms", "copied_ms", "committed_ms"):
                row[key] = max(row[key], event[key])
    for row in sorted(rows.values(), key=lambda row: row["step"]):
        row["phase"] = "failed" if "failed" in row.pop("phases") else "committed"
        say(f"  save of step {row['step']:3}: stall {row['blocked_ms']:6.1f} ms, copied after "
            f"{row['copied_ms']:6.0f} ms, {row['phase']} after {row['committed_ms']:6.0f} ms")
    return [rows[step] for step in sorted(rows)]


def lose_node_b(cluster, run, node_b, arguments):
    """Waits for a save in progress past the middle and kills every process of node B."""
    target = arguments.every * max(2, arguments.steps // arguments.every // 2 + 1)
    run.wait_for("save_started", 1, lambda e: e["step"] == target and e["rank"] >= RANKS_PER_NODE)
    killed_at = time.time()
    os.kill(node_b.process.pid, signal.SIGKILL)
    run.kill(range(RANKS_PER_NODE, 2 * RANKS_PER_NODE))
    node_b.process.wait()
    shutil.rmtree(node_b.slab, ignore_errors=True)  # its RAM is gone with it
    say(f"KILL     SIGKILL to node B (daemon, ranks 2 and 3) while step {target} is being saved")
    run.kill(range(RANKS_PER_NODE))
    say("DETECT   ranks 0 and 1 hang without their peers: the launcher ends them")
    run.drain()
    steps = [e["step"] for e in run.seen if e["event"] == "step"]
    return killed_at, max(steps)


def describe_restore(run, killed_at, last_step):
    restored = run.wait_for("restored", 2 * RANKS_PER_NODE)
    steps = {event["step"] for event in restored}
    if len(steps) != 1:
        raise Failed(f"ranks resumed from different steps: {sorted(steps)}")
    step = steps.pop()
    seconds = max(event["t"] for event in restored) - killed_at
    ready = run.wait_for("ready", 2 * RANKS_PER_NODE)
    start_s = max(e["import_s"] + e["rendezvous_s"] for e in ready)
    say(f"RESUME   all ranks from step {step} of run {restored[0]['epoch']}; "
        f"{last_step - step} steps lost")
    totals = {}
    for event in restored:
        stats = event["stats"]
        for key, value in stats.items():
            if key.startswith("bytes_"):
                totals[key[6:]] = totals.get(key[6:], 0) + value
    slowest = max(event["stats"]["read_ms"] for event in restored)
    for source, size in totals.items():
        if size:
            say(f"  {size / 2**20:7.0f} MiB from {source}, "
                f"{size / 1e6 / max(slowest, 1e-3):.2f} GB/s over all ranks, verified")
    say(f"  {seconds:.1f} s from the kill to the last rank restored, of these {start_s:.1f} s "
        "process start, imports and rendezvous")
    return {"resume_step": step, "steps_lost": last_step - step, "kill_to_restored_s": seconds,
            "process_start_s": start_s, "restore_bytes": totals,
            "restore_s": max(event["seconds"] for event in restored)}


def demo(cluster, arguments):
    say("START    one store, nodes A and B, two ranks each")
    cluster.start_store()
    node_a, node_b = cluster.start_node("a"), cluster.start_node("b")

    say("TRAIN    first, the run that nobody disturbs (no saves): the reference")
    reference = Run(cluster, "reference", [], arguments, None)
    expected = reference.finish()
    plain = [e["ms"] for e in reference.seen if e["event"] == "step" and e["step"] > 1]
    say(f"  {arguments.steps} steps, {percentile(plain, 0.5):.0f} ms each, "
        f"state {expected[0]['state_bytes'] / 2**20:.0f} MiB")

    say(f"TRAIN    again, with a snapshot every {arguments.every} steps")
    uri = "reprise://demo/gpt"
    first = Run(cluster, "first", [node_a, node_b], arguments, uri)
    killed_at, last_step = lose_node_b(cluster, first, node_b, arguments)
    saves = describe_saves(first)

    say("REPLACE  node C joins, empty")
    node_c = cluster.start_node("c")
    second = Run(cluster, "second", [node_a, node_c], arguments, uri)
    result = describe_restore(second, killed_at, last_step)
    actual = second.finish()
    saves += describe_saves(second)

    identical = all(expected[r]["digest"] == actual[r]["digest"] for r in expected)
    stalls = [row["blocked_ms"] for row in saves]
    say("COMPARE  weights, optimizer, RNG and data position of every rank: "
        + ("identical, bit for bit" if identical else "DIFFERENT"))
    subprocess.run([BIN / "reprise", "--store", cluster.store.ready["control"], "ls", "demo/gpt"],
                   check=False)
    return {"identical": identical, "ranks": len(expected),
            "state_bytes": expected[0]["state_bytes"], **result,
            "stall_p99_ms": percentile(stalls, 0.99), "step_ms": percentile(plain, 0.5),
            "saves": saves, "seconds": time.monotonic() - BEGAN}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    arguments = parser.parse_args()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="reprise-demo-"))
    cluster = Cluster(directory)
    try:
        result = demo(cluster, arguments)
    except Failed as failed:
        print(f"FAILED: {failed}\nlogs: {directory}", file=sys.stderr)
        arguments.keep = True
        return 1
    finally:
        cluster.close()
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
