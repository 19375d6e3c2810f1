import contextlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from fixtures import *  # noqa: E402, F403
from fixtures import pytest_addoption as add_programs  # noqa: E402


def pytest_addoption(parser):
    add_programs(parser)
    with contextlib.suppress(ValueError):
        parser.addoption("--keep-images", action="store_true",
                         help="leave the images in build/image, and take what is there: for work on tests/image itself")
