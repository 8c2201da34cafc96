"""tools/dev crash: all that breaks the store, one part after the other, and one report.

    tools/dev crash [--kills N] [--kill-points N] [--power-cuts N] [--bit-flips N|all]
                    [--errors N] [--seed S] [--json FILE]

A part of which 0 are asked is left out. Ends with 1 when any part found a violation.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
COUNTS = ("lost", "resurrected", "manual_repairs", "stuck", "leaks", "crashes", "silent", "errors_injected",
          "acknowledged", "kill_points", "kills", "bit_flips")


def parts_of(arguments):
    """(name, command line) of each part that is asked for."""
    seed = ["--seed", str(arguments.seed)]
    parts = [("bit_flips", ["bit_flips.py", "--flips", arguments.bit_flips], arguments.bit_flips),
             ("kill_points", ["kill_points.py", "--points", str(arguments.kill_points),
                              "--errors", str(arguments.errors)], arguments.kill_points),
             ("power_cuts", ["power_cuts.py", "--cuts", str(arguments.power_cuts)],
              arguments.power_cuts),
             ("kills", ["crash_driver.py", "--kills", str(arguments.kills)], arguments.kills)]
    return [(name, command + seed) for name, command, wanted in parts if str(wanted) != "0"]


def run_part(name, command, directory):
    """(figures, exit code); without figures when the part itself broke."""
    figures = directory / f"{name}.json"
    print(f"--- {name}", flush=True)
    code = subprocess.run([sys.executable, HERE / command[0], *command[1:], "--json", figures],
                          check=False).returncode
    return (json.loads(figures.read_text()) if figures.exists() else {}), code


def merge(parts):
    report = {"schema": 2, **dict.fromkeys(COUNTS, 0), "power_cuts": {}, "skipped": {},
              "seconds": {}}
    for name, figures in parts.items():
        for count in COUNTS:
            report[count] += figures.get(count, 0)
        report["power_cuts"] |= figures.get("power_cuts", {})
        if "skipped" in figures:
            report["skipped"][name] = figures["skipped"]
        seconds = figures.get("seconds", {})
        report["seconds"] |= seconds if isinstance(seconds, dict) else {name: seconds}
    return report | {"parts": parts}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of real daemons, at random moments")
    parser.add_argument("--kill-points", type=int, default=100000, help="I/O indices, at most")
    parser.add_argument("--errors", type=int, default=1800, help="failing operations, about")
    parser.add_argument("--power-cuts", type=int, default=520, help="on ext4 and XFS together")
    parser.add_argument("--bit-flips", default="all", help="about so many, or all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    parts, bad = {}, []
    with tempfile.TemporaryDirectory(prefix="reprise-crash-") as directory:
        for name, command in parts_of(arguments):
            parts[name], code = run_part(name, command, pathlib.Path(directory))
            if code != 0:
                bad.append(name)
    report = merge(parts)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    print(", ".join(f"{key}: {report[key]}" for key in
                    ("kill_points", "power_cuts", "bit_flips", "errors_injected", "kills",
                     "acknowledged", "lost", "resurrected", "manual_repairs", "silent")))
    for name, reason in report["skipped"].items():
        print(f"SKIPPED {name}: {reason}")
    if bad:
        print(f"violations in: {', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
