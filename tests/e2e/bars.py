"""Bars that take a measurement under load (docs/reliability.md, "Bars"), each a line of figures.

    build/venv/bin/python3 tests/e2e/bars.py [--sluice PROGRAM] [--sluice-planted PROGRAM] [--long] [BAR...]

prints, as chaos.py does, a line a bar and, last, "N cases, N as expected, N not as expected". Figures of time and memory are
judged here alone: test_bars.py runs the short counts and looks at what must hold on any machine (codes, RetryInfo, tokens, pages,
failed calls). Where times are compared, the engine is one whose step takes 10 ms whatever else the machine does: the tiny model in
the program with failpoints, which sleeps as if it waited for a device. Those called "model" do the same with SmolLM2 on one thread
of the released program, and mean something on a quiet machine only. How busy others kept it stands at the end of each line."""

import collections
import contextlib
import hashlib
import json
import pathlib
import random
import re
import socket
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chaos  # noqa: E402
import grpc  # noqa: E402
import harness  # noqa: E402
from catalogue import TINY, details_of  # noqa: E402
from certificates import Issuer, secure, serial_of  # noqa: E402
from chaos import Missed  # noqa: E402
from equal_tokens import served_in_many_ways  # noqa: E402
from harness import Client, greedy, wait_until  # noqa: E402
from many_calls import Busy, Caller, Paced, share  # noqa: E402
from neighbours import LIMIT, PLACES, TENANTS, noisy_neighbour, nothing_of_others, prefix_cache_tells_nothing  # noqa: E402
from raw_http2 import Raw  # noqa: E402

CASES = {}
MIB = 1 << 20
case = chaos.registry(CASES)


class World(chaos.World):
    """`judged`: times and memory are held against the bar."""

    judged = True

    def bar(self, met, told):
        if self.judged and not met:
            raise Missed(told)
        return told

    def engine(self, is_model, *flags, **options):
        """A server whose engine is what takes the time: a step of 10 ms, or SmolLM2 on one core."""
        if is_model:
            return self.serve("--threads", 1, *flags, model=harness.MODEL, **options)
        return self.failing("runner=sleep:10", flags=("--threads", 1, *flags), **options)

    def path(self, name, content):
        path = pathlib.Path(self.folder.name) / name
        path.write_text(json.dumps(content))
        return path

    def tenants(self, names, limits):
        """Flags of a server whose tenants are so called, and have tokens of that name."""
        entries = [{"sha256": hashlib.sha256(name.encode()).hexdigest(), "tenant": name, "scopes": ["inference"]} for name in names]
        return ("--auth-file", self.path("auth.json", {"tokens": entries}), "--tenants", self.path("tenants.json", limits))


# ------------------------------------------------------------------------------------------------ B06

@contextlib.contextmanager
def stalled(guarded, caller, count):
    """So many calls whose reader takes nothing; begins when none of them is computed any more. `caller` has none meanwhile."""
    message = greedy(ids=[5, 6, 7], max_tokens=1500, ignore_eos=True).SerializeToString()
    begun = guarded.value("sluice_generation_tokens_total")
    with Raw(guarded.address, window=0) as raw:
        for _ in range(count):
            raw.start("Generate", message)
        # Pings are answered, or the connection would count as dead.
        threading.Thread(target=raw.read_until, args=(lambda: False, 300), daemon=True).start()
        # Each gets 64 tokens and a little more; a step may take long where others have the processors.
        made, before = -1, -2
        while made != before or made < begun + 64 * count:
            caller.rest(0.5)
            before, made = made, guarded.value("sluice_generation_tokens_total")
        yield
        raw.socket.shutdown(socket.SHUT_RDWR)  # its reader holds it open


def normal(caller, seconds, source):
    """16 streams that are read as they come, for so long."""
    calls = caller.keep(lambda: greedy(ids=[5, 6, source.randrange(7, 500)], max_tokens=48, ignore_eos=True), 16, seconds)
    assert all(call.code == "OK" for call in calls), collections.Counter(
        (call.code, call.headers.get("grpc-message")) for call in calls)
    return [gap for call in calls for gap in call.gaps()]


@case("B06", counts=((2, 1), (30, 8)))
def slow_readers(w, count):
    """64 that never read beside 16 that do: memory, and the end of the 64. The tiny model: its KV cache is next to nothing."""
    patience, seconds = count
    server = w.serve("--threads", 1, *(() if patience == 30 else ("--stall-timeout", f"{patience}s")))
    guarded, source = w.guarded(server), random.Random(6)
    with Caller(server.address) as caller:
        normal(caller, seconds, source)
        before = guarded.resident()
        with stalled(guarded, caller, 64):
            normal(caller, min(seconds, 0.5 * patience), source)
            grown = guarded.resident() - before
            wait_until(lambda: guarded.value("sluice_requests_running") + guarded.value("sluice_requests_waiting") == 0,
                       patience + 10, "the pages")
            # The status waits behind what the reader never takes, so the stream is torn down after as long again.
            wait_until(lambda: guarded.value("sluice_open_streams") == 0, patience + 10, "the end of the stalled calls")
    guarded.check()
    ends = sorted(map(float, re.findall(r" code=ABORTED reason=SLOW_READER .* total_s=(\S+)", server.stderr())))
    assert len(ends) == 64, len(ends)
    return w.bar(grown <= 32 * MIB and patience - 2 <= ends[0] and ends[-1] <= patience + 2,
                 f"64 that never read beside 16: resident memory {grown / MIB:+.1f} MiB; all 64 ABORTED {ends[0]:.1f} to "
                 f"{ends[-1]:.1f} s after they came (limit {patience} s), and their pages back")


@case("B06 gaps", counts=((1, 1), (8, 10)), long=True)
def gaps_beside_slow_readers(w, count):
    """The times between tokens of the 16, with the 64 and without, turn about."""
    return gaps(w, False, *count)


@case("B06 model", counts=((1, 4), (3, 10)), long=True)
def gaps_of_a_model(w, count):
    return gaps(w, True, *count)


def gaps(w, is_model, rounds, seconds):
    server = w.engine(is_model, "--kv-memory", "400M", "--max-context", 2048, "--stall-timeout", "90s")
    guarded, source, busy = w.guarded(server), random.Random(6), Busy(server)
    times, cpu = ([], []), [0.0, 0.0]  # without and beside

    def measure(which):
        before = server.cpu_seconds()
        times[which].extend(normal(caller, seconds, source))
        cpu[which] += server.cpu_seconds() - before
    with Caller(server.address) as caller:
        normal(caller, min(3, seconds), source)
        for _ in range(rounds):
            measure(0)
            with stalled(guarded, caller, 64):
                measure(1)
                assert guarded.value("sluice_open_streams") == 64, "a stalled call ended early"
            wait_until(lambda: guarded.value("sluice_open_streams") == 0, 20, "the end of the stalled calls")
    guarded.check()
    p50, p99 = ([1000 * share(values, part) for values in times] for part in (0.5, 0.99))
    cost = [1e6 * taken / len(values) for taken, values in zip(cpu, times)]
    return w.bar(p99[1] <= 1.1 * p99[0],
                 f"{len(times[0])} and {len(times[1])} gaps of 16 streams: p50 {p50[0]:.1f} ms, beside 64 stalled {p50[1]:.1f} ms; p99 "
                 f"{p99[0]:.1f} and {p99[1]:.1f} ms ({100 * (p99[1] / p99[0] - 1):+.1f} %); the server's processor time a token "
                 f"{cost[0]:.0f} and {cost[1]:.0f} us; {busy}")


# ------------------------------------------------------------------------------------------------ B07

class Watch(threading.Thread):
    """The most that waited, and the most resident memory, over time."""

    def __init__(self, guarded):
        super().__init__(daemon=True)
        self.guarded, self.over, self.waiting, self.resident = guarded, threading.Event(), 0, 0
        self.start()

    def run(self):
        with contextlib.suppress(OSError):  # the server is gone: a failed case has ended
            while not self.over.wait(0.5):
                self.waiting = max(self.waiting, self.guarded.value("sluice_requests_waiting"))
                self.resident = max(self.resident, self.guarded.resident())


class Tally:
    """What became of the calls of an overload, without keeping them."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.codes, self.refusals, self.ends, self.faults = collections.Counter(), [], [], collections.Counter()

    def add(self, calls):
        for call in calls:
            self.codes[call.code] += 1
            if call.code == "OK":
                self.ends.append(call.end)
                if sum(count for _, count in call.tokens()) != self.tokens:
                    self.faults["not whole"] += 1
            elif call.accepted:
                self.faults[f"accepted, then {call.code}"] += 1
            elif call.code == "RESOURCE_EXHAUSTED":
                self.refusals.append(call.seconds)
                details = details_of(call)
                if details["ErrorInfo"].reason != "QUEUE_FULL" or details["RetryInfo"].retry_delay.ToMilliseconds() <= 0:
                    self.faults["a refusal without its details"] += 1
            else:
                self.faults[call.code] += 1


def usual_load(caller, message, at_once, stop, seconds):
    """From `stop` on so many calls at once, again after 20 ms when one is refused: those that were accepted in order, all others."""
    tally, mine, open_now, pause = [], [], 0, 0
    while (now := time.perf_counter()) < stop + seconds:
        while now >= pause and open_now < at_once and caller.start(message, "after"):
            open_now += 1
        done = caller.poll(0.02)
        mine += [call for call in done if call.tag == "after"]
        open_now -= sum(call.tag == "after" for call in done)
        if any(call.code != "OK" for call in done):
            pause = now + 0.02  # the least that a refusal asks for
        tally += [call for call in done if call.tag is None]
    rest = caller.finish()
    tally += [call for call in rest if call.tag is None]
    mine += [call for call in rest if call.tag == "after"]
    tally += [call for call in mine if call.code != "OK"]  # refused while the queue was full still
    return sorted((call for call in mine if call.code == "OK"), key=lambda call: call.sent), tally


def recovery(calls, usual, stop):
    """Seconds from `stop` until calls take the usual time again: the first of 16 whose median does, if it does."""
    for first in range(len(calls) - 16):
        if max(calls[first].seconds, statistics.median(call.seconds for call in calls[first:first + 16])) <= 1.1 * usual:
            return calls[first].sent - stop
    return float("inf")


def median_seconds(caller, message, seconds):
    """Of a call with every place taken and nobody waiting."""
    return statistics.median(call.seconds for call in caller.keep(message, 16, seconds))


def capacity_of(caller, message, seconds):
    """Calls a second with all places taken and some that wait."""
    start = time.perf_counter()
    calls = caller.keep(message, 20, seconds)
    assert all(call.code == "OK" for call in calls)
    return sum(call.end < start + seconds for call in calls) / seconds


def overload(w, seconds, is_model, queue, tokens):
    server = w.engine(is_model, "--max-batch", 16, "--max-queue", queue)
    guarded = w.guarded(server)
    message = greedy(ids=[5, 6, 7], max_tokens=tokens, ignore_eos=True, stream_interval=8).SerializeToString()
    alone = max(2, min(30, seconds / 4))
    with Caller(server.address, connections=4) as caller:
        caller.keep(message, 16, alone / 3)
        usual = median_seconds(caller, message, alone / 2)
        capacity = capacity_of(caller, message, alone)
        before, watch, busy, tally = guarded.resident(), Watch(guarded), Busy(server), Tally(tokens)
        paced, start = Paced(caller, message, 10 * capacity), time.perf_counter()
        while time.perf_counter() < start + seconds:
            tally.add(caller.poll(paced.tick()))
        stop, took = time.perf_counter(), str(busy)
        lead = min(2, seconds / 4)  # until the queue is full
        goodput = sum(start + lead <= end < stop for end in tally.ends) / (stop - start - lead)
        after, rest = usual_load(caller, message, 16, stop, 5 if w.long else 2)
        tally.add(rest)
        # The machine may be busier than before: neither is held against figures of another time alone.
        again, later = capacity_of(caller, message, alone), median_seconds(caller, message, alone / 2)
        recovered = recovery(after, max(usual, later), stop)
        watch.over.set()
        watch.join()
    guarded.check()
    assert not tally.faults and set(tally.codes) <= {"OK", "RESOURCE_EXHAUSTED"}, (tally.faults, tally.codes)
    assert tally.refusals and watch.waiting <= queue, watch.waiting
    grown, refusal = max(watch.resident, guarded.resident()) - before, share(tally.refusals, 0.99)
    return w.bar(
        # What found no place on a connection, or was sent late, would be a client that is the bottleneck.
        goodput >= 0.95 * (capacity + again) / 2 and grown <= 64 * MIB and refusal <= 0.05 and recovered <= 2 and paced.unsent == 0,
        f"{seconds} s at {10 * capacity:.0f} calls/s, 10 times the capacity of {capacity:.1f} ({again:.1f} afterwards): goodput "
        f"{goodput:.1f}, {200 * goodput / (capacity + again):.1f} % of their mean; {tally.codes['OK']} accepted, all OK and whole; "
        f"{len(tally.refusals)} refused, all RESOURCE_EXHAUSTED with RetryInfo, p99 after {1000 * refusal:.1f} ms, the slowest after "
        f"{1000 * max(tally.refusals):.0f} ms; at most {watch.waiting:.0f} of {queue} waited; resident memory {grown / MIB:+.1f} MiB; "
        f"latency of {1000 * usual:.0f} ms ({1000 * later:.0f} afterwards) again {recovered:.2f} s after the load; {paced.unsent} of "
        f"{paced.sent} not sent, at most {1000 * paced.late:.0f} ms late; {took}")


@case("B07", counts=(5, 300))
def overload_of_an_engine(w, seconds):
    """10 times the capacity. 16 places and steps of 10 ms: 16 tokens take 160 ms, a queue of 64 is worth 640 ms."""
    return overload(w, seconds, False, 64, 16)


@case("B07 model", counts=(5, 60), long=True)
def overload_of_a_model(w, seconds):
    return overload(w, seconds, True, 20, 8)  # the queue is worth a second where nothing else runs


# ------------------------------------------------------------------------------------------------ B22

@case("B22", counts=((3, 1), (100, 20)))
def certificates_under_load(w, count):
    """Rotations of the server's certificate, and sets that must be refused, while calls come on old and new connections."""
    rotations, bad = count
    issuer, folder = Issuer(), pathlib.Path(w.folder.name)
    chain, key = folder / "server.pem", folder / "server.key"

    def write(pair, pause=0.0):
        chain.write_bytes(pair[0])
        time.sleep(pause)
        key.write_bytes(pair[1])
    good = issuer.issue("localhost")
    write(good)
    server = w.serve("--tls-cert", chain, "--tls-key", key)
    failures, calls, over = [], collections.Counter(), threading.Event()
    message = greedy(ids=[5, 6, 7], max_tokens=4, ignore_eos=True)

    def load(kind, fresh):
        client = Client(server.address, tls=secure(issuer))
        while not over.is_set():
            try:
                assert len(client.generate(message, 20).ids) == 4
                calls[kind] += 1
            except (grpc.RpcError, AssertionError) as error:
                failures.append(error)
            if fresh:
                client.close()
                client = Client(server.address, tls=secure(issuer))
            time.sleep(0.002)
        client.close()
    threads = [threading.Thread(target=load, args=kind) for kind in (("old", False), ("fresh", True), ("fresh", True))]
    for thread in threads:
        thread.start()
    slowest, refused = 0, 0
    try:
        for number in range(rotations):
            if refused < bad and number * bad >= refused * rotations:
                other, before = issuer.issue("localhost"), serial_of(server, issuer)
                write([(other[0], good[1]), (other[0][:-60], other[1]), (other[0], other[1][:-60]),
                       issuer.issue("localhost", days=-0.5), issuer.issue("localhost", first_day=1)][refused % 5])
                refused += 1
                wait_until(lambda: reloads(server, "refused") >= refused and
                           server.stderr().count("tls: the change is refused") >= refused, 10, "the refusal")
                assert serial_of(server, issuer) == before, "a bad set was taken"
            before, good = serial_of(server, issuer), issuer.issue("localhost")
            start = time.monotonic()
            write(good, pause=(0, 0.005, 0.3)[number % 3])  # a careless renewal writes one after the other
            wait_until(lambda: serial_of(server, issuer) != before, 10, "the new certificate")
            slowest = max(slowest, time.monotonic() - start)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, (len(failures), failures[0])
    assert calls["old"] and calls["fresh"], calls
    assert reloads(server, "applied") >= rotations
    return (f"{rotations} rotations, each in force within {slowest:.2f} s, and {refused} bad sets, each refused, logged and "
            f"counted: 0 of {sum(calls.values())} calls failed, {calls['fresh']} of them on connections of their own")


def reloads(server, result):
    [line] = [line for line in server.metrics().splitlines()
              if line.startswith(f'sluice_config_reloads_total{{file="tls",result="{result}"}}')]
    return float(line.rsplit(" ", 1)[1])


# ------------------------------------------------------------------------------------------------ B12, B27

case("B12", counts=(40, 1000))(served_in_many_ways)
case("B12 tenants", counts=(200, 10_000))(nothing_of_others)


LIMITS = {"default": {"max_concurrent": LIMIT}}  # of 32 places: nobody takes them all, or fills the queue


@case("B27", counts=(2, 60))
def a_noisy_neighbour(w, seconds):
    return w.bar(*noisy_neighbour(w, w.engine(False, *PLACES, *w.tenants(TENANTS, LIMITS)), seconds))


@case("B27 model", counts=(4, 60), long=True)
def a_noisy_neighbour_of_a_model(w, seconds):
    return w.bar(*noisy_neighbour(w, w.engine(True, *PLACES, *w.tenants(TENANTS, LIMITS)), seconds))


@case("B27 no limits", counts=(2, 30), long=True)
def a_noisy_neighbour_without_limits(w, seconds):
    """With nothing but the queue's turns: not the bar, for comparison."""
    return noisy_neighbour(w, w.engine(False, *PLACES, *w.tenants(TENANTS, {})), seconds, limited=False)[1]


@case("B27 cache", counts=(20, 1500))
def guesses_at_other_tenants_prompts(w, count):
    return w.bar(*prefix_cache_tells_nothing(w, count))


if __name__ == "__main__":
    sys.exit(chaos.main(__doc__, CASES, World))
