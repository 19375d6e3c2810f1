import collections
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "e2e"))
import chart  # noqa: E402
import harness  # noqa: E402,F401 (makes the stubs)


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; run by scripts/test.sh --full")


@pytest.fixture(scope="session")
def program(request):
    # The option is that of tests/e2e, where that is tested too.
    path = pathlib.Path(request.config.getoption("--sluice", os.environ.get("SLUICE_PROGRAM", chart.ROOT / "build/release/sluice")))
    assert path.exists(), f"{path} is not built"
    return path


@pytest.fixture(scope="session")
def serve_flags(program):
    """The flags of `sluice serve`."""
    help_text = subprocess.run([program, "serve", "--help"], capture_output=True, text=True, check=True, timeout=30).stdout
    flags = {word.removeprefix("--") for line in help_text.splitlines() if line.startswith("  -")
             for word in line.split()[:1] if word.startswith("--")}
    assert len(flags) > 30, help_text
    return flags


@pytest.fixture
def count(record_property):
    """count(what, number): numbers for the last lines of the run."""
    return lambda what, number=1: record_property("count " + what, number)


def pytest_terminal_summary(terminalreporter):
    totals = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    if name.startswith("count "):
                        totals[name.removeprefix("count ")] += value
    if totals:
        terminalreporter.section("chart")
        for name, value in sorted(totals.items()):
            terminalreporter.write_line(f"{value:7d} {name}")
