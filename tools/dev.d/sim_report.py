#!/usr/bin/env python3
"""Reports of `tools/dev sim` and `tools/dev mutate`.

  sim_report.py merge --results DIR [--out FILE]      the halves DIR/whole.*.json as one
  sim_report.py mutations --results FILE [--out FILE] with counts and score

Prints a summary; exits 1 when a promise was broken, a bug was not found, or a label not reached.
"""

import argparse
import json
import sys
from pathlib import Path

# A run of at least this many seeds must reach every SOMETIMES label.
SEEDS_FOR_EVERY_LABEL = 5000


def add(total, part):
    for key, value in part.items():
        total[key] = total.get(key, 0) + value


def merge(results):
    halves = [json.loads(path.read_text(encoding="utf-8"))
              for path in sorted(Path(results).glob("whole.*.json"))]
    kinds, labels, violations = {}, {}, []
    for half in halves:
        add(kinds, half["faults"])
        add(labels, half["sometimes"])
        violations += half["violations"]
    seeds = sum(half["seeds"] for half in halves)
    seconds = max((half["seconds"] for half in halves), default=0)
    events = sum(half["events"] for half in halves)
    missed = [label for label, count in labels.items() if count == 0]
    return {
        "schema": 1, "seeds": seeds, "faults": sum(kinds.values()), "faults_by_kind": kinds,
        "violations": len(violations), "violated": violations,
        "determinism_checked": sum(half["determinism_checked"] for half in halves),
        "determinism_mismatches": sum(half["determinism_mismatches"] for half in halves),
        "beyond_bound": sum(half["beyond_bound"] for half in halves),
        "sometimes": labels, "sometimes_missed": len(missed), "missed": missed,
        "events": events, "events_per_second": round(events / seconds) if seconds else 0,
        "seconds": seconds, "processes": len(halves),
    }


def command_merge(options):
    report = merge(options.results)
    bad = report["violations"] + report["determinism_mismatches"]
    if report["seeds"] >= SEEDS_FOR_EVERY_LABEL:
        bad += report["sometimes_missed"]
    for label in report["missed"]:
        print(f"not reached: {label}")
    print(f"{report['seeds']} seeds, {report['faults']} faults, {report['violations']} violations, "
          f"{report['events']} events, {report['events_per_second']}/s, {report['seconds']} s")
    return report, bad or not report["seeds"]


def command_mutations(options):
    results = json.loads(Path(options.results).read_text(encoding="utf-8"))
    found = [r for r in results if r["found_by"]]
    redundant = [r for r in results if not r["found_by"] and r["redundant"]]
    planted = len(results)
    report = {
        "schema": 1, "planted": planted, "found": len(found),
        "found_by_simulator": sum(r["found_by"] == "sim_whole" for r in results),
        "redundant_documented": len(redundant),
        "score": (len(found) + len(redundant)) / planted if planted else 0.0,
        "mutations": results,
    }
    for result in results:
        if result not in found and result not in redundant:
            print(f"not found: {result['name']}")
    print(f"{planted} planted, {len(found)} found, {len(redundant)} redundant: {report['score']:.2f}")
    return report, report["score"] != 1.0


def main():
    parser = argparse.ArgumentParser(description="helper of tools/dev")
    parser.add_argument("command", choices=["merge", "mutations"])
    parser.add_argument("--results", required=True)
    parser.add_argument("--out")
    options = parser.parse_args()
    report, bad = globals()[f"command_{options.command}"](options)
    if options.out:
        Path(options.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
