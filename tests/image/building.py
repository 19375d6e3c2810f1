"""The images of the tests: bases, as no registry gives them here, and what is built on them."""

import dataclasses
import pathlib
import re
import shutil
import subprocess
import time

import harness
from file_tree import read_tree

BASE = "docker.io/library/debian:12-slim"  # as the Dockerfile names it
COMMIT = "0123456789ab"
USER, GROUP = 65532, 65532
PROGRAM = "/opt/sluice/sluice"
FOLDER = harness.ROOT / "build" / "image"
CACHE = harness.ROOT / "build" / "image-ccache"
SHELL = re.compile(r".*/s?bin/(sh|r?bash|dash|ash|busybox|zsh|m?ksh|t?csh|fish)")
# Of the folder of CUDA's libraries what a program is compiled with: those of mathematics are some GB, and not used.
CUDA_LIBRARIES = re.compile(r"lib(cudart(_static)?|cudadevrt)\b.*|(?!.*\.(so|a)\b).*")


@dataclasses.dataclass
class Image:
    name: str
    config: dict  # what the image says of how it is run
    tree: dict
    base: dict  # the tree of the image below
    stage: pathlib.Path  # root of what it was compiled in
    options: list  # of the build
    preset: str


def make_base(store):
    """Debian as small as it comes. The image of that name has less still: no locales, no documents."""
    container, root = store.container("scratch")
    done = subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "dev"):
        for path in (root / folder).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    store.commit(container, BASE)


def make_cuda_base(store, image, toolkit):
    """The same with a CUDA toolkit of this machine where NVIDIA's images have theirs, and the variable that they have."""
    def without(folder, names):
        return [name for name in names if pathlib.Path(folder).name in ("lib", "lib64") and pathlib.Path(folder).parent.name != "nvvm"
                and (pathlib.Path(folder) / name).is_file() and not CUDA_LIBRARIES.fullmatch(name)]

    container, root = store.container(BASE)
    shutil.copytree(pathlib.Path(toolkit).resolve(), root / "usr/local/cuda", symlinks=True, ignore=without)
    assert (root / "usr/local/cuda/lib64/libcudart_static.a").exists(), f"{toolkit} has nothing to link programs with"
    store.run("config", "--env", "PATH=/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    store.commit(container, image)


def tree_of(store, image):
    container, root = store.container(image)
    tree = read_tree(root)
    store.remove(container)
    return tree


def make_image(store, take, toolkit, preset):
    """The image, built unless it is to be taken as it is there."""
    if not (take and store.has(BASE)):
        make_base(store)
    # The compiler's cache stays for the next run. What it makes is compared with what the second build makes without.
    CACHE.mkdir(exist_ok=True)
    kind, arguments = "sluice", ["--build-arg", f"COMMIT={COMMIT}"]
    if toolkit:
        kind, build_base = f"sluice-{preset}", "localhost/cuda-devel:test"
        if not (take and store.has(build_base)):
            make_cuda_base(store, build_base, toolkit)
        arguments += ["--build-arg", f"BUILD_BASE={build_base}", "--build-arg", f"PRESET={preset}"]
    name, stage = f"localhost/{kind}:test", f"localhost/{kind}-build:test"
    if not (take and store.has(name)):
        options = ["--layers", "--volume", f"{CACHE}:/root/.cache/ccache", *arguments]
        begin = time.monotonic()
        store.build(harness.ROOT, stage, "--target", "build", *options)
        store.build(harness.ROOT, name, *options)
        print(f"image: {preset} built in {time.monotonic() - begin:.0f} s")
    _, root = store.container(stage)
    return Image(name, store.config(name), tree_of(store, name), tree_of(store, BASE), root, arguments, preset)
