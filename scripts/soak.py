#!/usr/bin/env python3
"""Serves a model for a given time under mixed load and says what is left of it.

    build/venv/bin/python3 scripts/soak.py --minutes 30 [--faults] [--sluice PROGRAM] [--model FILE] [--json FILE] [--note TEXT]

Calls of every kind at once: whole ones (greedy, seeded, chats, several sequences, with logprobs, with a shared prompt),
cancelled ones, readers that stop for a while or for ever, clients that vanish with a reset, requests that are wrong, a burst
beyond the queue every minute, a scrape of the metrics every five seconds. Every two minutes all of them rest: then no stream may be open, no page used or leaked, no
descriptor or thread be more than at the first rest, and a fixed request must give the tokens that it gave at first.
With --faults something goes wrong in the server every minute, by failpoints (docs/reliability.md): the program is then
sluice_planted, and calls may end as the fault has it.

The build folder's Python environment is made by scripts/test.sh. Exit code 0: nothing was left behind, nothing ended
otherwise than it should.
"""

import argparse
import collections
import contextlib
import datetime
import json
import os
import pathlib
import random
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
import grpc  # noqa: E402
import harness  # noqa: E402
from credentials import ADMIN, entry, write_tokens  # noqa: E402
from harness import RETRIES, Client, Server, admin_pb2, admin_pb2_grpc, greedy, pb, request, wait_until  # noqa: E402
from raw_http2 import RST_STREAM, Raw  # noqa: E402

WARM_UP = 300  # seconds that the slope of resident memory leaves out
BURST_EVERY, BURST = 60, 96
FAULT_EVERY = 60
SCRAPE_EVERY = 5  # seconds
# What goes wrong in turns: logits of a step that are no numbers, a queue that is full, streams that break, no descriptors for a
# second or so, slow steps. None of them ends an engine.
FAULTS = ("logits=error*1", "mailbox=error*2", "write=error*5", "accept=error*20", "runner=sleep:300*5")
BY_FAULTS = ("INTERNAL", "CANCELLED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "RST")  # how calls may end then
FLAGS = ("--max-queue", 64, "--max-batch", 16, "--max-context", 2048, "--kv-memory", "160M")
TEXT = ("A river rises in the hills, runs through three towns and reaches the sea. People have fished in it, crossed it and "
        "argued over it for as long as anybody can remember. ")


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def slope(points):
    """Least squares through (hours, MiB): MiB an hour and half the width of its 95 % interval; None with few points."""
    if len(points) < 4:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    gradient = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - gradient * (x - mean_x)) ** 2 for x, y in points)
    return gradient, 2.1 * (rest / (len(points) - 2) / spread) ** 0.5


class Tally:
    """What was seen, by all threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.codes = collections.Counter()  # (kind of call, code)
        self.unexpected = collections.Counter()
        self.tokens = 0
        self.first, self.between = [], []  # seconds
        self.faults = []
        self.planted, self.by_planted = 0, collections.Counter()  # faults of the server, and the calls that ended for them

    def end(self, kind, code, expected, tokens=0):
        with self.lock:
            self.codes[kind, code] += 1
            self.tokens += tokens
            if code not in expected:
                of_fault = self.planted and code in BY_FAULTS
                (self.by_planted if of_fault else self.unexpected)[kind, code] += 1

    def times(self, first, between):
        with self.lock:
            self.first.append(first)
            self.between += between

    def fault(self, text):
        with self.lock:
            self.faults.append(text)
        print(f"FAULT: {text}", flush=True)


class Load:
    """The callers, each a thread, and the switch at which they rest."""

    def __init__(self, server, seed, token):
        self.server, self.seed, self.token, self.tally = server, seed, token, Tally()
        self.headers = [("authorization", f"Bearer {token}")] if token else []
        self.running = threading.Condition()
        self.resting, self.over, self.busy = False, False, 0
        self.threads = []
        callers = [self.whole, self.whole, self.whole, self.chat, self.cancelled, self.cancelled, self.pausing, self.vanishing,
                   self.never_reading, self.wrong, self.burst]
        for number, caller in enumerate(callers):
            thread = threading.Thread(target=self.loop, args=(caller, random.Random(seed * 1000 + number)), daemon=True)
            thread.start()
            self.threads.append(thread)

    def loop(self, caller, source):
        client = Client(self.server.address, self.token)
        while True:
            with self.running:
                self.running.wait_for(lambda: self.over or not self.resting)
                if self.over:
                    break
                self.busy += 1
            try:
                caller(client, source)
            except Exception as error:  # the server's death is seen by who watches it
                self.tally.fault(f"{caller.__name__}: {type(error).__name__}: {str(error)[:200]}")
                time.sleep(1)
            with self.running:
                self.busy -= 1
                self.running.notify_all()
        client.close()

    @contextlib.contextmanager
    def rest(self):
        with self.running:
            self.resting = True
            if not self.running.wait_for(lambda: self.busy == 0, 120):
                self.tally.fault(f"{self.busy} callers did not come to rest")
        yield
        with self.running:
            self.resting = False
            self.running.notify_all()

    def stop(self):
        with self.running:
            self.over = True
            self.running.notify_all()
        for thread in self.threads:
            thread.join(60)

    def sleep(self, seconds):
        """Ends early when everybody is to rest."""
        with self.running:
            self.running.wait_for(lambda: self.over or self.resting, seconds)

    # -------------------------------------------------------------------------------------------- kinds of calls

    def mixed(self, source):
        text = TEXT * source.choice((0, 1, 1, 2, 6)) + f"Number {source.randrange(10 ** 6)}:"
        fields = {"max_tokens": source.randint(1, 64), "ignore_eos": True}
        if source.random() < 0.3:
            fields["logprobs"] = 2
        if source.random() < 0.1:
            fields["n"] = 2
        if source.random() < 0.5:
            return greedy(text, **fields)
        return request(text, temperature=0.8, seed=source.getrandbits(32), **fields)

    def whole(self, client, source, message=None):
        message = message or self.mixed(source)
        begin = time.perf_counter()
        first, last, between, tokens, code = None, None, [], 0, "OK"
        try:
            for event in client.stream(message, timeout=120):
                if not event.delta.token_ids:
                    continue
                now, count = time.perf_counter(), len(event.delta.token_ids)
                tokens += count
                if first is None:
                    first = now - begin
                elif message.sampling.n <= 1:
                    between += [(now - last) / count] * count
                last = now
        except grpc.RpcError as error:
            code = error.code().name
        # The burst fills the queue for others too.
        self.tally.end("whole", code, ("OK", "RESOURCE_EXHAUSTED"), tokens)
        if code == "OK":
            self.tally.times(first, between)
            if tokens != message.stopping.max_tokens * max(1, message.sampling.n):
                self.tally.fault(f"{tokens} tokens, {message.stopping.max_tokens} x {max(1, message.sampling.n)} were asked for")

    def chat(self, client, source):
        message = pb.GenerateRequest()
        for turn in range(source.choice((1, 3))):
            message.chat.messages.add(role=("user", "assistant")[turn % 2], content=TEXT[:source.randint(10, 150)])
        message.stopping.max_tokens, message.sampling.seed = source.randint(1, 48), source.getrandbits(32)
        code, tokens = "OK", 0
        try:
            for event in client.stream(message, timeout=120):
                tokens += len(event.delta.token_ids)
        except grpc.RpcError as error:
            code = error.code().name
        self.tally.end("chat", code, ("OK", "RESOURCE_EXHAUSTED"), tokens)

    def cancelled(self, client, source):
        call = client.stream(self.mixed(source), timeout=120)
        timer = threading.Timer(source.random() ** 3, call.cancel)
        timer.start()
        code, tokens = "OK", 0
        try:
            for event in call:
                tokens += len(event.delta.token_ids)
        except grpc.RpcError as error:
            code = error.code().name
        timer.cancel()
        self.tally.end("cancelled", code, ("OK", "CANCELLED", "RESOURCE_EXHAUSTED"), tokens)
        if code == "RESOURCE_EXHAUSTED":
            self.sleep(0.5)

    def pausing(self, client, source):
        code, tokens = "OK", 0
        try:
            for event in client.stream(greedy(TEXT, max_tokens=64, ignore_eos=True), timeout=120):
                tokens += len(event.delta.token_ids)
                self.sleep(source.random() * 0.2)
        except grpc.RpcError as error:
            code = error.code().name
        self.tally.end("pausing", code, ("OK", "RESOURCE_EXHAUSTED"), tokens)

    def vanishing(self, _, source):
        raw = Raw(self.server.address)
        raw.start("Generate", self.mixed(source).SerializeToString(), self.headers)
        raw.read_until(lambda: False, source.random())
        if source.random() < 0.5:  # RST in place of FIN
            raw.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SOL_SOCKET, SO_LINGER
        raw.socket.close()
        self.tally.end("vanishing", "gone", ("gone",))

    def never_reading(self, _, source):
        with Raw(self.server.address, window=0) as raw:
            stream = raw.start("Generate", greedy(TEXT, max_tokens=1500, ignore_eos=True).SerializeToString(), self.headers)
            if source.random() < 0.5:
                raw.read_until(lambda: raw.streams[stream].ended or self.resting or self.over, 45)
            else:
                self.sleep(source.random() * 5)
                raw.frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
            # Without a window the status cannot be read: a reset, or nothing yet.
            self.tally.end("never reading", raw.streams[stream].code.split()[0], ("none", "RST", "ABORTED", "RESOURCE_EXHAUSTED"))

    def wrong(self, client, source):
        message = self.mixed(source)
        change = source.choice(("temperature", "top_p", "ids", "length", "bytes"))
        if change == "temperature":
            message.sampling.temperature = float("nan")
        elif change == "top_p":
            message.sampling.top_p = -1
        elif change == "ids":
            message.token_ids.ids[:] = [1 << 30]
        elif change == "length":
            message.stopping.max_tokens = 1 << 30
        code = "OK"
        with Raw(self.server.address) as raw:
            body = source.randbytes(200) if change == "bytes" else message.SerializeToString()
            code = raw.call("Generate", body, self.headers).code
        self.tally.end("wrong", code, ("INVALID_ARGUMENT",))
        self.sleep(0.2)

    def burst(self, client, source):
        self.sleep(BURST_EVERY)
        if self.resting or self.over:
            return
        calls = [client.stream(greedy(TEXT * 2, max_tokens=4, ignore_eos=True), timeout=120) for _ in range(BURST)]
        for call in calls:
            try:
                tokens = sum(len(event.delta.token_ids) for event in call)
                self.tally.end("burst", "OK", ("OK",), tokens)
            except grpc.RpcError as error:
                self.tally.end("burst", error.code().name, ("RESOURCE_EXHAUSTED",))


class Watch:
    """What the process holds, and what must be so when nobody calls."""

    def __init__(self, server, tally, token):
        self.server, self.tally = server, tally
        # Idle from rest to rest: its connection may be closed as the call begins, and it takes another one.
        self.client = Client(server.address, token, config=RETRIES)
        self.canary = self.ask()
        self.begin = time.monotonic()
        self.resident, self.rests = [], []  # (hours, MiB); what was held at each rest
        self.anonymous = []  # of the resident memory, what is no file's

    def ask(self):
        return list(self.client.generate(greedy("The first thing that", max_tokens=16, ignore_eos=True), 60).ids)

    def values(self):
        pattern = r"^(sluice_\w+)(\{[^}]*\})? (\S+)$"
        found = collections.defaultdict(float)
        for name, labels, value in re.findall(pattern, self.server.metrics(), re.M):
            found[name] += float(value)
            if 'state="used"' in labels:
                found["used"] += float(value)
        return found

    def sample(self):
        with open(f"/proc/{self.server.process.pid}/status") as file:
            found = {name: int(kibibytes) / 1024 for name, kibibytes in re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.M)}
        hours = (time.monotonic() - self.begin) / 3600
        if "VmRSS" in found:  # not of a process that has just ended
            self.resident.append((hours, found["VmRSS"]))
            self.anonymous.append((hours, found["RssAnon"]))

    def rest(self):
        """Nobody calls: what is still held."""
        names = ("sluice_open_streams", "sluice_requests_running", "sluice_requests_waiting", "sluice_queue_tokens",
                 "sluice_queue_bytes", "used", "sluice_leaked_pages")
        left = {}

        def quiet():
            values = self.values()
            left.clear()
            left.update({name: values[name] for name in names if values[name]})
            return not left
        try:
            wait_until(quiet, 45, "quiet")
        except AssertionError:
            self.tally.fault(f"left behind: {left}")
        try:
            if self.ask() != self.canary:
                self.tally.fault("the canary's tokens changed")
        except grpc.RpcError as error:
            code, log = self.server.process.poll(), self.server.stderr()
            self.tally.fault(f"the canary: {error.code().name}, {error.details()}; "
                             f"{'the server runs' if code is None else f'the server ended with {code}'}; its log ends {log[-2000:]!r}")
        pid = self.server.process.pid
        held = {"fds": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task")),
                "used_pages": int(left.get("used", 0)), "leaked_pages": int(left.get("sluice_leaked_pages", 0)),
                "rss_mib": round(self.resident[-1][1], 1) if self.resident else None,
                "anonymous_mib": round(self.anonymous[-1][1], 1) if self.anonymous else None}
        self.rests.append(held)
        return held

    @staticmethod
    def slope(samples):
        """Of the means of each minute after the warm-up, rounded."""
        minutes = collections.defaultdict(list)
        for hours, mebibytes in samples:
            if hours * 3600 >= WARM_UP:
                minutes[int(hours * 60)].append((hours, mebibytes))
        means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in minutes.values()]
        gradient = slope(means)
        return None if gradient is None else [round(part, 2) for part in gradient]


class Planter:
    """Makes something go wrong in the server once a minute."""

    def __init__(self, server, tally):
        self.tally, self.next = tally, time.monotonic() + FAULT_EVERY
        self.channel = grpc.insecure_channel(server.ops_address)
        self.stub = admin_pb2_grpc.AdminStub(self.channel)

    def tick(self):
        if time.monotonic() < self.next:
            return
        setting = FAULTS[self.tally.planted % len(FAULTS)]
        self.set(setting)
        with self.tally.lock:
            self.tally.planted += 1
        self.next += FAULT_EVERY

    def set(self, setting):
        self.stub.SetFailpoint(admin_pb2.SetFailpointRequest(setting=setting), timeout=60,
                               metadata=[("authorization", f"Bearer {ADMIN}")])

    def clear(self):
        for setting in FAULTS:
            self.set(setting.split("=")[0] + "=off")


def soak(server, minutes, seed, rest_every, token):
    watch = Watch(server, None, token)
    load = Load(server, seed, token)
    watch.tally = load.tally
    planter = Planter(server, load.tally) if token else None
    end = time.monotonic() + minutes * 60
    next_rest = time.monotonic() + min(rest_every, minutes * 30)
    while time.monotonic() < end:
        time.sleep(1)
        if server.process.poll() is not None:
            load.tally.fault(f"the server ended with {server.process.returncode}: {server.stderr()[-1000:]}")
            break
        watch.sample()
        if len(watch.resident) % SCRAPE_EVERY == 0 and server.process.poll() is None:
            server.metrics()
        if planter:
            planter.tick()
        if time.monotonic() >= next_rest:
            with load.rest():
                if planter:
                    planter.clear()
                held = watch.rest()
            next_rest += rest_every
            with load.tally.lock:
                total, tokens = sum(load.tally.codes.values()), load.tally.tokens
            print(f"{(time.monotonic() - watch.begin) / 60:6.1f} min  {total} calls  {tokens} tokens  {held}", flush=True)
    load.stop()
    if server.process.poll() is None:
        if planter:
            planter.clear()
        watch.rest()
        values = watch.values()
        server.signal()
        if server.wait(60) != 0:
            load.tally.fault(f"exit code {server.process.returncode}")
    else:
        values = {}
    return load.tally, watch, values


def judge(tally, watch):
    """Faults that only the whole run shows."""
    for name, slack in (("fds", 4), ("threads", 2)):
        counts = [held[name] for held in watch.rests]
        if counts and counts[-1] > counts[0] + slack:
            tally.fault(f"{name} grew from {counts[0]} to {counts[-1]}")


def milliseconds(values, share):
    value = percentile(values, share)
    return None if value is None else round(value * 1000, 2)


def summary(tally, watch, values, minutes):
    return {
        "minutes": round(minutes, 1), "requests": sum(tally.codes.values()), "tokens": tally.tokens,
        "errors": sum(tally.unexpected.values()), "faults": len(tally.faults),
        "codes": {f"{kind} {code}": count for (kind, code), count in sorted(tally.codes.items())},
        "planted": tally.planted, "ended_by_planted": sum(tally.by_planted.values()),
        "ttft_ms": {"p50": milliseconds(tally.first, 0.5), "p99": milliseconds(tally.first, 0.99)},
        "inter_token_ms": {"p50": milliseconds(tally.between, 0.5), "p99": milliseconds(tally.between, 0.99)},
        "rss_slope_mib_per_hour": watch.slope(watch.resident), "anonymous_slope_mib_per_hour": watch.slope(watch.anonymous),
        "rss_mib": [round(watch.resident[0][1], 1), round(watch.resident[-1][1], 1)] if watch.resident else None,
        "rests": len(watch.rests), "first_rest": watch.rests[0], "last_rest": watch.rests[-1],
        "leaked_pages": int(values.get("sluice_leaked_pages", -1)), "preemptions": int(values.get("sluice_preemptions_total", -1)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--sluice", help="default: build/release/sluice, with --faults sluice_planted")
    parser.add_argument("--model", default=str(harness.MODEL))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rest-every", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--json", help="file to which the result is appended as a line")
    parser.add_argument("--note", default="", help="goes into that line")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    flags, token = FLAGS, None
    folder = tempfile.TemporaryDirectory()
    if arguments.faults:
        token = ADMIN
        tokens = write_tokens(pathlib.Path(folder.name) / "tokens.json", entry(ADMIN, "soak", "inference", "admin"))
        flags += ("--auth-file", tokens, "--ops-listen", "127.0.0.1:0")
    program = arguments.sluice or ROOT / "build/release" / ("sluice_planted" if arguments.faults else "sluice")
    server = Server(program, *flags, model=arguments.model)
    print(server.ready.strip(), flush=True)
    server.client_ = Client(server.address, token)
    build = server.client.stub.GetModel(pb.GetModelRequest(), metadata=server.client.metadata).provenance.build
    begin = time.monotonic()
    try:
        tally, watch, values = soak(server, arguments.minutes, arguments.seed, arguments.rest_every, token)
    finally:
        server.stop()
        folder.cleanup()
    judge(tally, watch)
    result = summary(tally, watch, values, (time.monotonic() - begin) / 60)
    for name, value in result.items():
        print(f"{name:24} {value}")
    for (kind, code), count in tally.unexpected.items():
        print(f"not expected: {kind} ended {code} {count} times")
    if arguments.json:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        line = {"date": datetime.date.today().isoformat(), "commit": commit, "server": build,
                "machine": f"{os.cpu_count()} cores", "command": shlex.join(["scripts/soak.py", *sys.argv[1:]]),
                "note": arguments.note, **result}
        with open(arguments.json, "a") as file:
            file.write(json.dumps(line) + "\n")
    return 1 if tally.faults or tally.unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
