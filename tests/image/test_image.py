"""The image that the Dockerfile makes, built on a Debian that debootstrap made: what is in it, that it serves, and that a
second build makes the same. Builds the program twice. With --cuda-toolkit it is the image for NVIDIA GPUs, which
test_cuda_image.py looks further into."""

import contextlib
import os
import pathlib
import re
import signal
import stat
import sys
import time

import harness
import pytest
from building import COMMIT, GROUP, PROGRAM, SHELL, USER, tree_of
from file_tree import differences, megabytes, read_tree, writable
from harness import greedy, health_pb2, pb
from image_store import device_modes

sys.path.insert(0, str(harness.ROOT / "scripts"))
import metrics_table  # noqa: E402

pytestmark = pytest.mark.long

SECOND = "localhost/sluice:second"
MAX_MEGABYTES = 120
# What of the C library a program is started with; the image has its base's.
C_LIBRARY = re.compile(r"(lib(c|m|dl|rt|pthread|resolv)\.so\.\d+|ld-linux-x86-64\.so\.2|linux-vdso\.so\.1)")
COUNT = next(prompt for prompt in harness.golden_prompts() if prompt["name"] == "count")
# Metrics that come with flags that the container is not given.
OF_FLAGS = {"sluice_tls_certificate_not_after_seconds", "sluice_config_reloads_total"}


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


def test_it_is_small(image, tell):
    size = megabytes(image.tree) - megabytes(image.base)
    program = image.tree[PROGRAM].size / 1e6
    tell(f"{size:.1f} MB over its base of {megabytes(image.base):.1f} MB, {program:.1f} MB of it the program")
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


def test_root_in_a_container_has_no_devices_of_the_machine(store, image, container):
    """Over files of /proc that it is not to see, its /dev/null lies, and can be changed there."""
    name, _ = container
    hidden = ("/proc/kcore", "/proc/keys", "/proc/timer_list")
    before = device_modes()
    try:
        changed = [path for path in hidden if store.run("run", "--isolation", "chroot", "--user", "0:0", name, "--", "/bin/chmod", "755", path,
                                                        check=False).returncode == 0]
        assert changed, "nothing was tried"
        assert device_modes() == before
    finally:
        for path, mode in before.items():
            path.chmod(stat.S_IMODE(mode))


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


def test_packages_are_those_whose_libraries_are_in_it(image, container, tell):
    _, root = container
    owners, versions = packages_of_stage(image)
    libraries = [path.name for path in (root / "opt/sluice/lib").iterdir()]
    wanted = set()
    for name in libraries:
        [package] = owners[f"/usr/lib/x86_64-linux-gnu/{name}"]
        wanted.add(package)
    packages = listed(root, "packages.txt")
    assert packages == {package: versions[package] for package in wanted}
    tell(f"{len(libraries)} libraries of {len(packages)} packages")


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


def test_it_needs_no_shell(store, image, container, tell):
    """The program is started itself. The shells that the base has are gone from the container here, and it runs."""
    name, root = container
    shells = sorted(filter(SHELL.fullmatch, image.base))
    tell(f"the base has {', '.join(shells)}; none is needed")
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


def documented():
    """{metric: [type, labels]} of docs/observability.md."""
    table = metrics_table.PAGE.read_text().split(metrics_table.BEGIN)[1].split(metrics_table.END)[0]
    return {match[1]: [match[2], re.findall(r"`([^`]+)`", match[3])] for match in re.finditer(r"^\| `(\S+)` \| (\w+) \| (.*?) \|", table, re.M)}


def check_metrics(text, replies):
    """Every metric of docs/observability.md is there as it is described, and those that count calls counted `replies`."""
    exported = {name: facts[:2] for name, facts in metrics_table.parse(text).items()}
    wanted = {name: facts for name, facts in documented().items() if name not in OF_FLAGS}
    assert exported == wanted, [(name, exported.get(name), wanted.get(name)) for name in exported.keys() | wanted.keys()
                                if exported.get(name) != wanted.get(name)]

    def total(name, *labels):
        found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.M)
        assert found, name
        return sum(float(value) for given, value in found if all(label in given for label in labels))

    usages = [reply.end.usage for reply in replies]
    prompts, generated = sum(usage.prompt_tokens for usage in usages), sum(len(reply.ids) for reply in replies)
    assert total("sluice_requests_total", 'method="Generate"', 'code="OK"', 'finish_reason="length"') == len(replies)
    assert total("sluice_requests_total", 'method="Tokenize"', 'code="OK"') == 1
    assert total("sluice_requests_total") == len(replies) + 1
    assert total("sluice_generation_tokens_total") == generated == sum(usage.completion_tokens for usage in usages) > 0
    assert total("sluice_prompt_tokens_total") + total("sluice_prefix_cache_hits_tokens_total") == prompts > 0
    assert total("sluice_prefix_cache_queries_tokens_total") == prompts
    assert total("sluice_tenant_tokens_total") == prompts + generated
    for name in ("request_duration_seconds", "time_to_first_token_seconds", "queue_time_seconds"):
        assert total(f"sluice_{name}_count") == total(f"sluice_{name}_bucket", 'le="+Inf"') == len(replies)
    assert total("sluice_inter_token_latency_seconds_count") == generated - len(replies)
    assert 0 < total("sluice_steps_total") == total("sluice_step_duration_seconds_count") <= generated + len(replies)
    assert total("sluice_engine_up") == 1 and total("sluice_leaked_pages") == 0 and total("sluice_nonfinite_logits_total") == 0
    assert total("sluice_kv_pages", 'state="used"') == 0 < total("sluice_kv_pages", 'state="free"')
    [(labels, value)] = re.findall(r"^sluice_build_info{(.*)} (\S+)$", text, re.M)
    assert f"+{COMMIT}\"" in labels and 'backend="cpu' in labels and float(value) == 1


def faults_of(text):
    """{what is wrong: the metrics with it}, each of which has to be found."""
    def one_more(name):
        return re.sub(rf"^({name}(?:{{.*}})?) (\d+)$", lambda match: f"{match[1]} {int(match[2]) + 1}", text, count=1, flags=re.M)

    faults = {f"no {name}": re.sub(rf"^(# (HELP|TYPE) )?{name}(_bucket|_sum|_count)?[{{ ].*\n", "", text, flags=re.M)
              for name in documented() if name not in OF_FLAGS}
    faults |= {f"one more of {name}": one_more(name) for name in (
        "sluice_requests_total", "sluice_generation_tokens_total", "sluice_prompt_tokens_total", "sluice_request_duration_seconds_count",
        "sluice_time_to_first_token_seconds_count", "sluice_leaked_pages", "sluice_steps_total", "sluice_tenant_tokens_total")}
    faults["another type"] = text.replace("# TYPE sluice_steps_total counter", "# TYPE sluice_steps_total gauge")
    faults["another label"] = text.replace("\nsluice_open_streams ", '\nsluice_open_streams{x="y"} ')
    faults["a metric that nobody described"] = text + "# HELP sluice_other x\n# TYPE sluice_other gauge\nsluice_other 1\n"
    assert all(changed != text for changed in faults.values()), [fault for fault, changed in faults.items() if changed == text]
    return faults


def test_it_serves(store, image, container, tmp_path, tell):
    """With the model mounted read-only, on a read-only root, without a shell."""
    name, root = container
    assert harness.MODEL.exists(), "run scripts/fetch_model.sh first"
    mounts = ["--volume", f"{harness.MODEL.resolve().parent}:/models:ro"]
    store.run("run", "--isolation", "chroot", *mounts, name, "--", PROGRAM, "--version")  # makes the places of mounts
    before = read_tree(root)
    program = store.script(tmp_path / "sluice", name, image.config["Entrypoint"], *mounts)
    begin = time.monotonic()
    server = harness.Server(program, "--device", "cpu", "--ops-listen", "127.0.0.1:0", "--log-format", "text", model=f"/models/{harness.MODEL.name}", wait=False)
    pid = None
    try:
        for reply in server.client.health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=120):
            if reply.status == health_pb2.HealthCheckResponse.SERVING:
                break
        seconds = time.monotonic() - begin
        tell(f"SERVING {seconds:.2f} s after the start of the container, {'within' if seconds <= 3 else 'MORE THAN'} 3 s")
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        server.wait_ready()
        pid = program_below(server.process.pid)
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"^Uid:(\t{USER}){{4}}$", status, re.M) and re.search(rf"^Gid:(\t{GROUP}){{4}}$", status, re.M), status
        assert re.search(r"^CapEff:\t0+$", status, re.M), status
        mounted = [line.split() for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert {fields[4]: fields[5].split(",")[0] for fields in mounted if fields[4] in ("/", "/models")} == {"/": "ro", "/models": "ro"}

        reply = server.client.generate(greedy(COUNT["text"], max_tokens=12))
        tell(f"{COUNT['text']}{reply.text}")
        # The reference's tokens, which decide by far more than computing in another order makes.
        assert reply.ids == [token for token, margin in COUNT["greedy"]][:12] and min(margin for _, margin in COUNT["greedy"][:12]) > 0.5
        assert reply.text == " 8 9 10 11 1"
        replies = server.client.generate_all([greedy(COUNT["text"], max_tokens=12) for _ in range(4)])
        assert [one.ids for one in replies] == [reply.ids] * 4 and {one.text for one in replies} == {reply.text}
        tokens = server.client.stub.Tokenize(pb.TokenizeRequest(text=COUNT["text"]), timeout=10)
        assert tokens.token_ids == COUNT["prompt_ids"]
        text = server.metrics()
        check_metrics(text, [reply, *replies])
        for fault, changed in faults_of(text).items():
            with pytest.raises(AssertionError):
                check_metrics(changed, [reply, *replies])
                tell(f"not found in the metrics: {fault}")
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


def test_a_second_build_makes_the_same(store, image, tell):
    """Compiled again, without anything of the first but its base."""
    begin = time.monotonic()
    store.build(harness.ROOT, SECOND, "--no-cache", "--layers=false", *image.options)
    tell(f"built again in {time.monotonic() - begin:.0f} s")
    second = tree_of(store, SECOND)
    times = [path for path, entry in image.tree.items() if path in second and second[path].time != entry.time]
    tell(f"{len(second)} files and folders are the same in both; {len(times)} have another time")
    found = differences(image.tree, second)
    assert not found, "\n".join(found)
    assert "/opt/sluice/sluice" in times, "the second was not built"
    assert store.config(SECOND) == image.config
