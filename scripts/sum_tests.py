#!/usr/bin/env python3
"""Adds up what the test runs wrote below a folder and ends with "N passed, N failed, N skipped".

    sum_tests.py FOLDER [FAILED_STEP]

Each folder with a ctest.xml is one ctest run; a GoogleTest program of it that wrote NAME.xml beside counts with its
cases, any other ctest entry counts as one. e2e.xml is pytest's account. A run that is absent or whose account is torn counts as a failure. FAILED_STEP is what ended the whole
before its end: one failure, and the runs after it are not missed.
Exit code 1 when anything failed, 2 when nothing could be added up.
"""

import pathlib
import sys
import traceback
import xml.etree.ElementTree as ElementTree


def outcome(case):
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped") is not None
    if skipped or case.get("status") in ("notrun", "disabled") or case.get("result") == "skipped":
        return "skipped"
    return "passed"


def cases_of(path):
    """Outcomes of the test cases in a JUnit or GoogleTest file; None when it is torn or absent."""
    try:
        return [outcome(case) for case in ElementTree.parse(path).getroot().iter("testcase")]
    except (ElementTree.ParseError, OSError):
        return None


def count_ctest(folder):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    try:
        entries = list(ElementTree.parse(folder / "ctest.xml").getroot().iter("testcase"))
        problem = None if entries else "ctest found no tests"
    except FileNotFoundError:
        entries, problem = [], "ctest did not run"
    except (ElementTree.ParseError, OSError) as error:
        entries, problem = [], f"ctest.xml cannot be read: {error}"
    if problem:
        counts["failed"] = 1
        failures.append(f"{folder.name}: {problem}")
    for entry in entries:
        name = entry.get("name")
        whole = "failed" if entry.get("status") == "fail" else outcome(entry)
        outcomes = cases_of(folder / f"{name}.xml")
        if not outcomes:
            outcomes = [whole]
        elif whole == "failed" and "failed" not in outcomes:
            # Crashed, timed out, or a sanitizer spoke after the last case.
            outcomes.append("failed")
        if "failed" in outcomes:
            failures.append(f"{folder.name}: {name}")
        for one in outcomes:
            counts[one] += 1
    return counts, failures


def main(results, failed_step=None):
    total = {"passed": 0, "failed": 0, "skipped": 0}
    rows, failures = [], []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        if failed_step and not (folder / "ctest.xml").exists():
            continue
        counts, failed = count_ctest(folder)
        rows.append((folder.name, counts))
        failures += failed
    outcomes = cases_of(results / "e2e.xml")
    if not outcomes and not failed_step:
        outcomes = ["failed"]
        failures.append("end to end: pytest did not run")
    if outcomes:
        rows.append(("end to end", {kind: outcomes.count(kind) for kind in total}))
    if failed_step:
        rows.append(("the script", {"passed": 0, "failed": 1, "skipped": 0}))
        failures.append(f"step: {failed_step}")
    for name, counts in rows:
        print(f"{name:12} {counts['passed']:5} passed {counts['failed']:3} failed {counts['skipped']:3} skipped")
        for kind in total:
            total[kind] += counts[kind]
    for failure in failures:
        print(f"failed: {failure}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    try:
        code = main(pathlib.Path(sys.argv[1]), *sys.argv[2:3])
    except Exception:
        traceback.print_exc()
        code = 2
    sys.exit(code)
