#!/usr/bin/env python3
"""Writes the table of flags in docs/configuration.md from what `sluice serve --help` says.

    scripts/configuration_table.py [PROGRAM]      rewrites the file
    scripts/configuration_table.py --check [PROGRAM]   exits 1 when the file says something else"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- flags: made by scripts/configuration_table.py -->\n", "<!-- end of flags -->\n"


def parse(text):
    """[(group, [(flag, value, meaning, default)])] of a help text."""
    groups = []
    for line in text.splitlines():
        group = re.fullmatch(r"(\w[\w ]*):", line)
        if group and group[1] not in ("Options", "Example"):
            groups.append((group[1], []))
            continue
        flag = re.fullmatch(r"  (--[\w-]+)(?: (\S+(?: in \[.*?\])?))?(?:\s{2,}|(?<=\S) (?=[A-Z]))(\S.*)", line)
        if flag and groups:
            groups[-1][1].append([flag[1], flag[2] or "", flag[3]])
        elif groups and re.match(r"  --", line):  # the description is on a line of its own
            words = line.split(None, 1)
            groups[-1][1].append([*words, ""] if len(words) == 2 else [words[0], "", ""])
        elif groups and groups[-1][1] and re.match(r" {30,}\S", line):
            groups[-1][1][-1][2] = (groups[-1][1][-1][2] + " " + line.strip()).strip()
    result = []
    for group, rows in groups:
        flags = []
        for flag, value, meaning in rows:
            default = re.search(r" \[([^\]]*)\]$", meaning)
            flags.append((flag, value, meaning[:default.start()] if default else meaning, default[1] if default else ""))
        if flags:
            result.append((group, flags))
    return result


def table(groups):
    lines = []
    for group, flags in groups:
        lines += [f"### {group}", "", "| flag | value | default | meaning |", "|---|---|---|---|"]
        for flag, value, meaning, default in flags:
            lines.append(f"| `{flag}` | {value and f'`{value}`'} | {default and f'`{default}`'} | {meaning} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def main(arguments):
    check = "--check" in arguments
    programs = [argument for argument in arguments if argument != "--check"]
    program = programs[0] if programs else ROOT / "build/release/sluice"
    help_text = subprocess.run([program, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    wanted = head + BEGIN + "\n" + table(parse(help_text)) + END + tail
    if check:
        if page != wanted:
            print(f"{PAGE.relative_to(ROOT)} differs from sluice serve --help: run scripts/configuration_table.py")
        return int(page != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
