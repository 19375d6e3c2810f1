"""Connections that break off many streams: those of honest clients stay, others are cut (see also H01 of catalogue.py)."""

import struct
import time

import harness
from harness import greedy, pb
from raw_http2 import END_HEADERS, HEADERS, RST_STREAM, Raw

TINY = harness.TINY / "tiny-odd.f16.gguf"
LONG = greedy(ids=[5, 6, 7], max_tokens=1500, ignore_eos=True).SerializeToString()
CANCEL = struct.pack(">I", 8)


def num_cut(server):
    return sum(int(value) for value in harness.re.findall(r"^sluice_connections_cut_total{.*} (\d+)$", server.metrics(), harness.re.M))


def reset(raw, streams):
    raw.send(b"".join(Raw.encoded(RST_STREAM, 0, stream, CANCEL) for stream in streams))
    while raw.read_frame(0):
        pass


def opened_and_reset(raw, count):
    frames = b""
    for _ in range(count):
        stream = raw.new_stream()
        block = raw.encoder.encode(raw.fields("/sluice.v1.Inference/Generate"), huffman=False)
        frames += Raw.encoded(HEADERS, END_HEADERS, stream, block) + Raw.encoded(RST_STREAM, 0, stream, CANCEL)
    return frames


def test_storms_of_cancels_are_served(serve):
    """As many calls as a connection may have open, all given up at once, again and again, over several connections."""
    server = serve(model=TINY)
    connections = [Raw(server.address) for _ in range(4)]
    for raw in connections:
        raw.settle()
    for _ in range(8):
        opened = [[raw.start("Generate", LONG) for _ in range(256)] for raw in connections]
        time.sleep(0.5)
        for raw, streams in zip(connections, opened):
            reset(raw, streams)
    for raw in connections:
        assert raw.call("GetLoad", pb.GetLoadRequest().SerializeToString()).code == "OK"
        raw.socket.close()
    assert num_cut(server) == 0


def test_many_short_calls_are_served(serve):
    server = serve(model=TINY)
    with Raw(server.address) as raw:
        raw.settle()
        for _ in range(40):
            streams = [raw.start("GetLoad") for _ in range(250)]
            for stream in streams:
                assert raw.wait(stream).code == "OK"
    assert num_cut(server) == 0


def test_resets_without_end_are_cut_though_the_server_keeps_up(serve):
    """2,500 a second are cleared away in time, but take a part of a processor; so they last for seconds only."""
    server = serve(model=TINY)
    with Raw(server.address) as raw, Raw(server.address) as other:
        raw.settle()
        other.settle()
        sent = 0
        while not raw.closed and sent < 30_000:
            raw.send(opened_and_reset(raw, 100))
            sent += 100
            while raw.read_frame(0.04):
                pass
        assert raw.closed and num_cut(server) == 1
        print(f"cut after {sent} resets")
        call = other.call("Generate", greedy(ids=[5, 6, 7], max_tokens=4, ignore_eos=True).SerializeToString())
        assert call.code == "OK"


def test_a_cut_connection_takes_its_calls_along_and_no_others(serve):
    server = serve(model=TINY)
    with Raw(server.address, window=1 << 20) as raw, Raw(server.address) as other:
        running = other.start("Generate", LONG)
        raw.settle()
        own = raw.start("Generate", LONG)
        for _ in range(40):
            if not raw.send(opened_and_reset(raw, 500)):
                break
        raw.read_until(lambda: False, 5)
        assert raw.closed and not raw.streams[own].ended
        assert other.wait(running, 60).code == "OK"
        server.client.generate(greedy(ids=[5, 6, 7], max_tokens=4, ignore_eos=True), timeout=15)
    assert num_cut(server) == 1
