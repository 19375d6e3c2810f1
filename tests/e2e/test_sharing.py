"""What calls share: prompts that begin alike are computed once, and nothing else changes."""

import random

from harness import greedy, request

VOCAB = 49152


def long_prompt(seed, size):
    numbers = random.Random(seed)
    return [numbers.randrange(100, VOCAB) for _ in range(size)]


def test_a_shared_prompt_of_2000_tokens_is_computed_once(serve):
    client = serve("--max-context", 4096).client
    shared = long_prompt(1, 2000)
    client.generate(greedy(ids=long_prompt(2, 100), max_tokens=2))  # warms the process up
    first, second = (client.generate(greedy(ids=shared + long_prompt(tail, 20), max_tokens=8)) for tail in (3, 4))
    assert first.end.usage.cached_prompt_tokens == 0
    assert second.end.usage.cached_prompt_tokens == 2000
    assert second.end.usage.prompt_tokens == 2020
    waits = [reply.end.timing.time_to_first_token for reply in (first, second)]
    print(f"time to first token: {waits[0]:.4f} s, then {waits[1]:.4f} s, {100 * waits[1] / waits[0]:.1f} %")

    bypass = greedy(ids=shared + long_prompt(4, 20), max_tokens=8, logprobs=2)
    again = greedy(ids=shared + long_prompt(4, 20), max_tokens=8, logprobs=2)
    bypass.cache.bypass_prefix_cache = True
    without, found = client.generate(bypass), client.generate(again)
    assert without.end.usage.cached_prompt_tokens == 0 and found.end.usage.cached_prompt_tokens == 2016
    assert found.ids == without.ids == second.ids and found.logprobs == without.logprobs


def test_a_salt_keeps_callers_apart(client):
    prompt = long_prompt(5, 100)

    def found(salt):
        call = greedy(ids=prompt, max_tokens=2)
        call.cache.cache_salt = salt
        return client.generate(call).end.usage.cached_prompt_tokens

    assert [found(salt) for salt in ("one", "other", "one", "other")] == [0, 0, 96, 96]


def metrics_of(server):
    lines = [line for line in server.metrics().splitlines() if not line.startswith("#")]
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines}


def test_the_cache_can_be_switched_off_and_metrics_count_it(serve):
    prompt = greedy(ids=long_prompt(6, 100), max_tokens=2)
    for state, found in (("off", 0), ("on", 96)):
        server = serve("--prefix-cache", state)
        replies = [server.client.generate(prompt) for _ in range(2)]
        assert [reply.end.usage.cached_prompt_tokens for reply in replies] == [0, found]
        metrics = metrics_of(server)
        for name in ("sluice_prefix_cache_queries_tokens_total", "vllm:prefix_cache_queries_total"):
            assert metrics[name] == (200 if found else 0)
        for name in ("sluice_prefix_cache_hits_tokens_total", "vllm:prefix_cache_hits_total"):
            assert metrics[name] == found
        server.await_log(f"prompt_tokens=100 cached_tokens={found} ")


def sequences_of(client, request):
    """Token ids by sequence, and the last event."""
    ids = {}
    for event in client.stream(request):
        if event.WhichOneof("event") == "delta":
            ids.setdefault(event.delta.index, []).extend(event.delta.token_ids)
        elif event.WhichOneof("event") == "request_finished":
            return ids, event.request_finished


def test_sequences_of_a_call_share_its_prompt(client, serve):
    fields = {"max_tokens": 24, "temperature": 1.5, "seed": 7, "ignore_eos": True}
    together = request(ids=long_prompt(8, 300), n=4, **fields)
    together.cache.bypass_prefix_cache = True
    ids, end = sequences_of(client, together)
    assert sorted(ids) == [0, 1, 2, 3] and len({tuple(tokens) for tokens in ids.values()}) == 4
    assert end.usage.prompt_tokens == 300 and end.usage.completion_tokens == 4 * 24
    assert end.kv.pages_reused == 3 * (299 // 16)
    # One at a time each computes the whole prompt.
    apart, end = sequences_of(serve("--max-batch", 1).client, together)
    assert end.kv.pages_reused == 0
    assert apart == ids
