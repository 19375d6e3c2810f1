"""HTTP/2 and gRPC by hand: a client that may do everything that a good one does not."""

import base64
import contextlib
import socket
import struct
import time

import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CODES = ("OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED "
         "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED").split()


def framed(message, compressed=False):
    """A message as gRPC frames it."""
    return struct.pack(">BI", compressed, len(message)) + message


def setting(number, value):
    return struct.pack(">HI", number, value)


class Stream:
    """What a stream has brought so far."""

    def __init__(self):
        self.headers, self.body, self.ended, self.reset = {}, b"", False, None

    @property
    def code(self):
        """The status of gRPC; "RST n" or "HTTP n" when there is none."""
        if "grpc-status" in self.headers:
            return CODES[int(self.headers["grpc-status"])]
        if self.reset is not None:
            return f"RST {self.reset}"
        return f"HTTP {self.headers.get(':status')}" if self.ended else "none"

    @property
    def messages(self):
        messages, body = [], self.body
        while len(body) >= 5:
            size = struct.unpack(">I", body[1:5])[0]
            messages.append(body[5:5 + size])
            body = body[5 + size:]
        return messages

    @property
    def details(self):
        value = self.headers.get("grpc-status-details-bin", "")
        return base64.b64decode(value + "=" * (-len(value) % 4))


class Raw:
    """One connection. `window`: what each stream may send before it is given more; `acks`: settings and pings are answered."""

    def __init__(self, address, window=1 << 20, acks=True, preface=PREFACE, source=None):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=10, source_address=source and (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.acks, self.buffer, self.streams, self.closed, self.goaway = acks, b"", {}, False, None
        self.encoder, self.decoder, self.last = hpack.Encoder(), hpack.Decoder(), -1
        self.decoder.max_header_list_size = 1 << 20
        self.block = None
        self.credit, self.updates = 65535, {}  # what may be sent on the connection; what streams (0: it) were given since
        if preface is not None:
            self.send(preface)
            self.frame(SETTINGS, payload=setting(4, window))
            if window:
                self.frame(WINDOW_UPDATE, payload=struct.pack(">I", 1 << 28))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def settle(self):
        """Waits until the server's settings have come, and with them the limits that it announces."""
        self.settled = False
        self.read_until(lambda: self.settled, 5)

    def send(self, content):
        """False when the server has hung up."""
        try:
            self.socket.sendall(content)
            return True
        except OSError:
            self.closed = True
            return False

    @staticmethod
    def encoded(kind, flags=0, stream=0, payload=b""):
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    def frame(self, kind, flags=0, stream=0, payload=b""):
        return self.send(self.encoded(kind, flags, stream, payload))

    def new_stream(self):
        self.last += 2
        self.streams[self.last] = Stream()
        return self.last

    def fields(self, path, extra=(), **changed):
        """Headers of a call in order; `changed` replaces by name, with _ for - and a leading : for pseudo ones."""
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost", "te": "trailers",
                  "content-type": "application/grpc"}
        fields.update({name.replace("_", "-"): value for name, value in changed.items()})
        return [*fields.items(), *extra]

    def open(self, path, extra=(), flags=END_HEADERS, fields=None, **changed):
        """Sends the headers of a new stream."""
        stream = self.new_stream()
        self.frame(HEADERS, flags, stream, self.encoder.encode(fields or self.fields(path, extra, **changed), huffman=False))
        return stream

    def data(self, stream, payload, end=True):
        """In frames that the server takes; windows are the caller's business."""
        for start in range(0, max(1, len(payload)), 16384):
            part = payload[start:start + 16384]
            last = end and start + 16384 >= len(payload)
            if not self.frame(DATA, END_STREAM if last else 0, stream, part):
                return

    def start(self, method, message=b"", extra=(), **changed):
        path = method if method.startswith("/") else "/sluice.v1.Inference/" + method
        stream = self.open(path, extra, **changed)
        self.upload(stream, framed(message))
        return stream

    def upload(self, stream, payload):
        """Sends a body of any size as the server's windows allow (64 KiB at first)."""
        sent = 0
        stream_credit = 65535
        while True:
            self.credit += self.updates.pop(0, 0)
            stream_credit += self.updates.pop(stream, 0)
            part = payload[sent:sent + min(16384, self.credit, stream_credit)]
            last = sent + len(part) == len(payload)
            if part or last:
                if not self.frame(DATA, END_STREAM if last else 0, stream, part):
                    return
            sent += len(part)
            self.credit -= len(part)
            stream_credit -= len(part)
            if last:
                return
            if not part:
                if self.streams[stream].ended or self.closed or not self.read_frame(10):
                    return
            else:
                while self.read_frame(0):
                    pass
            if self.streams[stream].ended:
                return

    def call(self, method, message=b"", extra=(), seconds=20, **changed):
        return self.wait(self.start(method, message, extra, **changed), seconds)

    def wait(self, stream, seconds=20):
        """Reads until the stream or the connection is over; the stream."""
        return self.read_until(lambda: self.streams[stream].ended, seconds, stream)

    def read_until(self, condition, seconds=20, stream=None):
        end = time.monotonic() + seconds
        while not condition() and not self.closed:
            if not self.read_frame(end - time.monotonic()):
                break
        return self.streams.get(stream)

    def read_frame(self, seconds):
        """Takes one frame; False when none came."""
        end = time.monotonic() + seconds
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            self.socket.settimeout(max(0.0005, end - time.monotonic()))
            try:
                got = self.socket.recv(1 << 16)
            except (TimeoutError, BlockingIOError):
                if time.monotonic() >= end:
                    return False
                continue
            except OSError:
                got = b""
            finally:
                with contextlib.suppress(OSError):
                    self.socket.settimeout(10)
            if not got:
                self.closed = True
                return False
            self.buffer += got
        size = int.from_bytes(self.buffer[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
        payload, self.buffer = self.buffer[9:9 + size], self.buffer[9 + size:]
        self.take(kind, flags, stream & 0x7fffffff, payload)
        return True

    def take(self, kind, flags, number, payload):
        stream = self.streams.setdefault(number, Stream())
        if kind == SETTINGS and not flags & ACK and self.acks:
            self.frame(SETTINGS, ACK)
            self.settled = True
        elif kind == PING and not flags & ACK and self.acks:
            self.frame(PING, ACK, 0, payload)
        elif kind == DATA:
            stream.body += payload
        elif kind in (HEADERS, CONTINUATION):
            self.block = payload if kind == HEADERS else self.block + payload
            if flags & END_HEADERS:
                stream.headers.update({key.decode() if isinstance(key, bytes) else key:
                                       value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                                       for key, value in self.decoder.decode(self.block, raw=True)})
        elif kind == RST_STREAM:
            stream.reset, stream.ended = struct.unpack(">I", payload)[0], True
        elif kind == GOAWAY:
            self.goaway = struct.unpack(">I", payload[4:8])[0]
        elif kind == WINDOW_UPDATE:
            self.updates[number] = self.updates.get(number, 0) + struct.unpack(">I", payload)[0]
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            stream.ended = True
