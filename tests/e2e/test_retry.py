"""A connection is closed as a call begins: with the service config that README.md shows it is made again, and nobody notices."""

import contextlib
import json
import re
import socket
import subprocess
import threading

import grpc
import harness
import pytest
from harness import Client, greedy

PREFACE, HEADERS = 24, 1  # bytes that a client begins with; the type of the frame that begins a call


class BrokenOnce:
    """Hands connections on to a server; the first `count` end when a call begins on them."""

    def __init__(self, address, count):
        self.address, self.left, self.broken = address, count, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.threads = []
        self.start(self.accept)

    def start(self, function, *arguments):
        self.threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self.threads[-1].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                host, port = self.address.rsplit(":", 1)
                server = socket.create_connection((host, int(port)))
                breaks, self.left = self.left > 0, self.left - 1
                self.start(self.pump, server, client, False)
                self.start(self.pump, client, server, breaks)

    def pump(self, source, target, breaks):
        seen = b""
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                seen += piece if breaks else b""
                if breaks and self.begins_call(seen):
                    self.broken += 1
                    break
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def begins_call(seen):
        at = PREFACE
        while at + 9 <= len(seen):
            if seen[at + 3] == HEADERS:
                return True
            at += 9 + int.from_bytes(seen[at:at + 3], "big")
        return False

    @property
    def place(self):
        return "127.0.0.1:%d" % self.listener.getsockname()[1]

    def close(self):
        self.listener.close()


@pytest.fixture
def broken_once(shared):
    with contextlib.closing(BrokenOnce(shared.address, 1)) as proxy:
        yield proxy


def test_readme_has_the_config():
    text = (harness.ROOT / "README.md").read_text()
    [shown] = re.findall(r"```json\n(\{\"methodConfig.*?)```", text, re.S)
    assert json.loads(shown) == json.loads(harness.RETRIES)


def test_call_that_finds_its_connection_closed(broken_once):
    client = Client(broken_once.place, config=harness.RETRIES)
    with contextlib.closing(client):
        assert len(client.generate(greedy("Once", max_tokens=4, ignore_eos=True)).ids) == 4
    assert broken_once.broken == 1


def test_without_the_config_it_ends_unavailable(broken_once):
    client = Client(broken_once.place, config='{"methodConfig": []}')
    with contextlib.closing(client), pytest.raises(grpc.RpcError) as error:
        client.generate(greedy("Once", max_tokens=4))
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE and broken_once.broken == 1


def test_generate_tries_again(sluice, broken_once):
    run = subprocess.run([str(sluice), "generate", "--server", broken_once.place, "--prompt", "Once", "--max-tokens", "4",
                          "--temperature", "0", "--ignore-eos"], capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert b"4 tokens" in run.stderr and broken_once.broken == 1


def test_chat_tries_again(sluice, broken_once):
    run = subprocess.run([str(sluice), "chat", "--server", broken_once.place, "--max-tokens", "4", "--temperature", "0"],
                         input=b"Hi\n", capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert broken_once.broken == 1
