"""Who may call: TLS, certificates of clients, tokens, the operators' port, and files that change."""

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time

import grpc
import harness
import pytest
from certificates import Issuer, secure, serial_of
from credentials import ADMIN, TENANT, entry, write_tokens
from harness import Client, admin_pb2, admin_pb2_grpc, greedy, health_pb2, health_pb2_grpc, pb, wait_until
from rapid_resets import flood

TINY = harness.TINY / "tiny-odd.f16.gguf"
CODE = grpc.StatusCode
METHODS = {f"/{service.full_name}/{method.name}"
           for module in (pb, admin_pb2, health_pb2) for service in module.DESCRIPTOR.services_by_name.values()
           for method in service.methods}


def prompt(tokens=4):
    return greedy(ids=[5, 6, 7], max_tokens=tokens, ignore_eos=True)


def code_of(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details()


def unary(channel, path, metadata=None):
    return channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)(b"", metadata=metadata, timeout=10)


@pytest.fixture
def guarded(serve, files):
    """A server with tokens, an operators' port, reflection and channelz."""
    return serve("--auth-file", files, "--ops-listen", "127.0.0.1:0", "--reflection", "--channelz", model=TINY)


def test_tokens_open_what_their_scopes_name(guarded):
    client = Client(guarded.address, TENANT)
    assert len(client.generate(prompt()).ids) == 4
    wait_until(lambda: client.load().open_streams == 0, 10, "the end of the stream")
    client.close()
    with Client(guarded.ops_address).channel as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        tenant, right = [(("authorization", f"Bearer {token}"),) for token in (TENANT, ADMIN)]
        assert code_of(lambda: admin.Drain(admin_pb2.DrainRequest(), metadata=tenant))[0] == CODE.PERMISSION_DENIED  # R89
        files = admin.Reload(admin_pb2.ReloadRequest(), metadata=right).files
        assert [(file.name, file.in_force) for file in files] == [("auth", True)]
    client = Client(guarded.address, ADMIN)
    assert code_of(lambda: client.generate(prompt()))[0] == CODE.PERMISSION_DENIED  # R86
    client.close()


def test_refusals_of_bad_credentials_all_read_the_same(guarded):
    headers = [None, "Bearer", "Bearer ", "Bearer  ", "Basic " + TENANT, TENANT, "Bearer " + TENANT + "x", f"Bearer {TENANT} x",
               "Bearer " + "a" * 4000, "Bearer \"' OR 1", "bearer=" + TENANT]
    cases = [None if value is None else (("authorization", value),) for value in headers]
    cases.append((("authorization", "Bearer " + TENANT),) * 2)  # two headers
    cases.append((("authorization", "Bearer a"), ("authorization", "Bearer " + TENANT)))
    with Client(guarded.address).channel as channel:
        seen = {code_of(lambda: unary(channel, "/sluice.v1.Inference/GetModel", metadata)) for metadata in cases}
        assert seen == {(CODE.UNAUTHENTICATED, "valid credentials are required")}  # R82 R83 R84
    assert harness.re.search(rf'sluice_auth_refused_total{{code="UNAUTHENTICATED"}} {len(cases)}\b', guarded.metrics())
    assert TENANT not in guarded.stderr() and ADMIN not in guarded.stderr()


def test_every_method_asks_for_credentials(guarded):
    """R90: methods of every descriptor, those of the library's services and some that do not exist."""
    library = ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers",
               "/grpc.channelz.v1.Channelz/GetTopChannels", "/no.such.Service/Method", "/sluice.v1.Inference/NoSuchMethod"]
    for address, free in ((guarded.address, set()),
                          (guarded.ops_address, {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})):
        with Client(address).channel as channel:
            for path in sorted(METHODS | set(library)):
                if path in free:
                    assert next(iter(channel.unary_stream(path, request_serializer=bytes,
                                                          response_deserializer=bytes)(b"", timeout=10))) is not None
                else:
                    assert code_of(lambda: unary(channel, path))[0] == CODE.UNAUTHENTICATED, (address, path)
            admin = (("authorization", "Bearer " + ADMIN),)
            assert code_of(lambda: unary(channel, "/no.such.Service/Method", admin))[0] == CODE.UNIMPLEMENTED


def test_the_body_is_not_looked_at_before_the_credentials(guarded):
    with Client(guarded.address).channel as channel:
        call = channel.unary_unary("/sluice.v1.Inference/Tokenize", request_serializer=bytes, response_deserializer=bytes)
        assert code_of(lambda: call(b"\xff" * 100, timeout=10))[0] == CODE.UNAUTHENTICATED
        good = (("authorization", "Bearer " + TENANT),)
        assert code_of(lambda: call(b"\xff" * 100, timeout=10, metadata=good))[0] == CODE.INVALID_ARGUMENT


def test_the_ports_serve_what_they_should(guarded):
    admin = (("authorization", "Bearer " + ADMIN),)
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

    def list_services(channel):
        call = channel.stream_stream(reflection, request_serializer=bytes, response_deserializer=bytes)
        return next(iter(call(iter([b"\x3a\x00"]), metadata=admin, timeout=10)))

    with Client(guarded.ops_address).channel as channel:
        assert b"sluice.v1.Admin" in list_services(channel)
        assert unary(channel, "/grpc.channelz.v1.Channelz/GetServers", admin)
        assert code_of(lambda: unary(channel, "/sluice.v1.Inference/GetModel", (("authorization", "Bearer " + TENANT),)))[0] \
            == CODE.UNIMPLEMENTED
    with Client(guarded.address).channel as channel:
        assert code_of(lambda: list_services(channel))[0] == CODE.UNIMPLEMENTED
        assert code_of(lambda: unary(channel, "/sluice.v1.Admin/Drain", admin))[0] == CODE.UNIMPLEMENTED
        assert code_of(lambda: unary(channel, "/grpc.channelz.v1.Channelz/GetServers", admin))[0] == CODE.UNIMPLEMENTED


def test_administration_needs_credentials_to_check_against(serve, sluice):
    run = subprocess.run([sluice, "serve", "--model", TINY, "--channelz"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 2 and "--ops-listen" in run.stderr
    server = serve("--ops-listen", "127.0.0.1:0", model=TINY)
    with Client(server.ops_address).channel as channel:
        assert code_of(lambda: unary(channel, "/sluice.v1.Admin/Drain"))[0] == CODE.PERMISSION_DENIED
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_an_administrator_can_drain(guarded):
    client = Client(guarded.address, TENANT)
    call = client.stream(prompt(100))
    next(iter(call))
    with Client(guarded.ops_address).channel as channel:
        admin_pb2_grpc.AdminStub(channel).Drain(admin_pb2.DrainRequest(), metadata=(("authorization", "Bearer " + ADMIN),))
    assert list(call)[-1].WhichOneof("event") == "request_finished"
    assert guarded.wait() == 0
    client.close()


def test_tokens_change_without_a_restart(guarded, files):
    old, new = Client(guarded.address, TENANT), Client(guarded.address, "new-token")
    assert len(old.generate(prompt()).ids) == 4
    assert code_of(lambda: new.generate(prompt()))[0] == CODE.UNAUTHENTICATED
    # What is bad changes nothing, is said once and counted.
    for bad in ("{", "[]", '{"tokens": []}', '{"tokens": [{"sha256": "12", "tenant": "a", "scopes": ["inference"]}]}'):
        files.write_text(bad)
        wait_until(lambda: f'file="auth",result="refused"}} ' in guarded.metrics(), 5)
    time.sleep(1.2)
    refused = [line for line in guarded.stderr().splitlines() if "auth: the change is refused" in line]
    assert 1 <= len(refused) <= 4
    assert len(old.generate(prompt()).ids) == 4
    start = time.monotonic()
    write_tokens(files, entry("new-token"))

    def turned():
        with contextlib.suppress(grpc.RpcError):
            return len(new.generate(prompt()).ids) == 4
    wait_until(turned, 5, "the new token")
    print(f"taken after {time.monotonic() - start:.2f} s")
    assert code_of(lambda: old.generate(prompt()))[0] == CODE.UNAUTHENTICATED  # R85
    old.close()
    new.close()


@pytest.mark.parametrize("content, message", [
    ("", "no JSON"), ("{", "no JSON"), ("[]", "expected an object"), ('{"token": []}', "unknown key"),
    ('{"tokens": []}', "nobody could call"), ('{"tokens": [1]}', "tokens[0]: expected an object"),
    ('{"tokens": [{"sha256": "zz", "tenant": "a", "scopes": ["inference"]}]}', "tokens[0].sha256: expected 64 hex digits"),
    (json.dumps({"tokens": [{**entry("a"), "tenant": "a b"}]}), "tokens[0].tenant"),
    (json.dumps({"tokens": [{**entry("a"), "scopes": ["root"]}]}), "tokens[0].scopes"),
    (json.dumps({"tokens": [entry("a"), entry("a")]}), "tokens[1].sha256: the same token"),
    (json.dumps({"tokens": [entry("a"), entry("b")]})[:-3] + ', "scopes": ["admin"]}]}',
     'tokens[1]: expected each key once, got "scopes" again'),
    pytest.param("[" * 1000 + "]" * 1000, "nested more than 8 deep", id="nested")])
def test_a_bad_file_of_credentials_ends_the_start(sluice, tmp_path, content, message):
    (tmp_path / "auth.json").write_text(content)
    run = subprocess.run([sluice, "serve", "--model", TINY, "--listen", "127.0.0.1:0", "--auth-file", tmp_path / "auth.json"],
                         capture_output=True, text=True, timeout=30)
    assert run.returncode == 2 and message in run.stderr and "--auth-file" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_tls(serve, issuer, pair):
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], "--ops-listen", "127.0.0.1:0", model=TINY)
    client = Client(server.address, tls=secure(issuer))
    expected = client.generate(prompt(8)).ids
    stranger = Client(server.address, tls=secure(Issuer()))
    assert code_of(lambda: stranger.generate(prompt(), timeout=5))[0] == CODE.UNAVAILABLE
    # H12: plain text to the port of TLS, TLS to a plain one, and a handshake that stays half open.
    plain = Client(server.address)
    assert code_of(lambda: plain.generate(prompt(), timeout=5))[0] == CODE.UNAVAILABLE
    lost = Client(server.ops_address, tls=secure(issuer))
    assert code_of(lambda: lost.health.Check(health_pb2.HealthCheckRequest(), timeout=5))[0] == CODE.UNAVAILABLE
    host, port = server.address.rsplit(":", 1)
    halves = [socket.create_connection((host, int(port))) for _ in range(20)]
    for half in halves:
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
    assert client.generate(prompt(8)).ids == expected
    for half in halves:
        half.close()
    time.sleep(7)  # the watch over the port sees it alive
    assert client.generate(prompt(8)).ids == expected
    assert client.health.Check(health_pb2.HealthCheckRequest(service="liveness")).status == health_pb2.HealthCheckResponse.SERVING
    for one in (client, stranger, plain, lost):
        one.close()
    server.signal()
    assert server.wait() == 0


def failed_handshakes(server):
    return int(harness.re.search(r"^sluice_tls_handshakes_failed_total (\d+)", server.metrics(), harness.re.M)[1])


def test_failed_handshakes_are_counted(serve, issuer, pair, tmp_path):
    (tmp_path / "ca.pem").write_bytes(issuer.pem)
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], "--tls-client-ca", tmp_path / "ca.pem", model=TINY)
    host, port = server.address.rsplit(":", 1)
    assert failed_handshakes(server) == 0

    def attempt(hello):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(hello)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while connection.recv(100):
                    pass

    def handshake(**files):
        context = ssl.create_default_context(cadata=issuer.pem.decode())
        context.set_alpn_protocols(["h2"])
        if files:
            context.load_cert_chain(**files)
        with contextlib.suppress(ssl.SSLError, ConnectionError), socket.create_connection((host, int(port)), timeout=10) as connection:
            with context.wrap_socket(connection, server_hostname="localhost") as wrapped:
                wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                return len(wrapped.recv(9))
    attempt(b"GET / HTTP/1.1\r\n\r\n")
    attempt(b"\x16\x03\x01\x02\x00\x01")  # a hello that is not whole
    attempt(b"")
    handshake()  # no certificate
    for name, content in zip(("cert.pem", "key.pem"), issuer.issue("client.example.com")):
        (tmp_path / name).write_bytes(content)
    assert handshake(certfile=tmp_path / "cert.pem", keyfile=tmp_path / "key.pem") == 9
    wait_until(lambda: failed_handshakes(server) == 4, 10, "four failed handshakes")
    time.sleep(5)  # the watch over the port, which speaks no TLS, is not among them
    assert failed_handshakes(server) == 4


def test_a_flood_of_resets_is_cut_over_tls_too(serve, issuer, pair, tmp_path):
    (tmp_path / "ca.pem").write_bytes(issuer.pem)
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], model=TINY)
    client = Client(server.address, tls=secure(issuer))
    expected = client.generate(prompt(8)).ids
    flood(server.address, 20_000, tmp_path / "ca.pem", most_connections=1)
    # For what it holds, or, where the server keeps up with it, for what it breaks off.
    cut = harness.re.compile(r'^sluice_connections_cut_total\{streams="\w+"\} 1$', harness.re.M)
    wait_until(lambda: cut.search(server.metrics()), 30, "the cut")
    assert client.generate(prompt(8)).ids == expected  # the connection of before
    other = Client(server.address, tls=secure(issuer))
    assert other.generate(prompt(8), timeout=15).ids == expected
    assert len(harness.re.findall(r"cut the connection of ipv4:127.0.0.1:\d+", server.stderr())) == 1
    client.close()
    other.close()


def test_certificates_of_clients_are_identities(serve, issuer, pair, files, tmp_path):
    (tmp_path / "ca.pem").write_bytes(issuer.pem)
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], "--tls-client-ca", tmp_path / "ca.pem", "--auth-file", files,
                   model=TINY)

    def code(certificate, token=None):
        client = Client(server.address, token, secure(issuer, certificate))
        with client.channel:
            try:
                return len(client.generate(prompt(), timeout=5).ids)
            except grpc.RpcError as error:
                return error.code()

    known = issuer.issue("spiffe://tests/acme")
    unknown = issuer.issue("spiffe://tests/other", "elsewhere")
    assert code(known) == 4
    assert code(unknown) == CODE.PERMISSION_DENIED  # R88
    assert code(unknown, TENANT) == 4
    assert code(known, "wrong") == CODE.UNAUTHENTICATED  # a wrong token is not made up for
    log = server.stderr()
    assert code(None) == CODE.UNAVAILABLE  # R87: the handshake fails
    assert code(Issuer().issue("spiffe://tests/acme")) == CODE.UNAVAILABLE
    assert code(issuer.issue("spiffe://tests/acme", days=-0.5)) == CODE.UNAVAILABLE
    assert server.stderr() == log


def test_the_commands_reach_a_guarded_server(serve, issuer, pair, files, tmp_path, sluice):
    (tmp_path / "ca.pem").write_bytes(issuer.pem)
    (tmp_path / "token").write_text(TENANT + "\n")
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], "--auth-file", files, model=TINY)
    port = server.address.rsplit(":", 1)[1]
    remote = ["--server", f"localhost:{port}", "--tls-ca", tmp_path / "ca.pem"]
    token = ["--token-file", tmp_path / "token"]

    def run(*arguments, text=""):
        return subprocess.run([sluice, *arguments], capture_output=True, text=True, timeout=60, input=text)

    generate = ["generate", *remote, "--token-ids", "5,6,7", "--max-tokens", "4", "--temperature", "0", "--ignore-eos"]
    done = run(*generate, *token)
    assert done.returncode == 0, done.stderr
    refused = run(*generate)
    assert refused.returncode == 1 and "valid credentials are required" in refused.stderr
    assert run("bench", *remote, *token, "--streams", "2", "--prompt", "8", "--output", "8").returncode == 0
    assert run("chat", *remote, *token, "--max-tokens", "2", text="hello\n").returncode == 0
    assert "--tls-ca" in run(*generate[:3], "--tls-ca", "/no/such/file", "--token-ids", "5").stderr
    assert "belong together" in run(*generate, "--tls-cert", pair[0]).stderr


def test_certificates_change_under_load(serve, issuer, pair, request):
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], model=TINY)
    failures, done = [], threading.Event()

    def load():
        while not done.is_set():
            client = Client(server.address, tls=secure(issuer))
            with client.channel:
                try:
                    client.generate(prompt())
                except grpc.RpcError as error:
                    failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    first = serial_of(server, issuer)
    chain, key = pair[0].read_bytes(), pair[1].read_bytes()
    # Refused, one after the other: no certificate, half of one, a key of another, an expired and a later one.
    other_chain, other_key = issuer.issue("localhost")
    bad = [(b"", key, "expected certificates"), (chain[:-60], key, "certificate"), (chain, key[:-60], "the key"),
           (chain, other_key, "do not belong together"), (*issuer.issue("localhost", days=-0.5), "has expired"),
           (*issuer.issue("localhost", first_day=1), "is not valid yet"), (chain + other_chain, key, "did not issue")]
    for one_chain, one_key, message in bad:
        pair[0].write_bytes(one_chain)
        pair[1].write_bytes(one_key)
        server.await_log(f"tls: the change is refused.*{message}", 5)
        assert serial_of(server, issuer) == first
    assert 'sluice_config_reloads_total{file="tls",result="refused"}' in server.metrics()
    # Taken: in two halves, as a careless renewal would write it.
    pair[0].write_bytes(other_chain)
    time.sleep(1.5)
    assert serial_of(server, issuer) == first
    pair[1].write_bytes(other_key)
    wait_until(lambda: serial_of(server, issuer) != first, 5, "the new certificate")
    done.set()
    thread.join()
    assert not failures, failures[0]


def test_flags_of_tls_belong_together(sluice, pair):
    for flags in (["--tls-cert", pair[0]], ["--tls-key", pair[1]], ["--tls-client-ca", pair[0]],
                  ["--tls-cert", pair[1], "--tls-key", pair[1]], ["--tls-cert", "/no/such", "--tls-key", pair[1]]):
        run = subprocess.run([sluice, "serve", "--model", TINY, "--listen", "127.0.0.1:0", *flags], capture_output=True,
                             text=True, timeout=30)
        assert run.returncode == 2 and "--tls-cert" in run.stderr, run.stderr


def test_connections_are_capped(serve):
    server = serve("--max-connections", 40, "--max-connections-per-address", 10, model=TINY)
    expected = server.client.generate(prompt(8)).ids
    host, port = server.address.rsplit(":", 1)

    def connect(source):
        return socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))

    def refused(connection):
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):
            return connection.recv(1) == b""
        return True

    neighbours = [connect("127.0.0.2") for _ in range(11)]
    assert refused(neighbours[10]) and not refused(neighbours[0])
    own = [connect(host) for _ in range(40)]
    assert refused(own[39])
    assert server.client.generate(prompt(8)).ids == expected
    time.sleep(8)  # the watch over the port finds no place either, and holds its peace
    assert server.process.poll() is None
    for connection in neighbours + own:
        connection.close()

    def free():
        connection = connect("127.0.0.2")
        with connection:
            return not refused(connection)
    wait_until(free, 5, "a place")
    assert harness.re.search(r"^sluice_connections_refused_total [1-9]", server.metrics(), harness.re.M)
