import contextlib
import os
import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from fixtures import *  # noqa: E402, F403
from fixtures import pytest_addoption as add_programs  # noqa: E402

import building  # noqa: E402
from image_store import ImageStore, device_modes  # noqa: E402


def pytest_addoption(parser):
    add_programs(parser)
    with contextlib.suppress(ValueError):
        parser.addoption("--keep-images", action="store_true",
                         help="leave the images in build/image, and take what is there: for work on tests/image itself")
        parser.addoption("--cuda-toolkit", metavar="FOLDER",
                         help="test the image for NVIDIA GPUs in place of that for CPUs, compiled with the CUDA toolkit in FOLDER "
                              "(/usr/local/cuda), which is put into the base as NVIDIA's images have it; takes long")
        parser.addoption("--cuda-preset", metavar="PRESET", default="hopper",
                         help="CMake preset of that image: cuda, or hopper for compute capability 9.0 alone, which compiles faster")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--cuda-toolkit", None):
        return
    for_gpus = [item for item in items if item.path.name == "test_cuda_image.py"]
    if for_gpus:
        config.hook.pytest_deselected(items=for_gpus)
        items[:] = [item for item in items if item not in for_gpus]


@pytest.fixture(scope="session")
def store(request):
    missing = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (scripts/test.sh --full installs what is missing)")
    if os.geteuid() != 0:
        pytest.skip("debootstrap, and buildah as it is used here, want root")
    store = ImageStore(building.FOLDER)
    before = device_modes()
    yield store
    store.remove_containers()
    assert device_modes() == before, "the machine's devices are not as they were"
    if not request.config.getoption("--keep-images", False):
        shutil.rmtree(building.FOLDER)


@pytest.fixture(scope="session")
def image(request, store):
    toolkit = request.config.getoption("--cuda-toolkit", None)
    preset = request.config.getoption("--cuda-preset", None) if toolkit else "release"
    return building.make_image(store, request.config.getoption("--keep-images", False), toolkit, preset)


@pytest.fixture
def tell(record_property):
    """tell(fact): a line of what was found, for the last lines of the run."""
    def tell(fact):
        print(f"image: {fact}")
        record_property("image", fact)
    return tell


def pytest_terminal_summary(terminalreporter):
    facts = [value for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", "") == "call"
             for name, value in report.user_properties if name == "image"]
    if facts:
        terminalreporter.section("image")
        for fact in facts:
            terminalreporter.write_line(fact)


@pytest.fixture
def container(store, image):
    """A container without a shell, and its root."""
    name, root = store.container(image.name)
    for path in filter(building.SHELL.fullmatch, image.tree):
        (root / path[1:]).unlink()
    yield name, root
    store.remove(name)
