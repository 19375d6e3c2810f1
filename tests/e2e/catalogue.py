"""Bad requests and transports that abuse HTTP/2, each with what must come of it. After every case a fixed request gives the
tokens that it gave at first, and pages, streams, queue and descriptors of the server are what they were.

    python3 tests/e2e/catalogue.py [--sluice PROGRAM] [--long] [--count N] [CASE...]

prints a line a case and, last, "N cases, N as expected, N not as expected". R01 to R90 are requests, H01 to H18 transports;
those that no request can cause are listed with the test that has them."""

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import random
import re
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
from harness import Client, Server, greedy, pb, wait_until  # noqa: E402
from raw_http2 import (CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM,  # noqa: E402
                       SETTINGS, WINDOW_UPDATE, Raw, framed, setting)

TINY = harness.TINY / "tiny-odd.f16.gguf"
CONTEXT, VOCABULARY = 2048, 509
INVALID = "INVALID_ARGUMENT"
TENANT, OTHER, ADMIN = "tenant-token", "other-token", "admin-token"
CASES = {}
# What a request over the wire cannot bring about here, and where it is tested.
ELSEWHERE = {
    "R16": "one model is served, so an empty name means it (tests/server/bad_request_test.cc)",
    "R18": "a model that cannot be loaded ends the process with 78 (tests/e2e/test_cli.py)",
    "R34": "the API has no field for a template",
    "R56": "the API has no adapters",
    "R78": "tests/server/lifecycle_test.cc, tests/e2e/test_device.py",
    "R79": "tests/server/lifecycle_test.cc, tests/e2e/test_device.py",
    "R80": "tests/engine/non_finite_test.cc, tests/server/generate_test.cc",
    "R81": "tests/engine/scheduling/scheduler_swarm_test.cc",
    "R87": "tests/e2e/test_identity.py (certificates of clients)",
    "R88": "tests/e2e/test_identity.py (certificates of clients)",
    "H12": "tests/e2e/test_identity.py (TLS)",
    "H15": "tests/e2e/test_service.py (descriptors)",
}


def case(name, long=None):
    """Registers a case; it takes the World, and its count in the short run and the long one when `long` names both."""
    def register(function):
        CASES[name] = (function, long)
        return function
    return register


def prompt(**fields):
    return greedy(ids=[5, 6, 7], **{"max_tokens": 4, "ignore_eos": True, **fields})


def details_of(stream):
    """The details of google.rpc.Status by type name."""
    from google.rpc import error_details_pb2, status_pb2
    status = status_pb2.Status.FromString(stream.details)
    found = {}
    for any_ in status.details:
        kind = getattr(error_details_pb2, any_.TypeName().rsplit(".", 1)[1])
        found[kind.DESCRIPTOR.name] = kind.FromString(any_.value)
    return found


def expect(stream, code, field=None, reason=None, retry=None):
    assert stream.code in (code if isinstance(code, tuple) else (code,)), (stream.code, stream.headers)
    message = stream.headers.get("grpc-message", "")
    assert len(message) < 600 and not re.search(r"0x[0-9a-f]{8}|/(work|home|tmp|usr)/", message), message
    details = details_of(stream) if stream.details else {}
    if field is not None:
        fields = [violation.field for violation in details["BadRequest"].field_violations]
        assert any(name.startswith(field) for name in fields), (field, fields)
    elif code == INVALID:
        assert details["BadRequest"].field_violations, message
    if reason is not None:
        assert details["ErrorInfo"].reason == reason, details
    if retry is not None:
        assert ("RetryInfo" in details) == retry, details
        assert ("grpc-retry-pushback-ms" in stream.headers) == retry, stream.headers


class Guarded:
    """A server with what every case of it must leave as it was."""

    def __init__(self, server, tokens=(), token=None, request=None):
        self.server, self.request = server, request or prompt(max_tokens=8)
        self.client = Client(server.address, token)
        self.address = server.address
        self.headers = [("authorization", f"Bearer {token}")] if token else []
        self.golden = list(self.client.generate(self.request).ids)
        assert len(self.golden) == 8
        self.metrics()
        self.descriptors = self.num_descriptors()

    def metrics(self):
        return self.server.metrics()

    def value(self, name):
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", self.metrics(), re.M))

    def num_descriptors(self):
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def resident(self):
        with open(f"/proc/{self.server.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def forget_peak(self):
        """From now on peak() is the most memory that has been resident since."""
        with open(f"/proc/{self.server.process.pid}/clear_refs", "w") as file:
            file.write("5")

    def peak(self):
        with open(f"/proc/{self.server.process.pid}/status") as file:
            return int(re.search(r"VmHWM:\s*(\d+) kB", file.read())[1]) << 10

    def quiet(self):
        metrics = self.metrics()
        used = re.search(r'^sluice_kv_pages\{[^}]*state="used"[^}]*\} (\S+)', metrics, re.M)
        nothing = ("sluice_open_streams", "sluice_requests_running", "sluice_requests_waiting", "sluice_queue_tokens",
                   "sluice_queue_bytes", "sluice_leaked_pages")
        left = {name: value for name in nothing for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.M)
                if float(value) != 0}
        if float(used[1]) != 0:
            left["pages"] = used[1]
        if self.num_descriptors() > self.descriptors:
            left["descriptors"] = self.num_descriptors() - self.descriptors
        self.left = left
        return not left

    def check(self):
        """The canary, and that nothing is left of what was before."""
        assert list(self.client.generate(self.request, timeout=30).ids) == self.golden, "the canary's tokens changed"
        # A connection whose end gRPC has not seen goes when a keepalive fails: after 20 s, or 20 more without an answer
        # (server/listener.cc).
        end = time.monotonic() + 45
        while not self.quiet():
            assert time.monotonic() < end, f"left behind: {self.left}"
            time.sleep(0.05)

    def raw(self, **options):
        return Raw(self.address, **options)

    def call(self, message, method="Generate", extra=(), **options):
        """One call on a connection of its own."""
        with self.raw() as raw:
            body = message if isinstance(message, bytes) else message.SerializeToString()
            return raw.call(method, body, [*self.headers, *extra], **options)

    def stop(self):
        self.client.close()
        self.server.stop()


class World:
    """The servers that cases call, started when one asks."""

    def __init__(self, program, long=False, count=None):
        self.program, self.long, self.count, self.servers = program, long, count, {}
        self.folder = tempfile.TemporaryDirectory()

    def path(self, name, content):
        path = pathlib.Path(self.folder.name) / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def server(self, name, *flags, token=None, **options):
        if name not in self.servers:
            request = options.pop("request", None)
            server = Server(self.program, *flags, **{"model": TINY, **options})
            self.servers[name] = Guarded(server, token=token, request=request)
        return self.servers[name]

    @property
    def plain(self):
        return self.server("plain")

    @property
    def small(self):
        """A KV pool of less than the context: 16 pages of 16 positions."""
        return self.server("small", "--kv-memory", "170K")

    @property
    def slow(self):
        """One sequence at a time, of a model that takes its time, and two that wait."""
        return self.server("slow", "--max-batch", 1, "--max-queue", 2, model=harness.MODEL,
                           request=greedy("1 2 3 4 5", max_tokens=8, ignore_eos=True))

    @property
    def tenants(self):
        if "tenants" in self.servers:
            return self.servers["tenants"]

        def entry(token, tenant, scope="inference"):
            return {"sha256": hashlib.sha256(token.encode()).hexdigest(), "tenant": tenant, "scopes": [scope]}
        tokens = {name: entry(name + "-token", name) for name in ("two", "rate", "share", "barred", "other")}
        auth = self.path("auth.json", {"tokens": [entry(TENANT, "acme"), entry(ADMIN, "ops", "admin"), *tokens.values()]})
        limits = self.path("tenants.json", {"tenants": {
            "two": {"max_concurrent": 2}, "rate": {"tokens_per_second": 1, "burst_tokens": 20},
            "share": {"kv_share": 0.001}, "barred": {"models": []}, "acme": {"max_priority": 5}}})
        return self.server("tenants", "--auth-file", auth, "--tenants", limits, "--ops-listen", "127.0.0.1:0", "--reflection",
                           "--channelz", token=TENANT)

    def stop(self):
        for server in self.servers.values():
            server.stop()
        self.folder.cleanup()


def run(world, name):
    """Runs a case and what follows every case; raises what went wrong."""
    function, counts = CASES[name]
    before = set(world.servers)
    arguments = () if counts is None else (world.count or counts[1 if world.long else 0],)
    function(world, *arguments)
    for key in before | set(world.servers):
        server = world.servers[key]
        assert server.server.process.poll() is None, f"server {key} died: {server.server.stderr()[-2000:]}"
        server.check()


# ------------------------------------------------------------------------------------------------ envelope

@case("R01")
def zero_bytes(w):
    expect(w.plain.call(b""), INVALID)


@case("R02", long=(20, 1000))
def random_bytes(w, count):
    source = random.Random(2)
    for _ in range(count):
        expect(w.plain.call(source.randbytes(1024)), INVALID)


@case("R03")
def cut_anywhere(w):
    whole = prompt(request_id="cut", stop=["x"], seed=7).SerializeToString()
    with w.plain.raw() as raw:
        for size in range(len(whole)):
            assert raw.call("Generate", whole[:size]).code in (INVALID, "OK"), size


@case("R04")
def invalid_utf8(w):
    for number in (1, 2, 3):
        expect(w.plain.call(bytes([number << 3 | 2, 2]) + b"\xc3\x28"), INVALID)


@case("R05")
def unknown_fields(w):
    expect(w.plain.call(prompt().SerializeToString() + b"\x9a\x3f\xe8\x07" + b"x" * 1000 + (b"\xf8\x3f\x01" * 350_000)), "OK")


@case("R06")
def deep_nesting(w):
    expect(w.plain.call(b"\x9b\x3f" * 101 + b"\x9c\x3f" * 101), INVALID)
    expect(w.plain.call(b"\x9b\x3f" * 200_000), INVALID)


@case("R07")
def too_large(w):
    expect(w.plain.call(b"\x1a" + b"\x80\x80\x80\x02" + b"x" * (4 << 20)), "RESOURCE_EXHAUSTED")


@case("R08", long=(64, 4096))
def compressed(w, megabytes):
    bomb = gzip.compress(b"\0" * (1 << 20), 1)
    bomb = gzip.compress(b"\0" * (megabytes << 20), 9) if megabytes <= 64 else bomb * megabytes
    w.plain.call(prompt())
    before = w.plain.resident()
    with w.plain.raw() as raw:
        stream = raw.open("/sluice.v1.Inference/Generate", [("grpc-encoding", "gzip")])
        raw.upload(stream, framed(bomb[:4_000_000], compressed=True))
        assert raw.wait(stream).code in ("UNIMPLEMENTED", "INTERNAL"), raw.streams[stream].code
        stream = raw.open("/sluice.v1.Inference/Generate")  # compressed, and not said so
        raw.upload(stream, framed(bomb[:100_000], compressed=True))
        assert raw.wait(stream).code in ("UNIMPLEMENTED", "INTERNAL", INVALID), raw.streams[stream].code
    assert w.plain.resident() - before < 16 << 20


@case("R09")
def two_messages(w):
    before = w.plain.value("sluice_requests_total")
    with w.plain.raw() as raw:
        stream = raw.open("/sluice.v1.Inference/Generate")
        raw.data(stream, framed(prompt().SerializeToString()) * 2)
        assert raw.wait(stream).code in ("OK", "UNIMPLEMENTED", "INTERNAL")
    assert w.plain.value("sluice_requests_total") - before <= 1


@case("R10")
def unknown_method(w):
    expect(w.plain.call(b"", "/sluice.v1.Inference/Nothing"), "UNIMPLEMENTED")


@case("R11")
def unknown_service(w):
    for path in ("/no.such.Service/Method", "/", "//", "/" + "x" * 4000, "/sluice.v1.Inference/"):
        expect(w.plain.call(b"", path), "UNIMPLEMENTED")


@case("R12")
def other_content_type(w):
    for kind in ("application/json", "", "text/html"):
        code = w.plain.call(prompt(), content_type=kind).code
        assert code != "none", "no answer"
        assert code not in ("UNKNOWN", "DATA_LOSS"), code


@contextlib.contextmanager
def held(server, headers=(), **fields):
    """A call that stays open because its reader takes nothing."""
    with server.raw(window=0) as raw:
        message = prompt(max_tokens=1500, **fields).SerializeToString()
        raw.start("Generate", message, headers or server.headers)
        wait_until(lambda: server.value("sluice_open_streams") >= 1, 10, "the open call")
        yield raw


@case("R13")
def live_request_id(w):
    with held(w.tenants, request_id="once"):
        expect(w.tenants.call(prompt(request_id="once")), "ALREADY_EXISTS", reason="DUPLICATE_REQUEST")
        # What another tenant calls its own does not matter, nor does it show.
        with w.tenants.raw() as raw:
            expect(raw.call("Generate", prompt(request_id="once").SerializeToString(),
                            [("authorization", f"Bearer {OTHER}")]), "OK")
    wait_until(lambda: w.tenants.value("sluice_open_streams") == 0, 10)
    expect(w.tenants.call(prompt(request_id="once")), "OK")


@case("R14")
def bad_request_id(w):
    for name in ("x" * 10_000, "x" * 129, "a\nb", "\x7f", "ü"):
        expect(w.plain.call(prompt(request_id=name)), INVALID, "request_id")


# ------------------------------------------------------------------------------------------------ model

@case("R15")
def unknown_model(w):
    expect(w.plain.call(prompt(model="no-such-model")), "NOT_FOUND", reason="MODEL_NOT_FOUND")


@case("R17")
def still_loading(w):
    server = Server(w.program, model=harness.MODEL, wait=False)
    try:
        with Raw(server.address) as raw:
            stream = raw.call("Generate", prompt().SerializeToString())
        assert not server.process.poll()
        # A machine may be faster than this test.
        if stream.code != "OK":
            assert stream.code == "UNAVAILABLE" and details_of(stream)["ErrorInfo"].reason == "LOADING"
            assert "RetryInfo" in details_of(stream)
        server.wait_ready()
    finally:
        server.stop()
    w.plain.call(prompt())


@case("R19")
def hostile_model_names(w):
    before = w.plain.metrics().count("\n")
    for name in ("x" * 1_000_000, "../../etc/passwd", "a\0b", "%s%n", '"} 1\n', "ä" * 100):
        stream = w.plain.call(prompt(model=name))
        expect(stream, "NOT_FOUND")
        assert len(stream.headers["grpc-message"]) < 400
    w.plain.call(prompt(model="no"))
    assert w.plain.metrics().count("\n") <= before + 4


@case("R20")
def model_not_allowed(w):
    for method, message in (("Generate", prompt()), ("Tokenize", pb.TokenizeRequest(text="x")), ("GetModel", pb.GetModelRequest())):
        with w.tenants.raw() as raw:
            expect(raw.call(method, message.SerializeToString(), [("authorization", "Bearer barred-token")]),
                   "PERMISSION_DENIED", reason="MODEL_NOT_ALLOWED")


# ------------------------------------------------------------------------------------------------ prompt

@case("R21")
def empty_prompt(w):
    expect(w.plain.call(greedy(text="", max_tokens=1)), INVALID, "text")
    expect(w.plain.call(greedy(ids=[], max_tokens=1)), INVALID)


@case("R22")
def two_prompts(w):
    expect(w.plain.call(prompt().SerializeToString() + greedy(text="x").SerializeToString()), INVALID, "text")


@case("R23")
def bad_token_ids(w):
    for ids in ([-1], [VOCABULARY], [2**31 - 1], [-2**31]):
        expect(w.plain.call(greedy(ids=[1, *ids], max_tokens=1)), INVALID, "token_ids.ids[1]")
    expect(w.plain.call(b"\x22\x07\x0a\x05\x80\x80\x80\x80\x08" + b"\x4a\x02\x08\x01"), INVALID, "token_ids.ids[0]")  # 2^31


@case("R24")
def to_the_brim(w):
    expect(w.plain.call(greedy(ids=[5] * (CONTEXT - 1), max_tokens=1)), "OK")
    expect(w.plain.call(greedy(ids=[5] * CONTEXT, max_tokens=1)), INVALID, "token_ids.ids")


@case("R25")
def longer_than_the_context(w):
    stream = w.plain.call(greedy(ids=[5] * 3000, max_tokens=1))
    expect(stream, INVALID, "token_ids.ids")
    assert "3000" in stream.headers["grpc-message"] and str(CONTEXT) in stream.headers["grpc-message"]


def pool_positions(server):
    return int(server.client.stub.GetLoad(pb.GetLoadRequest()).engines[0].kv_pages_total) * 16


@case("R26")
def larger_than_the_pool(w):
    pool = pool_positions(w.small)
    assert 32 < pool < CONTEXT
    start = time.monotonic()
    expect(w.small.call(greedy(ids=[5] * (pool + 1), max_tokens=1)), INVALID)
    assert time.monotonic() - start < 2
    expect(w.small.call(prompt()), "OK")


@case("R27")
def never_to_be_admitted(w):
    pool = pool_positions(w.small)
    expect(w.small.call(prompt(max_tokens=pool)), INVALID, "stopping.max_tokens")
    expect(w.small.call(greedy(ids=[5] * (pool - 10), max_tokens=11)), INVALID, "stopping.max_tokens")


@case("R28")
def long_runs(w):
    for text in ("A" * 43_000, "Z" * 131_072, *(one * (1_000_000 // len(one.encode())) for one in (" ", "\n", ".", "東", "e\u0301",
                                                                                              "\u0301", "a ", "\U0001f600"))):
        start = time.monotonic()
        expect(w.plain.call(greedy(text=text, max_tokens=1)), INVALID, "text")
        seconds = time.monotonic() - start
        assert seconds < 3, (text[:8], seconds)  # a second a megabyte, on a machine that others use


@case("R29")
def odd_text(w):
    for text in ("a\0b", "\ufeffx", "\U0001f469\u200d\U0001f680" * 20, "\u202e", "\U0010ffff", "\r\n\v\f\x1b[2J"):
        expect(w.plain.call(greedy(text=text, max_tokens=40, ignore_eos=True, stream_interval=1)), "OK")
        reply = w.plain.client.generate(greedy(text=text, max_tokens=40, ignore_eos=True))
        reply.text.encode()  # protobuf refuses what is not UTF-8


def chat(*messages, **fields):
    request = greedy(text="", max_tokens=1)
    for role, content in messages:
        request.chat.messages.add(role=role, content=content)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


@case("R30")
def control_text_in_a_chat(w):
    def tokens(content, **fields):
        return w.plain.client.generate(chat(("user", content), **fields)).accepted.prompt_tokens
    plain = tokens("")
    assert tokens("<|im_end|>") > plain + 1
    assert tokens("<|im_end|>", parse_special=True) == plain + 1


@case("R31")
def many_messages(w):
    expect(w.plain.call(chat(*[("user", "x")] * 10_000)), INVALID, "chat.messages")


@case("R32")
def unknown_role(w):
    for role in ("", "root", "USER", "user\0", "x" * 100_000):
        expect(w.plain.call(chat(("user", "x"), (role, "y"))), INVALID, "chat.messages[1].role")


@case("R33")
def no_messages(w):
    request = greedy(text="")
    request.chat.SetInParent()
    expect(w.plain.call(request), INVALID, "chat.messages")


@case("R35")
def long_text_beside_others(w):
    text = "word " * 800_000
    done, worst = threading.Event(), []

    def tokenize():
        try:
            for _ in range(2):
                expect(w.plain.call(greedy(text=text, max_tokens=1), seconds=60), INVALID, "text")
        finally:
            done.set()

    thread = threading.Thread(target=tokenize)
    thread.start()
    while not done.is_set():
        start = time.monotonic()
        assert w.plain.call(prompt()).code == "OK"
        worst.append(time.monotonic() - start)
    thread.join()
    assert sorted(worst)[len(worst) // 2] < 0.5, f"median {sorted(worst)[len(worst) // 2]} s"


# ------------------------------------------------------------------------------------------------ sampling

NAN, INF = float("nan"), float("inf")
VALUES = {
    "R36": [("stopping.max_tokens", 0)],
    "R37": [(field, value) for value in (-1, -2**31) for field in (
        "stopping.max_tokens", "stopping.min_tokens", "sampling.top_k", "sampling.n", "sampling.penalty_last_n",
        "output.logprobs", "output.stream_interval", "stopping.stop_token_ids")],
    "R38": [("stopping.max_tokens", 2**31 - 1)],
    "R39": [("sampling.temperature", value) for value in (NAN, INF, -INF, -0.1, 1e38)],
    "R40": [("sampling.top_p", value) for value in (NAN, 0, -1, 1.0001)],
    "R41": [("sampling.top_k", value) for value in (-1, -2**31)],
    "R42": [("sampling.min_p", value) for value in (NAN, -0.01, 1.01, INF)],
    "R43": [("sampling.typical_p", value) for value in (NAN, 0, -1, 1.01)],
    "R44": [("sampling.repetition_penalty", value) for value in (NAN, 0, -1, 1e30, INF)],
    "R45": [(field, value) for field in ("sampling.presence_penalty", "sampling.frequency_penalty")
            for value in (NAN, -2.01, 2.01, INF)],
    "R46": [("sampling.n", value) for value in (0, 17, 2**31 - 1)],
    "R47": [("output.logprobs", value) for value in (-1, 21, 2**31 - 1)],
    "R49": [("stopping.stop", value) for value in ([""], ["x"] * 17, ["x" * 1_000_000], ["x" * 257])],
    "R50": [("stopping.stop_token_ids", value) for value in ([-1], [VOCABULARY], [1] * 65)],
    "R51": [("sampling.logit_bias", value) for value in ({number: 0.0 for number in range(100_000)}, {VOCABULARY: 1.0}, {-1: 1.0},
                                                         {1: NAN}, {1: 101.0}, {1: INF},
                                                         {number: -INF for number in range(VOCABULARY)})],
    "R55": [("cache.cache_salt", "x" * 257)],
}
ACCEPTED = {
    "R39": [("sampling.temperature", 1e-40), ("sampling.temperature", 100)], "R41": [("sampling.top_k", VOCABULARY + 1),
                                                                                     ("sampling.top_k", 2**31 - 1)],
    "R45": [(field, value) for field in ("sampling.presence_penalty", "sampling.frequency_penalty") for value in (-2, 2)],
    "R47": [("output.logprobs", 20)], "R51": [("sampling.logit_bias", {1: -INF, 2: 100.0})],
}


def with_value(path, value):
    request = prompt()
    owner = request
    *folders, name = path.split(".")
    for folder in folders:
        owner = getattr(owner, folder)
    if isinstance(value, dict):
        for key, one in value.items():
            getattr(owner, name)[key] = one
    elif name in ("stop", "stop_token_ids"):
        getattr(owner, name).extend(value if isinstance(value, list) else [value])
    else:
        setattr(owner, name, value)
    return request


def register_values(name):
    @case(name)
    def values(w):
        with w.plain.raw() as raw:
            for path, value in VALUES[name]:
                expect(raw.call("Generate", with_value(path, value).SerializeToString()), INVALID, path)
            for path, value in ACCEPTED.get(name, ()):
                expect(raw.call("Generate", with_value(path, value).SerializeToString()), "OK")


for _name in VALUES:
    register_values(_name)


@case("R48")
def prompt_logprobs(w):
    expect(w.plain.call(with_value("output.prompt_logprobs", 1)), ("UNIMPLEMENTED", "OK"))


@case("R52")
def seeds(w):
    for seed in (0, 2**64 - 1):
        request = harness.request(ids=[5, 6, 7], max_tokens=20, ignore_eos=True, seed=seed, temperature=1.0)
        first, second = w.plain.client.generate(request), w.plain.client.generate(request)
        assert first.ids == second.ids and first.accepted.sampling.seed == seed


@case("R53")
def min_above_max(w):
    expect(w.plain.call(prompt(min_tokens=5, max_tokens=4)), INVALID, "stopping.min_tokens")
    reply = w.plain.client.generate(greedy(ids=[5] * (CONTEXT - 20), ignore_eos=True))  # no cap: the context's
    assert len(reply.ids) == 20


@case("R54")
def priorities(w):
    for priority in (101, -101, 2**31 - 1, -2**31):
        expect(w.tenants.call(with_value("scheduling.priority", priority)), INVALID, "scheduling.priority")
    expect(w.tenants.call(with_value("scheduling.priority", 6)), "PERMISSION_DENIED", reason="PRIORITY_NOT_ALLOWED")
    expect(w.tenants.call(with_value("scheduling.priority", 5)), ("OK", "UNIMPLEMENTED"))


# ------------------------------------------------------------------------------------------------ constraints

CONSTRAINTS = {
    "R57": ("regex", "(" * 60_000 + ")" * 60_000), "R58": ("gbnf", "root ::= root"),
    "R59": ("json_schema", '{"$ref": "#"}'), "R60": ("json_schema", '{"type": "array", "maxItems": 18446744073709551615}'),
    "R61": ("regex", "(a+)+$"), "R62": ("json_schema", '{"type": 7}'), "R63": ("json_schema", '{"a":' * 2000 + "1" + "}" * 2000),
    "R64": ("json_schema", '{"const": 1}'), "R65": ("regex", "(a{1000}){1000}"),
}


def register_constraint(name):
    @case(name)
    def constraint(w):
        field, value = CONSTRAINTS[name]
        before = w.plain.resident()
        start = time.monotonic()
        expect(w.plain.call(with_value("constraint." + field, value)), "UNIMPLEMENTED", reason="FEATURE")
        assert time.monotonic() - start < 0.5 and w.plain.resident() - before < 16 << 20


for _name in CONSTRAINTS:
    register_constraint(_name)


# ------------------------------------------------------------------------------------------------ time, quota, lifecycle

@contextlib.contextmanager
def occupied(w, waiting=0):
    """The slow server with a running call and some that wait."""
    client = w.slow.client
    calls = []
    try:
        for number in range(1 + waiting):
            calls.append(client.stream(greedy("1 2 3 4 5", max_tokens=1500, ignore_eos=True)))
            if number == 0:
                next(iter(calls[0]))  # its prompt has been computed
        wait_until(lambda: client.load().engines[0].running == 1 and client.load().engines[0].waiting == waiting, 20,
                   "the queue")
        yield
    finally:
        for call in calls:
            call.cancel()
        wait_until(lambda: client.load().engines[0].running + client.load().engines[0].waiting == 0, 20, "the empty queue")


@case("R66")
def deadline_past(w):
    before = w.plain.value("sluice_generation_tokens_total"), w.plain.value("sluice_prompt_tokens_total")
    with w.plain.raw() as raw:
        for timeout in ("0n", "1n", "0S", "1m"):
            stream = raw.open("/sluice.v1.Inference/Generate", [("grpc-timeout", timeout)])
            time.sleep(0.02)  # gRPC counts in milliseconds
            raw.upload(stream, framed(prompt(max_tokens=100).SerializeToString()))
            assert raw.wait(stream).code in ("DEADLINE_EXCEEDED", "RST 8", "CANCELLED"), raw.streams[stream].code
    after = w.plain.value("sluice_generation_tokens_total"), w.plain.value("sluice_prompt_tokens_total")
    assert before == after


@case("R67")
def deadline_unmeetable(w):
    # So that the rate is known: calls that end while another waits. Two at once: the queue takes two, and none may run yet.
    for _ in range(4):
        w.slow.client.generate_all([greedy("1 2 3", max_tokens=64, ignore_eos=True)] * 2)
    with occupied(w, waiting=1):
        # Refused at once, or, where what was measured lets it hope, not served beyond its deadline.
        refused = 0
        for _ in range(10):
            start = time.monotonic()
            stream = w.slow.call(greedy("1 2 3"), extra=[("grpc-timeout", "60m")])
            if stream.code != "DEADLINE_EXCEEDED":
                expect(stream, "RESOURCE_EXHAUSTED", reason="DEADLINE_UNMEETABLE", retry=False)
                refused += 1
            assert time.monotonic() - start < 1
            wait_until(lambda: w.slow.client.load().engines[0].waiting == 1, 20, "the place in the queue")
        assert refused > 0


@case("R68")
def no_deadline(w):
    expect(w.plain.call(prompt()), "OK")


@case("R69")
def expires_in_the_queue(w):
    with occupied(w):
        before = w.slow.value("sluice_prompt_tokens_total")
        request = greedy("1 2 3", max_tokens=5)
        request.scheduling.queue_timeout.nanos = 200_000_000
        expect(w.slow.call(request), "DEADLINE_EXCEEDED")
        assert w.slow.value("sluice_prompt_tokens_total") == before


@case("R70")
def expires_mid_stream(w):
    with w.slow.raw() as raw:
        stream = raw.call("Generate", greedy("1 2 3", max_tokens=1500, ignore_eos=True).SerializeToString(),
                          [("grpc-timeout", "700m")])
        assert stream.code in ("DEADLINE_EXCEEDED", "RST 8") and stream.messages
        wait_until(lambda: w.slow.value("sluice_requests_running") == 0, 3, "the pages")


@case("R71", long=(120, 10_000))
def cancels_at_any_time(w, count):
    source = random.Random(71)
    body = framed(prompt(max_tokens=60, request_id="").SerializeToString())
    with w.plain.raw() as raw:
        for _ in range(count):
            stream = raw.open("/sluice.v1.Inference/Generate")
            if source.random() < 0.9:
                raw.data(stream, body)
            time.sleep(source.random() ** 3 * 0.02)
            raw.frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
            while raw.read_frame(0):
                pass
            assert not raw.closed
    with occupied(w):  # in the queue
        with w.slow.raw() as raw:
            stream = raw.start("Generate", greedy("1 2 3").SerializeToString())
            wait_until(lambda: w.slow.value("sluice_requests_waiting") == 1, 5)
            raw.frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
            wait_until(lambda: w.slow.value("sluice_requests_waiting") == 0, 5)


@case("R72")
def queue_full(w):
    with occupied(w, waiting=2):
        stream = w.slow.call(greedy("1 2 3"))
        expect(stream, "RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry=True)
        delay = details_of(stream)["RetryInfo"].retry_delay
        assert abs(delay.seconds * 1000 + delay.nanos / 1e6 - int(stream.headers["grpc-retry-pushback-ms"])) < 1


def tenant_call(w, tenant, message=None):
    with w.tenants.raw() as raw:
        return raw.call("Generate", (message or prompt()).SerializeToString(), [("authorization", f"Bearer {tenant}-token")])


def expect_quota(stream, tenant, retry):
    expect(stream, "RESOURCE_EXHAUSTED", reason="QUOTA_EXCEEDED", retry=retry)
    [violation] = details_of(stream)["QuotaFailure"].violations
    assert violation.subject == "tenant:" + tenant


@case("R73")
def tenant_concurrency(w):
    headers = [("authorization", "Bearer two-token")]
    with held(w.tenants, headers), held(w.tenants, headers):
        wait_until(lambda: w.tenants.value("sluice_open_streams") == 2, 10)
        expect_quota(tenant_call(w, "two"), "two", retry=True)
        expect(tenant_call(w, "other"), "OK")
    wait_until(lambda: w.tenants.value("sluice_open_streams") == 0, 10)
    for _ in range(20):
        expect(tenant_call(w, "two"), "OK")


@case("R74")
def tenant_rate(w):
    codes = [tenant_call(w, "rate") for _ in range(6)]
    assert codes[0].code == "OK"
    expect_quota(codes[-1], "rate", retry=True)
    expect(tenant_call(w, "other"), "OK")


@case("R75")
def tenant_kv_share(w):
    expect_quota(tenant_call(w, "share", greedy(ids=[5] * 1500, max_tokens=500)), "share", retry=False)
    expect(tenant_call(w, "share"), "OK")


@case("R76")
def memory_watermark(w):
    server = Server(w.program, "--memory-watermark", "8M", model=TINY)
    try:
        with Raw(server.address) as raw:
            server.await_log("calls are refused", 5)
            expect(raw.call("Generate", prompt().SerializeToString()), "RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry=True)
            expect(raw.call("GetModel"), "OK")
    finally:
        server.stop()
    w.plain.call(prompt())


@case("R77")
def draining(w):
    server = Server(w.program, "--drain-timeout", "20s", model=TINY)
    try:
        with Raw(server.address, window=0) as busy, Raw(server.address) as raw:
            busy.start("Generate", prompt(max_tokens=1500).SerializeToString())
            wait_until(lambda: "sluice_open_streams 1" in server.metrics(), 5)
            server.signal()
            server.await_log("draining", 5)
            expect(raw.call("Generate", prompt().SerializeToString()), "UNAVAILABLE", reason="DRAINING", retry=False)
    finally:
        server.stop()
    w.plain.call(prompt())


# ------------------------------------------------------------------------------------------------ identity

def identity_code(w, *authorization, method="GetModel", address=None, message=b""):
    with Raw(address or w.tenants.address) as raw:
        stream = raw.call(method, message, [("authorization", value) for value in authorization])
        return stream.code, stream.headers.get("grpc-message")


REFUSED = ("UNAUTHENTICATED", "valid credentials are required")


@case("R82")
def no_token(w):
    assert identity_code(w) == REFUSED


@case("R83")
def malformed_tokens(w):
    for values in (["Bearer"], ["Bearer  "], ["Bearer " + TENANT] * 2, ["Bearer " + "x" * 6000], [b"Bearer \xc3\xbc"],
                   ["Basic " + TENANT], ["bearer" + TENANT]):
        assert identity_code(w, *values) == REFUSED, values
    # Longer than all headers may be: who keeps to the server's settings hears so from the transport.
    with Raw(w.tenants.address) as raw:
        raw.settle()
        assert raw.call("GetModel", b"", [("authorization", "Bearer " + "x" * 8192)]).code == "RESOURCE_EXHAUSTED"
    assert identity_code(w, "Bearer " + "x" * 8192) == REFUSED


@case("R84", long=(300, 10_000))
def wrong_tokens_take_as_long(w, count):
    """Two wrong tokens of a length, one of which differs from a right one in its last byte only: their times have one
    distribution (two-sample Kolmogorov-Smirnov test, in turns so that what else the machine does falls on both)."""
    near, far = TENANT[:-1] + "x", "x" * len(TENANT)
    times = {near: [], far: []}
    with w.tenants.raw() as raw:
        for _ in range(count):
            for token in (near, far):
                start = time.perf_counter()
                assert raw.call("GetModel", b"", [("authorization", "Bearer " + token)]).code == "UNAUTHENTICATED"
                times[token].append(time.perf_counter() - start)
    ordered = sorted((value, token == near) for token, values in times.items() for value in values)
    difference, most = 0, 0
    for _, is_near in ordered:
        difference += 1 if is_near else -1
        most = max(most, abs(difference))
    assert most / count < 1.628 * (2 / count) ** 0.5, f"distance {most / count}"  # p = 0.01


@case("R85")
def rotated_token(w):
    path = pathlib.Path(w.folder.name) / "auth.json"
    w.tenants
    content = json.loads(path.read_text())
    assert identity_code(w, "Bearer fresh")[0] == "UNAUTHENTICATED"
    content["tokens"].append({"sha256": hashlib.sha256(b"fresh").hexdigest(), "tenant": "acme", "scopes": ["inference"]})
    path.write_text(json.dumps(content))
    wait_until(lambda: identity_code(w, "Bearer fresh")[0] == "OK", 5, "the new token")
    path.write_text(json.dumps({**content, "tokens": content["tokens"][:-1]}))
    wait_until(lambda: identity_code(w, "Bearer fresh") == REFUSED, 5, "the old token's end")


@case("R86")
def wrong_scope(w):
    assert identity_code(w, "Bearer " + ADMIN)[0] == "PERMISSION_DENIED"


@case("R89")
def admin_with_a_tenants_token(w):
    address = w.tenants.server.ops_address
    for method in ("/sluice.v1.Admin/Drain", "/sluice.v1.Admin/Reload", "/sluice.v1.Admin/SetFailpoint",
                   "/grpc.channelz.v1.Channelz/GetServers"):
        assert identity_code(w, "Bearer " + TENANT, method=method, address=address)[0] == "PERMISSION_DENIED", method


@case("R90")
def every_method(w):
    from test_identity import METHODS
    library = {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/no.such.Service/Method"}
    library |= {"/grpc.channelz.v1.Channelz/" + name for name in ("GetTopChannels", "GetServers", "GetServer", "GetServerSockets",
                                                                   "GetChannel", "GetSubchannel", "GetSocket")}
    for path in METHODS | library:
        assert identity_code(w, method=path) == REFUSED, path
        if "grpc.health" not in path:
            assert identity_code(w, method=path, address=w.tenants.server.ops_address) == REFUSED, path


# ------------------------------------------------------------------------------------------------ transport

@contextlib.contextmanager
def unharmed(w, most_bytes=64 << 20, most_seconds=5, fills_queue=False):
    """Others are served meanwhile, or told that the queue is full where it may be, and memory stays. Gives the list to which
    the seconds of their calls are added."""
    w.plain.call(prompt())
    before = w.plain.resident()
    done, times, wrong = threading.Event(), [], []

    def others():
        while not done.is_set():
            start = time.monotonic()
            try:
                if list(w.plain.client.generate(w.plain.request, timeout=20).ids) != w.plain.golden:
                    wrong.append("other tokens")
            except grpc.RpcError as error:
                if not fills_queue or error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    wrong.append(error.code().name)
            times.append(time.monotonic() - start)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()
    assert not wrong, f"of {len(times)} calls of others: {wrong[:10]}"
    assert times and max(times) < most_seconds, f"others waited {max(times, default=None)} s"
    # While a flood lasts gRPC's own quota (256 MiB) bounds what it takes; afterwards that is given back.
    peak = w.plain.resident() - before
    assert peak <= (256 << 20) + most_bytes, f"memory grew by {peak} bytes"
    wait_until(lambda: w.plain.resident() - before <= most_bytes, 10, f"the memory ({peak} bytes)")


def p99(times):
    return sorted(times)[len(times) * 99 // 100]


@case("H01", long=(10_000, 100_000))
def rapid_reset(w, count):
    """By another process, so that the calls of others are served by this one as they are without it."""
    most_bytes, is_long = 64 << 20, w.long or w.count
    with unharmed(w) as times:
        def await_calls(calls):
            target = len(times) + calls
            wait_until(lambda: len(times) >= target, 120, f"{calls} calls of others")
            return p99(times[-calls:])
        await_calls(20)  # what a first call needs is there
        before = await_calls(300) if is_long else None
        w.plain.forget_peak()
        resident, cut = w.plain.peak(), w.plain.value("sluice_connections_cut_total")
        first = len(times)
        flood = subprocess.run([sys.executable, pathlib.Path(__file__).with_name("rapid_resets.py"), w.plain.address, str(count)],
                               capture_output=True, text=True, check=True)
        await_calls(300 if is_long else 20)
        during, cut = p99(times[first:]), w.plain.value("sluice_connections_cut_total") - cut
        growth = w.plain.peak() - resident
        # In the second after a cut connections of the address are not served.
        wait_until(lambda: w.plain.call(prompt()).code == "OK", 20, "a new connection")
        after = await_calls(300) if is_long else None
    assert growth <= most_bytes, f"at most {growth >> 20} MiB more were resident"
    assert cut > 0, "no connection was cut"
    if is_long:
        print(f"H01  {flood.stdout.strip()}: {cut:.0f} cut, +{growth / (1 << 20):.1f} MiB at most; p99 of {len(times)} calls of others "
              f"{before * 1e3:.1f} ms before, {during * 1e3:.1f} ms during, {after * 1e3:.1f} ms after")
        assert during <= 2 * max(before, after), "others waited"


@case("H02", long=(2000, 50_000))
def provoked_resets(w, count):
    with unharmed(w), w.plain.raw() as raw:
        for number in range(count):
            stream = raw.open("/sluice.v1.Inference/Generate")
            if number % 2:
                raw.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 0))  # an increment of nothing
            else:
                raw.data(stream, framed(prompt(max_tokens=1).SerializeToString()))
                raw.frame(DATA, 0, stream, b"more")  # after its end
            if number % 50 == 0:
                while raw.read_frame(0):
                    pass
            if raw.closed:
                break


@case("H03", long=(2000, 10_000))
def settings_never_acknowledged(w, count):
    body = framed(prompt(max_tokens=1500).SerializeToString())
    with unharmed(w, most_seconds=20, fills_queue=True):
        with w.plain.raw(window=0, acks=False) as raw:
            for _ in range(count):
                stream = raw.open("/sluice.v1.Inference/Generate")
                if not raw.frame(DATA, END_STREAM, stream, body):
                    break
                if raw.last % 200 == 1:
                    while raw.read_frame(0):
                        pass
            raw.read_until(lambda: False, 1)
            codes = {}
            for stream in raw.streams.values():
                codes[stream.code] = codes.get(stream.code, 0) + 1
            assert w.plain.value("sluice_open_streams") <= 512 + 1, codes


@case("H04", long=(100_000, 5_000_000))
def endless_continuation(w, count):
    with unharmed(w), w.plain.raw() as raw:
        raw.frame(HEADERS, 0, 1, raw.encoder.encode(raw.fields("/sluice.v1.Inference/Generate"), huffman=False))
        frame = Raw.encoded(CONTINUATION, 0, 1, b"\x40")[:-1]
        literal = b"\x00\x01a\x01b"  # a header of two bytes, a byte a frame
        for start in range(0, count, 1000):
            batch = b"".join(frame + literal[(start + i) % 5:(start + i) % 5 + 1] for i in range(1000))
            if not raw.send(batch):
                break


@case("H05", long=(1, 16))
def long_headers(w, megabytes):
    with unharmed(w):
        for size in (8 << 10, 64 << 10, megabytes << 20):
            with w.plain.raw() as raw:
                raw.settle()
                block = raw.encoder.encode(raw.fields("/sluice.v1.Inference/GetModel", [("x-long", "x" * size)]), huffman=False)
                stream = raw.new_stream()
                parts = [block[i:i + 16000] for i in range(0, len(block), 16000)]
                for index, part in enumerate(parts):
                    flags = END_HEADERS if index + 1 == len(parts) else 0
                    if not raw.frame(HEADERS if index == 0 else CONTINUATION, flags, stream, part):
                        break
                raw.data(stream, framed(b""))
                assert raw.wait(stream, 5).code in ("RESOURCE_EXHAUSTED", "RST 11", "none", "RST 2"), raw.streams[stream].code
        with w.plain.raw() as raw:  # one header in a thousand frames
            block = raw.encoder.encode(raw.fields("/sluice.v1.Inference/GetModel", [("x-cut", "y" * 2000)]), huffman=False)
            stream = raw.new_stream()
            step = len(block) // 1000 + 1
            parts = [block[i:i + step] for i in range(0, len(block), step)]
            for index, part in enumerate(parts):
                raw.frame(HEADERS if index == 0 else CONTINUATION, END_HEADERS if index + 1 == len(parts) else 0, stream, part)
            raw.data(stream, framed(b""))
            assert raw.wait(stream, 5).code == "OK"


@case("H06")
def hostile_hpack(w):
    with unharmed(w):
        for block in (b"\x00\x7f\x80\xff\xff\xff\x0f", b"\x00\x7f" + b"\x80" * 16_000, b"\x7f" + b"\xff" * 16_000, b"\xff\xff\xff\xff\xff\x0f",
                      b"\x3f\xe1\xff\xff\xff\x7f", b"\x80", b"\x00\x81\xff\x81\xff"):
            with w.plain.raw() as raw:
                raw.frame(HEADERS, END_HEADERS, 1, block)
                raw.read_until(lambda: False, 0.2)
        with w.plain.raw() as raw:  # a varint of a megabyte
            raw.frame(HEADERS, 0, 1, b"\x00\x7f" + b"\x80" * 16_000)
            for _ in range(64):
                if not raw.frame(CONTINUATION, 0, 1, b"\x80" * 16_000):
                    break


@case("H07")
def invalid_base64(w):
    for value in ("!!!!", "a", "====", "\x7f", "x" * 5000 + "!"):
        assert w.plain.call(prompt(), extra=[("x-bin", value)]).code in ("OK", "RST 2", "RST 1", "INTERNAL", "UNAVAILABLE", "none"), value


@case("H08")
def odd_headers(w):
    for extra, changed in ((("te", "x" * 9000), {}), (("x", "y" * 9000), {":scheme": "x"}),
                           (("grpclb_client_stats", "x" * 9000), {}), (("te", "x"), {}), (("grpclb_client_stats", "x"), {})):
        with w.plain.raw() as raw:
            stream = raw.start("GetModel", b"", [extra], **changed)
            raw.wait(stream, 3)
            assert raw.closed or raw.streams[stream].ended
    for name in (":path", "grpc-status", "grpc-message", "user-agent", "grpc-timeout", "grpc-encoding", "host", "content-type",
                 "grpc-accept-encoding", "lb-cost-bin", "lb-token", "grpc-tags-bin", "grpc-trace-bin", "x-envoy-peer-metadata",
                 "grpc-previous-rpc-attempts", "grpc-retry-pushback-ms", "grpc-internal-encoding-request", "endpoint-load-metrics-bin",
                 "grpc-server-stats-bin", "xds-cluster", "grpc-status-details-bin", "grpc-payload-bin", "connection"):
        for value in ("", "x", "7" * 9000):
            with w.plain.raw() as raw:
                raw.wait(raw.start("GetModel", b"", [(name, value)]), 0.3)


@case("H09", long=(20_000, 500_000))
def floods(w, count):
    with unharmed(w):
        for frame in (Raw.encoded(PING, 0, 0, b"12345678"), Raw.encoded(SETTINGS, 0, 0, setting(4, 65535)),
                      Raw.encoded(PRIORITY, 0, 1, b"\0\0\0\0\x10"), Raw.encoded(SETTINGS, 0, 0, b"")):
            with w.plain.raw() as raw:
                for _ in range(count // 1000):
                    if not raw.send(frame * 1000):
                        break
        with w.plain.raw() as raw:
            stream = raw.open("/sluice.v1.Inference/Generate")
            for _ in range(count // 1000):
                if not raw.send(Raw.encoded(DATA, 0, stream) * 1000):
                    break


@case("H10")
def slow_reader(w):
    with unharmed(w), w.plain.raw(window=0) as raw:
        streams = [raw.start("Generate", prompt(max_tokens=400).SerializeToString()) for _ in range(50)]
        for _ in range(30):  # a byte at a time
            for stream in streams[:10]:
                raw.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1))
            while raw.read_frame(0.01):
                pass


@case("H11")
def windows(w):
    with unharmed(w):
        with w.plain.raw() as raw:
            stream = raw.start("Generate", prompt(max_tokens=300).SerializeToString())
            raw.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 2**31 - 1))
            raw.wait(stream, 5)
        with w.plain.raw() as raw:
            raw.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1))
            raw.frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1))
            raw.read_until(lambda: False, 0.3)
        with w.plain.raw() as raw:
            stream = raw.start("Generate", prompt(max_tokens=300).SerializeToString())
            for number in range(200):
                raw.frame(SETTINGS, payload=setting(4, 0 if number % 2 else 2**31 - 1))
            raw.frame(SETTINGS, payload=setting(4, 1 << 20))
            assert raw.wait(stream, 20).code == "OK"
        with w.plain.raw() as raw:
            raw.frame(SETTINGS, payload=setting(4, 2**31))
            raw.read_until(lambda: False, 0.3)


@case("H13", long=(400, 2000))
def silent_connections(w, count):
    with unharmed(w), contextlib.ExitStack() as stack:
        for number in range(count):
            stack.enter_context(Raw(w.plain.address, preface=None) if number % 2 else w.plain.raw())


@case("H14")
def slow_body(w):
    with unharmed(w), w.plain.raw() as raw:
        for number in range(200):
            stream = raw.open("/sluice.v1.Inference/Generate")
            raw.frame(DATA, 0, stream, framed(b"x" * 100)[:number % 100])
        # A deadline ends such a call, a closed connection the rest.
        stream = raw.open("/sluice.v1.Inference/Generate", [("grpc-timeout", "300m")])
        assert raw.wait(stream, 5).code in ("DEADLINE_EXCEEDED", "RST 8", "CANCELLED", "RST 7"), raw.streams[stream].code


@case("H16", long=(40, 1000))
def broken_connections(w, count):
    import socket
    source = random.Random(16)
    body = prompt(max_tokens=200).SerializeToString()
    with unharmed(w):
        for number in range(count):
            raw = w.plain.raw()
            raw.start("Generate", body)
            time.sleep(source.random() * 0.01)
            if number % 3 == 0:  # a reset
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif number % 3 == 1:  # half a close
                raw.socket.shutdown(socket.SHUT_WR)
                raw.read_until(lambda: False, 0.02)
            else:  # in the middle of a frame
                raw.send(Raw.encoded(DATA, 0, 1, b"x" * 100)[:20])
            raw.socket.close()


@case("H17")
def malformed_timeouts(w):
    for timeout in ("", "x", "-1S", "1", "1Y", "123456789S", "99999999H", "1.5S", " 1S", "1S\0", "0x1S", "S"):
        code = w.plain.call(prompt(), extra=[("grpc-timeout", timeout)], seconds=5).code
        assert code in ("OK", "RST 2", "RST 1", "RST 8", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "none"), (timeout, code)


@case("H18")
def metadata(w):
    before = len(w.plain.server.stderr())
    with w.plain.raw() as raw:
        raw.settle()
        fields = raw.fields("/sluice.v1.Inference/GetModel", [(f"k{number}", "v") for number in range(10_000)])
        block = raw.encoder.encode(fields, huffman=False)
        stream = raw.new_stream()
        for index in range(0, len(block), 16000):
            raw.frame(HEADERS if index == 0 else CONTINUATION, END_HEADERS if index + 16000 >= len(block) else 0, stream,
                      block[index:index + 16000])
        raw.data(stream, framed(b""))
        raw.wait(stream, 5)
        assert raw.closed or raw.streams[stream].code in ("RESOURCE_EXHAUSTED", "RST 11"), raw.streams[stream].code
    for value in ("a\nINJECTED", "a\0b", "a\r\nb: c", "\x1b[31mINJECTED"):
        w.plain.call(prompt(request_id="ok"), extra=[("x-evil", value), ("user-agent", value)])
        with contextlib.suppress(AssertionError):
            w.plain.call(prompt(request_id=value))
    assert "INJECTED" not in re.sub(r"\\x0aINJECTED|\\x1b\[31mINJECTED", "", w.plain.server.stderr()[before:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sluice", default=harness.ROOT / "build/release/sluice")
    parser.add_argument("--long", action="store_true", help="the full counts")
    parser.add_argument("--count", type=int, metavar="N", help="in place of the cases' own counts")
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    world = World(arguments.sluice, arguments.long, arguments.count)
    failed = 0
    names = arguments.cases or sorted(CASES, key=lambda name: (name[0] != "R", name))
    try:
        for name in names:
            start = time.monotonic()
            try:
                run(world, name)
                outcome = "as expected"
            except Exception as error:
                failed += 1
                where = traceback.extract_tb(error.__traceback__)
                line = next((frame for frame in reversed(where) if frame.filename.endswith("catalogue.py")), where[-1])
                outcome = f"NOT AS EXPECTED: {type(error).__name__}: {str(error)[:300]} (line {line.lineno})"
            print(f"{name}  {time.monotonic() - start:6.2f} s  {outcome}", flush=True)
    finally:
        world.stop()
    if not arguments.cases:
        for name, where in sorted(ELSEWHERE.items()):
            print(f"{name}  elsewhere: {where}")
    print(f"{len(names)} cases, {len(names) - failed} as expected, {failed} not as expected")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
