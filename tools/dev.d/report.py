#!/usr/bin/env python3
"""Counts test cases and says how to repeat the failed ones. Helper of tools/dev.

  report.py ctest   --build DIR --tally FILE     after ctest: GoogleTest's XML per executable
  report.py pytest  --junit FILE --tally FILE    after pytest
  report.py total   --tally FILE                 the closing line; exit 1 when something failed
  report.py targets --build DIR --filter RE      test executables whose ctest name matches
  report.py cases   --build DIR --filter RE      two lines: ctest -R regex, --gtest_filter
  report.py json    --build DIR --out FILE       all cases of the last run with their properties

A tally file holds one line "passed failed skipped" per counted run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Count:
    """Cases of one run, and the lines to print about those that failed."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.messages = []

    def fail(self, what, repeat):
        self.failed += 1
        self.messages.append(f"FAILED {what}\n  repeat: {repeat}")

    def write(self, tally):
        for message in self.messages:
            print(message)
        with open(tally, "a", encoding="utf-8") as out:
            out.write(f"{self.passed} {self.failed} {self.skipped}\n")


def known_tests(build):
    """ctest's view: name -> (executable, environment)."""
    text = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"],
                          check=True, capture_output=True, text=True).stdout
    tests = {}
    for test in json.loads(text)["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        executable = test.get("command", [""])[0]
        tests[test["name"]] = (executable, properties.get("ENVIRONMENT", []))
    return tests


def relative(path):
    return os.path.relpath(path, ROOT) if path else "(not built)"


def gtest_cases(xml_file):
    """Yields (name, outcome, properties) of each case that was selected to run."""
    for case in ElementTree.parse(xml_file).getroot().iter("testcase"):
        if case.get("status") == "notrun":
            continue
        outcome = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif case.find("skipped") is not None or case.get("result") == "skipped":
            outcome = "skipped"
        properties = {p.get("name"): p.get("value") for p in case.iter("property")}
        properties["seconds"] = float(case.get("time") or 0)
        yield f"{case.get('classname')}.{case.get('name')}", outcome, properties


def count_executable(count, name, result, executable, environment, xml_file):
    """Adds one test executable: its cases when it lived to report them, else itself as one."""
    command = " ".join([*environment, relative(executable)])
    status, skip = result.get("status"), result.find("skipped")
    if not xml_file.exists():
        if status == "run":
            count.passed += 1
        elif skip is not None and "SKIP" in (skip.get("message") or ""):
            count.skipped += 1
        else:
            count.fail(f"{name}: it ended before reporting (crash, time limit or not built)", command)
        return
    failed_before = count.failed
    for case, outcome, _ in gtest_cases(xml_file):
        if outcome == "passed":
            count.passed += 1
        elif outcome == "skipped":
            count.skipped += 1
        else:
            count.fail(f"{name}: {case}", f"{command} --gtest_filter='{case}'")
    if status == "fail" and count.failed == failed_before:
        count.fail(f"{name}: its cases passed, yet it ended with an error (leak or race?)", command)


def command_ctest(options):
    count, build = Count(), Path(options.build)
    junit = build / "results/ctest.junit"
    if not junit.exists():
        count.fail("ctest did not finish", f"ctest --test-dir {relative(build)}")
    else:
        tests = known_tests(options.build)
        for result in ElementTree.parse(junit).getroot().iter("testcase"):
            name = result.get("name")
            if result.get("status") == "disabled":
                continue
            executable, environment = tests.get(name, ("", []))
            count_executable(count, name, result, executable, environment,
                             build / "results" / f"{name}.xml")
    count.write(options.tally)


def command_pytest(options):
    count = Count()
    if not Path(options.junit).exists():
        count.fail("pytest did not finish", "tools/dev test")
    else:
        for case in ElementTree.parse(options.junit).getroot().iter("testcase"):
            node = f"{case.get('file') or case.get('classname')}::{case.get('name')}"
            if case.find("failure") is not None or case.find("error") is not None:
                count.fail(node, f"tools/dev test --filter '{re.escape(case.get('name'))}'")
            elif case.find("skipped") is not None:
                count.skipped += 1
            else:
                count.passed += 1
    count.write(options.tally)


def command_total(options):
    totals = [0, 0, 0]
    for line in Path(options.tally).read_text(encoding="utf-8").splitlines():
        totals = [total + int(part) for total, part in zip(totals, line.split())]
    if sum(totals) == 0:
        print("no test was selected")
    print("{} passed, {} failed, {} skipped".format(*totals))
    return 1 if totals[1] or sum(totals) == 0 else 0


def command_targets(options):
    pattern = re.compile(options.filter)
    names = {name.split(".")[0] for name in known_tests(options.build) if pattern.search(name)}
    print("\n".join(sorted(names)), end="\n" if names else "")


def listed_cases(executable):
    """Names "Suite.Case" of a GoogleTest executable, parameter comments removed."""
    text = subprocess.run([executable, "--gtest_list_tests"], check=True, capture_output=True,
                          text=True, cwd=ROOT).stdout
    suite = ""
    for line in text.splitlines():
        name = line.split("#")[0].rstrip()
        if re.fullmatch(r"[\w/<>:, ]+\.", name) and not line.startswith(" "):
            suite = name
        elif line.startswith("  ") and suite:
            yield suite + name.strip()


def command_cases(options):
    pattern, names, cases = re.compile(options.filter), [], []
    listed = {}
    for name, (executable, _) in known_tests(options.build).items():
        if not executable or not Path(executable).is_file():
            continue
        if executable not in listed:
            listed[executable] = [c for c in listed_cases(executable) if pattern.search(c)]
        if listed[executable]:
            names.append(re.escape(name))
            cases.extend(listed[executable])
    if names:
        print(f"^({'|'.join(names)})$")
        print(":".join(dict.fromkeys(cases)))


def command_json(options):
    cases = []
    for xml_file in sorted((Path(options.build) / "results").glob("*.xml")):
        for name, outcome, properties in gtest_cases(xml_file):
            cases.append({"test": xml_file.stem, "case": name, "outcome": outcome, **properties})
    Path(options.out).write_text(json.dumps({"schema": 1, "cases": cases}, indent=1) + "\n",
                                 encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="helper of tools/dev")
    parser.add_argument("command", choices=["ctest", "pytest", "total", "targets", "cases", "json"])
    for name in ("build", "tally", "junit", "filter", "out"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    return globals()[f"command_{options.command}"](options) or 0


if __name__ == "__main__":
    sys.exit(main())
