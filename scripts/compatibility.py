#!/usr/bin/env python3
"""Prints, for each weight type, architecture, tokenizer and file format: cases compared, equal, not equal, near-ties.

    compatibility.py [--json] [--allow-skips] PATH...

PATH is the account of a test program or of pytest (XML), or a folder of such. Every number was counted by a test while
it compared (tests/testing/tally.h, and record_property in tests/e2e): a property "compared/TABLE/ROW/KIND" with the
value "CASES EQUAL NEAR_TIES". Near-ties are positions where the reference's two best tokens are closer than the
documented error: set apart, not among the cases. A model counts for each type that one of its matrices has.
A test may stop at its first difference: it has fewer cases then.
Exit code 1 when anything is not equal, or a test that compares failed, was skipped or did not run. With --allow-skips
a skipped test is named only: a machine may lack an instruction set, or the file of a model.
"""

import argparse
import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

TABLES = ("weight types", "architectures", "tokenizers", "file formats", "hostile files")
# Accounts that have to be there, and the tests of them that count here.
PROGRAMS = ("canonical_product_test", "dequantize_test", "linear_bits_test", "golden_test", "tokenizer_test",
            "gguf_test", "safetensors_test", "safetensors_golden_test", "hostile_file_test")
END_TO_END = "test_tokenizers"


class Report:
    def __init__(self):
        self.tables = {table: {} for table in TABLES}  # table: row: kind: [cases, equal, near_ties]
        self.models = {}  # architecture: the golden models that were compared
        self.problems = []
        self.skipped = []

    def add_file(self, path):
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, OSError) as error:
            self.problems.append(f"{path.name} cannot be read: {error}")
            return
        for case in root.iter("testcase"):
            self.add_case(path.stem, case)

    def add_case(self, program, case):
        suite = case.get("classname", "")
        name = f"{program}: {suite}.{case.get('name')}"
        properties = [p for p in case.iter("property") if p.get("name", "").startswith("compared/")]
        if properties or program in PROGRAMS or END_TO_END in suite:
            if case.find("failure") is not None or case.find("error") is not None:
                self.problems.append(f"failed: {name}")
            elif case.find("skipped") is not None or case.get("status") == "notrun":
                self.skipped.append(name)
        for one in properties:
            _, table, row, kind = one.get("name").split("/", 3)
            if table == "architectures":
                self.models.setdefault(row, set()).add(case.get("name").partition("/")[2] or suite)
            counts = self.tables[table].setdefault(row, {}).setdefault(kind.split(",")[0], [0, 0, 0])
            for i, number in enumerate(one.get("value").split()):
                counts[i] += int(number)

    def finish(self, stems):
        for program in PROGRAMS:
            if program not in stems:
                self.problems.append(f"did not run to its end: {program}")
        if not any(kind == "texts" for row in self.tables["tokenizers"].values() for kind in row):
            self.problems.append(f"did not run to its end: {END_TO_END}.py")
        self.problems += [f"nothing was compared: {table}" for table, rows in self.tables.items() if not rows]

    def skips_are_problems(self):
        self.problems += [f"skipped: {name}" for name in self.skipped]

    def not_equal(self):
        return sum(cases - equal for rows in self.tables.values() for kinds in rows.values()
                   for cases, equal, _ in kinds.values())


def total(kinds):
    return [sum(column) for column in zip(*kinds.values())]


def text(report):
    width = max([len(row) for rows in report.tables.values() for row in rows] + [16]) + 2
    for table, rows in report.tables.items():
        yield f"{f'{table} ({len(rows)})':{width}} {'cases':>9} {'equal':>9} {'not equal':>9} {'near-ties':>9}"
        for row in sorted(rows, key=str.lower):
            cases, equal, near_ties = total(rows[row])
            parts = ", ".join(f"{kind} {counts[0]}" for kind, counts in sorted(rows[row].items()) if counts[0])
            if table == "architectures":
                parts += f"; models {len(report.models[row])}"
            yield f"  {row:{width - 2}} {cases:9} {equal:9} {cases - equal:9} {near_ties:9}  {parts}"
        yield ""
    yield from (f"skipped: {name}" for name in report.skipped if f"skipped: {name}" not in report.problems)
    yield from report.problems
    bad = report.not_equal()
    yield f"not equal: {bad}" if bad or report.problems else "everything that was compared is equal"


def as_json(report):
    tables = {table: {row: {kind: {"cases": cases, "equal": equal, "not_equal": cases - equal, "near_ties": near_ties}
                            for kind, (cases, equal, near_ties) in sorted(kinds.items())}
                      for row, kinds in sorted(rows.items())} for table, rows in report.tables.items()}
    return json.dumps({"tables": tables, "models": {row: sorted(names) for row, names in sorted(report.models.items())},
                       "skipped": report.skipped, "problems": report.problems}, indent=1)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", type=pathlib.Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--allow-skips", action="store_true", help="tests that were skipped are no problems")
    options = parser.parse_args(arguments)
    report = Report()
    stems = set()
    for path in options.paths:
        for file in sorted(path.glob("*.xml")) if path.is_dir() else [path]:
            if file.name != "ctest.xml":  # ctest's own account has no properties of cases
                stems.add(file.stem)
                report.add_file(file)
    report.finish(stems)
    if not options.allow_skips:
        report.skips_are_problems()
    if options.json:
        print(as_json(report))
    else:
        print("\n".join(text(report)))
    return 1 if report.problems or report.not_equal() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
