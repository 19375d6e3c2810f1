#!/usr/bin/env python3
"""Prints what gpu_check.sh found as one table: case, target, figure, limit, ratio, passed or not, and beside it what
--numerics fast gave ("same": it runs the same code).

    gpu_table.py RESULTS...      folders of gpu_check.sh; later ones replace lines of earlier ones

A target is a figure, or so many times what llama.cpp reached in the same run; where it was not measured, the figure of
the same card in PEER. Exit code 0: everything that was run passed.
"""

import json
import pathlib
import statistics
import sys

# llama.cpp of llama-cpp-python 0.3.36 on an H200 (2026-11-23), used when it was not run beside.
PEER = {
    ("smollm2", "tg b1"): 960, ("smollm2", "tg b64"): 11900, ("smollm2", "tg b256"): 22300, ("smollm2", "pp2048"): 58000,
    ("0.5b-q4km", "tg b1"): 912, ("0.5b-q4km", "tg b64"): 10500, ("0.5b-q4km", "tg b256"): 19500,
    ("0.5b-q4km", "pp2048"): 49000,
}
# Case, figure, what it is called, target: ("peer", least, good), (least, good), ("most", least, good) for seconds, or
# ("limit", share, good share).
ENGINE = [
    ("0.5b-q4km", "tg b1", 512, "0.5B Q4_K_M, batch 1, context 512", ("peer", 3, 3.7)),
    ("smollm2", "tg b1", 512, "SmolLM2 Q4_1, batch 1, context 512", ("peer", 3, 3.7)),
    ("0.5b-q4km", "tg b64", 128, "0.5B Q4_K_M, batch 64", ("peer", 2.5, 5)),
    ("smollm2", "tg b64", 128, "SmolLM2 Q4_1, batch 64", ("peer", 2.5, 5)),
    ("0.5b-q4km", "tg b256", 128, "0.5B Q4_K_M, batch 256", ("peer", 3, 7)),
    ("smollm2", "tg b256", 128, "SmolLM2 Q4_1, batch 256", ("peer", 3, 7)),
    ("0.5b-q4km", "pp2048", 512, "0.5B Q4_K_M, prefill 2048", ("peer", 2.5, 5)),
    ("smollm2", "pp2048", 512, "SmolLM2 Q4_1, prefill 2048", ("peer", 2.5, 5)),
    ("0.5b-bf16", "tg b1", 128, "0.5B BF16, batch 1", (1700, 2600)),
    ("0.5b-bf16", "tg b64", 128, "0.5B BF16, batch 64", (35000, 70000)),
    ("0.5b-bf16", "tg b256", 128, "0.5B BF16, batch 256", (60000, 130000)),
    ("7b-bf16", "tg b1", 128, "7B BF16, batch 1", (220, 260)),
    ("7b-bf16", "tg b64", 128, "7B BF16, batch 64", (10000, 13000)),
    ("7b-bf16", "pp2048", 128, "7B BF16, prefill 2048", (40000, 50000)),
    ("7b-q4km", "tg b1", 128, "7B Q4_K_M, batch 1", ("limit", 0.5, 0.75)),
]
SERVER = [("smollm2", 20000), ("0.5b-bf16", 25000)]
FIRST_TOKEN = [("0.5b-q4km", 4, 2), ("0.5b-bf16", 4, 2)]
READY = [("0.5b-bf16", 2.5, 1.2), ("7b-bf16", 5, 3)]


def read(folders):
    """Lines of all folders as dictionaries; a section's file of a later folder replaces the earlier ones'."""
    files = {}
    for folder in folders:
        for file in sorted(pathlib.Path(folder).glob("*.jsonl")):
            files[file.name] = file
    lines = []
    for file in files.values():
        for text in file.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                print(f"{file}: a line is not JSON: {text[:80]}", file=sys.stderr)
    return lines


def engine_figures(lines):
    """(case, figure, context) -> (tokens a second, limit)."""
    figures = {}
    for line in lines:
        if line["check"] == "engine":
            for name, limit in line.get("limits", {}).items():
                figure = "tg " + name.split()[1] if name.startswith("tg") else name
                figures[line["name"], figure, line["context"]] = (line[name], limit)
    return figures


def peer_figures(lines):
    """(case, figure) -> tokens a second, as measured in this run: the median of llama-bench's readings, whose mean has the
    first one in it, which is slow."""
    figures = {}
    for line in lines:
        if line["check"] == "peer":
            prompt, generated, depth = line["n_prompt"], line["n_gen"], line.get("n_depth", 0)
            value = statistics.median(line.get("samples_ts") or [line["avg_ts"]])
            if generated and not prompt and depth == 0:
                figures[line["name"], "tg b1"] = value
            elif prompt and not generated and depth == 0:
                figures[line["name"], f"pp{prompt}"] = value
        elif line["check"] == "batched" and line["pl"] > 1:
            figures[line["name"], f"tg b{line['pl']}"] = line["speed_tg"]
    return figures


class Table:
    def __init__(self):
        self.rows, self.failed, self.passed = [], 0, 0

    def add(self, name, least, good, figure, limit="", beside="", fast="", higher=True):
        ok = figure >= least if higher else figure <= least
        well = figure >= good if higher else figure <= good
        self.passed += ok
        self.failed += not ok
        ratio = figure / least if higher else least / figure if figure else 0
        self.rows.append((name, f"{least:,.6g}", f"{figure:,.6g}", f"{ratio:.2f}", limit, beside, fast,
                          "good" if well and ok else "passed" if ok else "FAILED"))

    def missing(self, name):
        self.rows.append((name, "", "not run", "", "", "", "", ""))

    def print(self):
        head = ("case", "target", "figure", "of target", "of limit", "llama.cpp", "fast", "")
        widths = [max(len(row[i]) for row in [head, *self.rows]) for i in range(len(head))]
        for row in [head, *self.rows]:
            print("  ".join(text.ljust(width) if i in (0, 7) else text.rjust(width)
                            for i, (text, width) in enumerate(zip(row, widths))).rstrip())


def add_checks(table, lines):
    for check in ("tests", "sanitizer", "verify", "kernels"):
        found = [line for line in lines if line["check"] == check]
        if not found:
            table.missing(check)
            continue
        failed = [line["name"] for line in found if line["exit"] != 0 or line.get("passed") == 0]
        table.add(f"{check}: programs without an error", len(found), len(found), len(found) - len(failed),
                  beside="; ".join(failed)[:60])
    wrong = [line for line in lines if line["check"] == "engine" and line.get("wrong_tokens", -1) >= 0]
    if wrong:
        table.add("engine: models whose batch 64 has the tokens of batch 1", len(wrong), len(wrong),
                  sum(line["wrong_tokens"] == 0 for line in wrong))


def add_engine(table, figures, peers):
    for case, figure, context, name, target in ENGINE:
        if (case, figure, context) not in figures:
            table.missing(name)
            continue
        value, limit = figures[case, figure, context]
        beside = ""
        if target[0] == "peer":
            peer = peers.get((case, figure))
            beside = f"{peer:,.0f}" if peer else f"({PEER[case, figure]:,})"
            least, good = (times * (peer or PEER[case, figure]) for times in target[1:])
        elif target[0] == "limit":
            least, good = (share * limit for share in target[1:])
        else:
            least, good = target
        fast = figures.get((f"{case}-fast", figure, 128))
        table.add(name + ", tok/s", round(least), round(good), round(value),
                  f"{100 * value / limit:.0f} %" if limit else "", beside,
                  "same" if figure in ("tg b1", "tg b64") else f"{fast[0]:,.0f}" if fast else "not run")


def add_server(table, lines, figures):
    served = {line["name"]: line for line in lines if line["check"] == "server"}
    for case, least in SERVER:
        line = served.get(f"{case} 64-streams")
        if not line or "output_tokens_per_second" not in line:
            table.missing(f"server, {case}, 64 streams")
            continue
        value, errors = line["output_tokens_per_second"], line["calls"] - line["calls_ok"]
        table.add(f"server, {case}, 64 streams of 128 + 128, tok/s", least, 1.5 * least, round(value))
        engine = figures.get((case, "tg b64", 128))
        if engine:
            table.add("  share of the engine's own, %", 75, 90, round(100 * value / engine[0]))
        table.add("  calls that ended OK", line["calls"], line["calls"], line["calls"] - errors)
        if f"{case} host-gap" in served:
            table.add("  the device's waits for the host, % of its steps", 5, 1, 100 * served[f"{case} host-gap"]["share"],
                      higher=False)
        else:
            table.missing("  the device's waits for the host")
    for case, least, good in FIRST_TOKEN:
        line = served.get(f"{case} first-token")
        if line and "first_token_ms" in line:
            table.add(f"server, {case}, first token, p50 ms", least, good, line["first_token_ms"]["p50"], higher=False)
        else:
            table.missing(f"server, {case}, first token")
    for case, least, good in READY:
        line = served.get(f"{case} start")
        if line and "seconds" in line:
            table.add(f"start to ready, {case}, s", least, good, line["seconds"], higher=False)
        else:
            table.missing(f"start to ready, {case}")


def main(folders):
    lines = read(folders)
    figures, peers, table = engine_figures(lines), peer_figures(lines), Table()
    add_checks(table, lines)
    add_engine(table, figures, peers)
    add_server(table, lines, figures)
    for line in lines:
        if line["check"] == "engine" and "memory_gb_s" in line:
            print(f"{line['device']}; {line['machine']}; {line['build']}; numerics {line['numerics']}; "
                  f"copy {line['memory_gb_s']:.0f} GB/s, cuBLAS {line['gemm_tflops']} TFLOP/s")
            break
    table.print()
    print(f"{table.passed} passed, {table.failed} failed, {sum(row[2] == 'not run' for row in table.rows)} not run")
    return 1 if table.failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
