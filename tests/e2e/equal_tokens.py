"""Streams that are served in many ways, and alone: tokens, scores and ends must be the same to the bit (B12)."""

import collections
import random

import harness
from harness import greedy, request
from many_calls import Caller

# Another tenant's or an earlier call's company must not show, whatever the weights are.
MODELS = [harness.TINY / f"tiny-{name}.gguf" for name in ("odd.f16", "llama.q4_k_m", "qwen3.bf16", "llama.q8_0")]
VOCABULARY = 250  # of every one of them at least
SHARED = 4  # beginnings that prompts share


def prompts_of(source):
    """Prompts of many lengths, some of which begin alike."""
    shared = [[source.randrange(3, VOCABULARY) for _ in range(length)] for length in (16, 33, 64, 120)][:SHARED]
    while True:
        beginning = source.choice(shared) if source.random() < 0.6 else []
        yield beginning + [source.randrange(3, VOCABULARY) for _ in range(source.randint(1, 60))]


def messages_of(count, seed):
    """So many greedy and so many seeded calls, mixed."""
    source = random.Random(seed)
    prompts, messages = prompts_of(source), []
    for index in range(2 * count):
        fields = {"ids": next(prompts), "max_tokens": source.randint(1, 64), "ignore_eos": source.random() < 0.7, "logprobs": 2}
        if source.random() < 0.3:
            fields |= {"repetition_penalty": 1.2, "frequency_penalty": 0.3}
        if index % 2 == 0:
            messages.append(greedy(**fields))
            continue
        if source.random() < 0.5:
            fields["top_k"] = source.randint(2, 60)
        if source.random() < 0.5:
            fields["top_p"] = source.choice((0.7, 0.95))
        messages.append(request(temperature=source.choice((0.6, 1.0, 1.8)), seed=source.getrandbits(63), **fields))
    return messages


def told(call, ids=(), logprobs=()):
    """What must be equal: tokens, their scores to the bit, and how the stream ended."""
    assert call.code == "OK", (call.code, call.headers)
    reply = call.reply(ids)
    return reply.ids, [*logprobs, *reply.logprobs], reply.finished.finish_reason


def together(at_once):
    def serve(address, messages, _):
        with Caller(address, connections=2) as caller:
            return [told(call) for call in caller.all(messages, at_once)]
    return serve


def beside_cancels(address, messages, _):
    """Each third with a second call beside it that is cancelled at some time."""
    source, doomed = random.Random(12), {}
    with Caller(address, connections=2) as caller:
        calls = []
        for index, message in enumerate(messages):
            while caller.open >= 24:
                caller.poll(0.01)
                for call, end in list(doomed.items()):
                    if call.end is None and len(call.times) < end:
                        continue
                    if call.end is None:
                        caller.cancel(call)
                    del doomed[call]
            calls.append(caller.start(message))
            if index % 3 == 0:
                doomed[caller.start(message)] = source.randint(0, 20)
        caller.finish()
        return [told(call) for call in calls]


def resumed(address, messages, alone):
    """Each goes on from a token at random, as if the stream had broken there."""
    source = random.Random(13)
    rests, cuts = [], []
    for message, (ids, _, _), accepted in zip(messages, alone["told"], alone["accepted"], strict=True):
        cuts.append(source.randrange(len(ids)) if ids else 0)
        rest = type(message)()
        rest.CopyFrom(message)
        if cuts[-1]:
            rest.resume.token_ids.extend(ids[:cuts[-1]])
            rest.resume.provenance.CopyFrom(accepted.provenance)
        rests.append(rest)
    with Caller(address, connections=2) as caller:
        calls = caller.all(rests, 16)
    # Scores come of what is made anew.
    return [told(call, ids[:cut], scores[:cut]) for call, cut, (ids, scores, _) in zip(calls, cuts, alone["told"], strict=True)]


# Name, flags, how, and which counter must have moved so that it was what it says.
WAYS = [
    ("8 at once", (), together(8), "sluice_prefix_cache_hits_tokens_total"),
    ("96 at once", (), together(96), "sluice_prefix_cache_hits_tokens_total"),
    ("96 without prefix cache", ("--prefix-cache", "off"), together(96), None),
    ("two engines", ("--engines", 2, "--threads", 1), together(64), None),
    ("steps of 9 tokens", ("--max-step-tokens", 9, "--max-batch", 8), together(16), None),
    ("AVX2", ("--isa", "avx2"), together(32), None),
    ("preempted", None, together(96), "sluice_preemptions_total"),
    ("beside cancels", (), beside_cancels, "sluice_cancelled_total"),
    ("resumed", ("--threads", 1), resumed, None),
]


def small_pool(w, model, pages=18):
    """Flags of a pool of about so many pages, in which 96 calls have no room."""
    server = w.serve(model=model)
    pool = server.client.stub.GetModel(harness.pb.GetModelRequest()).kv_pool
    return ("--kv-memory", f"{max(1, pages * pool.bytes_per_engine // pool.pages_per_engine // 1024)}K")


def served_in_many_ways(w, count):
    models = MODELS if w.long else MODELS[:1]
    outcomes, moved, differing = collections.Counter(), collections.Counter(), []
    for number, model in enumerate(models):
        messages = messages_of(count // len(models), seed=100 + number)
        server = w.serve("--prefix-cache", "off", "--threads", 1, "--max-batch", 1, model=model)
        with Caller(server.address) as caller:
            calls = caller.all(messages, 1)
        alone = {"told": [told(call) for call in calls], "accepted": [call.reply().accepted for call in calls]}
        outcomes["alone"] += len(calls)
        outcomes["tokens"] += sum(len(ids) for ids, _, _ in alone["told"])
        w.end_case()
        for name, flags, how, counter in WAYS:
            server = w.serve(*(small_pool(w, model) if flags is None else flags), model=model)
            guarded = w.guarded(server)
            for index, (got, expected) in enumerate(zip(how(server.address, messages, alone), alone["told"], strict=True)):
                if got != expected:
                    differing.append((name, model.name, index, messages[index], got, expected))
                outcomes[name] += 1
            guarded.check()
            if counter is not None:
                moved[counter] += guarded.value(counter)
                assert guarded.value(counter) > 0, f"{name}: {counter} is 0"
            w.end_case()
    assert not differing, f"{len(differing)} streams differ, the first: {differing[0]}"
    assert all(outcomes[name] == outcomes["alone"] for name, *_ in WAYS), outcomes
    ways, models = ", ".join(name for name, *_ in WAYS), f"{len(models)} tiny model{'s' if len(models) > 1 else ''}"
    return (f"{outcomes['alone']} streams, half of them greedy, half seeded, {outcomes['tokens']} tokens of {models}, each served alone "
            f"and in {len(WAYS)} other ways ({ways}): tokens, scores and ends bit-equal; {moved['sluice_preemptions_total']:.0f} "
            f"preemptions, {moved['sluice_cancelled_total']:.0f} cancels, {moved['sluice_prefix_cache_hits_tokens_total']:.0f} tokens "
            f"found in the prefix cache")
