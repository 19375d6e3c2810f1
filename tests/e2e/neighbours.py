"""One tenant that asks for far more than its share, one that wants to know what another asked (B27), and whether anything of one's
prompts comes in another's replies (B12)."""

import collections
import random
import time

from catalogue import TINY, Guarded, details_of
from equal_tokens import small_pool
from harness import greedy, request
from many_calls import Busy, Caller, Paced, poll_all, share

GREEDY, OTHERS = "greedy", ("one", "two", "three", "four")
TENANTS = (GREEDY, *OTHERS)
PLACES = ("--max-batch", 32, "--max-queue", 256)
LIMIT = 8  # open calls of a tenant: all of them together have more than there are places
TOKENS = 16.5  # of a call, on average
LOAD = 0.5  # of its share that each of the others asks for while times are compared


class Tenants:
    """A caller a tenant, and what became of their calls."""

    def __init__(self, server, limited):
        self.limited = limited
        source = random.Random(27)
        # Of many lengths: equal ones would end together, and every place be free at once.
        self.message = lambda: greedy(ids=[5, 6, source.randrange(7, 500)], max_tokens=source.randint(1, 32), ignore_eos=True)
        self.callers = {name: Caller(server.address, 2, token=name) for name in TENANTS}
        self.names = {caller: name for name, caller in self.callers.items()}

    def close(self):
        for caller in self.callers.values():
            caller.__exit__()

    def check(self, calls):
        """Refusals have the details that are due; where the greedy one is limited, it does not fill the queue for the others."""
        for name, of_name in calls.items():
            for call in of_name:
                if call.code == "OK":
                    assert call.reply().end.usage.completion_tokens == count_of(call)
                    continue
                assert call.code == "RESOURCE_EXHAUSTED" and not call.accepted, (name, call.code, call.headers)
                details = details_of(call)
                assert details["ErrorInfo"].reason in ("QUOTA_EXCEEDED", "QUEUE_FULL") and "RetryInfo" in details, details
                assert details["ErrorInfo"].reason == "QUOTA_EXCEEDED" or not self.limited, (name, call.headers)

    def run(self, seconds, rates=None, at_once=None):
        """Calls by tenant that are over within so many seconds, and tokens a second of those that end well by then. `rates`: calls a
        second, at random; `at_once`: so many open."""
        start, done = time.perf_counter(), collections.defaultdict(list)
        paced = [Paced(self.callers[name], self.message, rate, random.Random(number))
                 for number, (name, rate) in enumerate((rates or {}).items())]
        while time.perf_counter() < start + seconds:
            for name, count in (at_once or {}).items():
                while self.callers[name].open < count:
                    self.callers[name].start(self.message())
            wait = min([0.05, *(one.tick() for one in paced)])
            for caller, call in poll_all(self.callers.values(), wait):
                done[self.names[caller]].append(call)
        stop = time.perf_counter()
        within = {name: sum(map(count_of, done[name])) / (stop - start) for name in self.callers}
        while any(caller.open for caller in self.callers.values()):
            assert time.perf_counter() < stop + 60, "calls have no end"
            for caller, call in poll_all(self.callers.values(), 0.1):
                done[self.names[caller]].append(call)
        self.check(done)
        assert not any(one.unsent for one in paced), "the client had no room for its calls"
        return done, within


def count_of(call):
    return sum(count for _, count in call.tokens()) if call.code == "OK" else 0


def first_tokens(done):
    return [call.first_token() for name in OTHERS for call in done[name] if call.code == "OK"]


def noisy_neighbour(w, server, seconds, limited=True):
    """Five tenants of equal weight, one of them at 20 times its share, turn about with the same without that, because the machine
    may be busy with other things."""
    busy, rounds = Busy(server), 3 if w.long else 1
    tenants = Tenants(server, limited)
    fair, flooded = collections.Counter(), collections.Counter()  # sums of tokens a second
    calm, noisy = collections.defaultdict(list), collections.defaultdict(list)

    def take(into, done):
        for name, calls in done.items():
            into[name] += calls
    try:
        tenants.run(1, at_once=dict.fromkeys(TENANTS, LIMIT))
        for _ in range(20):  # on a busy machine no call may be over in so short a time
            _, tokens = tenants.run(seconds / 6, at_once=dict.fromkeys(TENANTS, LIMIT))
            if rate := sum(tokens.values()) / 5 / TOKENS:
                break
        flood = 20 * rate
        for _ in range(rounds):
            # Throughput: everybody always has calls that wait.
            fair.update(tenants.run(seconds / rounds, at_once=dict.fromkeys(TENANTS, LIMIT))[1])
            flooded.update(tenants.run(seconds / rounds, rates={GREEDY: flood}, at_once=dict.fromkeys(OTHERS, LIMIT))[1])
        rates = dict.fromkeys(OTHERS, LOAD * rate)
        for _ in range(rounds):
            # Times: the others ask for less than their share.
            take(calm, tenants.run(seconds / rounds, rates={GREEDY: rate, **rates})[0])
            take(noisy, tenants.run(seconds / rounds, rates={GREEDY: flood, **rates})[0])
    finally:
        tenants.close()
    least = min(flooded[name] for name in OTHERS) / (sum(fair.values()) / 5)
    refused = sum(call.code != "OK" for call in noisy[GREEDY])
    others = [sum(call.code != "OK" for name in OTHERS for call in done[name]) for done in (calm, noisy)]
    p50, p99 = ([1000 * share(first_tokens(done), part) for done in (calm, noisy)] for part in (0.5, 0.99))
    return least >= 0.9 and p99[1] <= 1.5 * p99[0], (
        f"one of 5 tenants at 20 times its share of {rate:.1f} calls/s ({refused} of its {len(noisy[GREEDY])} refused): the others, "
        f"when they always wait, get at least {100 * least:.0f} % of theirs; when they ask for {100 * LOAD:.0f} % of it, time to first "
        f"token p50 {p50[0]:.0f} then {p50[1]:.0f} ms, p99 {p99[0]:.0f} then {p99[1]:.0f} ms ({p99[1] / p99[0]:.2f} times, "
        f"{len(first_tokens(noisy))} calls), {others[0]} then {others[1]} of their calls above their own limit and refused; {busy}")


def area(lower, higher):
    """Probability that one of the first is below one of the second (Mann and Whitney): the area under the curve of the
    classifier that goes by the value."""
    values = sorted([(value, 0) for value in lower] + [(value, 1) for value in higher])
    ranks, place = collections.defaultdict(list), 1
    for value, _ in values:
        ranks[value].append(place)
        place += 1
    total = sum(sum(ranks[value]) / len(ranks[value]) for value, kind in values if kind == 1)
    return (total - len(higher) * (len(higher) + 1) / 2) / (len(lower) * len(higher))


def guesses(asked, asker, count, seed):
    """By whether a prompt had been asked before by `asked`: times to the first token that `asker` sees, by its own clock and as the
    server tells them, and the tokens that were found."""
    source = random.Random(seed)
    seen = {True: [], False: []}
    kinds = [True, False] * count
    source.shuffle(kinds)
    for kind in kinds:
        secret, other = ([source.randrange(3, 250) for _ in range(512)] for _ in range(2))
        # As much work comes before either kind.
        [call] = asked.all([greedy(ids=secret if kind else other, max_tokens=1, ignore_eos=True)], 1)
        assert call.code == "OK", call.code
        [call] = asker.all([greedy(ids=secret, max_tokens=1, ignore_eos=True)], 1)
        assert call.code == "OK", call.code
        end = call.reply().end
        seen[kind].append((call.first_token(), end.timing.time_to_first_token, end.usage.cached_prompt_tokens))
    return seen


def prefix_cache_tells_nothing(w, count):
    server = w.serve(*w.tenants(TENANTS, {}), model=TINY)
    callers = {name: Caller(server.address, token=name) for name in ("one", "two")}
    try:
        across = guesses(callers["one"], callers["two"], count, 1)
        within = guesses(callers["one"], callers["one"], max(10, count // 4), 2)
    finally:
        for caller in callers.values():
            caller.__exit__()
    # What holds on any machine: another tenant's prompts are not found, one's own are.
    assert {found for kind in (True, False) for *_, found in across[kind]} == {0}, "another tenant's prompt was found"
    assert {found for *_, found in within[True]} == {496} and {found for *_, found in within[False]} == {0}
    areas = {name: [area([values[clock] for values in seen[True]], [values[clock] for values in seen[False]]) for clock in (0, 1)]
             for name, seen in (("across", across), ("within", within))}
    return max(areas["across"]) <= 0.55 and min(areas["within"]) >= 0.9, (
        f"guessing from the time to the first token whether a prompt of 512 tokens had been asked before, {2 * count} guesses: AUC "
        f"across tenants {areas['across'][0]:.3f} by the client's clock, {areas['across'][1]:.3f} by what the server tells; within "
        f"one tenant {areas['within'][0]:.3f} and {areas['within'][1]:.3f}")


def nothing_of_others(w, count):
    """A word and a sequence of tokens of each tenant's own in all that it asks: neither is in any byte that others are sent."""
    server = w.serve(*w.tenants(TENANTS, {}), *small_pool(w, TINY), model=TINY)
    guarded = Guarded(server, token=TENANTS[0])
    source = random.Random(12)
    words = {name: f"{source.getrandbits(64):016x}" for name in TENANTS}
    tokens = {name: [source.randrange(3, 100) for _ in range(10)] for name in TENANTS}
    marks = {name: (words[name].encode(), bytes(tokens[name])) for name in TENANTS}

    def message(name, number):
        prompt = {"text": f"{words[name]} once upon a time {words[name]}"} if source.random() < 0.5 else {
            "ids": [5, *tokens[name], *(source.randrange(3, 250) for _ in range(source.randrange(40)))]}
        sampling = {"temperature": 0.0} if source.random() < 0.5 else {"temperature": 1.5, "seed": source.randrange(1000)}
        return request(**prompt, **sampling, request_id=f"{words[name]}-{number}", max_tokens=source.randint(1, 60), ignore_eos=True)

    # Tokens below 128 are sent as bytes side by side.
    assert marks[TENANTS[0]][1] in greedy(ids=[5, *tokens[TENANTS[0]]]).SerializeToString()
    callers = {name: Caller(server.address, token=name) for name in TENANTS}
    names = {caller: name for name, caller in callers.items()}
    codes, started, bytes_seen = collections.Counter(), 0, 0
    try:
        while started < count or any(caller.open for caller in callers.values()):
            for name, caller in callers.items():
                while started < count and caller.open < 24:
                    call = caller.start(message(name, started))
                    started += 1
                    if source.random() < 0.1:
                        caller.cancel(call)
            for caller, call in poll_all(callers.values(), 0.05):
                told = bytes(call.body) + repr(call.headers).encode()
                bytes_seen += len(told)
                codes["CANCELLED" if call.cancelled else call.code] += 1
                # Its own word comes back, in the id of the call.
                assert call.code != "OK" or marks[names[caller]][0] in told
                for name in TENANTS:
                    found = name != names[caller] and any(mark in told for mark in marks[name])
                    assert not found, f"a reply to {names[caller]} has something of {name}: {call.reply()}"
    finally:
        for caller in callers.values():
            caller.__exit__()
    guarded.check()
    guarded.client.close()
    assert codes["OK"] > count / 2 and set(codes) <= {"OK", "CANCELLED"}, codes
    return (f"{count} calls of {len(TENANTS)} tenants, {dict(codes)}, {guarded.value('sluice_preemptions_total'):.0f} preemptions, "
            f"{guarded.value('sluice_prefix_cache_hits_tokens_total'):.0f} tokens found in the prefix cache: nothing of another tenant's in "
            f"{bytes_seen / 1e6:.1f} MB of replies")
