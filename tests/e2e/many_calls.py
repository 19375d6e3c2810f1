"""Generate calls by the hundred from one thread, at little cost to the machine that they share with the server: no library in
between, headers encoded once, what comes is put aside with its time and understood when its call is over."""

import bisect
import os
import select
import struct
import time

from harness import Reply, pb
from raw_http2 import END_HEADERS, END_STREAM, HEADERS, RST_STREAM, WINDOW_UPDATE, DATA, Raw, Stream, framed

PATH = "/sluice.v1.Inference/Generate"
STREAMS = 200  # of a connection; the server announces 256
GIVE_BACK = 1 << 20  # bytes taken after which the connection's window is opened again


class Call(Stream):
    """A call, and when its parts came (time.perf_counter)."""

    def __init__(self, tag, sent):
        super().__init__()
        self.tag, self.sent, self.end, self.cancelled = tag, sent, None, False
        self.times, self.sizes = [], []  # of the body's parts: when, and how much there was then

    @property
    def accepted(self):
        """The first message says so."""
        return bool(self.body)

    @property
    def seconds(self):
        return self.end - self.sent

    def events(self):
        """(time, event) of each message."""
        size = 0
        for message in self.messages:
            size += 5 + len(message)
            yield self.times[bisect.bisect_left(self.sizes, size)], pb.GenerateResponse.FromString(message)

    def reply(self, ids=()):
        """What it said, after the `ids` that are known already."""
        reply = Reply(ids=list(ids))
        for _, event in self.events():
            reply.take(event)
        return reply

    def tokens(self):
        """(time, count) of each delta."""
        return [(when, len(event.delta.token_ids)) for when, event in self.events() if event.delta.token_ids]

    def first_token(self):
        """Seconds from the sending."""
        return self.tokens()[0][0] - self.sent

    def gaps(self):
        """Seconds between tokens; those that came together shared the time."""
        tokens = self.tokens()
        return [(when - before) / count for (before, _), (when, count) in zip(tokens, tokens[1:]) for _ in range(count)]


class Line(Raw):
    """A connection of a Caller."""

    def __init__(self, address, ended):
        super().__init__(address)
        self.ended, self.credit, self.updates, self.taken, self.calls = ended, 65535, {}, 0, {}
        self.settle()

    def begin(self, headers, body, tag):
        self.last += 2
        call = Call(tag, time.perf_counter())
        self.streams[self.last] = self.calls[self.last] = call
        self.credit -= len(body)
        self.send(self.encoded(HEADERS, END_HEADERS, self.last, headers) + self.encoded(DATA, END_STREAM, self.last, body))
        return call

    def cancel(self, call):
        [number] = [number for number, one in self.calls.items() if one is call]
        call.cancelled = True
        self.frame(RST_STREAM, 0, number, struct.pack(">I", 8))
        self.over(number)

    def over(self, number):
        call = self.calls.pop(number)
        del self.streams[number]
        call.end = time.perf_counter() if call.end is None else call.end
        self.ended(call)

    def take(self, kind, flags, number, payload):
        super().take(kind, flags, number, payload)
        call = self.calls.get(number)
        if call is None:
            self.streams.pop(number, None)  # what came after a cancel, or of the connection itself
        elif kind == DATA:
            call.times.append(self.now)
            call.sizes.append(len(call.body))
        if kind == DATA:
            self.taken += len(payload)
        if call is not None and call.ended:
            call.end = self.now
            self.over(number)

    def pull(self):
        """Takes what has come."""
        got = self.socket.recv(1 << 18)
        self.now = time.perf_counter()
        self.closed = self.closed or not got
        self.buffer += got
        whole, place = self.buffer, 0
        while place + 9 <= len(whole):
            size = int.from_bytes(whole[place:place + 3], "big")
            if place + 9 + size > len(whole):
                break
            kind, flags, number = struct.unpack_from(">BBI", whole, place + 3)
            self.take(kind, flags, number & 0x7fffffff, whole[place + 9:place + 9 + size])
            place += 9 + size
        self.buffer = whole[place:]
        self.credit += self.updates.pop(0, 0)
        self.updates.clear()
        if self.taken > GIVE_BACK:
            self.frame(WINDOW_UPDATE, payload=struct.pack(">I", self.taken))
            self.taken = 0

    now = 0.0


class Caller:
    """Calls over a few connections. `token`: a tenant's."""

    def __init__(self, address, connections=1, token=None):
        self.done = []
        self.lines = [Line(address, self.done.append) for _ in range(connections)]
        extra = [("authorization", "Bearer " + token)] if token else []
        # Never to be indexed, so that they are the same for every call.
        fields = [(name, value, True) for name, value in self.lines[0].fields(PATH, extra)]
        self.headers = self.lines[0].encoder.encode(fields, huffman=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for line in self.lines:
            line.socket.close()

    @property
    def open(self):
        return sum(len(line.calls) for line in self.lines)

    def start(self, message, tag=None):
        """Sends a message (or its bytes); the call, or None when every connection is full."""
        body = framed(message if isinstance(message, bytes) else message.SerializeToString())
        line = min(self.lines, key=lambda line: len(line.calls))
        if len(line.calls) >= STREAMS:
            return None
        while line.credit < len(body):
            self.poll(1)
        return line.begin(self.headers, body, tag)

    def cancel(self, call):
        [line] = [line for line in self.lines if call in line.calls.values()]
        line.cancel(call)

    def poll(self, seconds):
        """Takes what comes within so many seconds at most; the calls that are over since."""
        readable, _, _ = select.select([line.socket for line in self.lines], [], [], max(0, seconds))
        for line in self.lines:
            if line.socket in readable:
                line.pull()
                assert not line.closed, "the server hung up"
        done = self.done[:]
        self.done.clear()
        return done

    def finish(self, seconds=120):
        """Waits for what is open."""
        done, end = [], time.perf_counter() + seconds
        while self.open:
            assert time.perf_counter() < end, f"{self.open} calls have no end"
            done += self.poll(0.1)
        return done + self.poll(0)

    def rest(self, seconds):
        """Answers pings: the server gives up who does not."""
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            self.poll(end - now)

    def all(self, messages, at_once):
        """Every message, so many at once; the calls, in order."""
        calls = []
        for index, message in enumerate(messages):
            while self.open >= at_once:
                self.poll(1)
            calls.append(self.start(message, index))
        self.finish()
        self.done.clear()
        return calls

    def keep(self, message, at_once, seconds):
        """So many calls at any time, for so long and until those that are open are over; the calls."""
        done, end = [], time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            while self.open < at_once:
                self.start(message() if callable(message) else message)
            done += self.poll(end - now)
        return done + self.finish()


def share(values, part):
    """The value that `part` of them are below."""
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))]


class Paced:
    """Calls at a rate, whatever becomes of them: open loop. With `source` the times between them are drawn from 0 to twice the mean.
    `tick` sends what is due."""

    def __init__(self, caller, message, rate, source=None):
        self.caller, self.message, self.rate, self.source = caller, message, rate, source
        self.due = time.perf_counter()
        self.sent, self.unsent, self.late = 0, 0, 0.0  # calls; those that no connection had room for; seconds, at most

    def tick(self):
        """Seconds until the next."""
        while (now := time.perf_counter()) >= self.due:
            self.late = max(self.late, now - self.due)
            message = self.message() if callable(self.message) else self.message
            if self.caller.start(message) is None:
                self.unsent += 1
            self.sent += 1
            self.due += (self.source.random() * 2 if self.source else 1) / self.rate
        return self.due - now


def poll_all(callers, seconds):
    """`poll` of several callers: (caller, call) of the calls that are over."""
    sockets = {line.socket: line for caller in callers for line in caller.lines}
    readable, _, _ = select.select(list(sockets), [], [], max(0, seconds))
    for socket in readable:
        sockets[socket].pull()
        assert not sockets[socket].closed, "the server hung up"
    return [(caller, call) for caller in callers for call in caller.poll(0)]


class Busy:
    """Which share of the machine's processors processes other than the server and this one took."""

    def __init__(self, server):
        self.server, self.begin = server, self.read(server)
        self.own = time.process_time()

    @staticmethod
    def read(server):
        with open("/proc/stat") as file:
            ticks = [int(value) for value in file.readline().split()[1:9]]
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], server.cpu_seconds()

    def __str__(self):
        (total, busy, server), (total_, busy_, server_) = self.begin, self.read(self.server)
        hertz = os.sysconf("SC_CLK_TCK")
        seconds = (total_ - total) / hertz / os.cpu_count()
        own = time.process_time() - self.own
        others = max(0, (busy_ - busy) / hertz - (server_ - server) - own)
        cores = [f"{taken / max(seconds, 0.01):.2f}" for taken in (server_ - server, own, others)]
        return f"of {os.cpu_count()} cores the server took {cores[0]}, the client {cores[1]}, others {cores[2]}"
