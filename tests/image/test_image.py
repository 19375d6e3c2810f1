"""The image that the Dockerfile makes, built on a Debian that debootstrap made: what is in it, that it serves, and that a
second build makes the same. Builds the program twice."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import harness
import pytest
from file_tree import differences, megabytes, read_tree, writable
from harness import greedy, health_pb2, pb
from image_store import ImageStore

pytestmark = pytest.mark.long

BASE = "docker.io/library/debian:12-slim"  # as the Dockerfile names it
IMAGE, STAGE, SECOND = "localhost/sluice:test", "localhost/sluice-build:test", "localhost/sluice:second"
COMMIT = "0123456789ab"
USER, GROUP = 65532, 65532
PROGRAM = "/opt/sluice/sluice"
MAX_MEGABYTES = 120
FOLDER = harness.ROOT / "build" / "image"
CACHE = harness.ROOT / "build" / "image-ccache"
# What of the C library a program is started with; the image has its base's.
C_LIBRARY = re.compile(r"(lib(c|m|dl|rt|pthread|resolv)\.so\.\d+|ld-linux-x86-64\.so\.2|linux-vdso\.so\.1)")
SHELL = re.compile(r".*/s?bin/(sh|r?bash|dash|ash|busybox|zsh|m?ksh|t?csh|fish)")


@dataclasses.dataclass
class Image:
    config: dict  # what the image says of how it is run
    tree: dict
    base: dict  # the tree of the image below
    stage: pathlib.Path  # root of what it was compiled in


@pytest.fixture(scope="module")
def store(request):
    missing = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (scripts/test.sh --full installs what is missing)")
    if os.geteuid() != 0:
        pytest.skip("debootstrap, and buildah as it is used here, want root")
    store = ImageStore(FOLDER)
    yield store
    store.remove_containers()
    if not request.config.getoption("--keep-images", False):
        shutil.rmtree(FOLDER)


def make_base(store):
    """Debian as small as it comes. The image of that name has less still: no locales, no documents."""
    container, root = store.container("scratch")
    done = subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "dev"):
        for path in (root / folder).iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    store.commit(container, BASE)


def tree_of(store, image):
    container, root = store.container(image)
    tree = read_tree(root)
    store.remove(container)
    return tree


@pytest.fixture(scope="module")
def image(request, store):
    take = request.config.getoption("--keep-images", False)
    if not (take and store.has(BASE)):
        make_base(store)
    if not (take and store.has(IMAGE)):
        # The compiler's cache stays for the next run. What it makes is compared with what the second build makes without.
        CACHE.mkdir(exist_ok=True)
        options = ["--layers", "--build-arg", f"COMMIT={COMMIT}", "--volume", f"{CACHE}:/root/.cache/ccache"]
        begin = time.monotonic()
        store.build(harness.ROOT, STAGE, "--target", "build", *options)
        store.build(harness.ROOT, IMAGE, *options)
        print(f"image: built in {time.monotonic() - begin:.0f} s")
    _, stage = store.container(STAGE)
    return Image(store.config(IMAGE), tree_of(store, IMAGE), tree_of(store, BASE), stage)


@pytest.fixture
def container(store, image):
    """A container without a shell, and its root."""
    name, root = store.container(IMAGE)
    for path in filter(SHELL.fullmatch, image.tree):
        (root / path[1:]).unlink()
    yield name, root
    store.remove(name)


def test_trees_tell_what_differs(tmp_path):
    """The other tests are only as good as this."""
    for name in ("one", "other"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "folder/file").write_text("text")
        (tmp_path / name / "link").symlink_to("folder/file")
    one, other = tmp_path / "one", tmp_path / "other"
    before = read_tree(one)
    os.utime(other / "folder/file", (1, 1))
    assert differences(before, read_tree(other)) == [] and len(before) == 4 and megabytes(before) == 4e-6
    (other / "folder/file").write_text("tex!")
    (other / "link").unlink()
    (other / "new").touch(0o666)
    (other / "new").chmod(0o666)
    (other / "folder").chmod(0o700)
    found = differences(before, read_tree(other))
    assert [line.split(":")[0] for line in found] == ["/link", "/new", "/folder", "/folder/file"]
    assert writable(read_tree(other), 12345, 12345) == ["/new"]
    assert "/folder/file" in writable(read_tree(other), os.getuid(), 12345)


def test_it_is_small(image):
    size = megabytes(image.tree) - megabytes(image.base)
    program = image.tree[PROGRAM].size / 1e6
    print(f"image: {size:.1f} MB over its base of {megabytes(image.base):.1f} MB, {program:.1f} MB of it the program")
    assert 0 < size <= MAX_MEGABYTES


def test_it_is_its_base_and_one_folder(image):
    changed = differences(image.base, image.tree)
    assert changed and not [line for line in changed if not re.match(r"/opt/sluice(/[^:]*)?: only in the second$", line)], "\n".join(changed)
    own = {path: entry for path, entry in image.tree.items() if path.startswith("/opt/sluice")}
    assert {entry.owner for entry in own.values()} == {(0, 0)} and {entry.kind for entry in own.values()} == {"file", "directory"}


def test_configuration(image):
    config = image.config
    assert config["User"] == f"{USER}:{GROUP}"
    assert config["Entrypoint"] == [PROGRAM] and config["Cmd"] == ["--help"]
    assert set(config["ExposedPorts"]) == {"50051", "9090", "9091"} or set(config["ExposedPorts"]) == {"50051/tcp", "9090/tcp", "9091/tcp"}
    assert "PATH=/opt/sluice:" in "\n".join(config["Env"])
    [version] = re.findall(r"^project\(sluice VERSION (\S+)", (harness.ROOT / "CMakeLists.txt").read_text(), re.M)
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels.pop("description") and labels.pop("title") == "Sluice" and labels.pop("licenses") == "Apache-2.0"
    assert labels.pop("version") == version and labels.pop("revision") == COMMIT and labels.pop("base.name") == "debian:12-slim"
    labels.pop("io.buildah.version", None)
    assert not labels


def test_nobody_writes_it(image):
    """Its user can write where everybody can in its base, and nothing that was added."""
    assert writable(image.tree, USER, GROUP) == writable(image.base, USER, GROUP) == ["/run/lock", "/tmp", "/var/tmp"]


def packages_of_stage(image):
    """{file: packages that have it}, {package: version} of what the program was compiled in."""
    owners, versions = {}, {}
    for file in (image.stage / "var/lib/dpkg/info").glob("*.list"):
        for path in file.read_text().splitlines():
            owners.setdefault(re.sub(r"^/(lib|lib64)/", r"/usr/\1/", path), set()).add(file.stem.split(":")[0])
    for entry in (image.stage / "var/lib/dpkg/status").read_text().split("\n\n"):
        facts = dict(re.findall(r"^(Package|Version|Status): (.*)$", entry, re.M))
        if facts.get("Status") == "install ok installed":
            versions[facts["Package"]] = facts["Version"]
    return owners, versions


def listed(root, name):
    """{package: version} of a list of the image."""
    lines = (root / "opt/sluice" / name).read_text().splitlines()
    assert lines == sorted(lines) and all(len(line.split(" ")) == 2 for line in lines)
    return dict(line.split(" ") for line in lines)


def test_packages_are_those_whose_libraries_are_in_it(image, container):
    _, root = container
    owners, versions = packages_of_stage(image)
    libraries = [path.name for path in (root / "opt/sluice/lib").iterdir()]
    wanted = set()
    for name in libraries:
        [package] = owners[f"/usr/lib/x86_64-linux-gnu/{name}"]
        wanted.add(package)
    packages = listed(root, "packages.txt")
    assert packages == {package: versions[package] for package in wanted}
    print(f"image: {len(libraries)} libraries of {len(packages)} packages")


def test_packages_of_headers_are_listed(image, container):
    """What the program has of them is in no library."""
    _, root = container
    _, versions = packages_of_stage(image)
    compiled_in = listed(root, "compiled-in.txt")
    assert compiled_in.items() <= versions.items()
    assert {"nlohmann-json3-dev", "libcli11-dev", "libspdlog-dev", "libabsl-dev", "libgrpc++-dev", "libstdc++-12-dev"} <= set(compiled_in)
    # None is of tools that only ran.
    assert not {"cmake", "ninja-build", "g++", "bash", "protobuf-compiler"} & set(compiled_in)
    copyrights = {path.name for path in (root / "opt/sluice/copyright").iterdir() if path.stat().st_size > 100}
    assert copyrights == set(compiled_in) | set(listed(root, "packages.txt"))


def test_libraries_are_those_that_the_program_loads(store, container):
    name, root = container
    lines = store.run("run", "--isolation", "chroot", name, "--", "/lib64/ld-linux-x86-64.so.2", "--list", PROGRAM).stdout
    loaded = {pathlib.PurePosixPath(match[1] or match[2]) for match in re.finditer(r"^\s+(?:\S+ => (\S+)|(\S+)) \(0x", lines, re.M)}
    own = {path.name for path in loaded if path.parent == pathlib.PurePosixPath("/opt/sluice/lib")}
    others = [str(path) for path in loaded if path.name not in own and not C_LIBRARY.fullmatch(path.name)]
    assert "not found" not in lines and not others, lines
    assert own == {path.name for path in (root / "opt/sluice/lib").iterdir()} and len(own) > 20


def test_it_needs_no_shell(store, image, container):
    """The program is started itself. The shells that the base has are gone from the container here, and it runs."""
    name, root = container
    shells = sorted(filter(SHELL.fullmatch, image.base))
    print(f"image: the base has {', '.join(shells)}; none is needed")
    assert (root / PROGRAM[1:]).read_bytes()[:4] == b"\x7fELF"
    assert store.run("run", "--isolation", "chroot", name, "--", "/bin/sh", "-c", "true", check=False).returncode != 0
    done = store.run("run", "--isolation", "chroot", name, "--", *image.config["Entrypoint"], "--version")
    [version] = re.findall(r"^project\(sluice VERSION (\S+)", (harness.ROOT / "CMakeLists.txt").read_text(), re.M)
    assert done.stdout == f"sluice {version}+{COMMIT}\n"
    # By its name too, as probes call it.
    done = store.run("run", "--isolation", "chroot", name, "--", "sluice", *image.config["Cmd"])
    assert done.stdout.startswith("Sluice turns") and "serve" in done.stdout


def program_below(process):
    """The process id of the program that a process or one of its children's children runs."""
    children = {}
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    ready = [process]
    while ready:
        one = ready.pop()
        ready += children.get(one, [])
        command = pathlib.Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        if command[0] == PROGRAM.encode() and os.readlink(f"/proc/{one}/exe").endswith(PROGRAM):
            return one
    raise AssertionError("the program does not run")


def test_it_serves(store, image, container, tmp_path):
    """With the model mounted read-only, on a read-only root, without a shell."""
    name, root = container
    assert harness.MODEL.exists(), "run scripts/fetch_model.sh first"
    mounts = ["--volume", f"{harness.MODEL.resolve().parent}:/models:ro"]
    store.run("run", "--isolation", "chroot", *mounts, name, "--", PROGRAM, "--version")  # makes the places of mounts
    before = read_tree(root)
    program = store.script(tmp_path / "sluice", name, image.config["Entrypoint"], *mounts)
    begin = time.monotonic()
    server = harness.Server(program, "--ops-listen", "127.0.0.1:0", "--log-format", "text", model=f"/models/{harness.MODEL.name}", wait=False)
    pid = None
    try:
        for reply in server.client.health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=120):
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                break
        seconds = time.monotonic() - begin
        print(f"image: SERVING {seconds:.2f} s after the start of the container, {'within' if seconds <= 3 else 'MORE THAN'} 3 s")
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        server.wait_ready()
        pid = program_below(server.process.pid)
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"^Uid:(\t{USER}){{4}}$", status, re.M) and re.search(rf"^Gid:(\t{GROUP}){{4}}$", status, re.M), status
        assert re.search(r"^CapEff:\t0+$", status, re.M), status
        mounted = [line.split() for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert {fields[4]: fields[5].split(",")[0] for fields in mounted if fields[4] in ("/", "/models")} == {"/": "ro", "/models": "ro"}

        reply = server.client.generate(greedy("1 2 3 4 5 6 7", max_tokens=12))
        print(f"image: 1 2 3 4 5 6 7{reply.text}")
        assert reply.text.startswith(" 8 9 10 11") and len(reply.ids) == 12
        replies = server.client.generate_all([greedy("1 2 3 4 5 6 7", max_tokens=12) for _ in range(4)])
        assert {one.text for one in replies} == {reply.text}
        tokens = server.client.stub.Tokenize(pb.TokenizeRequest(text="1 2 3"), timeout=10)
        assert len(tokens.token_ids) >= 3
        calls = [line.rsplit(" ", 1) for line in server.metrics().splitlines() if line.startswith("sluice_requests_total{")]
        assert sum(float(value) for series, value in calls if 'code="OK"' in series and 'method="Generate"' in series) == 5, calls
        # As the health check of deploy/compose.yaml has it.
        probe = store.run("run", "--isolation", "chroot", name, "--", "sluice", "ctl", "probe", f"--server={server.ops_address}")
        assert probe.stdout == "SERVING\n"

        os.kill(pid, signal.SIGTERM)
        assert server.wait(60) == 0, server.stderr()
        pid = None
    finally:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.stop()
    assert differences(before, read_tree(root)) == []


def test_a_second_build_makes_the_same(store, image):
    """Compiled again, without anything of the first but its base."""
    begin = time.monotonic()
    store.build(harness.ROOT, SECOND, "--no-cache", "--layers=false", "--build-arg", f"COMMIT={COMMIT}")
    print(f"image: built again in {time.monotonic() - begin:.0f} s")
    second = tree_of(store, SECOND)
    times = [path for path, entry in image.tree.items() if path in second and second[path].time != entry.time]
    print(f"image: {len(second)} files and folders are the same in both; {len(times)} have another time")
    found = differences(image.tree, second)
    assert not found, "\n".join(found)
    assert "/opt/sluice/sluice" in times, "the second was not built"
    assert store.config(SECOND) == image.config
