"""Faults of processes, networks, clients and engines under load, each with what must hold.

    build/venv/bin/python3 tests/e2e/chaos.py [--sluice PROGRAM] [--sluice-planted PROGRAM] [--long] [--count N] [CASE...]

prints a line a case and, last, "N cases, N as expected, N not as expected" (a case that needs root is "left out" without it).
Every case ends with a canary whose tokens are known, no open stream and no used page, or with the exit code that is due.
Faults inside the server are failpoints (docs/reliability.md) of the program that is built for tests; what can be done to the
released program is done to that. Cases with counts take the second of them with --long, or N; those that last long run only
when they are named or with --long."""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import grpc  # noqa: E402
import harness  # noqa: E402
from catalogue import TINY, Guarded, details_of, prompt  # noqa: E402
from harness import Client, Server, admin_pb2, admin_pb2_grpc, greedy, health_pb2, wait_until  # noqa: E402
from raw_http2 import RST_STREAM, WINDOW_UPDATE, Raw  # noqa: E402

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
ADMIN = "chaos-token"
CASES = {}
ELSEWHERE = {
    "C13": "needs a GPU (scripts/gpu_check.sh)",
    "C14": "needs a GPU; what follows a device's fault: tests/engine/device_fault_test.cc, tests/e2e/test_device.py",
    "C17": "not tested: what is thrown for want of memory in a step is (C10)",
    "C19": "tests/e2e/test_service.py (descriptors)",
    "C21": "tests/e2e/test_service.py (a log that nobody reads)",
    "C23": "tests/e2e/test_identity.py (certificates), tests/e2e/bars.py (B22)",
    "C24": "tests/e2e/test_identity.py, tests/server/identity_test.cc",
    "C25": "tests/e2e/test_service.py, tests/server/acceptor_test.cc",
    "C26": "the server opens no connection but to its own port (server/listener_probe.h)",
}


class LeftOut(Exception):
    """What a case needs is not here."""


class Missed(AssertionError):
    """Figures that are not within their bar."""


def registry(cases):
    """What registers cases there. A case takes the World, and its count when `counts` has that of the short run and of the long
    one."""
    def case(name, counts=None, long=False):
        def register(function):
            assert name not in cases
            cases[name] = (function, counts, long)
            return function
        return register
    return case


case = registry(CASES)


class World:
    """Programs, and the servers that a case has started."""

    def __init__(self, program, planted, long=False, count=None):
        self.program, self.planted, self.long, self.count = program, planted, long, count
        self.folder = tempfile.TemporaryDirectory()
        self.servers, self.undo = [], []
        self.golden = {}

    def serve(self, *flags, failing=False, **options):
        """The released program; with `failing` the one with failpoints."""
        options.setdefault("model", TINY)
        server = Server(self.planted if failing else self.program, *flags, **options)
        self.servers.append(server)
        return server

    def failing(self, *points, flags=(), **options):
        settings = [part for point in points for part in ("--failpoint", point)]
        return self.serve(*settings, *flags, failing=True, **options)

    def administered(self, *flags):
        """A program with failpoints that are set while it runs, and what sets them."""
        auth = pathlib.Path(self.folder.name) / "auth.json"
        auth.write_text(json.dumps({"tokens": [{"sha256": hashlib.sha256(ADMIN.encode()).hexdigest(), "tenant": "chaos",
                                                "scopes": ["inference", "admin"]}]}))
        server = self.serve("--auth-file", auth, "--ops-listen", "127.0.0.1:0", *flags, failing=True)
        server.client_ = Client(server.address, ADMIN)
        channel = grpc.insecure_channel(server.ops_address)
        self.undo.append(channel.close)
        stub = admin_pb2_grpc.AdminStub(channel)

        def set_point(setting):
            stub.SetFailpoint(admin_pb2.SetFailpointRequest(setting=setting), metadata=server.client.metadata, timeout=10)
        return server, set_point

    def guarded(self, server):
        server.client.load()  # its connection is there before descriptors are counted
        guarded = Guarded(server, token=ADMIN if server.client_ and server.client_.metadata else None)
        self.undo.append(guarded.client.close)
        return guarded

    def expect_canary(self, server, model=TINY):
        """The fixed request's tokens are those that the first server of the model gave."""
        ids = list(server.client.generate(prompt(max_tokens=8), 60).ids)
        assert len(ids) == 8 and ids == self.golden.setdefault(str(model), ids), "the canary's tokens changed"

    def end_case(self):
        for action in reversed(self.undo):
            action()
        self.undo.clear()
        for server in self.servers:
            server.stop()
        self.servers.clear()

    def stop(self):
        self.end_case()
        self.folder.cleanup()


class Call:
    """A stream that is read on a thread of its own."""

    def __init__(self, client, message, timeout=120):
        self.message, self.ids, self.code, self.reason, self.sent = message, [], None, None, None
        self.first = threading.Event()
        self.begin, self.end = time.monotonic(), None
        self.call = client.stream(message, timeout)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        try:
            for event in self.call:
                self.ids += event.delta.token_ids
                if self.ids:
                    self.first.set()
            self.code = "OK"
        except grpc.RpcError as error:
            self.code, self.details = error.code().name, error.details()
            trailers = dict(error.trailing_metadata() or ())
            if "grpc-status-details-bin" in trailers:
                found = details_of(type("Trailers", (), {"details": trailers["grpc-status-details-bin"]}))
                if "ErrorInfo" in found:
                    self.reason = found["ErrorInfo"].reason
                    self.sent = found["ErrorInfo"].metadata.get("tokens_sent")
        self.end = time.monotonic()
        self.first.set()

    def wait(self, seconds=60):
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "a stream has no end"
        return self.code

    def complete(self):
        return self.code == "OK" and len(self.ids) == self.message.stopping.max_tokens


def begin(client, count, tokens, wait=True):
    calls = [Call(client, greedy(ids=[5, 6, 7 + index], max_tokens=tokens, ignore_eos=True)) for index in range(count)]
    if wait:
        for call in calls:
            assert call.first.wait(60) and call.code is None, f"a stream ended early: {call.code}"
    return calls


def health_of(client, service=""):
    try:
        return client.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
    except grpc.RpcError:
        return None


def expect_exit(server, code, seconds=30):
    got = server.wait(seconds)
    assert got == code, f"exit code {got}, {code} was due: {server.stderr()[-1000:]}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------------------ the process

def probed(place):
    """What a probe hears, which connects anew each time; None when nobody answers."""
    with contextlib.closing(Client(place)) as client:
        return health_of(client)


def waited_for_processors(pid):
    """Seconds that the threads of a process were ready and had no processor; the longest of them."""
    waits = [pathlib.Path(task, "schedstat").read_text().split()[1] for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    return max(map(int, waits)) / 1e9


@case("C01", counts=(1, 10))
def killed_under_load(w, count):
    """From the kill, of which a supervisor learns as soon as clients do, to a probe's SERVING."""
    place, model = f"127.0.0.1:{free_port()}", harness.MODEL
    server, rounds = w.serve(model=model, listen=place), []
    for _ in range(count):
        w.expect_canary(server, model)
        calls = begin(server.client, 4, 1000)
        start = time.monotonic()
        server.process.kill()
        server.wait()
        server, seen = w.serve(model=model, listen=place, wait=False), set()
        while (heard := probed(place)) != SERVING:
            seen.add(heard)
            assert time.monotonic() < start + 60, f"not serving: {server.stderr()}"
            time.sleep(0.01)
        rounds.append((time.monotonic() - start, server.cpu_seconds(), waited_for_processors(server.process.pid)))
        assert seen <= {None, NOT_SERVING} and {call.wait() for call in calls} == {"UNAVAILABLE"}, seen
        server.wait_ready()
    w.expect_canary(server, model)
    seconds, cpu, waited = max(rounds)
    return (f"serving again {seconds:.2f} s after the kill (the slowest of {count}), in which the program ran {cpu:.2f} s and "
            f"its thread that waited longest for a processor did so for {waited:.2f} s; the fastest {min(rounds)[0]:.2f} s")


def drain_once(w, source):
    """A drain with calls that run, wait, and have just been sent; what became of them."""
    server = w.serve("--max-batch", 4, "--drain-timeout", "60s", model=harness.MODEL)
    calls = begin(server.client, 4, 40) + begin(server.client, 8, source.randint(1, 20), wait=False)
    time.sleep(source.random() * 0.3)
    watch = server.client.health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == SERVING
    server.signal()
    start = time.monotonic()
    assert next(watch).status == NOT_SERVING
    flipped = time.monotonic() - start
    watch.cancel()
    while True:
        sent = time.monotonic()
        late = Call(server.client, prompt())
        if late.wait() != "OK":
            break
        # It came before the refusals did, and may have waited behind the others for long.
        assert sent - start < 1, "new calls are still taken"
    # CANCELLED is the library's, of what comes when the last call has ended and it stops.
    assert late.code in ("UNAVAILABLE", "CANCELLED") and late.reason in ("DRAINING", None) and not late.ids, (late.code, late.reason)
    lost = [call for call in calls if call.wait() != "UNAVAILABLE" and not call.complete()]
    assert not lost, [(call.code, call.reason, len(call.ids)) for call in lost]
    # Those that were not yet accepted may be refused; what has begun may not.
    refused = [call for call in calls if call.code == "UNAVAILABLE"]
    assert all(call.reason in ("DRAINING", None) and not call.ids for call in refused)
    last = max(call.end for call in calls)
    expect_exit(server, 0)
    after = time.monotonic() - last
    assert flipped < 0.5 and after < 5, (flipped, after)
    w.end_case()
    return len(calls) - len(refused), flipped, after


@case("C02", counts=(2, 100))
def drained_under_load(w, count):
    source = random.Random(2)
    outcomes = [drain_once(w, source) for _ in range(count)]
    return (f"{count} drains, {sum(accepted for accepted, _, _ in outcomes)} accepted calls, 0 lost; health turned within "
            f"{1000 * max(flipped for _, flipped, _ in outcomes):.0f} ms, exit within "
            f"{max(after for _, _, after in outcomes):.2f} s of the last call's end")


@case("C02 never read", counts=(1, 20))
def drained_beside_a_reader_that_never_reads(w, count):
    longest = 0
    for _ in range(count):
        server = w.serve("--drain-timeout", "1s")
        with Raw(server.address, window=0) as raw:
            raw.start("Generate", prompt(max_tokens=1500).SerializeToString())
            wait_until(lambda: "sluice_open_streams 1" in server.metrics(), 10)
            server.signal()
            start = time.monotonic()
            expect_exit(server, 75)
            longest = max(longest, time.monotonic() - start)
        w.end_case()
    assert longest < 1 + 5, longest
    return f"{count} drains of 1 s at most, the longest took {longest:.2f} s"


@case("C03")
def second_signal(w):
    for first, second, code in ((signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGINT, signal.SIGINT, 130),
                                (signal.SIGTERM, signal.SIGINT, 130)):
        server = w.failing("runner=sleep:20")
        [call] = begin(server.client, 1, 1500)
        server.signal(first)
        server.await_log("draining: new calls are refused", 10)
        assert server.process.poll() is None
        start = time.monotonic()
        server.signal(second)
        expect_exit(server, code, 5)
        assert time.monotonic() - start < 1
        assert call.wait() == "UNAVAILABLE"


@case("C04")
def stopped_for_five_seconds(w):
    # Longer than the limit of progress: a process that was stopped has not hung.
    server = w.failing("runner=sleep:10", flags=("--hang-timeout", "2s"))
    calls = begin(server.client, 4, 600)
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(server.process.pid, signal.SIGCONT)
    assert all(call.wait() == "OK" and call.complete() for call in calls), [call.code for call in calls]
    w.guarded(server).check()


@case("C04 for a minute", long=True)
def stopped_for_a_minute(w):
    server = w.failing("runner=sleep:10")
    guarded = w.guarded(server)
    # A ping that measures the connection may be on its way, which keeps those of keepalive back; its own limit is a minute.
    options = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000), ("grpc.http2.ping_timeout_ms", 5_000),
               ("grpc.use_local_subchannel_pool", 1)]
    client = Client(server.address)
    client.channel.close()
    client.channel = grpc.insecure_channel(server.address, options=options)
    client.stub = harness.inference_pb2_grpc.InferenceStub(client.channel)
    calls = begin(client, 4, 1900)
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        assert {call.wait(40) for call in calls} == {"UNAVAILABLE"}
        time.sleep(max(0, 60 - (time.monotonic() - calls[0].begin)))
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    start = time.monotonic()
    guarded.check()
    client.close()
    return f"pages back {time.monotonic() - start:.2f} s after it went on"


# ------------------------------------------------------------------------------------------------ clients

def cancel_many(address, count, seed, most_microseconds):
    """Resets streams of one connection after a random number of microseconds each, mostly few."""
    source = random.Random(seed)
    message = prompt(max_tokens=200).SerializeToString()
    with Raw(address) as raw:
        for _ in range(count):
            stream = raw.start("Generate", message)
            end = time.perf_counter() + source.randrange(most_microseconds) * source.random() ** 2 * 1e-6
            time.sleep(max(0, end - time.perf_counter() - 0.002))
            while time.perf_counter() < end:
                pass
            assert raw.frame(RST_STREAM, 0, stream, struct.pack(">I", 8)), "the server hung up"
            while raw.read_frame(0):
                pass
            assert not raw.closed
            del raw.streams[stream]


def slowest_of(metrics, histogram):
    """The bound, in seconds, of the last bucket that anything fell into."""
    counts = collections.Counter()
    for bound, count in re.findall(rf'^{histogram}_bucket{{.*le="(.*)"}} (\S+)$', metrics, re.M):
        counts[float(bound)] += float(count)
    return next((bound for bound in sorted(counts) if counts[bound] == counts[float("inf")]), None)


@case("C05", counts=(400, 10_000))
def cancels_at_random_microseconds(w, count, most_microseconds=20_000, **options):
    server = w.serve(**options)
    guarded = w.guarded(server)
    errors = []

    def one(count, seed):
        try:
            cancel_many(server.address, count, seed, most_microseconds)
        except Exception as error:
            errors.append(error)

    def storm(count):
        threads = [threading.Thread(target=one, args=(count // 4, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        guarded.check()

    def num_threads():
        return len(os.listdir(f"/proc/{server.process.pid}/task"))
    storm(100)  # the library starts threads when it first needs them
    threads_before = num_threads()
    storm(count)
    # It starts some more when it finds those that it has busy, so that their number depends on the machine, not on the count.
    threads = num_threads()
    assert threads <= threads_before + 8, (threads_before, threads)
    assert guarded.value("sluice_leaked_pages") == 0
    assert guarded.value("sluice_connections_cut_total") == 0  # they are not a flood
    cancelled = guarded.value("sluice_cancelled_total")
    assert cancelled > count / 10, cancelled
    return (f"{count} cancels, {cancelled:.0f} of them seen by the engine, the pages of each back within "
            f"{slowest_of(guarded.metrics(), 'sluice_cancel_to_free_seconds')} s; 0 pages leaked, 0 streams and descriptors "
            f"left, {threads_before} then {threads} threads")


@case("C05 model", counts=(200, 2000), long=True)
def cancels_while_a_model_computes(w, count):
    return cancels_at_random_microseconds(w, count, most_microseconds=400_000, model=harness.MODEL)


@case("C06", counts=(20, 500))
def vanished_clients(w, count):
    server = w.failing("runner=sleep:2")
    guarded = w.guarded(server)
    source = random.Random(6)
    for _ in range(count):
        raw = Raw(server.address)
        raw.start("Generate", prompt(max_tokens=1500).SerializeToString())
        raw.read_until(lambda: False, source.random() * 0.05)
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, no FIN
        raw.socket.close()
    processes = [subprocess.Popen([w.program, "generate", "--server", server.address, "--token-ids", "5,6,7", "--max-tokens", "1500",
                                   "--ignore-eos"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(4)]
    wait_until(lambda: guarded.value("sluice_requests_running") == 4, 20, "four processes' calls")
    for process in processes:
        process.kill()
        process.wait(10)
    start = time.monotonic()
    wait_until(lambda: guarded.value("sluice_requests_running") == 0, 5, "the pages")
    seconds = time.monotonic() - start
    guarded.check()
    return f"{count} resets, 4 killed processes; pages back within {seconds:.2f} s"


@case("C07", counts=(6, 200))
def cancelled_around_the_end(w, count):
    """The server sleeps before a write, its last or another; the client cancels meanwhile."""
    server, set_point = w.administered()
    set_point("write=off")  # what it takes to say so is there before descriptors are counted
    guarded = w.guarded(server)
    source = random.Random(7)
    codes, before = collections.Counter(), guarded.value("sluice_requests_total")
    for index in range(count):
        # A whole call of two tokens is a handful of writes, the last of which carries the status.
        set_point(f"write=sleep:60@{1 + index % 6}*1")
        call = Call(server.client, greedy(ids=[5, 6, 7], max_tokens=2, ignore_eos=True))
        time.sleep(source.random() * 0.08)
        call.call.cancel()
        codes[call.wait()] += 1
        assert server.process.poll() is None, server.stderr()[-1000:]
    set_point("write=error@2*5")  # the stream breaks where it is written to
    for _ in range(5):
        codes[Call(server.client, greedy(ids=[5, 6, 7], max_tokens=20, ignore_eos=True)).wait()] += 1
    set_point("write=off")
    assert set(codes) <= {"OK", "CANCELLED"}, codes
    guarded.check()
    # And the canary.
    ended = guarded.value("sluice_requests_total") - before
    # What a client cancels at once may not have left it.
    assert count + 6 - codes["CANCELLED"] <= ended <= count + 6, f"{count + 6} calls, {ended} ends: {dict(codes)}"
    return f"{count} cancels around writes: {dict(codes)}"


@case("C08")
def readers_that_stall(w):
    server = w.serve("--stall-timeout", "2s", "--max-batch", 8)
    guarded = w.guarded(server)
    before = guarded.resident()
    message = prompt(max_tokens=2000).SerializeToString()
    with Raw(server.address, window=0) as never, Raw(server.address, window=0) as slow, Raw(server.address) as brisk:
        never.start("Generate", message)
        stream = slow.start("Generate", message)
        start = time.monotonic()
        while time.monotonic() - start < 2.5:  # ten bytes a second
            slow.frame(WINDOW_UPDATE, payload=struct.pack(">I", 1))
            slow.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1))
            assert brisk.call("Generate", prompt().SerializeToString()).code == "OK"
            time.sleep(0.1)
        wait_until(lambda: guarded.value("sluice_requests_running") == 0, 10, "the pages")
        aborted = 'code="ABORTED"'
        wait_until(lambda: sum(aborted in line and not line.endswith(" 0") for line in server.metrics().splitlines()) > 0, 10,
                   "ABORTED")
        grown = guarded.resident() - before
        assert grown < 32 << 20, grown
    guarded.check()
    return f"resident memory grew by {grown / (1 << 20):.1f} MiB"


# ------------------------------------------------------------------------------------------------ the network

@contextlib.contextmanager
def namespaces(w):
    """Two network namespaces with a cable between them: 10.213.0.1 in the first, 10.213.0.2 in the second."""
    names = [f"sluice-chaos-{os.getpid()}-{end}" for end in "ab"]

    def ip(*arguments):
        result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if result.returncode != 0:
            raise LeftOut(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
    if os.geteuid() != 0:
        raise LeftOut("network namespaces need root")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.213.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


class InNamespace(Server):
    """A server in a network namespace."""

    def __init__(self, namespace, wrapper, *flags, **options):
        self.namespace = namespace
        super().__init__(wrapper, *flags, **options)

    def metrics(self):
        address = self.await_log(r"metrics on (\S+:\d+)")[1]
        script = f"import urllib.request as u; print(u.urlopen('http://{address}/metrics', timeout=10).read().decode())"
        run = subprocess.run(["ip", "netns", "exec", self.namespace, sys.executable, "-c", script], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout


@case("C09", long=True)
def network_black_hole(w):
    with namespaces(w) as (here, there):
        wrapper = pathlib.Path(w.folder.name) / "serve-in-namespace"
        wrapper.write_text(f"#!/bin/sh\nexec ip netns exec {here} {w.planted} \"$@\"\n")
        wrapper.chmod(0o755)
        server = InNamespace(here, wrapper, "--failpoint", "runner=sleep:20", model=TINY, listen="10.213.0.1:0")
        w.servers.append(server)

        def running():
            return "sluice_requests_running" in (text := server.metrics()) and max(
                float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("sluice_requests_running{"))
        client = subprocess.Popen(["ip", "netns", "exec", there, w.program, "generate", "--server", server.address, "--token-ids",
                                   "5,6,7", "--max-tokens", "2000", "--ignore-eos"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: running() == 1, 20, "the call")
            # No packet comes through any more, and nobody is told.
            subprocess.run(["ip", "-n", there, "link", "set", "cable", "down"], check=True)
            start = time.monotonic()
            wait_until(lambda: running() == 0, 60, "the pages")
            seconds = time.monotonic() - start
        finally:
            client.kill()
            client.wait(10)
        assert seconds < 45, seconds
        server.signal()
        expect_exit(server, 0)
        w.end_case()
    return f"pages back after {seconds:.1f} s"


# ------------------------------------------------------------------------------------------------ the engine

def engine_fault(w, action, seconds=5):
    """Three calls run when the only engine's step fails: each ends once, within a second, and the process with 70."""
    server, set_point = w.administered("--failpoint", "runner=sleep:5")
    calls = begin(server.client, 3, 1900)
    waiting = Call(server.client, greedy(ids=[9] * 8, max_tokens=1900, ignore_eos=True))
    watch = server.client.health.Watch(health_pb2.HealthCheckRequest(), metadata=server.client.metadata)
    assert next(watch).status == SERVING
    set_point(f"runner={action}")
    start = time.monotonic()
    try:
        assert next(watch).status == NOT_SERVING
        unready = time.monotonic() - start
    except grpc.RpcError:  # the process was quicker
        unready = time.monotonic() - start
    for call in (*calls, waiting):
        call.wait(seconds)
        ends = [("INTERNAL", "ENGINE_FAULT"), ("UNAVAILABLE", "ENGINE_DOWN")]
        if call is waiting:  # it may come when the process already ends
            ends.append(("UNAVAILABLE", "DRAINING"))
        assert (call.code, call.reason) in ends, (call.code, call.reason)
        assert call.code != "INTERNAL" or int(call.sent) == len(call.ids), (call.sent, len(call.ids))
    ended = max(call.end for call in calls) - start
    expect_exit(server, 70, 10)
    assert unready < 1 and ended < 1, (unready, ended)
    exited = time.monotonic() - start
    start = time.monotonic()
    again = w.serve()
    restarted = time.monotonic() - start
    w.expect_canary(again)
    w.end_case()
    return unready, ended, exited, restarted


@case("C10", counts=(1, 100))
def failing_steps(w, count):
    worst = [max(values) for values in zip(*(engine_fault(w, action) for _ in range(count) for action in ("error", "throw")))]
    return (f"{2 * count} faults: not ready within {worst[0]:.2f} s, streams ended within {worst[1]:.2f} s, exit 70 within "
            f"{worst[2]:.2f} s, serving again {worst[3]:.2f} s after the start")


@case("C10 two engines", counts=(2, 20))
def one_of_two_engines_fails(w, count):
    """The streams of the other one are what they would have been, and it serves on."""
    for index in range(count):
        action = ("error", "throw")[index % 2]
        server, set_point = w.administered("--engines", 2, "--threads", 1, "--failpoint", "runner=sleep:3")
        messages = [greedy(ids=[5, 6, 7 + number], max_tokens=150, ignore_eos=True) for number in range(4)]
        alone = [list(server.client.generate(message).ids) for message in messages]
        calls = [Call(server.client, message) for message in messages]
        for call in calls:
            assert call.first.wait(30)
        set_point(f"runner={action}@{3 + 7 * index}*1")
        ends = collections.Counter()
        for call, expected in zip(calls, alone, strict=True):
            ends[call.wait()] += 1
            assert call.code != "OK" or call.ids == expected, "another engine's fault changed a stream"
            assert call.code == "OK" or (call.reason == "ENGINE_FAULT" and call.ids == expected[:len(call.ids)])
        # Each engine had some of them.
        assert ends["INTERNAL"] in (1, 2, 3) and ends["OK"] == 4 - ends["INTERNAL"], ends
        assert list(server.client.generate(messages[0]).ids) == alone[0]
        text = server.metrics()
        assert sorted(line[-1] for line in text.splitlines() if line.startswith("sluice_engine_up{")) == ["0", "1"], text
        server.signal()
        expect_exit(server, 0)
        w.end_case()


@case("C10 logits")
def logits_that_are_not_finite(w):
    server = w.failing("logits=error@20*1")
    guarded_ids = list(server.client.generate(prompt(max_tokens=8), 60).ids)
    call = Call(server.client, greedy(ids=[5, 6, 7], max_tokens=400, ignore_eos=True))
    assert (call.wait(), call.reason) == ("INTERNAL", "NON_FINITE_LOGITS"), (call.code, call.reason)
    assert int(call.sent) == len(call.ids) > 0
    assert list(server.client.generate(prompt(max_tokens=8), 60).ids) == guarded_ids
    w.guarded(server).check()


@case("C11")
def a_step_that_hangs_for_a_second(w):
    server, set_point = w.administered("--failpoint", "runner=sleep:5", "--hang-timeout", "3s")
    calls = begin(server.client, 3, 300)
    set_point("runner=sleep:1000*1")
    statuses = set()
    while any(call.code is None for call in calls):
        statuses.add(server.client.health.Check(health_pb2.HealthCheckRequest(), metadata=server.client.metadata, timeout=5).status)
        time.sleep(0.05)
    assert statuses == {SERVING} and all(call.complete() for call in calls), ([call.code for call in calls], statuses)
    w.guarded(server).check()


def hang(w, action, limit):
    server, set_point = w.administered("--hang-timeout", f"{limit}s", "--failpoint", "runner=sleep:5")
    calls = begin(server.client, 3, 1900)
    set_point(f"runner={action}")
    start = time.monotonic()
    watch = server.client.health.Watch(health_pb2.HealthCheckRequest(service="liveness"), metadata=server.client.metadata)
    with contextlib.suppress(grpc.RpcError):
        while next(watch).status == SERVING:
            pass
    dead = time.monotonic() - start
    for call in calls:
        call.wait(limit + 5)
        assert (call.code, call.reason) == ("INTERNAL", "ENGINE_FAULT"), (call.code, call.reason)
        assert int(call.sent) == len(call.ids)
    ended = max(call.end for call in calls) - start
    expect_exit(server, 70, 10)
    exited = time.monotonic() - start
    # The watcher counts what it sees: on a machine that is busy its seconds are longer.
    assert limit - 0.1 < dead < limit + 1.5 and ended < limit + 2, (dead, ended)
    again = w.serve()
    w.expect_canary(again)
    w.end_case()
    return f"limit {limit} s: not live after {dead:.2f} s, streams ended after {ended:.2f} s, exit 70 after {exited:.2f} s"


@case("C11 for ever")
def a_step_that_hangs_for_ever(w):
    return hang(w, "hang", 2)


@case("C11 for 15 s", long=True)
def a_step_that_comes_back_too_late(w):
    return hang(w, "sleep:15000*1", 10)


@case("C11 one of two")
def one_of_two_engines_hangs(w):
    server, set_point = w.administered("--engines", 2, "--threads", 1, "--hang-timeout", "3s", "--failpoint", "runner=sleep:3")
    golden = list(server.client.generate(prompt(max_tokens=8), 60).ids)
    calls = begin(server.client, 4, 1500)
    set_point("runner=hang*1")
    codes = collections.Counter(call.wait() for call in calls)
    assert codes["INTERNAL"] in (1, 2, 3) and codes["OK"] == 4 - codes["INTERNAL"], codes
    check = health_pb2.HealthCheckRequest()
    assert server.client.health.Check(check, metadata=server.client.metadata, timeout=5).status == SERVING
    assert list(server.client.generate(prompt(max_tokens=8), 60).ids) == golden
    set_point("runner=off")  # it comes back, and nobody hears of it
    assert list(server.client.generate(prompt(max_tokens=8), 60).ids) == golden
    server.signal()
    expect_exit(server, 0)


@case("C12")
def aborts_inside_the_engine(w):
    """A supervisor starts the process anew; a second server beside it does not notice."""
    place = f"127.0.0.1:{free_port()}"
    other = w.serve()
    w.expect_canary(other)
    beside = [Call(other.client, greedy(ids=[5, 6, 7], max_tokens=1900, ignore_eos=True)) for _ in range(2)]
    for index in range(3):
        server = w.failing("runner=sleep:5", f"logits=abort@{40 + index}", listen=place)
        calls = begin(server.client, 2, 1900)
        assert {call.wait() for call in calls} == {"UNAVAILABLE"}
        expect_exit(server, -signal.SIGABRT)
    assert all(call.wait() == "OK" and call.complete() for call in beside)
    w.expect_canary(other)


# ------------------------------------------------------------------------------------------------ memory, files, processors

@case("C15", counts=(60, 10_000))
def tiny_pools(w, count):
    """Pools of a few pages: everything ends, with the tokens that it has alone."""
    source = random.Random(15)
    messages = [greedy(ids=[5 + number] * source.randint(1, 24), max_tokens=source.randint(1, 100), ignore_eos=True)
                for number in range(12)]
    ample = w.serve()
    alone = [list(ample.client.generate(message).ids) for message in messages]
    preempted, sizes = 0, []
    for kibibytes in (25, 35, 60, 120):
        server = w.serve("--kv-memory", f"{kibibytes}K", "--max-queue", 256)
        sizes.append(int(server.ready.split(" KV pages")[0].rsplit(" ", 1)[1]))
        fitting = [index for index, message in enumerate(messages)
                   if len(message.token_ids.ids) + message.stopping.max_tokens <= sizes[-1] * 16]
        chosen = [source.choice(fitting) for _ in range(count // 4)]
        for first in range(0, len(chosen), 30):
            part = chosen[first:first + 30]
            for index, reply in zip(part, server.client.generate_all([messages[index] for index in part]), strict=True):
                assert list(reply.ids) == alone[index], "the pool's size changed a call's tokens"
        preempted += int(w.guarded(server).value("sluice_preemptions_total"))
    return f"{count} calls in pools of {sizes} pages, {preempted} preemptions"


@case("C16", counts=(6, 200))
def files_that_cannot_be_read(w, count):
    """EIO at the n-th read, for as many n as there are; the next start is good."""
    longest, failed = 0, 0
    for number in range(1, count + 1):
        start = time.monotonic()
        server = w.failing(f"read=error@{number}*1", wait=False)
        if server.process.stdout.readline().startswith("ready on"):  # it reads less often
            break
        expect_exit(server, 78)
        longest, failed = max(longest, time.monotonic() - start), failed + 1
        assert "cannot read" in server.stderr() and "Input/output error" in server.stderr(), server.stderr()
        w.end_case()
    assert failed >= 2, failed
    w.expect_canary(w.serve())
    return f"{failed} places, exit code 78 within {longest:.2f} s"


JUMPS = ("+3600", "-3600", "+86400", "-86400", "+0")  # seconds from the true time


def serve_with_another_clock(w, *flags, **options):
    """A server whose wall clock is set by the second of what is returned. Its steady clock stays what it is: nothing sets that of
    a machine."""
    library = next(iter(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    if library is None:
        raise LeftOut("needs libfaketime")
    offset = pathlib.Path(w.folder.name) / "offset"
    offset.write_text("+0")
    return w.serve(*flags, **options, environment={
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1"}), offset.write_text


@case("C18", counts=(1, 8))
def the_wall_clock_jumps(w, rounds):
    """An hour and a day ahead and back, under load: deadlines are kept as they are, and nothing else expires."""
    server, set_clock = serve_with_another_clock(w, "--max-batch", 8, "--log-level", "debug", "--failpoint", "runner=sleep:5", failing=True)
    w.expect_canary(server)
    jumps, times = 0, []
    for jump in JUMPS * rounds:
        # Its tokens take ten seconds; of the others some wait.
        overdue = Call(server.client, greedy(ids=[5] * 9, max_tokens=2000, ignore_eos=True), timeout=1.0)
        running = begin(server.client, 24, 30, wait=False)
        time.sleep(0.05)
        set_clock(jump)
        jumps += 1
        for call in running:
            call.wait()
            assert call.complete(), f"{call.code} {call.reason} after {jump} s"
        assert overdue.wait() == "DEADLINE_EXCEEDED", f"{overdue.code} {overdue.reason} after {jump} s"
        times.append(overdue.end - overdue.begin)
    assert min(times) > 0.95, times
    w.expect_canary(server)
    w.guarded(server).check()
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))
    assert tomorrow in server.stderr(), "the server's clock did not jump"
    return f"{jumps} jumps, 24 calls each: none expired, deadlines of 1 s after {min(times):.2f} to {max(times):.2f} s"


@case("C18 rates", counts=(5, 60))
def the_wall_clock_jumps_beside_a_rate(w, seconds):
    """What a tenant is given by the second stays that, though a day passes at once, or has not yet come: not more, nor less."""
    rate, burst, tokens = 100, 2000, 20  # callers may be late by the burst, 20 s, and nothing is lost
    tenants = pathlib.Path(w.folder.name) / "tenants.json"
    tenants.write_text(json.dumps({"default": {"tokens_per_second": rate, "burst_tokens": burst}}))
    server, set_clock = serve_with_another_clock(w, "--tenants", tenants)
    let_in, refused, failures = [], [], []

    def is_let_in():
        call = Call(server.client, prompt(max_tokens=tokens - 3))
        assert call.wait() == "OK" or call.reason == "QUOTA_EXCEEDED", (call.code, call.reason)
        if call.code == "OK":
            let_in.append(call)
            return True
        refused.append(call)
        time.sleep(0.01)
        return False

    def keep_asking(over):
        """Ends with a refusal: then nothing is saved up."""
        try:
            while is_let_in() or not over.is_set():
                pass
        except AssertionError as failure:
            failures.append(failure)

    def ask_together(act):
        """Enough callers that the limit is what limits them."""
        over = threading.Event()
        callers = [threading.Thread(target=keep_asking, args=(over,)) for _ in range(8)]
        for caller in callers:
            caller.start()
        act()
        over.set()
        for caller in callers:
            caller.join()
        assert not failures, failures

    def await_turn():
        """Alone, after a refusal. The bucket is as empty each time at the call that is let in: between which times that was."""
        wait_until(is_let_in, 60, "a call that is let in")
        return refused[-1].begin, let_in[-1].end

    def jump_for_a_while():
        for jump in range(seconds):
            set_clock(JUMPS[jump % len(JUMPS)])
            time.sleep(1)
    ask_together(lambda: None)
    first = await_turn()
    before = len(let_in)
    ask_together(jump_for_a_while)
    last = await_turn()
    passed, unsure = last[1] - first[1], last[1] - last[0] + first[1] - first[0]
    seen = tokens * (len(let_in) - before) / passed
    told = (f"{seconds} jumps in {passed:.1f} s: {seen:.2f} tokens a second, {rate} are allowed, "
            f"known to {100 * unsure / passed:.2f} %")
    assert abs(seen / rate - 1) < 0.01 + unsure / passed, told
    return told


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def keep_calling(client, over, ended):
    """One call after the other; what became of each."""
    while not over.is_set():
        call = Call(client, greedy(ids=[5, 6, 7], max_tokens=60, ignore_eos=True), timeout=600)
        call.wait(600)
        ended.append("complete" if call.complete() else f"{call.code} {call.reason}")


def watch_health(client, service, seen):
    """Every status that the server tells of a service, the first included."""
    with contextlib.suppress(grpc.RpcError):
        for change in client.health.Watch(health_pb2.HealthCheckRequest(service=service)):
            seen.append(change.status)
        seen.append("the watch ended")


@case("C20", counts=(6, 300), long=True)
def starved_of_processors(w, seconds):
    """Eight busy loops beside as many calls as have places and some that wait: nobody is taken for one that hangs."""
    server = w.serve("--hang-timeout", "3s", "--max-batch", 8, model=harness.MODEL)
    caller, prober = Client(server.address), Client(server.address)
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    over, ended, seen, times, answers = threading.Event(), [], {"": [], "liveness": []}, [], collections.Counter()
    threads = [threading.Thread(target=keep_calling, args=(caller, over, ended), daemon=True) for _ in range(12)]
    watches = [threading.Thread(target=watch_health, args=(prober, *item), daemon=True) for item in seen.items()]
    try:
        for thread in threads + watches:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for service in seen:
                start = time.monotonic()
                answers[health_of(prober, service)] += 1
                times.append(time.monotonic() - start)
            time.sleep(0.2)
        over.set()
        load = os.getloadavg()[0]
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    for thread in threads:
        thread.join(600)
    told = (f"{seconds} s with 8 busy loops, load {load:.0f}, {len(ended)} calls, {sum(answers.values())} health checks: "
            f"p50 {1000 * percentile(times, 0.5):.0f}, p99 {1000 * percentile(times, 0.99):.0f}, "
            f"slowest {1000 * max(times):.0f} ms")
    assert set(ended) == {"complete"}, collections.Counter(ended)
    assert set(answers) == {SERVING} and all(statuses == [SERVING] for statuses in seen.values()), (told, answers, seen)
    caller.close()
    prober.close()
    return told + ", 0 false alarms"


@case("C20 of low priority", long=True)
def starved_by_priority(w):
    """The server has the lowest priority beside busy loops: a step takes longer than the limit, for want of processors alone."""
    server = w.serve("--hang-timeout", "1s", "--max-batch", 4, "--max-step-tokens", 16, model=harness.MODEL)
    w.expect_canary(server, harness.MODEL)
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        for task in os.listdir(f"/proc/{server.process.pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(task), 19)
        before, start = waited_for_processors(server.process.pid), time.monotonic()
        [call] = begin(server.client, 1, 8, wait=False)
        assert call.wait(300) == "OK" and call.complete(), (call.code, call.reason, server.stderr()[-500:])
        seconds = time.monotonic() - start
        waited = waited_for_processors(server.process.pid) - before
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    w.expect_canary(server, harness.MODEL)
    return f"8 tokens took {seconds:.1f} s, of which a thread waited {waited:.1f} s for a processor; limit 1 s: no false alarm"


class Hanging:
    """Connections that ask for metrics and get no further: half of them with half a request, the others do not read. One that the
    server closes comes again."""

    def __init__(self, address, count):
        host, port = address.rsplit(":", 1)
        self.address, self.over = (host, int(port)), threading.Event()
        self.threads = [threading.Thread(target=self.hang, args=(index % 2 == 0,), daemon=True) for index in range(count)]
        for thread in self.threads:
            thread.start()

    def hang(self, is_half):
        while not self.over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=5) as connection:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + (b"" if is_half else b"\r\n"))
                poll = select.poll()
                poll.register(connection, select.POLLRDHUP)
                while not self.over.is_set() and not poll.poll(50):
                    pass

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


@case("C22", counts=(100, 1000))
def scrapers_that_hang(w, count):
    """Scrapes beside scrapers that hang and idle connections, of a server whose places are all taken."""
    server = w.serve("--ops-listen", "127.0.0.1:0", "--max-batch", 8, model=harness.MODEL)
    guarded = w.guarded(server)
    caller, over, ended = Client(server.address), threading.Event(), []
    callers = [threading.Thread(target=keep_calling, args=(caller, over, ended), daemon=True) for _ in range(12)]
    for thread in callers:
        thread.start()
    host, port = server.ops_address.rsplit(":", 1)
    idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(64)]
    hanging = Hanging(server.metrics_address, 16)
    times = []
    for _ in range(count):
        start = time.monotonic()
        assert "sluice_open_streams" in server.metrics()
        times.append(time.monotonic() - start)
    load = os.getloadavg()[0]
    hanging.stop()
    over.set()
    for connection in idle:
        connection.close()
    for thread in callers:
        thread.join(600)
    caller.close()
    assert set(ended) == {"complete"}, collections.Counter(ended)
    guarded.check()
    return (f"{count} scrapes beside 16 that hung and 64 idle connections, load {load:.0f}: p50 {1000 * percentile(times, 0.5):.1f}, "
            f"p99 {1000 * percentile(times, 0.99):.1f}, slowest {1000 * max(times):.1f} ms")


@case("C22 names", counts=(400, 10_000))
def names_that_are_no_series(w, count):
    """Methods, models, ids and agents that nobody has heard of: they add no series."""
    server = w.serve()
    guarded = w.guarded(server)

    def call(raw, number):
        name = f'no\u00e9 "{number}"\\ {{x="y"}}'
        if number % 4 == 0:
            return raw.call(f"/no.such.v{number}.Service/Method{number}", b"").code
        if number % 4 == 1:
            return raw.call("Generate", prompt(model=name).SerializeToString()).code
        if number % 4 == 2:
            message = prompt(max_tokens=1, request_id=f"id-{number}")
            message.cache.cache_salt = name
            return raw.call("Generate", message.SerializeToString()).code
        return raw.call("GetModel", b"", [("user-agent", f"agent {number}"), (f"x-{number}", "y")]).code

    def series():
        return sum(1 for line in server.metrics().splitlines() if not line.startswith("#"))
    codes = collections.Counter()

    def storm(first, count):
        for begin in range(first, first + count, 1000):
            with Raw(server.address) as raw:
                codes.update(call(raw, number) for number in range(begin, min(begin + 1000, first + count)))
    storm(0, 40)  # of each kind some: their codes are series
    before = series()
    storm(40, count)
    assert series() == before <= 3000, (before, series())
    text = server.metrics()
    assert "agent" not in text and "no.such" not in text and "id-" not in text and "noé" not in text
    if shutil.which("promtool"):
        run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert run.returncode in (0, 3) and "error" not in run.stderr, run.stderr  # 3: advice about names
    guarded.check()
    return f"{count} names ({dict(codes)}): {before} series before and after"


@case("accept", counts=(1, 50))
def no_descriptors_for_a_while(w, count):
    server, set_point = w.administered()
    set_point("accept=off")  # as in C07
    guarded = w.guarded(server)
    longest = 0
    for _ in range(count):
        set_point("accept=error")
        server.await_log("connections wait", 10)
        connections = [socket.create_connection(tuple(server.address.rsplit(":", 1)), timeout=5) for _ in range(8)]
        time.sleep(0.3)
        assert list(guarded.client.generate(guarded.request).ids) == guarded.golden
        set_point("accept=off")
        start = time.monotonic()
        connections[0].settimeout(5)
        assert connections[0].recv(1)
        longest = max(longest, time.monotonic() - start)
        for connection in connections:
            connection.close()
    guarded.check()
    return f"{count} times: greeted {longest:.2f} s after descriptors were back at the latest"


@case("mailbox")
def a_mailbox_that_is_full(w):
    server = w.failing("mailbox=error@2*1")
    first = list(server.client.generate(prompt(max_tokens=8), 60).ids)
    call = Call(server.client, prompt(max_tokens=8))
    assert (call.wait(), call.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL"), (call.code, call.reason)
    assert list(server.client.generate(prompt(max_tokens=8), 60).ids) == first
    w.guarded(server).check()


# ------------------------------------------------------------------------------------------------

def run(world, name, cases=CASES):
    """Runs a case and stops what it started; what it has to tell."""
    function, counts, _ = cases[name]
    try:
        if counts is None:
            return function(world)
        return function(world, world.count or counts[1 if world.long else 0])
    finally:
        world.end_case()


def main(description=__doc__, cases=CASES, world_class=World):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sluice", default=str(harness.ROOT / "build/release/sluice"))
    parser.add_argument("--sluice-planted", default=str(harness.ROOT / "build/release/sluice_planted"))
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--count", type=int, metavar="N", help="in place of the cases' own counts, or seconds")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    arguments = parser.parse_args()
    world = world_class(arguments.sluice, arguments.sluice_planted, arguments.long, arguments.count)
    counts = collections.Counter()
    chosen = [name for name, (_, _, long) in cases.items()
              if name in arguments.cases or (not arguments.cases and (world.long or not long))]
    for name in chosen:
        start = time.monotonic()
        try:
            told = run(world, name, cases)
            outcome = "as expected"
        except LeftOut as reason:
            told, outcome = str(reason), "left out"
        except Missed as figures:
            told, outcome = str(figures), "not as expected"
        except Exception:
            told, outcome = traceback.format_exc(), "not as expected"
        counts[outcome] += 1
        print(f"{name:16} {outcome:15} {time.monotonic() - start:6.1f} s  {told or ''}", flush=True)
    world.stop()
    left_out = f", {counts['left out']} left out" if counts["left out"] else ""
    print(f"{len(chosen)} cases, {counts['as expected']} as expected, {counts['not as expected']} not as expected{left_out}")
    return 1 if counts["not as expected"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
