"""tools/dev bench: Reprise against the limits of the same machine, measured in the same run.

    tools/dev bench [save] [restore] [--json FILE] [--gib N] [--runs N]

Every figure is a ratio to what the disk, loopback TCP or memcpy reached in between, so that a noisy
machine disturbs both alike; medians of --runs (default 5). Names and goals: docs/performance.md.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "release" / "bin"
sys.path.insert(0, str(ROOT / "client" / "python"))

import numpy  # noqa: E402

import reprise  # noqa: E402

GIB = 1 << 30


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def limit(*arguments):
    """One measurement of the machine's own limit."""
    out = subprocess.run([str(BIN / "reprise-bench"), *map(str, arguments)], check=True,
                         capture_output=True, text=True, timeout=300)
    return json.loads(out.stdout)


def cpu_seconds(pids):
    """User and system time of processes, all their threads."""
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Daemons:
    """One daemon with both roles, or a store and a node in two processes."""

    def __init__(self, directory, name, split, slab_bytes, capacity):
        self.directory = directory / name
        self.directory.mkdir()
        self.slab = tempfile.mkdtemp(prefix="reprise-bench-", dir="/dev/shm")
        self.split = split
        self.settings = {"store.directory": self.directory / "store",
                         "store.control_listen": "127.0.0.1:0", "store.data_listen": "127.0.0.1:0",
                         "store.capacity": capacity, "store.inventory_grace": "100ms",
                         "node.socket": self.directory / "node.sock",
                         "node.slab_directory": self.slab, "node.slab_bytes": slab_bytes}
        self.processes = []

    def start(self):
        if self.split:
            store = self._start("store", self.settings)
            self._start("node", {**self.settings, "node.store": store["control"]})
        else:
            store = self._start("both", self.settings)
        self.control = store["control"]
        return self

    def _start(self, role, settings):
        ready = self.directory / f"{role}.ready"
        ready.unlink(missing_ok=True)
        command = [str(BIN / "reprised"), "--role", role, "--ready-file", str(ready)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        with (self.directory / f"{role}.log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        deadline = time.monotonic() + 60
        while not ready.exists():
            if self.processes[-1].poll() is not None or time.monotonic() > deadline:
                raise SystemExit((self.directory / f"{role}.log").read_text()[-2000:])
            time.sleep(0.01)
        return json.loads(ready.read_text())

    def stop(self, wipe_slab=False):
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            process.wait(timeout=60)
        self.processes = []
        if wipe_slab:
            for path in pathlib.Path(self.slab).iterdir():
                path.unlink() if path.is_file() else shutil.rmtree(path)

    def close(self):
        self.stop()
        shutil.rmtree(self.slab, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def checkpointer(self):
        return reprise.Checkpointer("reprise://bench/job", rank=0, world=1,
                                    socket=str(self.settings["node.socket"]), launcher="bench",
                                    stall_budget=60.0, keep=reprise.Keep(last=1))


def make_state(size):
    """`size` bytes in 64 arrays of random floats."""
    generator = numpy.random.default_rng(1)
    count = size // 64 // 4
    block = generator.random(count, dtype=numpy.float32)
    return {"model": {f"w{i}": block + numpy.float32(i) for i in range(64)}}


def run_saves(daemons, state, size, runs, raw):
    """`runs` timed saves, each next to a measurement of the limit; returns rows."""
    checkpointer = daemons.checkpointer()
    checkpointer.restore(state)
    rows = []
    for step in range(1, runs + 4):  # the first ones write the segments and are not counted
        limits = raw()
        cpu = cpu_seconds([p.pid for p in daemons.processes])
        began = time.monotonic()
        save = checkpointer.save(step, state)
        save.wait(timeout=300)
        seconds = time.monotonic() - began
        cpu = cpu_seconds([p.pid for p in daemons.processes]) - cpu
        if step > 3:
            rows.append({"bytes_per_s": size / seconds, "core_s_per_GB": cpu / (size / 1e9),
                         "limit": limits, "ratio": size / seconds / limits})
    checkpointer.close()
    return rows


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def summary(rows):
    return {"median": median(rows, "ratio"), "min": min(r["ratio"] for r in rows),
            "max": max(r["ratio"] for r in rows),
            "GB_per_s": median(rows, "bytes_per_s") / 1e9, "limit_GB_per_s":
            median(rows, "limit") / 1e9}


def bench_save(directory, size, runs, result):
    state = make_state(size)
    raw_file = directory / "raw"

    def disk():
        return limit("disk-write", raw_file, size)["bytes_per_s"]

    def disk_or_tcp():
        return min(disk(), limit("tcp", size)["bytes_per_s"])

    budget = f"{2 * size // GIB + 1}GiB"
    capacity = f"{4 * size // GIB + 2}GiB"
    for name, split, raw in (("durable_vs_disk", False, disk), ("tcp_vs_limit", True, disk_or_tcp)):
        daemons = Daemons(directory, name, split, budget, capacity).start()
        try:
            say(f"save.{name}: {runs} runs of {size / GIB:g} GiB")
            rows = run_saves(daemons, state, size, runs, raw)
        finally:
            daemons.close()
        result[f"save.{name}"] = median(rows, "ratio")
        result[f"save.{name}.detail"] = summary(rows)
        result["save.core_s_per_GB" + ("" if split else ".one_process")] = median(rows,
                                                                                 "core_s_per_GB")
    raw_file.unlink()


class TrainingLoop:
    """Steps of a fixed length, in each of which an optimizer changes every parameter."""

    def __init__(self, size):
        import torch
        torch.set_num_threads(1)
        self.torch = torch
        self.model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(size // 32 // 4))
                                            for _ in range(32))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.state = {"model": self.model, "optim": self.optimizer}
        self.spin = torch.ones(1 << 14)
        self.step = 0

    def run(self, steps, step_s, save=None, every=1):
        """Seconds that `steps` took; `save(step)` is called after each `every`-th."""
        began = time.monotonic()
        for _ in range(steps):
            self.step += 1
            end = time.monotonic() + step_s
            while time.monotonic() < end:
                self.spin.mul_(1.0)
            self.optimizer.step()
            if save is not None and self.step % every == 0:
                save(self.step)
        return time.monotonic() - began


def stall_at(loop, checkpointer, step_s, every, saves_wanted):
    """Blocks with saves between blocks without; returns ms per save, blocked times, saves refused."""
    saves, refused, busy, quiet, per_block = [], 0, 0.0, 0.0, 15

    def save(step):
        nonlocal refused
        made = checkpointer.save(step, loop.state)
        if made is None:
            refused += 1
        else:
            saves.append(made)

    for _ in range(saves_wanted // per_block):
        quiet += loop.run(per_block * every // 3, step_s)
        loop.step += -loop.step % every
        busy += loop.run(per_block * every, step_s, save, every)
        saves[-1].wait(timeout=60)
    extra = busy - 3 * quiet
    return extra * 1e3 / len(saves), sorted(save.blocked_ms for save in saves), refused


def bench_stall(directory, size, result):
    """Cost of saving to the training loop: 300 saves at two step lengths."""
    size = min(size, 256 << 20)
    say(f"stall: 300 saves of {size / GIB:g} GiB in a training loop")
    loop = TrainingLoop(size)
    memcpy_s = size / limit("memcpy", 4 * size)["bytes_per_s"]
    daemons = Daemons(directory, "stall", False, "1GiB", "4GiB").start()
    costs, blocked, refused = {}, {}, 0
    try:
        checkpointer = daemons.checkpointer()
        checkpointer.restore(loop.state)
        loop.run(1, memcpy_s)
        first = checkpointer.save(loop.step, loop.state)
        first.wait(timeout=60)
        loop.run(1, memcpy_s)
        optimizer_s = loop.run(5, 0.0) / 5
        result["stall.first_ms"] = first.blocked_ms
        for factor in (1, 4):
            every = max(1, round(0.5 / (factor * memcpy_s + optimizer_s)))  # a save each half second
            cost, blocked[factor], missed = stall_at(loop, checkpointer, factor * memcpy_s, every,
                                                     150)
            costs[factor] = cost / (size / GIB)
            refused += missed
        checkpointer.close()
    finally:
        daemons.close()
    torch_ms = []
    for _ in range(5):
        began = time.monotonic()
        with (directory / "torch.pt").open("wb") as out:
            loop.torch.save({"model": loop.model.state_dict(),
                             "optim": loop.optimizer.state_dict()}, out)
        torch_ms.append((time.monotonic() - began) * 1e3)
    result["stall.state_bytes"] = size
    result["stall.saves"] = len(blocked[1]) + len(blocked[4])
    result["stall.refused"] = refused
    result["cost_per_save_ms_per_GiB"] = costs[4]
    result["cost_per_save_ms_per_GiB.1x"] = costs[1]
    result["stall.p50_ms"] = statistics.median(blocked[4])
    result["stall.p99_ms"] = blocked[4][int(0.99 * (len(blocked[4]) - 1))]
    result["stall.p99_ms.1x"] = blocked[1][int(0.99 * (len(blocked[1]) - 1))]
    result["stall.vs_torch_save"] = statistics.median(blocked[4]) / statistics.median(torch_ms)


def timed_restore(daemons, state):
    checkpointer = daemons.checkpointer()
    checkpointer.restore(state)
    stats = checkpointer.restore_stats
    checkpointer.close()
    return stats


def bench_restore(directory, size, runs, result):
    say(f"restore: {runs} runs from the slab, {runs} from the disk")
    state = make_state(size)
    raw_file = directory / "raw"
    daemons = Daemons(directory, "restore", False, f"{2 * size // GIB + 1}GiB",
                      f"{3 * size // GIB + 2}GiB").start()
    try:
        checkpointer = daemons.checkpointer()
        checkpointer.restore(state)
        checkpointer.save(1, state).wait(timeout=300)
        checkpointer.close()
        cold, local = [], []
        for _ in range(runs):
            memory = limit("memcpy", size)["bytes_per_s"]
            stats = timed_restore(daemons, state)
            local.append(row_of(stats, memory, "bytes_slab"))
        for _ in range(runs):
            daemons.stop(wipe_slab=True)
            disk = limit("disk-read", raw_file, size)["bytes_per_s"]
            daemons.start()
            stats = timed_restore(daemons, state)
            cold.append(row_of(stats, disk, "bytes_nvme"))
    finally:
        daemons.close()
        raw_file.unlink(missing_ok=True)
    for name, rows in (("cold_vs_disk", cold), ("local_vs_memcpy", local)):
        result[f"restore.{name}"] = median(rows, "ratio")
        result[f"restore.{name}.detail"] = summary(rows)


def row_of(stats, machine, key):
    if stats[key] == 0:
        raise SystemExit(f"the restore did not read from {key[6:]}: {stats}")
    rate = stats[key] / (stats["read_ms"] / 1e3)
    return {"bytes_per_s": rate, "limit": machine, "ratio": rate / machine}


def show(result):
    goals = {"save.durable_vs_disk": ">= 0.8", "save.tcp_vs_limit": ">= 0.6",
             "save.core_s_per_GB": "<= 0.6", "save.core_s_per_GB.one_process": "<= 0.3",
             "cost_per_save_ms_per_GiB": "<= 20", "stall.p99_ms": "<= 10",
             "stall.vs_torch_save": "<= 0.01", "restore.cold_vs_disk": ">= 0.8",
             "restore.local_vs_memcpy": ">= 0.5"}
    for name, value in result.items():
        if isinstance(value, float):
            detail = result.get(name + ".detail")
            extra = (f"  ({detail['GB_per_s']:.2f} of {detail['limit_GB_per_s']:.2f} GB/s, "
                     f"{detail['min']:.2f}..{detail['max']:.2f})" if detail else "")
            print(f"{name:38} {value:9.3f}  {goals.get(name, ''):9}{extra}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=[], help="save, restore (default: all)")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--gib", type=float, default=2.0, help="state size in GiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", help="where to write; the disk to measure")
    arguments = parser.parse_args()
    what = set(arguments.what) - {"all"} or {"save", "restore"}
    if what - {"save", "restore"}:
        parser.error("this tree measures: save, restore")
    size = int(arguments.gib * GIB) // (1 << 26) * (1 << 26)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="reprise-bench-",
                                              dir=arguments.directory or ROOT / "build"))
    result = {"state_bytes": size, "runs": arguments.runs, "cores": os.cpu_count()}
    try:
        if "save" in what:
            bench_save(directory, size, arguments.runs, result)
            bench_stall(directory, size, result)
        if "restore" in what:
            bench_restore(directory, size, arguments.runs, result)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    show(result)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
