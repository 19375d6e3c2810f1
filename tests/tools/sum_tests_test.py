#!/usr/bin/env python3
"""scripts/sum_tests.py counts what ran, and a crash or an absent run is a failure."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import sum_tests  # noqa: E402

CTEST = "<testsuite>{}</testsuite>"
RUN = '<testcase name="{}" status="run"/>'
FAIL = '<testcase name="{}" status="fail"><failure/></testcase>'
GTEST = (
    '<testsuites><testsuite><testcase name="a" status="run" result="completed"/>'
    '<testcase name="b" status="run" result="completed"/>'
    '<testcase name="c" status="run" result="skipped"><skipped/></testcase></testsuite></testsuites>'
)
PYTEST = '<testsuites><testsuite><testcase name="x"/><testcase name="y"><skipped/></testcase></testsuite></testsuites>'


def summary(files):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = sum_tests.main(root)
        return out.getvalue().splitlines()[-1], code


class SumTestsTest(unittest.TestCase):
    def test_adds_cases_of_programs_scripts_and_pytest(self):
        files = {"dev/ctest.xml": CTEST.format(RUN.format("p") + RUN.format("script")), "dev/p.xml": GTEST, "e2e.xml": PYTEST}
        self.assertEqual(summary(files), ("4 passed, 0 failed, 2 skipped", 0))

    def test_a_program_that_dies_after_its_cases_fails(self):
        files = {"dev/ctest.xml": CTEST.format(FAIL.format("p")), "dev/p.xml": GTEST, "e2e.xml": PYTEST}
        self.assertEqual(summary(files), ("3 passed, 1 failed, 2 skipped", 1))

    def test_a_program_that_dies_at_once_fails(self):
        files = {"dev/ctest.xml": CTEST.format(FAIL.format("p")), "e2e.xml": PYTEST}
        self.assertEqual(summary(files), ("1 passed, 1 failed, 1 skipped", 1))

    def test_a_run_without_tests_fails(self):
        self.assertEqual(summary({"tsan/ctest.xml": CTEST.format(""), "e2e.xml": PYTEST}), ("1 passed, 1 failed, 1 skipped", 1))

    def test_runs_that_are_absent_fail(self):
        self.assertEqual(summary({"dev/p.xml": GTEST, "e2e.xml": "<torn"}), ("0 passed, 2 failed, 0 skipped", 1))


if __name__ == "__main__":
    unittest.main()
