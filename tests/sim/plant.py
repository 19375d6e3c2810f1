"""Copies the engine's sources and plants the bugs of planted_bugs.txt in the copies.

    plant.py planted_bugs.txt SOURCE_ROOT OUTPUT FILE...

Each FILE, relative to SOURCE_ROOT, is written below OUTPUT. A bug is

    == what it is
    -- file
    text that is there exactly once
    >>
    what takes its place, where PLANTED is true when the bug is on

Also writes OUTPUT/planted_bugs.cc with the names. A text that is no longer there, or there twice,
is an error: the list follows the sources.
"""

import pathlib
import sys

INCLUDE = '#include "tests/sim/planted_switch.h"\n'


def parse(text):
    bugs = []
    for block in text.split("\n== ")[1:]:
        name, rest = block.split("\n", 1)
        file, rest = rest.split("\n", 1)
        before, after = rest.split("\n>>\n", 1)
        bugs.append((name.strip(), file.removeprefix("-- ").strip(), before, after.rstrip("\n")))
    return bugs


def main():
    bugs_path, root, output = (pathlib.Path(argument) for argument in sys.argv[1:4])
    files = sys.argv[4:]
    texts = {file: (root / file).read_text() for file in files}
    bugs = parse(bugs_path.read_text())
    for number, (name, file, before, after) in enumerate(bugs, start=1):
        if file not in texts:
            sys.exit(f"planted bug '{name}': {file} is not among the files that are copied")
        count = texts[file].count(before)
        if count != 1:
            sys.exit(f"planted bug '{name}': its text is {count} times in {file}, expected once")
        planted = after.replace("PLANTED", f"::sluice::sim::IsPlanted({number})")
        texts[file] = texts[file].replace(before, planted)
    for file, text in texts.items():
        if file.endswith(".h"):
            text = text.replace("#pragma once\n", "#pragma once\n" + INCLUDE, 1)
        else:
            text = INCLUDE + text
        write(output / file, text)
    names = "".join(f'    "{name}",\n' for name, *_ in bugs)
    write(
        output / "planted_bugs.cc",
        '#include "tests/sim/planted_switch.h"\n#include "tests/sim/planting.h"\n\n'
        "namespace sluice::sim {\n\n"
        "std::span<const char* const> PlantedBugs() {\n"
        f"  static constexpr const char* kNames[] = {{\n{names}  }};\n  return kNames;\n}}\n"
        "void Plant(int bug) { planted_bug = bug; }\n\n"
        "}  // namespace sluice::sim\n",
    )


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


main()
