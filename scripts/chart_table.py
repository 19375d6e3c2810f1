#!/usr/bin/env python3
"""Writes the table of values in helm/sluice/README.md from the comments of helm/sluice/values.yaml.

    scripts/chart_table.py           rewrites the file
    scripts/chart_table.py --check   exits 1 when the file says something else

A value is a key below a comment that begins with "# --"; its default is what stands behind the key, or its block."""

import pathlib
import re
import sys

CHART = pathlib.Path(__file__).resolve().parents[1] / "helm" / "sluice"
BEGIN, END = "<!-- values: made by scripts/chart_table.py -->\n", "<!-- end of values -->\n"


def parse(text):
    """[(path, default, description)]"""
    rows, path, comment = [], [], []
    lines = text.splitlines()
    for index, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = [stripped[4:].strip()]
        elif stripped.startswith("#") and comment:
            comment.append(stripped[1:].strip())
        elif key := re.fullmatch(r"( *)([\w-]+):(?: (.*))?", line):
            depth = len(key[1]) // 2
            path = path[:depth] + [key[2]]
            if comment:
                default = key[3] or " ".join(one.strip() for one in block(lines[index + 1:], depth))
                rows.append((".".join(path), default, " ".join(comment)))
            comment = []
        elif not stripped:
            comment = []
    return rows


def block(lines, depth):
    """The lines of a value that begins below its key."""
    for line in lines:
        if not line.startswith("  " * (depth + 1)):
            return
        yield line


def table(rows):
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, description in rows:
        # A bar ends a cell, in code too.
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{path}`", f"`{default}`", description)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments):
    page = CHART / "README.md"
    text = page.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    wanted = head + BEGIN + "\n" + table(parse((CHART / "values.yaml").read_text())) + "\n" + END + tail
    if "--check" in arguments:
        if text != wanted:
            print("helm/sluice/README.md differs from values.yaml: run scripts/chart_table.py")
        return int(text != wanted)
    page.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
