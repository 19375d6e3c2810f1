"""`sluice bench` against real servers: what it counts is what was served."""

import json
import re
import signal
import subprocess
import time

import harness

TINY = harness.TINY / "tiny-odd.f16.gguf"


def bench(binary, server, *flags, timeout=120):
    return subprocess.run([str(binary), "bench", "--server", server.address, "--json", *map(str, flags)],
                          capture_output=True, text=True, timeout=timeout)


def counted(server, name):
    return sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", server.metrics(), re.MULTILINE))


def test_closed_loop_counts_every_token(sluice, serve):
    server = serve(model=TINY)
    result = bench(sluice, server, "--streams", 8, "--requests", 40, "--warmup", 3, "--prompt", 11, "--output", 7)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["calls"] == report["calls_ok"] == 40 and report["errors"] == {}
    assert report["output_tokens"] == 40 * 7 and report["prompt_tokens"] == 40 * 11
    assert report["streams"] == 8 and report["backend"].startswith("cpu") and "rate" not in report
    for latency in ("first_token_ms", "inter_token_ms", "call_ms", "server_first_token_ms"):
        assert 0 < report[latency]["p50"] <= report[latency]["p90"] <= report[latency]["p99"] <= report[latency]["max"]
    assert report["first_token_ms"]["p50"] >= report["server_first_token_ms"]["p50"]
    assert report["output_tokens_per_second"] == round(report["output_tokens"] / report["seconds"], 1) or \
        abs(report["output_tokens_per_second"] * report["seconds"] / report["output_tokens"] - 1) < 0.05
    # The warm-up's tokens are made and not counted.
    assert counted(server, "sluice_generation_tokens_total") == 43 * 7


def test_rate_makes_arrivals_at_random_times(sluice, serve):
    server = serve(model=TINY)
    begin = time.monotonic()
    result = bench(sluice, server, "--rate", 50, "--requests", 60, "--warmup", 0, "--prompt", 3, "--output", 2)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["calls_ok"] == 60 and report["rate"] == 50
    # 59 gaps of 20 ms in the mean: 1.2 s, and hardly ever less than half of that.
    assert report["seconds"] > 0.6 and time.monotonic() - begin > 0.6


def test_errors_are_counted_by_status(sluice, serve):
    server = serve("--max-queue", 1, "--max-batch", 1, model=TINY)
    result = bench(sluice, server, "--streams", 16, "--requests", 64, "--warmup", 0, "--prompt", 4, "--output", 64)
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["calls"] == 64 and 0 < report["calls_ok"] < 64
    assert report["errors"] == {"RESOURCE_EXHAUSTED": 64 - report["calls_ok"]}


def test_no_server_is_one_line(sluice):
    result = subprocess.run([str(sluice), "bench", "--server", "127.0.0.1:1"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("sluice bench: 127.0.0.1:1")


def test_interrupt_cancels_the_calls(sluice, serve):
    server = serve(model=TINY)
    process = subprocess.Popen([str(sluice), "bench", "--server", server.address, "--streams", "4", "--requests", "100000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    harness.wait_until(lambda: counted(server, "sluice_generation_tokens_total") > 100, 30, "tokens")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    harness.wait_until(lambda: all(e.running == 0 and e.waiting == 0 for e in server.client.load().engines), 10, "quiet")


def test_rate_and_streams_exclude_each_other(sluice):
    result = subprocess.run([str(sluice), "bench", "--server", "x", "--rate", "5", "--streams", "2"],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stdout == ""
