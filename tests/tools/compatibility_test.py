#!/usr/bin/env python3
"""scripts/compatibility.py adds what tests counted, and shows what is not equal, failed, was skipped or did not run."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import compatibility  # noqa: E402

GOOD = {
    "canonical_product_test": [("compared/weight types/Q4_K/canonical products", "20 20 0")],
    "golden_test": [("compared/weight types/Q4_K/rows of logits", "7 7 0"),
                    ("compared/architectures/llama/greedy tokens", "24 24 1")],
    "gguf_test": [("compared/file formats/GGUF v2/keys read back", "5 5 0")],
    "hostile_file_test": [("compared/hostile files/refused/files", "1 1 0")],
    "e2e": [("compared/tokenizers/qwen2/texts", "2000 2000 0"), ("compared/tokenizers/qwen2/texts", "10 10 0")],
}


def account(properties, inside="", name="Case/model_a"):
    listed = "".join(f'<property name="{key}" value="{value}"/>' for key, value in properties)
    return (f'<testsuites><testsuite><testcase name="{name}" classname="Suite" status="run"><properties>'
            f'<property name="other" value="x"/>{listed}</properties>{inside}</testcase></testsuite></testsuites>')


def report(changes=None, flags=()):
    """Lines and exit code for the good accounts with `changes`: program to XML, None to leave it out."""
    files = {program: account(GOOD.get(program, [])) for program in [*compatibility.PROGRAMS, "e2e"]}
    files.update(changes or {})
    with tempfile.TemporaryDirectory() as folder:
        for program, xml in files.items():
            if xml is not None:
                (pathlib.Path(folder) / f"{program}.xml").write_text(xml)
        (pathlib.Path(folder) / "ctest.xml").write_text("<testsuite/>")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = compatibility.main([*flags, folder])
        return out.getvalue().splitlines(), code


def row(lines, name):
    [line] = [line for line in lines if line.split()[:1] == [name]]
    return line.split()


class CompatibilityTest(unittest.TestCase):
    def test_adds_kinds_and_accounts(self):
        lines, code = report()
        self.assertEqual(code, 0)
        self.assertEqual(row(lines, "Q4_K")[:5], ["Q4_K", "27", "27", "0", "0"])
        self.assertEqual(row(lines, "llama")[:5], ["llama", "24", "24", "0", "1"])
        self.assertIn("models 1", " ".join(row(lines, "llama")))
        self.assertEqual(row(lines, "qwen2")[:5], ["qwen2", "2010", "2010", "0", "0"])
        self.assertEqual(lines[-1], "everything that was compared is equal")

    def test_one_that_is_not_equal(self):
        lines, code = report({"e2e": account([("compared/tokenizers/qwen2/texts", "2000 1999 0")])})
        self.assertEqual((row(lines, "qwen2")[1:4], lines[-1], code), (["2000", "1999", "1"], "not equal: 1", 1))

    def test_what_follows_a_comma_tells_kinds_apart(self):
        properties = [(f"compared/weight types/F16/op outcomes, {isa}", "3 3 0") for isa in ("avx2", "avx512")]
        lines, code = report({"linear_bits_test": account(properties)})
        self.assertEqual((row(lines, "F16")[1:], code), (["6", "6", "0", "0", "op", "outcomes", "6"], 0))

    def test_a_test_that_failed_counts_though_nothing_differs(self):
        lines, code = report({"golden_test": account(GOOD["golden_test"], "<failure/>")})
        self.assertEqual((lines[-2:], code), (["failed: golden_test: Suite.Case/model_a", "not equal: 0"], 1))

    def test_programs_that_are_absent_or_torn(self):
        self.assertIn("did not run to its end: linear_bits_test", report({"linear_bits_test": None})[0])
        self.assertEqual(report({"linear_bits_test": None})[1], 1)
        lines, code = report({"e2e": "<torn"})
        self.assertIn("did not run to its end: test_tokenizers.py", lines)
        self.assertEqual(code, 1)
        lines, code = report({"gguf_test": account([])})
        self.assertIn("nothing was compared: file formats", lines)
        self.assertEqual(code, 1)

    def test_a_skipped_test_is_a_problem_unless_allowed(self):
        skips = {"linear_bits_test": account([], "<skipped/>", "Avx2EqualsAvx512"),
                 "golden_test": account(GOOD["golden_test"]).replace("<testsuite>", """<testsuite>
                     <testcase name="smollm2" classname="Golden" status="notrun"/>""")}
        named = ["skipped: golden_test: Golden.smollm2", "skipped: linear_bits_test: Suite.Avx2EqualsAvx512"]
        lines, code = report(skips)
        self.assertEqual((lines[-3:], code), ([*named, "not equal: 0"], 1))
        lines, code = report(skips, ["--allow-skips"])
        self.assertEqual((lines[-3:], code), ([*named, "everything that was compared is equal"], 0))
        lines, code = report(skips, ["--json"])
        self.assertEqual((json.loads("\n".join(lines))["problems"], code), (named, 1))
        lines, code = report(skips, ["--json", "--allow-skips"])
        account_of = json.loads("\n".join(lines))
        self.assertEqual((account_of["problems"], len(account_of["skipped"]), code), ([], 2, 0))

    def test_a_skip_of_a_test_that_compares_nothing_does_not_matter(self):
        lines, code = report({"ops_test": account([], "<skipped/>", "PlantedBug")})
        self.assertEqual((lines[-1], code), ("everything that was compared is equal", 0))

    def test_json(self):
        lines, code = report(flags=["--json"])
        counts = json.loads("\n".join(lines))["tables"]["weight types"]["Q4_K"]["rows of logits"]
        self.assertEqual((counts, code), ({"cases": 7, "equal": 7, "not_equal": 0, "near_ties": 0}, 0))


if __name__ == "__main__":
    unittest.main()
