"""The same server on every device: the CPU always, a GPU where the program and the machine have one."""

import re
import subprocess
import time

import grpc
import harness
import pytest
from harness import Client, greedy, health_pb2, request, wait_until

MODEL = harness.TINY / "tiny-llama.q4_1.gguf"
CUDA = "cuda:0"


def problem_of(binary, device):
    """What a program says of a device, one line; None when it can use it."""
    result = subprocess.run([binary, "verify", "--model", MODEL, "--device", device, "--against",
                             "ref" if device == "cpu" else "cpu"], capture_output=True, text=True, timeout=120)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stdout[-500:] + result.stderr
    return lines[0]


def need(binary, device):
    problem = problem_of(binary, device)
    if problem is None:
        return
    assert device == CUDA and ("built without CUDA" in problem or f"{CUDA}: " in problem), problem
    pytest.skip(problem)


@pytest.fixture(params=["cpu", CUDA])
def device(request, sluice):
    need(sluice, request.param)
    return request.param


def prompts():
    return [[(7 * i + 3 * j) % 250 for j in range(1 + 13 * i)] for i in range(6)]


def mixed_requests():
    made = []
    for index, ids in enumerate(prompts()):
        sampling = {"temperature": 0.0} if index % 2 == 0 else {"temperature": 0.9, "top_p": 0.9, "seed": 50 + index}
        made.append(request(ids=ids, max_tokens=24, logprobs=2, ignore_eos=True, **sampling))
    return made


def sure_tokens(reply, margin=0.02):
    """The ids up to the first whose two best are closer than `margin`."""
    ids = []
    for token, _, top in reply.logprobs:
        if top[0][1] - top[1][1] < margin:
            break
        ids.append(token)
    return ids


def test_alone_and_together_are_the_same(serve, device):
    server = serve("--device", device, "--max-context", "256", model=MODEL)
    print(server.ready.strip())
    alone = [server.client.generate(one) for one in mixed_requests()]
    for _ in range(2):
        for reply, expected in zip(server.client.generate_all(mixed_requests()), alone, strict=True):
            assert reply.ids == expected.ids and len(reply.ids) == 24
            assert reply.logprobs == expected.logprobs  # bit for bit
    server.signal()
    assert server.wait() == 0


def test_greedy_tokens_are_the_cpus(serve, device):
    requests = [greedy(ids=ids, max_tokens=24, logprobs=2, ignore_eos=True) for ids in prompts()]
    replies = [serve("--device", one, "--max-context", "256", model=MODEL).client.generate_all(requests)
               for one in ("cpu", device)]
    for expected, reply in zip(*replies, strict=True):
        sure = sure_tokens(expected)
        assert reply.ids[:len(sure)] == sure
    assert sum(len(sure_tokens(reply)) for reply in replies[0]) > 60


def test_what_is_said_of_a_device_that_is_not_there(sluice):
    """One line, from builds with CUDA and without."""
    for command in (["verify"], ["serve", "--listen", "127.0.0.1:0", "--log-level", "off"]):
        result = subprocess.run([sluice, *command, "--model", MODEL, "--device", "cuda:99"], capture_output=True, text=True,
                                timeout=120)
        assert result.returncode == (78 if command[0] == "serve" else 1)
        assert result.stderr.count("\n") == 1 and "cuda" in result.stderr, result.stderr
    print(problem_of(sluice, "cuda:99"))


@pytest.mark.parametrize("name", ["cpu", CUDA])
def test_a_device_fault_ends_every_stream_and_the_process(serve, sluice_planted, name):
    """The twentieth step fails: open streams end INTERNAL, unbegun ones UNAVAILABLE, as do those that come too late, and the
    exit code is 70."""
    need(sluice_planted, name)
    server = serve("--device", name, "--max-context", "256", "--max-batch", "4", "--plant-bug", "device-fault",
                   binary=sluice_planted, model=MODEL)
    assert server.client.generate(greedy(ids=[1, 2, 3], max_tokens=3, ignore_eos=True)).ids
    calls = [server.client.stream(greedy(ids=[1, 2, 3 + i], max_tokens=200, ignore_eos=True)) for i in range(8)]
    started = time.monotonic()
    codes = []
    for call in calls:
        reply = harness.Reply()
        with pytest.raises(grpc.RpcError) as error:
            for event in call:
                reply.take(event)
        codes.append(error.value.code())
        assert codes[-1] == (grpc.StatusCode.INTERNAL if reply.ids else grpc.StatusCode.UNAVAILABLE)
        details = dict(error.value.trailing_metadata() or ()).get("grpc-status-details-bin")  # none when all is gone
        assert details is not None or not reply.ids
        assert details is None or (b"ENGINE_FAULT" if reply.ids else b"ENGINE_DOWN") in details
    assert time.monotonic() - started < 10
    assert grpc.StatusCode.INTERNAL in codes
    assert server.wait(15) == 70
    assert re.search(r"engine 0 failed and is out of service: .", server.stderr())


def test_health_after_a_fault(serve, sluice_planted):
    """Two engines: the one that failed is out for good, the other serves on and health stays SERVING."""
    server = serve("--engines", "2", "--max-context", "256", "--plant-bug", "device-fault", binary=sluice_planted, model=MODEL)
    with pytest.raises(grpc.RpcError):
        server.client.generate(greedy(ids=[1, 2, 3], max_tokens=200, ignore_eos=True))
    health = Client(server.address).health
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    assert len(server.client.generate(greedy(ids=[1, 2, 3], max_tokens=5, ignore_eos=True)).ids) == 5
    wait_until(lambda: [engine.up for engine in server.client.load().engines].count(True) == 1, what="one engine down")
