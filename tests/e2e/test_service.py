"""The other methods, metrics, health, and what the process does when it starts, idles and ends."""

import contextlib
import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import time

import grpc
import harness
import pytest
from harness import Client, Server, greedy, health_pb2, pb, wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def long_call(client, tokens=300):
    """A stream that has begun: its iterator and what came."""
    call = client.stream(greedy("1 2 3 4 5 6 7", max_tokens=tokens, ignore_eos=True))
    reply = harness.Reply()
    for event in call:
        reply.take(event)
        if "delta" in reply.events:
            return call, reply
    raise AssertionError("the stream ended early")


def test_tokenize_and_detokenize(client):
    stub = client.stub
    ids = stub.Tokenize(pb.TokenizeRequest(text="Grüße, 東京!", return_pieces=True))
    assert b"".join(ids.pieces).decode() == "Grüße, 東京!"
    assert stub.Detokenize(pb.DetokenizeRequest(token_ids=ids.token_ids)).text == "Grüße, 東京!"
    control = stub.Tokenize(pb.TokenizeRequest(text="<|im_end|>"))
    plain = stub.Tokenize(pb.TokenizeRequest(text="<|im_end|>", parse_special=False))
    assert list(control.token_ids) == [2] and len(plain.token_ids) > 1


def test_model_facts(client):
    [model] = client.stub.ListModels(pb.ListModelsRequest()).models
    assert (model.architecture, model.vocab_size, model.num_layers, model.width) == ("llama", 49152, 30, 576)
    assert (model.num_heads, model.num_kv_heads, model.head_size, model.ffn_width) == (9, 3, 64, 1536)
    assert model.self_check.passed
    assert model == client.stub.GetModel(pb.GetModelRequest(model=model.name))
    limits = {limit.field: limit for limit in model.limits}
    assert limits["sampling.top_p"].maximum == 1 and limits["sampling.top_p"].minimum_excluded
    with pytest.raises(grpc.RpcError) as error:
        client.stub.GetModel(pb.GetModelRequest(model="no-such-model"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


METRICS = """
sluice_requests_running sluice_requests_waiting sluice_kv_pages sluice_kv_usage_ratio sluice_engine_up
sluice_engine_last_step_age_seconds sluice_draining sluice_open_streams sluice_startup_seconds sluice_selfcheck_error
sluice_leaked_pages sluice_requests_total sluice_prompt_tokens_total sluice_generation_tokens_total
sluice_preemptions_total sluice_recomputed_tokens_total sluice_nonfinite_logits_total sluice_time_to_first_token_seconds
sluice_inter_token_latency_seconds sluice_queue_time_seconds sluice_step_duration_seconds sluice_step_tokens
sluice_batch_rows sluice_rejected_total sluice_cancelled_total sluice_request_duration_seconds
sluice_step_host_gap_seconds sluice_cancel_to_free_seconds vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:cache_config_info
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:time_to_first_token_seconds
vllm:inter_token_latency_seconds vllm:e2e_request_latency_seconds vllm:request_success_total vllm:num_preemptions_total
""".split()


def sample(metrics, name):
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.M))


def test_metrics(shared, client):
    client.generate(greedy("Hello", max_tokens=4, ignore_eos=True))
    before = shared.metrics()
    families = set(re.findall(r"^# TYPE (\S+) ", before, re.M))
    assert not [name for name in METRICS if name not in families], sorted(families)
    client.generate(greedy("Hello", max_tokens=9, ignore_eos=True))
    after = shared.metrics()
    for name in ("sluice_generation_tokens_total", "vllm:generation_tokens_total"):
        assert sample(after, name) - sample(before, name) == 9, name
    assert sample(after, "sluice_leaked_pages") == 0
    assert sample(after, "sluice_engine_up") == 1
    for line in after.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .+|[a-z_:][a-z0-9_:]*(\{.*\})? [-+.0-9a-zA-Z]+', line), line


def test_health_is_not_serving_until_loaded(serve):
    server = serve(wait=False)
    client = Client(server.address)
    states = []
    for reply in client.health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=30):
        states.append(reply.status)
        if reply.status == SERVING:
            break
    server.wait_ready()
    client.close()
    assert states == [NOT_SERVING, SERVING]
    ready = float(re.search(r"([\d.]+) s$", server.ready.strip())[1])
    print(f"ready after {ready} s")


def test_health_names(client):
    for name in ("", "sluice.v1.Inference", "liveness"):
        assert client.health.Check(health_pb2.HealthCheckRequest(service=name)).status == SERVING
    with pytest.raises(grpc.RpcError) as error:
        client.health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_sigterm_loses_nothing(serve):
    server = serve("--drain-timeout", "5m")
    calls = [long_call(server.client) for _ in range(6)]
    server.signal()
    wait_until(lambda: server.client.health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING, 1, "NOT_SERVING")
    with pytest.raises(grpc.RpcError) as error:
        server.client.generate(greedy("Hello", max_tokens=4))
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    for call, reply in calls:
        for event in call:
            reply.take(event)
        assert len(reply.ids) == 300 and reply.events[-1] == "request_finished"
        assert call.code() == grpc.StatusCode.OK
    assert server.wait() == 0


def test_drain_timeout_cuts_and_says_so(serve):
    server = serve("--drain-timeout", "300ms")
    call, _ = long_call(server.client, tokens=2000)
    server.signal()
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 75


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_second_signal_exits_at_once(serve, number, code):
    server = serve()
    call, _ = long_call(server.client, tokens=2000)
    server.signal()
    time.sleep(0.2)
    assert server.process.poll() is None
    start = time.monotonic()
    server.signal(number)
    assert server.wait() == code
    assert time.monotonic() - start < 1
    call.cancel()


@pytest.fixture
def unread(sluice):
    """A server that serves, with a call running and a stderr that is full and never read."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen([sluice, "serve", "--model", harness.MODEL, "--listen", "127.0.0.1:0"],
                               stdout=subprocess.PIPE, stderr=writer, text=True)
    address = re.match(r"ready on (\S+):", process.stdout.readline())[1]
    os.set_blocking(reader, False)
    os.read(reader, 1 << 20)
    filler = os.dup(writer)
    # The description is the server's too: it has to block again.
    os.set_blocking(filler, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(filler, b".")
    os.set_blocking(filler, True)
    client = Client(address)
    client.generate(greedy("Hello", max_tokens=2))  # a line in the access log, which cannot be written
    yield process, client
    client.close()
    if process.poll() is None:
        process.kill()
        process.wait(10)
    process.stdout.close()
    for descriptor in (reader, writer, filler):
        os.close(descriptor)


def test_a_log_that_nobody_reads_does_not_keep_the_server(unread):
    process, client = unread
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    print(f"ended after {time.monotonic() - start:.2f} s")


def test_a_log_that_nobody_reads_does_not_stop_the_second_signal(unread):
    process, client = unread
    call, _ = long_call(client, tokens=2000)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(2) == 143
    call.cancel()


def test_idle_server_sleeps(serve):
    server = serve()
    server.client.generate(greedy("Hello", max_tokens=4))
    time.sleep(0.5)
    # Others make every wake-up dearer: a quiet window of three is enough, and a server that spins has none.
    used = []
    while len(used) < 3 and min(used, default=1) > 0.01:
        before, start = server.cpu_seconds(), time.monotonic()
        time.sleep(5)
        used.append((server.cpu_seconds() - before) / (time.monotonic() - start))
    print("idle: " + ", ".join(f"{100 * share:.2f} %" for share in used) + " of a core")
    assert min(used) <= 0.01


def test_port_in_use(sluice, shared):
    run = subprocess.run([sluice, "serve", "--model", harness.MODEL, "--listen", shared.address], capture_output=True,
                         text=True, timeout=30)
    assert run.returncode == 69 and shared.address in run.stderr
    # The words are the same, whatever the port is for.
    for flag in ("--ops-listen", "--metrics-listen"):
        run = subprocess.run([sluice, "serve", "--model", harness.MODEL, "--listen", "127.0.0.1:0", "--log-level", "off", flag,
                              shared.address], capture_output=True, text=True, timeout=30)
        assert (run.returncode, run.stderr) == (69, f"sluice serve: cannot listen on {shared.address}: the port is taken\n")


def test_model_without_vocabulary_serves_ids(serve, tmp_path):
    # Under other names, of the same length, the vocabulary's keys mean nothing.
    content = (harness.TINY / "tiny-odd.f16.gguf").read_bytes().replace(b"tokenizer.ggml.", b"elsewhere.ggml.")
    (tmp_path / "ids-only.gguf").write_bytes(content)
    server = serve(model=tmp_path / "ids-only.gguf")
    model = server.client.stub.GetModel(pb.GetModelRequest())
    assert not model.HasField("tokenizer") and model.vocab_size == 509
    reply = server.client.generate(greedy(ids=[5, 6, 7], max_tokens=8, ignore_eos=True))
    assert len(reply.ids) == 8 and reply.text == "" and not reply.accepted.output.return_text
    for message in (greedy("text", max_tokens=8), greedy(ids=[5], max_tokens=8, return_text=True),
                    greedy(ids=[5], max_tokens=8, stop=["a"])):
        with pytest.raises(grpc.RpcError) as error:
            server.client.generate(message)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "vocabulary" in error.value.details()
    expected = " ".join(map(str, reply.ids))
    for target in (["--server", server.address], ["--model", tmp_path / "ids-only.gguf"]):
        run = subprocess.run([server.process.args[0], "generate", *target, "--token-ids", "5,6,7", "--max-tokens", "8",
                              "--temperature", "0", "--ignore-eos"], capture_output=True, text=True, timeout=60)
        assert run.stdout.strip() == expected, run.stderr


def greeting(address, seconds):
    """The first byte that a server sends to a new connection (of its SETTINGS); b"" when there is none in time."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        with contextlib.suppress(TimeoutError, ConnectionError):
            return connection.recv(1)
    return b""


@pytest.mark.parametrize("hold", [0, 5], ids=["short", "long"])
def test_takes_connections_again_after_it_had_no_descriptors(serve, hold):
    most = 96
    server = serve("--log-level", "info", model=harness.TINY / "tiny-odd.f16.gguf")
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (most, most))
    expected = server.client.generate(greedy(ids=[5, 6, 7], max_tokens=8, ignore_eos=True)).ids
    host, port = server.address.rsplit(":", 1)
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(most + 32)]
    server.await_log("connections wait: Too many open files", 10)
    # The watch over the port gives its descriptor back now and then.
    wait_until(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) == most, 5, "the last descriptor")
    # Who is connected is served all the same.
    assert server.client.generate(greedy(ids=[5, 6, 7], max_tokens=8, ignore_eos=True)).ids == expected
    used = server.cpu_seconds()
    time.sleep(hold)
    assert server.cpu_seconds() - used < 0.1 + 0.05 * hold, "it spins"
    for connection in idle:
        connection.close()
    start = time.monotonic()
    assert greeting(server.address, 5)
    print(f"greeted {time.monotonic() - start:.2f} s after the release")
    client = Client(server.address)
    assert client.generate(greedy(ids=[5, 6, 7], max_tokens=8, ignore_eos=True)).ids == expected
    client.close()
    assert server.client.health.Check(health_pb2.HealthCheckRequest(service="liveness")).status == SERVING
    server.signal()
    assert server.wait() == 0
