#!/usr/bin/env python3
"""Checks docs/faults.md: all faults are there, and every test that it names exists.

  faults.py [--root DIR]

Each row names at least one test, or says `GAP:` and what is missing. In the last column only names
of tests stand between backticks: `path::name` (pytest), `path::Suite.Name` (GoogleTest), or
`simulator: label`, which tests/sim/whole must contain in quotes. Prints a line for each gap and each
finding, then the totals; exits 1 when there are findings. A gap is none.
"""

import argparse
import re
import sys
from pathlib import Path

FAULTS = 30
COLUMNS = 4
SIMULATOR = "simulator: "


def python_test(text, name):
    return re.search(rf"^def {re.escape(name)}\(", text, re.MULTILINE)


def gtest(text, name):
    suite, _, case = name.partition(".")
    return re.search(rf"^TEST(_F|_P)?\(\s*{re.escape(suite)},\s*{re.escape(case)}\s*\)", text,
                     re.MULTILINE)


def simulator_has(root, label):
    folder = root / "tests/sim/whole"
    return any(f'"{label}"' in path.read_text(encoding="utf-8")
               for path in sorted(folder.glob("*")) if path.suffix in (".cc", ".h"))


def problem_of_test(root, test):
    """Why `test` names no test, or ""."""
    if test.startswith(SIMULATOR):
        known = simulator_has(root, test.removeprefix(SIMULATOR))
        return "" if known else "the simulator has no such fault or label"
    path, separator, name = test.partition("::")
    is_test = {".py": python_test, ".cc": gtest}.get(Path(path).suffix)
    if not separator or is_test is None or not path.startswith(("tests/", "client/")):
        return "not the name of a test"
    if not (root / path).is_file():
        return "no such file"
    return "" if is_test((root / path).read_text(encoding="utf-8"), name) else "no such test there"


def rows_of(text):
    """(number, cells) of each row of the table whose first cell is a number."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            yield int(cells[0]), cells


def check_row(root, cells):
    """(tests, gaps, findings) of one row."""
    if len(cells) != COLUMNS or not all(cells):
        return [], [], [f"has not {COLUMNS} columns with something in each"]
    parts = cells[-1].split("<br>")
    gaps = [part.strip() for part in parts if part.strip().startswith("GAP:")]
    tests = [test for part in parts for test in re.findall(r"`([^`]*)`", part)]
    findings = [f"{test}: {why}" for test in tests if (why := problem_of_test(root, test))]
    for part in parts:
        if not re.search(r"GAP: \S|`", part):
            findings.append(f"neither a test nor a GAP: {part.strip()}")
        elif part.count("`") % 2 or ("GAP" in part and not part.strip().startswith("GAP: ")):
            findings.append(f"malformed: {part.strip()}")
    return tests, gaps, findings


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args(argv).root
    rows = list(rows_of((root / "docs/faults.md").read_text(encoding="utf-8")))
    findings = []
    if [number for number, _ in rows] != list(range(1, FAULTS + 1)):
        findings.append(f"docs/faults.md: the rows are not 1 to {FAULTS}, each once, in order")
    tests, gaps = set(), 0
    for number, cells in rows:
        named, missing, wrong = check_row(root, cells)
        tests.update(named)
        gaps += len(missing)
        for gap in missing:
            print(f"fault {number}: {gap}")
        findings += [f"docs/faults.md: fault {number}: {what}" for what in wrong]
    for finding in findings:
        print(finding)
    print(f"faults: {len(rows)} rows, {len(tests)} tests named, {gaps} gaps")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
