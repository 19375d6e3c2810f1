#!/usr/bin/env python3
"""Writes the table of metrics in docs/observability.md from what a server exports, which comes on standard input.

    curl -s ADDRESS/metrics | scripts/metrics_table.py            rewrites the file
    curl -s ADDRESS/metrics | scripts/metrics_table.py --check    exits 1 when the file says something else

The server has to have answered a Generate call, and to be started with --tls-cert, or some are missing."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "observability.md"
BEGIN, END = "<!-- metrics: made by scripts/metrics_table.py -->\n", "<!-- end of metrics -->\n"


def parse(text):
    """{metric: [type, labels, meaning]} of the Prometheus text format."""
    families = {}
    for line in text.splitlines():
        if match := re.match(r"# HELP (\S+) (.*)", line):
            families[match[1]] = ["", [], match[2]]
        elif match := re.match(r"# TYPE (\S+) (\w+)", line):
            families[match[1]][0] = match[2]
        elif match := re.match(r"([\w:]+)(?:\{(.*)\})? ", line):
            name = match[1] if match[1] in families else re.sub(r"_(bucket|sum|count)$", "", match[1])
            labels = re.findall(r'(\w+)="', match[2] or "")
            families[name][1] += [label for label in labels if label not in families[name][1] + ["le", "quantile"]]
    return families


def table(families):
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name in sorted(families):
        kind, labels, meaning = families[name]
        lines.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
    return "\n".join(lines) + "\n"


def main(arguments):
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    wanted = head + BEGIN + "\n" + table(parse(sys.stdin.read())) + "\n" + END + tail
    if "--check" not in arguments:
        PAGE.write_text(wanted)
        return 0
    if page != wanted:
        print(f"{PAGE.relative_to(ROOT)} differs from what the server exports: run scripts/metrics_table.py")
    return int(page != wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
