"""Every single bit of a stored volume flipped, in as many processes as there are cores.

crash_flips (flips/main.cc) makes a volume of about 1 MiB with the product's store and flips one bit at
a time: of SUPER, both journal copies and everything in the segments, then one random bit of every
byte of RocksDB's files. Each must be corrected or reported, never served.

    bit_flips.py [--flips N|all] [--seed S] [--json FILE]
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from broken_store import BUILD  # noqa: E402

PROGRAM = BUILD / "tests" / "crash_flips"
VOLUME_BITS = 9_000_000  # about
INDEX_STRIDE_MAX = 500
PROCESSES = os.cpu_count() or 1
VERDICTS = ("corrected", "reported", "harmless", "silent", "lost", "refused")


def sweep(command, stride, seed, directory):
    """Runs the parts of one sweep side by side; returns their JSON documents and exit codes."""
    running = []
    for part in range(PROCESSES):
        arguments = [PROGRAM, command, "--stride", stride, "--part", part, "--parts", PROCESSES,
                     "--seed", seed]
        if command == "index":
            arguments += ["--directory", directory / f"index-{part}"]
        running.append(subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True))
    ended = []
    for process in running:
        out, _ = process.communicate()
        *lines, last = out.rstrip("\n").split("\n")
        for line in lines:
            print(line, flush=True)
        if process.returncode not in (0, 1):
            raise RuntimeError(f"crash_flips {command} ended with {process.returncode}: {last}")
        ended.append(json.loads(last))
    return ended


def merge(documents):
    total, regions = collections.Counter(), collections.defaultdict(collections.Counter)
    for each in documents:
        total.update({key: each[key] for key in ("flips", "opens", *VERDICTS)})
        for region, verdicts in each["regions"].items():
            regions[region].update(verdicts)
    return total, {region: dict(counts) for region, counts in sorted(regions.items())}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", default="all", help="about so many of the volume's bits, or all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    stride = 1 if arguments.flips == "all" else max(1, VOLUME_BITS // max(1, int(arguments.flips)))
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = pathlib.Path(tempfile.mkdtemp(prefix="reprise-flips-", dir=base))
    began = time.monotonic()
    try:
        documents = sweep("volume", stride, arguments.seed, directory)
        volume_took = time.monotonic() - began
        documents += sweep("index", min(stride, INDEX_STRIDE_MAX), arguments.seed, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    total, regions = merge(documents)
    seconds = {"volume": round(volume_took, 1),
               "index": round(time.monotonic() - began - volume_took, 1)}
    figures = {"bit_flips": total["flips"], "silent": total["silent"], "lost": total["lost"],
               "manual_repairs": total["refused"], "corrected": total["corrected"],
               "reported": total["reported"], "harmless": total["harmless"],
               "recoveries": total["opens"], "regions": regions, "seconds": seconds}
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(f"bit flips: {figures['bit_flips']}, corrected: {figures['corrected']}, reported: "
          f"{figures['reported']}, harmless: {figures['harmless']}, silent: {figures['silent']}, "
          f"lost: {figures['lost']}, refused: {figures['manual_repairs']}; {seconds}", flush=True)
    return 1 if total["silent"] or total["lost"] or total["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
