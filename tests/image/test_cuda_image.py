"""The image for NVIDIA GPUs, where there is none: what is in it, and what it says. Only with --cuda-toolkit; what holds of
both images, that it serves on CPUs among it, test_image.py tests then of this one."""

import json
import re

import harness
import pytest
from building import PROGRAM
from file_tree import megabytes

pytestmark = pytest.mark.long


def test_it_is_for_the_capabilities_of_its_preset(image, tell):
    presets = json.loads((harness.ROOT / "CMakePresets.json").read_text())["configurePresets"]
    [preset] = [one for one in presets if one["name"] == image.preset]
    cache = (image.stage / "src/build" / image.preset / "CMakeCache.txt").read_text()
    [capabilities] = re.findall(r"^SLUICE_CUDA_ARCHITECTURES:\w+=(.*)$", cache, re.M)
    assert capabilities == preset["cacheVariables"]["SLUICE_CUDA_ARCHITECTURES"]
    assert re.search(r"^SLUICE_CUDA:\w+=ON$", cache, re.M)
    tell(f"for compute capability {capabilities}")


def test_of_cuda_it_has_what_is_in_the_program(image, container, tell):
    """The driver's library comes from the host, with the container's runtime; nothing else of NVIDIA's is looked for."""
    _, root = container
    added = sorted(path for path in image.tree.keys() - image.base.keys())
    assert not [path for path in added if re.search(r"cuda|cublas|nvidia|nvrtc|nccl|cudnn", path.lower())], added
    assert [path for path in (image.stage / "usr/local/cuda/bin").iterdir() if path.name == "nvcc"], "what was it compiled with?"
    program = (root / PROGRAM[1:]).read_bytes()
    wanted = set(re.findall(rb"\blib(?:cu|nv|nccl)[a-z_A-Z]*(?:-[a-z]+)?\.so(?:\.\d+)*", program))
    assert wanted == {b"libcuda.so.1"}, wanted
    assert b".nv_fatbin" in program
    tell(f"{megabytes(image.tree) - megabytes(image.base):.1f} MB over its base, {len(program) / 1e6:.1f} MB of it the program")


@pytest.mark.parametrize("arguments, code", [
    (["serve", "--listen", "127.0.0.1:0", "--log-level", "warn"], 78),
    (["generate", "--prompt", "a"], 1)], ids=["serve", "generate"])
def test_it_says_that_there_is_no_gpu(store, container, arguments, code, tell):
    name, _ = container
    assert harness.MODEL.exists(), "run scripts/fetch_model.sh first"
    mounts = ["--volume", f"{harness.MODEL.resolve().parent}:/models:ro"]
    done = store.run("run", "--isolation", "chroot", *mounts, name, "--", PROGRAM, *arguments, "--device", "cuda:0", "--model",
                     f"/models/{harness.MODEL.name}", check=False)
    # Others are of buildah, which say the code.
    lines = [line for line in done.stderr.splitlines() if not re.search("exit status|exited with status", line)]
    tell(lines[0] if lines else "nothing said")
    assert done.returncode == code and done.stdout == "", done
    assert len(lines) == 1 and re.fullmatch(rf"sluice {arguments[0]}: .*cuda:0: no NVIDIA driver is loaded", lines[0]), done.stderr
