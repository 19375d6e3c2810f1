"""Runs a pod on this machine as its manifest says, probes, calls and ends it, and prints what was seen as JSON.

    unshare --mount --net -- python3 pod_runner.py SPEC.json

This process is what a kubelet is to the pod, in namespaces of its own: it makes the volumes, gives each container a root
with the machine's /usr in it, applies its securityContext, performs its probes over gRPC and its preStop hook, sends SIGTERM
and waits for the grace. Not emulated: the seccomp profile, limits of processor, memory and disk, and the network beyond
the loopback device, which is all that the pod has.

SPEC: pod (its spec), sources {claim or Secret or ConfigMap: directory or {key: text}}, program, tests [spec of a pod],
hosts [names that lead here], client {ca, cert, key, token}, calls [command lines], prompt_tokens, reader of metrics
{port, path}, stream_tokens."""

import fcntl
import json
import os
import pathlib
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

os.environ["PYTEST_XDIST_WORKER"] = "pod"  # the stubs are made by who starts this
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import harness  # noqa: E402
from chart import expand  # noqa: E402
from harness import grpc, health_pb2, health_pb2_grpc  # noqa: E402

AS_ROOT = os.environ.get("POD_RUNNER_USER", "root") == "root"
SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 1000, "M": 10**6, "G": 10**9}


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def make_device(place, minor):
    """One of the memory devices, for everybody as runtimes make them, whatever the mode of the machine's own."""
    try:
        os.mknod(place, stat.S_IFCHR, os.makedev(1, minor))
        place.chmod(0o666)
    except PermissionError:  # who is root in a namespace of his own makes none
        place.touch()
        mount("--bind", f"/dev/{place.name}", place)


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running


def size_of(quantity):
    for unit, factor in SIZES.items():
        if quantity.endswith(unit):
            return int(float(quantity.removesuffix(unit)) * factor)
    return int(quantity)


class Pod:
    def __init__(self, spec, sources, program, hosts, volumes=None):
        self.spec, self.program, self.hosts = spec, program, hosts
        self.security = spec["securityContext"]
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="pod-"))
        mount("-t", "tmpfs", "pod", self.base)
        self.volumes = {volume["name"]: self.make_volume(volume, sources) for volume in spec["volumes"]}

    def make_volume(self, volume, sources):
        path = self.base / ("volume-" + volume["name"])
        path.mkdir()
        group = self.security.get("fsGroup")
        if "emptyDir" in volume:
            mount("-t", "tmpfs", "-o", f"size={size_of(str(volume['emptyDir']['sizeLimit']))},mode=0777", "empty", path)
            if group is not None and AS_ROOT:
                os.chown(path, 0, group)
                path.chmod(0o2777)
            for name, text in sources.get("emptyDir " + volume["name"], {}).items():
                (path / name).write_bytes(text.encode("latin-1"))
                os.chmod(path / name, 0o666)
            return path
        if "persistentVolumeClaim" in volume:
            mount("--bind", sources[volume["persistentVolumeClaim"]["claimName"]], path)
            if volume["persistentVolumeClaim"].get("readOnly"):
                mount("-o", "remount,bind,ro", path)
            return path
        kind = "secret" if "secret" in volume else "configMap"
        source = volume[kind]
        files = sources[source["secretName" if kind == "secret" else "name"]]
        mode = source.get("defaultMode", 0o644)
        for item in source.get("items", [{"key": key, "path": key} for key in files]):
            file = path / item["path"]
            file.write_text(files[item["key"]])
            if group is not None and AS_ROOT:
                os.chown(file, 0, group)
            file.chmod(mode)
        return path

    def make_root(self, container):
        root = self.base / ("root-" + container["name"])
        root.mkdir()
        mount("-t", "tmpfs", "-o", "mode=0755", "root", root)
        for name in ("usr", "proc", "etc", "dev", "sluice"):
            (root / name).mkdir()
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / name).symlink_to("usr/" + name)
        mount("--bind", "/usr", root / "usr")
        mount("-o", "remount,bind,ro", root / "usr")
        for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
            make_device(root / "dev" / name, minor)
        # As kubelet mounts it. Without, malloc's look at the processors leaves an errno where gRPC 1.51 reads connect's.
        processors = "sys/devices/system/cpu"
        (root / processors).mkdir(parents=True)
        mount("--bind", "/" + processors, root / processors)
        mount("-o", "remount,bind,ro", root / processors)
        (root / "etc/hosts").write_text("127.0.0.1 localhost " + " ".join(self.hosts) + "\n")
        (root / "etc/nsswitch.conf").write_text("hosts: files\n")
        (root / "sluice/sluice").touch(mode=0o755)
        mount("--bind", self.program, root / "sluice/sluice")
        mount("-o", "remount,bind,ro", root / "sluice/sluice")
        for one in container.get("volumeMounts", []):
            place = root / one["mountPath"].lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            mount("--bind", self.volumes[one["name"]], place)
            if one.get("readOnly"):
                mount("-o", "remount,bind,ro", place)
        if container["securityContext"].get("readOnlyRootFilesystem"):
            mount("-o", "remount,ro", root)
        else:
            root.chmod(0o777)
        return root

    def command_line(self, container, root, command=None):
        """The container's command as its securityContext has it: only what is written there is applied."""
        both = {**self.security, **container["securityContext"]}
        user, group = both.get("runAsUser"), both.get("runAsGroup")
        privileges = []
        if AS_ROOT:
            groups = [one for one in [both.get("fsGroup"), *both.get("supplementalGroups", [])] if one is not None]
            if user is not None:
                privileges.append(f"--reuid={user}")
            if group is not None:
                privileges.append(f"--regid={group}")
            privileges.append("--groups=" + ",".join(map(str, groups)) if groups else "--clear-groups")
        if "ALL" in both.get("capabilities", {}).get("drop", []):
            privileges += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        if both.get("allowPrivilegeEscalation") is False:
            privileges.append("--no-new-privs")
        values = {one["name"]: one["value"] for one in container.get("env", [])}
        variables = [f"{name}={value}" for name, value in values.items()]
        own = command or [expand(one, values) for one in [*container["command"], *container.get("args", [])]]
        line = ["unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc"]
        if not AS_ROOT:  # who is root in a namespace of his own can only map himself
            line += ["unshare", "--user", "--keep-caps", f"--map-user={user}", f"--map-group={group}"]
        return [*line, "chroot", str(root), "/usr/bin/env", "-i", "PATH=/sluice:/usr/bin:/bin", "HOME=/", *variables,
                "/usr/bin/setpriv", *privileges, *own]

    def run(self, container, root=None, command=None):
        line = self.command_line(container, root or self.make_root(container), command)
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def child_of(pid):
    while True:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.005)


def facts_of(pid):
    status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    mounts = {}
    for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        mounts[fields[4]] = fields[5].split(",")[0]
    return {"uid": status["Uid"].split(), "gid": status["Gid"].split(), "groups": status["Groups"].split(),
            "capabilities": [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
            "no_new_privileges": status["NoNewPrivs"], "pid": status["NSpid"].split()[-1],
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")), "mounts": mounts,
            "environment": sorted(pathlib.Path(f"/proc/{pid}/environ").read_text().split("\0"))}


def perform(probe):
    """One look of a gRPC probe, as the kubelet's: (passed, word)."""
    with grpc.insecure_channel(f"127.0.0.1:{probe['grpc']['port']}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=probe["grpc"]["service"]), timeout=probe["timeoutSeconds"])
        except grpc.RpcError as error:
            return False, error.code().name
    word = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return word == "SERVING", word


def status_of(call):
    try:
        return "OK", call()
    except grpc.RpcError as error:
        return error.code().name, error.details()


def start(pod, container, seen):
    log = open(pod.base / "log", "w+")
    root = pod.make_root(container)
    began = time.monotonic()
    process = subprocess.Popen(pod.command_line(container, root), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    probe = container["startupProbe"]
    words = []
    # More often than the kubelet looks, for no longer than it would.
    while time.monotonic() - began < probe["periodSeconds"] * probe["failureThreshold"] and process.poll() is None:
        ready, _ = perform(container["readinessProbe"])
        passed, word = perform(probe)
        words.append(word)
        assert passed or not ready, "ready before it has started"
        if passed:
            break
        time.sleep(0.02)
    seen["startup"] = {"words": words, "seconds": time.monotonic() - began}
    return process, root, log


def end(pod, container, process, client, spec, seen):
    """The hook, SIGTERM and the rest of the grace, with a call under way."""
    pid = child_of(process.pid)
    grace_ends = time.monotonic() + pod.spec["terminationGracePeriodSeconds"]
    hook = container.get("lifecycle", {}).get("preStop")
    drain = seen["drain"] = {"hook": hook}
    call = harness.greedy(ids=spec["prompt_tokens"], max_tokens=4, ignore_eos=True)
    if hook:
        time.sleep(hook["sleep"]["seconds"] / 2)
        drain["readiness in the hook"] = perform(container["readinessProbe"])[1]
        drain["call in the hook"] = status_of(lambda: client.generate(call, timeout=60).end is not None)
        time.sleep(hook["sleep"]["seconds"] / 2)
    stream = client.stream(harness.greedy(ids=spec["prompt_tokens"], max_tokens=spec["stream_tokens"], ignore_eos=True), timeout=300)
    first = next(stream)
    reply = harness.Reply()
    reply.take(first)
    os.kill(pid, signal.SIGTERM)
    told = time.monotonic()
    time.sleep(0.2)
    if process.poll() is None:
        drain["readiness after SIGTERM"] = perform(container["readinessProbe"])[1]
        drain["liveness after SIGTERM"] = perform(container["livenessProbe"])[1]
        drain["call after SIGTERM"] = status_of(lambda: client.generate(call, timeout=60).end is not None)

    def rest():
        for event in stream:
            reply.take(event)
        return len(reply.ids)

    drain["stream"] = status_of(rest)
    try:
        process.wait(max(0.1, grace_ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
    drain["seconds"] = time.monotonic() - told
    drain["code"] = process.wait()


def main(spec):
    raise_loopback()
    seen = {"init": []}
    pod = Pod(spec["pod"], spec["sources"], spec["program"], spec["hosts"])
    for container in spec["pod"].get("initContainers", []):
        seen["init"].append(pod.run(container))
        if seen["init"][-1]["code"] != 0:
            seen["left by init"] = {name: sorted(os.listdir(path)) for name, path in pod.volumes.items()}
            return seen
    [container] = spec["pod"]["containers"]
    process, root, log = start(pod, container, seen)
    try:
        if process.poll() is None:
            seen["process"] = facts_of(child_of(process.pid))
            for name in ("livenessProbe", "readinessProbe"):
                seen[name] = perform(container[name])[1]
            inside = {path: f"touch {path}/written" for path in ("", "/models", "/etc/sluice", "/usr", "/tmp")}
            seen["writable"] = [path for path, command in inside.items()
                                if pod.run(container, root, ["/bin/sh", "-c", command + " 2>/dev/null"])["code"] == 0]
            seen["tests"] = [Pod(one, spec["sources"], spec["program"], spec["hosts"]).run(one["containers"][0]) for one in spec["tests"]]
            seen["calls"] = []
            for line in spec["calls"]:
                done = subprocess.run([spec["program"], *shlex.split(line)[1:]], capture_output=True, text=True, timeout=60)
                seen["calls"].append({"code": done.returncode, "out": done.stdout, "err": done.stderr})
            reader = spec["reader"]  # after calls: some metrics come with the first
            with urllib.request.urlopen(f"http://127.0.0.1:{reader['port']}{reader['path']}", timeout=10) as page:
                seen["metrics"] = page.read().decode()
            given = spec["client"]
            [port] = [one["containerPort"] for one in container["ports"] if one["name"] == "grpc"]
            tls = None
            if "ca" in given:
                tls = grpc.ssl_channel_credentials(given["ca"].encode(), *(given[key].encode() if key in given else None for key in ("key", "cert")))
            client = harness.Client(f"localhost:{port}", given.get("token"), tls)
            end(pod, container, process, client, spec, seen)
        else:
            seen["code"] = process.returncode
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        log.seek(0)
        seen["log"] = log.read()
    return seen


if __name__ == "__main__":
    print(json.dumps(main(json.loads(pathlib.Path(sys.argv[1]).read_text()))))
