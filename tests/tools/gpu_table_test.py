#!/usr/bin/env python3
"""scripts/gpu_table.py compares with the target that was measured beside, and what failed or broke off fails."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import gpu_table  # noqa: E402


def engine(name, context, wrong=-1, **figures):
    figures = {key.replace("_", " "): value for key, value in figures.items()}
    return {"check": "engine", "name": name, "exit": 0, "context": context, "wrong_tokens": wrong, "device": "d", "machine": "m",
            "build": "b", "numerics": "n", "memory_gb_s": 4000.0, "gemm_tflops": 700, **figures,
            "limits": {key: 10 * value for key, value in figures.items()}}


def table(*folders):
    """Exit code and printed rows of folders, each a dictionary of file names and lines."""
    with tempfile.TemporaryDirectory() as root:
        paths = []
        for number, files in enumerate(folders):
            paths.append(pathlib.Path(root) / str(number))
            paths[-1].mkdir()
            for name, lines in files.items():
                (paths[-1] / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = gpu_table.main(paths)
    return code, out.getvalue().splitlines()


def row(rows, start):
    [found] = [line for line in rows if line.startswith(start)]
    return found


class GpuTableTest(unittest.TestCase):
    def test_nothing_run_is_nothing_failed(self):
        code, rows = table({})
        self.assertEqual(code, 0)
        self.assertTrue(rows[-1].startswith("0 passed, 0 failed, "))

    def test_target_is_the_peer_measured_beside(self):
        lines = [engine("0.5b-q4km", 512, tg128_b1=2900.0)]
        code, rows = table({"engine.jsonl": lines})
        self.assertEqual(code, 0)  # 3 x 912, from the table of before
        self.assertIn("(912)", row(rows, "0.5B Q4_K_M, batch 1"))
        peer = [{"check": "peer", "name": "0.5b-q4km", "n_prompt": 0, "n_gen": 128, "n_depth": 0, "avg_ts": 1000.0}]
        code, rows = table({"engine.jsonl": lines, "peer.jsonl": peer})
        self.assertEqual(code, 1)
        self.assertIn("3,000", row(rows, "0.5B Q4_K_M, batch 1"))
        self.assertTrue(row(rows, "0.5B Q4_K_M, batch 1").endswith("FAILED"))

    def test_a_slow_first_reading_of_the_peer_does_not_count(self):
        peer = [{"check": "peer", "name": "0.5b-q4km", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "avg_ts": 45000.0,
                 "samples_ts": [37000.0, 49000.0, 48000.0]}]
        _, rows = table({"engine.jsonl": [engine("0.5b-q4km", 512, pp2048=200000.0)], "peer.jsonl": peer})
        self.assertIn(" 48,000 ", row(rows, "0.5B Q4_K_M, prefill"))
        self.assertIn(" 120,000 ", row(rows, "0.5B Q4_K_M, prefill"))

    def test_figures_of_another_context_do_not_count(self):
        _, rows = table({"engine.jsonl": [engine("0.5b-q4km", 128, tg128_b1=9999.0)]})
        self.assertIn("not run", row(rows, "0.5B Q4_K_M, batch 1"))

    def test_fast_numerics_stand_beside(self):
        lines = [engine("7b-bf16", 128, pp2048=41000.0, tg128_b64=11000.0)]
        _, rows = table({"engine.jsonl": lines})
        self.assertIn("not run", row(rows, "7B BF16, prefill"))
        self.assertIn("same", row(rows, "7B BF16, batch 64"))
        _, rows = table({"engine.jsonl": [*lines, engine("7b-bf16-fast", 128, pp2048=43210.0)]})
        self.assertIn(" 41,000 ", row(rows, "7B BF16, prefill"))
        self.assertIn(" 43,210 ", row(rows, "7B BF16, prefill"))

    def test_share_of_the_limit(self):
        line = engine("7b-q4km", 128, tg128_b1=500.0)
        line["limits"]["tg128 b1"] = 900.0
        code, rows = table({"engine.jsonl": [line]})
        self.assertEqual(code, 0)
        self.assertIn("56 %", row(rows, "7B Q4_K_M"))
        line["limits"]["tg128 b1"] = 1100.0
        self.assertEqual(table({"engine.jsonl": [line]})[0], 1)

    def test_wrong_tokens_fail(self):
        self.assertEqual(table({"engine.jsonl": [engine("7b-bf16", 128, wrong=0, tg128_b1=230.0)]})[0], 0)
        self.assertEqual(table({"engine.jsonl": [engine("7b-bf16", 128, wrong=1, tg128_b1=230.0)]})[0], 1)

    def test_a_program_that_failed_or_ran_no_test(self):
        good = {"check": "tests", "name": "a_test", "exit": 0, "passed": 3, "failed": 0, "skipped": 0}
        self.assertEqual(table({"tests.jsonl": [good]})[0], 0)
        self.assertEqual(table({"tests.jsonl": [good, dict(good, name="b_test", exit=124)]})[0], 1)
        code, rows = table({"tests.jsonl": [good, dict(good, name="b_test", passed=0, skipped=3)]})
        self.assertEqual(code, 1)
        self.assertIn("b_test", row(rows, "tests"))

    def test_server(self):
        lines = [{"check": "server", "name": "0.5b-bf16 64-streams", "exit": 0, "output_tokens_per_second": 30000.0, "calls": 512,
                  "calls_ok": 512},
                 {"check": "server", "name": "0.5b-bf16 first-token", "exit": 0, "first_token_ms": {"p50": 3.0}},
                 {"check": "server", "name": "0.5b-bf16 start", "exit": 0, "seconds": 2.6}]
        code, rows = table({"server.jsonl": lines, "engine.jsonl": [engine("0.5b-bf16", 128, tg128_b64=36000.0)]})
        self.assertEqual(code, 1)
        self.assertIn("83", row(rows, "  share of the engine's own"))
        self.assertTrue(row(rows, "server, 0.5b-bf16, first token").endswith("passed"))
        self.assertTrue(row(rows, "start to ready, 0.5b-bf16").endswith("FAILED"))

    def test_later_folders_replace_sections_of_earlier_ones(self):
        bad = {"check": "verify", "name": "x", "exit": 1}
        self.assertEqual(table({"verify.jsonl": [bad]})[0], 1)
        self.assertEqual(table({"verify.jsonl": [bad]}, {"verify.jsonl": [dict(bad, exit=0)]})[0], 0)


if __name__ == "__main__":
    unittest.main()
