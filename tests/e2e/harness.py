"""A real server process and a client made from the proto alone."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUBS = ROOT / "build" / "e2e-stubs"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = ROOT / "tests" / "golden"
TINY = GOLDEN / "tiny"


def generate_stubs():
    """Makes the Python modules of the protos. health.proto is compiled from its own folder, because its package would
    lie inside grpcio's."""
    from grpc_tools import protoc

    sys.path.insert(0, str(STUBS))
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the process that started this worker has made them
    STUBS.mkdir(parents=True, exist_ok=True)
    proto = ROOT / "proto"
    out = [f"--python_out={STUBS}", f"--grpc_python_out={STUBS}"]
    wellknown = pathlib.Path(protoc.__file__).parent / "_proto"
    for folder, files in ((proto, ["sluice/v1/inference.proto", "sluice/v1/admin.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"]),
                          (proto / "grpc/health/v1", ["health.proto"])):
        arguments = ["protoc", f"-I{folder}", f"-I{wellknown}", *out, *files]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed: " + " ".join(arguments))


generate_stubs()

import grpc  # noqa: E402
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
from sluice.v1 import admin_pb2, admin_pb2_grpc  # noqa: E402
from sluice.v1 import inference_pb2 as pb  # noqa: E402
from sluice.v1 import inference_pb2_grpc  # noqa: E402


def logprobs_of(message):
    return [(t.token_id, t.logprob, [(b.token_id, b.logprob) for b in t.top]) for t in message.logprobs]


@dataclasses.dataclass
class Reply:
    """All of one Generate stream."""

    accepted: object = None
    ids: list = dataclasses.field(default_factory=list)
    text: str = ""
    logprobs: list = dataclasses.field(default_factory=list)  # (id, logprob, [(id, logprob), ...])
    prompt_logprobs: list = dataclasses.field(default_factory=list)  # the same of the prompt but its first token
    finished: object = None
    end: object = None
    events: list = dataclasses.field(default_factory=list)  # kinds, in order

    def take(self, event):
        kind = event.WhichOneof("event")
        self.events.append(kind)
        if kind == "accepted":
            self.accepted = event.accepted
        elif kind == "delta":
            assert event.delta.position == len(self.ids) or not event.delta.token_ids
            self.ids += event.delta.token_ids
            self.text += event.delta.text
            self.logprobs += logprobs_of(event.delta)
        elif kind == "prompt_logprobs":
            assert event.prompt_logprobs.position == len(self.prompt_logprobs) + 1
            self.prompt_logprobs += logprobs_of(event.prompt_logprobs)
        elif kind == "sequence_finished":
            self.finished = event.sequence_finished
        elif kind == "request_finished":
            self.end = event.request_finished


# What README.md advises: a call that ends UNAVAILABLE before its first message is tried again.
RETRIES = """{"methodConfig": [{"name": [{"service": "sluice.v1.Inference"}],
 "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 3,
                 "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""


class Client:
    """`token`: sent with every call; `tls`: grpc.ssl_channel_credentials; `config`: a service config."""

    def __init__(self, address, token=None, tls=None, config=None):
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100),
                   ("grpc.use_local_subchannel_pool", 1)]
        if config is not None:
            options.append(("grpc.service_config", config))
        if tls is None:
            self.channel = grpc.insecure_channel(address, options=options)
        else:
            self.channel = grpc.secure_channel(address, tls, options=options + [("grpc.ssl_target_name_override", "localhost")])
        self.metadata = None if token is None else (("authorization", "Bearer " + token),)
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def stream(self, request, timeout=300):
        return self.stub.Generate(request, timeout=timeout, metadata=self.metadata)

    def generate(self, request, timeout=300):
        reply = Reply()
        for event in self.stream(request, timeout):
            reply.take(event)
        return reply

    def generate_all(self, requests):
        """All requests at once, each on a thread of its own."""
        replies = [None] * len(requests)
        errors = []

        def one(index):
            try:
                replies[index] = self.generate(requests[index])
            except Exception as error:  # shown by the assertion below
                errors.append((index, error))

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        return replies

    def load(self):
        return self.stub.GetLoad(pb.GetLoadRequest(), timeout=10, metadata=self.metadata)

    def close(self):
        self.channel.close()


def request(text=None, ids=None, **fields):
    """GenerateRequest with token ids returned; keyword arguments go to the message that has a field of that name."""
    message = pb.GenerateRequest()
    if ids is not None:
        message.token_ids.ids.extend(ids)
    else:
        message.text = text
    message.output.return_token_ids = True
    for name, value in fields.items():
        [owner] = [part for part in (message.sampling, message.stopping, message.output, message)
                   if name in part.DESCRIPTOR.fields_by_name]
        field = getattr(owner, name)
        if hasattr(field, "extend"):
            field.extend(value)
        elif hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        else:
            setattr(owner, name, value)
    return message


def greedy(text=None, ids=None, **fields):
    return request(text, ids, temperature=0.0, **fields)


class Server:
    """`sluice serve` on free ports."""

    def __init__(self, binary, *flags, model=MODEL, wait=True, listen="127.0.0.1:0", environment=None):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(
            [str(binary), "serve", "--model", str(model), "--listen", listen, "--metrics-listen", "127.0.0.1:0",
             *map(str, flags)], stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=None if environment is None else {**os.environ, **environment})
        self.ready = None
        self.client_ = None
        if wait:
            self.wait_ready()

    def stderr(self):
        with open(self.log.name) as log:
            return log.read()

    def await_log(self, pattern, seconds=60):
        """Waits until stderr matches; the match."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            match = re.search(pattern, self.stderr())
            if match:
                return match
            assert self.process.poll() is None, f"exit {self.process.returncode}: {self.stderr()}"
            time.sleep(0.002)
        raise AssertionError(f"{pattern} did not appear in:\n{self.stderr()}")

    def wait_ready(self):
        self.ready_line = self.process.stdout.readline()
        # With --log-format json it is an object.
        self.ready = json.loads(self.ready_line)["message"] if self.ready_line.startswith("{") else self.ready_line
        assert self.ready.startswith("ready on "), f"exit {self.process.wait(10)}: {self.ready}{self.stderr()}"

    @functools.cached_property  # the log may be long later
    def address(self):
        return self.await_log(r"listening on (\S+:\d+)")[1]

    @property
    def ops_address(self):
        return self.await_log(r"operators' port on (\S+:\d+)")[1]

    @functools.cached_property
    def metrics_address(self):
        return self.await_log(r"metrics on (\S+:\d+)")[1]

    @property
    def client(self):
        if self.client_ is None:
            self.client_ = Client(self.address)
        return self.client_

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as reply:
            return reply.read().decode()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, seconds=120):
        return self.process.wait(seconds)

    def stop(self):
        if self.client_ is not None:
            self.client_.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()
        self.log.close()


def wait_until(condition, seconds=10, what="condition"):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.005)


def golden_prompts():
    with open(GOLDEN / "smollm2" / "prompts.json") as file:
        return json.load(file)["prompts"]


def sure_prefix(greedy_pairs, bound=0.005):
    """The reference's tokens up to the first whose margin is below `bound`."""
    ids = []
    for token, margin in greedy_pairs:
        if margin < bound:
            break
        ids.append(token)
    return ids
