#!/usr/bin/env python3
"""Runs the fuzz targets and reports. Helper of tools/dev fuzz.

  fuzz.py run --build DIR --work DIR --seconds N --tally FILE [--json FILE] TARGET...
      Runs bin/fuzz_TARGET of each, two at a time, from WORK/corpus/TARGET, its seeds and what
      tests/fuzz keeps. Inputs that break a property go to WORK/crashes/TARGET. Each target is one case of
      the tally. Exit code 1 when one failed.
  fuzz.py coverage --program FILE --profile FILE [--json FILE]
      Line coverage of the parsers, per source file.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AT_A_TIME = 2
# One input may take this long, and one allocation may be this large: all inputs are a few KiB.
INPUT_SECONDS_MAX = 20
ALLOCATION_MIB_MAX = 64
MEMORY_MIB_MAX = 3072

# What the coverage report is about: everything that reads bytes from elsewhere.
PARSERS = [
    r"core/format/.*\.cc", r"core/wire/.*\.cc", r"server/config\.cc",
    r"server/node/slot_format\.cc", r"server/rpc/convert\.cc",
]

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:"
                    "allocator_may_return_null=1:malloc_context_size=12:"
                    "allocator_release_to_os_interval_ms=-1:external_symbolizer_path=/usr/bin/llvm-symbolizer-19",
    "UBSAN_OPTIONS": "print_stacktrace=1:external_symbolizer_path=/usr/bin/llvm-symbolizer-19",
}


def relative(path):
    return os.path.relpath(path, ROOT)


class Run:
    """One target: its folders, its process, what it told."""

    def __init__(self, target, options):
        self.target, self.options = target, options
        self.program = Path(options.build) / "bin" / f"fuzz_{target}"
        self.corpus = Path(options.work) / "corpus" / target
        self.crashes = Path(options.work) / "crashes" / target
        self.log = Path(options.work) / "logs" / f"{target}.log"

    def arguments(self, seconds, begun):
        kept = [ROOT / "tests/fuzz" / folder / self.target for folder in ("corpus", "regressions")]
        dictionary = ROOT / "tests/fuzz/dictionaries" / f"{self.target}.dict"
        return [str(self.program), f"-max_total_time={seconds}", "-print_final_stats=1",
                f"-timeout={INPUT_SECONDS_MAX}", f"-malloc_limit_mb={ALLOCATION_MIB_MAX}",
                f"-rss_limit_mb={MEMORY_MIB_MAX}", f"-seed={begun % 2**31}",
                f"-artifact_prefix={self.crashes}/",
                *([f"-dict={dictionary}"] if dictionary.exists() else []),
                str(self.corpus), *[str(folder) for folder in kept if folder.is_dir()]]

    def execute(self):
        for folder in (self.corpus, self.crashes, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        before = set(self.crashes.iterdir())
        environment = {**os.environ, **SANITIZER_OPTIONS}
        subprocess.run([str(self.program), f"--seeds={self.corpus}"], check=True, cwd=ROOT,
                       env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun = time.time_ns() // 1000
        start = time.monotonic()
        with open(self.log, "wb") as log:
            code = subprocess.run(self.arguments(self.options.seconds, begun), cwd=ROOT, check=False,
                                  env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        text = self.log.read_text(encoding="utf-8", errors="replace")
        new = sorted(set(self.crashes.iterdir()) - before)
        return {
            "target": self.target,
            "executions": last_number(text, r"stat::number_of_executed_units:\s*(\d+)")
            or last_number(text, r"^#(\d+)\s"),
            "crashes": len(new) or int(code != 0),
            "seconds": round(time.monotonic() - start, 1),
            "corpus": sum(1 for _ in self.corpus.iterdir()),
            "coverage": last_number(text, r"\bcov: (\d+)"),
            "inputs": [str(path) for path in new],
        }

    def reproduction(self, path):
        return f"build/asan/bin/fuzz_{self.target} {relative(path)}"


def last_number(text, pattern):
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


def report_run(run, result):
    print(f"{result['target']:<16} {result['executions']:>10} executions  {result['seconds']:>6} s  "
          f"{result['executions'] / max(result['seconds'], 0.1):>8.0f}/s  corpus {result['corpus']:>5}  "
          f"edges {result['coverage']:>5}  {result['crashes']} crashes", flush=True)
    if not result["crashes"]:
        return
    for path in result["inputs"]:
        print(f"  repeat: {run.reproduction(path)}")
        print(f"  keep:   cp {relative(path)} tests/fuzz/regressions/{run.target}/")
    print(f"  log:    {relative(run.log)}", flush=True)


def command_run(options):
    runs = [Run(target, options) for target in options.targets]
    results = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for run, result in zip(runs, pool.map(Run.execute, runs)):
            report_run(run, result)
            results.append(result)
    failed = sum(1 for result in results if result["crashes"])
    total = {name: sum(result[name] for result in results)
             for name in ("executions", "crashes", "seconds", "corpus", "coverage")}
    total["seconds"] = round(total["seconds"], 1)
    print(f"total            {total['executions']:>10} executions, {total['crashes']} crashes")
    if options.json:
        document = {"schema": 1, "targets": {r.pop("target"): r for r in results}, "total": total}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with open(options.tally, "a", encoding="utf-8") as tally:
        tally.write(f"{len(results) - failed} {failed} 0\n")
    return 1 if failed else 0


def command_coverage(options):
    text = subprocess.run(["llvm-cov-19", "export", "-summary-only", options.program,
                           f"-instr-profile={options.profile}"],
                          check=True, capture_output=True, text=True).stdout
    files = {}
    for entry in json.loads(text)["data"][0]["files"]:
        name = relative(ROOT / entry["filename"])
        if any(re.fullmatch(pattern, name) for pattern in PARSERS):
            lines = entry["summary"]["lines"]
            files[name] = {"lines": lines["count"], "covered": lines["covered"]}
    for name, lines in sorted(files.items()):
        print(f"{name:<34} {lines['covered']:>5} of {lines['lines']:>5} lines  "
              f"{100 * lines['covered'] / max(lines['lines'], 1):>5.1f} %")
    count = sum(lines["lines"] for lines in files.values())
    covered = sum(lines["covered"] for lines in files.values())
    print(f"{'all parsers':<34} {covered:>5} of {count:>5} lines  {100 * covered / max(count, 1):>5.1f} %")
    if options.json:
        document = {"schema": 1, "files": files, "lines": count, "covered": covered}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if files else 1


def main():
    parser = argparse.ArgumentParser(description="helper of tools/dev fuzz")
    parser.add_argument("command", choices=["run", "coverage"])
    for name in ("build", "work", "json", "tally", "program", "profile"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("targets", nargs="*")
    options = parser.parse_intermixed_args()
    return globals()[f"command_{options.command}"](options)


if __name__ == "__main__":
    sys.exit(main())
