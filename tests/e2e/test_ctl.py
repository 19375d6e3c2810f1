"""`sluice ctl`: what people and hooks ask of a running server."""

import re
import signal
import socket
import subprocess
import time

import harness
import pytest
from credentials import ADMIN, TENANT, entry, write_tokens
from harness import greedy

OPS = ("--ops-listen", "127.0.0.1:0")
TINY = harness.TINY / "tiny-odd.f16.gguf"


def long_call(server, token=None):
    """A stream of some seconds that has begun, and its client."""
    client = harness.Client(server.address, token)
    call = client.stream(greedy("1 2 3 4 5 6 7", max_tokens=1000, ignore_eos=True))
    next(iter(call))
    return call, client


@pytest.fixture
def ctl(sluice):
    def run(*arguments, timeout=60):
        return subprocess.run([sluice, "ctl", *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    return run


@pytest.fixture
def tokens(tmp_path):
    """Files with the token of an administrator and with that of a tenant, as flags."""
    for name, token in (("admin", ADMIN), ("tenant", TENANT)):
        (tmp_path / name).write_text(token + "\n")
    return {name: ("--token-file", tmp_path / name) for name in ("admin", "tenant")}


def one_line(text):
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text


def test_status(serve, ctl, files, tokens):
    server = serve("--auth-file", files, *OPS)
    call, client = long_call(server, TENANT)
    run = ctl("status", "--server", server.ops_address, *tokens["admin"])
    assert run.returncode == 0 and run.stderr == ""
    health, what, calls, *engines = run.stdout.splitlines()
    assert health == "health: ready SERVING, live SERVING, started SERVING"
    assert re.fullmatch(r"server: \d+\.\d+\.\d+\+\w+, Smollm2[^,]*, up for \d+ s, [\d.]+ MiB resident", what, re.I), what
    assert re.fullmatch(r"calls: 1 open, [1-9]\d* connections", calls), calls
    assert len(engines) == 1 and re.fullmatch(
        r"engine 0: up, 1 running, 0 waiting, \d+ of \d+ pages free, [\d.]+ tokens/s", engines[0]), engines
    call.cancel()
    client.close()
    # Health is everybody's, the rest is not.
    for token in ((), tokens["tenant"]):
        run = ctl("status", "--server", server.ops_address, *token)
        assert run.returncode == 0 and run.stdout == health + "\n"
        assert one_line(run.stderr).startswith("sluice ctl: no more than health: ")
    # The service's port asks for credentials even for health, and has no administration.
    run = ctl("status", "--server", server.address)
    assert run.returncode == 1 and one_line(run.stderr) == "sluice ctl: UNAUTHENTICATED: valid credentials are required\n"
    run = ctl("status", "--server", server.address, *tokens["admin"])
    assert run.returncode == 0 and run.stdout == health + "\n" and "no such method" in one_line(run.stderr)


def test_probe(serve, ctl):
    server = serve(*OPS)

    def probe(*arguments):
        run = ctl("probe", "--server", server.ops_address, *arguments)
        return run.returncode, run.stdout, run.stderr

    for service in ((), ("--service", "liveness"), ("--service", "startup"), ("--service", "sluice.v1.Inference")):
        assert probe(*service) == (0, "SERVING\n", "")
    code, out, err = probe("--service", "no-such")
    assert code == 1 and out == "" and one_line(err).startswith("sluice ctl: NOT_FOUND: ")
    call, client = long_call(server)
    server.signal()
    # Draining: not for calls any more, and no reason to restart it.
    harness.wait_until(lambda: probe() == (1, "NOT_SERVING\n", ""), 10, "the drain")
    assert probe("--service", "liveness") == (0, "SERVING\n", "")
    call.cancel()
    client.close()
    assert server.wait() == 0
    code, out, err = probe()
    assert code == 1 and out == "" and one_line(err).startswith("sluice ctl: UNAVAILABLE: ")


def test_probe_reaches_a_service_of_tls(serve, ctl, issuer, pair, files, tokens, tmp_path):
    (tmp_path / "ca.pem").write_bytes(issuer.pem)
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], "--auth-file", files, model=TINY)
    address = "localhost:" + server.address.rsplit(":", 1)[1]
    run = ctl("probe", "--server", address, "--tls-ca", tmp_path / "ca.pem", *tokens["tenant"])
    assert (run.returncode, run.stdout) == (0, "SERVING\n"), run.stderr
    assert ctl("probe", "--server", address, *tokens["tenant"], "--timeout", "2s").returncode == 1


def test_drain(serve, ctl, files, tokens):
    server = serve("--auth-file", files, *OPS)
    run = ctl("drain", "--server", server.ops_address, *tokens["tenant"])
    assert run.returncode == 1 and one_line(run.stderr).startswith("sluice ctl: PERMISSION_DENIED: ")
    assert server.process.poll() is None
    call, client = long_call(server, TENANT)
    run = ctl("drain", "--server", server.ops_address, *tokens["admin"])
    assert (run.returncode, run.stdout, run.stderr) == (0, "draining: 1 calls open\n", "")
    status = ctl("status", "--server", server.ops_address, *tokens["admin"])
    assert "health: ready NOT_SERVING, live SERVING" in status.stdout and "connections, draining\n" in status.stdout
    call.cancel()
    assert server.wait() == 0
    client.close()


def test_reload(serve, ctl, files, tokens):
    server = serve("--auth-file", files, *OPS, model=TINY)
    reload = ("reload", "--server", server.ops_address, *tokens["admin"])
    run = ctl(*reload)
    assert (run.returncode, run.stdout) == (0, "auth: in force\n")
    files.write_text("{")
    run = ctl(*reload)
    assert run.returncode == 1 and re.fullmatch(r"auth: refused: .*no JSON.*\n", run.stdout), run.stdout
    write_tokens(files, entry(ADMIN, "ops", "admin"))
    assert ctl(*reload).stdout == "auth: in force\n"


def test_sleep(ctl, sluice):
    begin = time.monotonic()
    run = ctl("sleep", "700ms")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "") and 0.7 <= time.monotonic() - begin < 5
    process = subprocess.Popen([sluice, "ctl", "sleep", "60"])
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM


def test_a_server_that_does_not_answer(ctl):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        begin = time.monotonic()
        run = ctl("probe", "--server", "127.0.0.1:%d" % silent.getsockname()[1], "--timeout", "1s")
        assert run.returncode == 1 and 0.9 <= time.monotonic() - begin < 10
        assert one_line(run.stderr).startswith("sluice ctl: DEADLINE_EXCEEDED: ")


@pytest.mark.parametrize("arguments, message", [
    ((), "give an action: status, drain, reload, probe, sleep"), (("restart",), "give an action: status"), (("probe",), "give --server"), (("sleep",), "time"),
    (("sleep", "soon"), "expected a"), (("probe", "--server", "a:1", "--timeout", "x"), "--timeout"),
    (("drain", "--server", "127.0.0.1:1", "--token-file", "/no/such"), "--token-file: /no/such cannot be read")])
def test_mistakes_are_one_line(ctl, arguments, message):
    run = ctl(*arguments)
    assert run.returncode == 2 and run.stdout == ""
    assert message in one_line(run.stderr) and run.stderr.startswith("sluice ctl: "), run.stderr
