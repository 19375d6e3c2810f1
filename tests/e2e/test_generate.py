"""What comes out of Generate: right, the same whoever else is served, and ended as asked."""

import threading
import time

import grpc
import harness
import pytest
from google.protobuf import duration_pb2
from harness import greedy, pb, request, wait_until

GOLDEN = [prompt for prompt in harness.golden_prompts() if prompt.get("greedy")]
COUNT = next(prompt for prompt in GOLDEN if prompt["name"] == "count")


@pytest.mark.parametrize("prompt", GOLDEN, ids=lambda prompt: prompt["name"])
def test_greedy_continuation_is_the_reference(client, prompt):
    sure = harness.sure_prefix(prompt["greedy"])
    reply = client.generate(greedy(ids=prompt["prompt_ids"], max_tokens=len(prompt["greedy"])))
    assert sure and reply.ids[:len(sure)] == sure
    near_ties = len(prompt["greedy"]) - len(sure)
    if near_ties == 0 and prompt.get("greedy_text") is not None:
        assert reply.text == prompt["greedy_text"]
    print(f"{prompt['name']}: {len(sure)} tokens equal, {near_ties} behind the first near tie")


def test_text_prompt_is_its_ids(client):
    reply = client.generate(greedy(COUNT["text"], max_tokens=20))
    assert reply.ids == [token for token, _ in COUNT["greedy"][:20]]
    assert reply.accepted.prompt_tokens == len(COUNT["prompt_ids"])


def test_order_of_events_and_usage(client):
    reply = client.generate(greedy(COUNT["text"], max_tokens=20))
    assert reply.events[0] == "accepted"
    assert reply.events[-2:] == ["sequence_finished", "request_finished"]
    assert set(reply.events[1:-2]) == {"delta"}
    assert reply.finished.finish_reason == pb.FINISH_REASON_LENGTH
    assert reply.end.usage.completion_tokens == 20
    assert reply.end.usage.prompt_tokens == len(COUNT["prompt_ids"])
    assert reply.end.timing.total >= reply.end.timing.time_to_first_token > 0
    assert reply.end.kv.peak_pages >= (len(COUNT["prompt_ids"]) + 19) // 16


def test_echo_sent_back_repeats_the_call(client):
    first = client.generate(request("Once upon a time", max_tokens=24, temperature=0.8, top_k=40, top_p=0.95))
    assert first.accepted.sampling.HasField("seed")
    again = pb.GenerateRequest(text="Once upon a time", sampling=first.accepted.sampling,
                               stopping=first.accepted.stopping, output=first.accepted.output)
    assert client.generate(again).ids == first.ids


def test_seeds_matter(client):
    texts = {client.generate(request("Once upon a time", max_tokens=16, seed=seed)).text for seed in range(6)}
    assert len(texts) > 3


def mixed_requests():
    """Greedy and seeded requests of unlike lengths, logprobs included."""
    requests = []
    for index, prompt in enumerate(harness.golden_prompts()):
        sampling = {"temperature": 0.0} if index % 2 == 0 else {"temperature": 0.9, "top_p": 0.9, "seed": 1000 + index}
        requests.append(request(ids=prompt["prompt_ids"], max_tokens=16 + 5 * index, logprobs=3, ignore_eos=True, **sampling))
    return requests


@pytest.fixture(scope="module")
def alone(shared):
    return [shared.client.generate(one) for one in mixed_requests()]


def assert_same(replies, expected):
    for reply, alone in zip(replies, expected, strict=True):
        assert reply.ids == alone.ids
        assert reply.text == alone.text
        assert reply.logprobs == alone.logprobs  # bit for bit


def test_concurrent_streams_equal_those_alone(client, alone):
    for _ in range(2):
        assert_same(client.generate_all(mixed_requests()), alone)


@pytest.mark.parametrize("flags", [
    pytest.param(["--engines", "2", "--threads", "1"], id="two-engines"),
    pytest.param(["--isa", "avx2"], id="avx2"),
    pytest.param(["--max-step-tokens", "64"], id="chunked-prefill"),
    pytest.param(["--threads", "1"], id="one-thread"),
])
def test_how_it_is_served_makes_no_difference(serve, alone, flags):
    server = serve(*flags)
    print(server.ready.strip())
    assert_same(server.client.generate_all(mixed_requests()), alone)


def test_preempted_requests_are_the_same(serve, client):
    """Six sequences of 14 pages each in a pool of about 30: all begin, some have to give way and begin again."""
    requests = [request(COUNT["text"], max_tokens=200, ignore_eos=True, temperature=0.7, seed=seed, logprobs=0)
                for seed in range(6)]
    expected = [client.generate(one) for one in requests]
    server = serve("--kv-memory", "22M")
    replies = server.client.generate_all(requests)
    preemptions = sum(reply.end.kv.preemptions for reply in replies)
    print(f"{server.ready.strip()}: {preemptions} preemptions")
    assert preemptions > 0
    assert_same(replies, expected)
    wait_until(lambda: idle(server.client), what="return of the pages")


def test_stop_string_ends_and_is_cut(client):
    reply = client.generate(greedy(COUNT["text"], max_tokens=40, stop=["11"]))
    assert reply.finished.finish_reason == pb.FINISH_REASON_STOP
    assert reply.finished.matched_stop == "11"
    assert reply.text == COUNT["greedy_text"].split("11")[0]
    kept = client.generate(greedy(COUNT["text"], max_tokens=40, stop=["11"], include_stop_str_in_output=True))
    assert kept.text == reply.text + "11"


def test_stop_string_across_tokens(client):
    text = COUNT["greedy_text"]
    stop = "2 13 1"
    assert stop in text
    reply = client.generate(greedy(COUNT["text"], max_tokens=40, stop=["never", stop]))
    assert reply.text == text[:text.index(stop)]
    assert reply.finished.matched_stop == stop


def test_end_of_generation_and_ignore_eos(client):
    prompt = next(p for p in GOLDEN if p["name"] == "haiku-gpu")
    reply = client.generate(greedy(ids=prompt["prompt_ids"], max_tokens=64))
    assert reply.finished.finish_reason == pb.FINISH_REASON_EOS
    assert reply.finished.matched_token_id == 2
    assert "<|im_end|>" not in reply.text
    on = client.generate(greedy(ids=prompt["prompt_ids"], max_tokens=64, ignore_eos=True))
    assert on.finished.finish_reason == pb.FINISH_REASON_LENGTH and len(on.ids) == 64
    longer = client.generate(greedy(ids=prompt["prompt_ids"], max_tokens=64, min_tokens=40))
    assert len(longer.ids) >= 40


@pytest.mark.parametrize("prompt", GOLDEN, ids=lambda prompt: prompt["name"])
def test_logprobs_are_the_references(client, prompt):
    reply = client.generate(greedy(ids=prompt["prompt_ids"], max_tokens=1, logprobs=5, ignore_eos=True))
    [(token, logprob, top)] = reply.logprobs
    assert [token, logprob] == list(top[0])
    at = prompt["positions"].index(len(prompt["prompt_ids"]) - 1)
    expected = {i: l - prompt["logsumexp"][at] for i, l in zip(prompt["top5_ids"][at], prompt["top5_logits"][at])}
    shared_ids = set(expected) & {i for i, _ in top}
    assert len(shared_ids) >= 4 and token == prompt["top5_ids"][at][0]
    for i, value in top:
        if i in expected:
            assert value == pytest.approx(expected[i], abs=0.02)


def test_several_sequences(client):
    call = client.stream(request("Once upon a time", n=3, max_tokens=12, seed=5))
    texts, ends = {}, {}
    for event in call:
        kind = event.WhichOneof("event")
        if kind == "delta":
            texts[event.delta.index] = texts.get(event.delta.index, "") + event.delta.text
        if kind == "sequence_finished":
            ends[event.sequence_finished.index] = event.sequence_finished.finish_reason
    assert sorted(ends) == [0, 1, 2] and len(set(texts.values())) == 3


def idle(client):
    load = client.load()
    return all(e.running == 0 and e.waiting == 0 and e.kv_pages_free == e.kv_pages_total for e in load.engines)


def test_cancel_frees_the_pages(client):
    wait_until(lambda: idle(client), what="idle server")
    call = client.stream(greedy(COUNT["text"], max_tokens=1500, ignore_eos=True))
    deltas = 0
    for event in call:
        deltas += event.HasField("delta")
        if deltas == 3:
            break
    assert not idle(client)
    call.cancel()
    wait_until(lambda: idle(client), seconds=2, what="return of the pages")


def test_deadline(client):
    start = time.monotonic()
    with pytest.raises(grpc.RpcError) as error:
        client.generate(greedy(COUNT["text"], max_tokens=1500, ignore_eos=True), timeout=0.4)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.3 < time.monotonic() - start < 2
    wait_until(lambda: idle(client), seconds=2, what="return of the pages")


def test_max_time_ends_the_sequence_not_the_call(client):
    reply = client.generate(greedy(COUNT["text"], max_tokens=1500, ignore_eos=True,
                                   max_time=duration_pb2.Duration(nanos=300_000_000)))
    assert reply.finished.finish_reason == pb.FINISH_REASON_DEADLINE
    assert 0 < len(reply.ids) < 1500


BAD = {
    "temperature": dict(temperature=-1.0),
    "top_p": dict(temperature=1.0, top_p=0.0),
    "max_tokens": dict(max_tokens=-5),
    "n": dict(n=99),
    "logprobs": dict(logprobs=21),
    "stop": dict(stop=[""]),
}


@pytest.mark.parametrize("field", BAD)
def test_bad_fields_are_named(client, field):
    with pytest.raises(grpc.RpcError) as error:
        client.generate(request("Hello", **BAD[field]))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.value.details()


def test_bad_prompts(client):
    for message in (greedy(ids=[49152]), greedy(ids=[-1]), greedy(ids=[1] * 9000), pb.GenerateRequest()):
        with pytest.raises(grpc.RpcError) as error:
            client.generate(message)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value.details()


def test_prompt_logprobs_are_those_of_the_draw(client):
    prompt = COUNT["prompt_ids"]
    drawn = client.generate(greedy(ids=prompt, max_tokens=100, logprobs=3, ignore_eos=True))
    back = client.generate(greedy(ids=prompt + drawn.ids, max_tokens=1, prompt_logprobs=3))
    assert [entry[0] for entry in back.prompt_logprobs] == (prompt + drawn.ids)[1:]
    assert back.prompt_logprobs[len(prompt) - 1:] == drawn.logprobs
    assert back.events.index("prompt_logprobs") < back.events.index("delta")


def test_typical_p_leaves_the_usual(client):
    def texts(**fields):
        return [client.generate(request("The sky is", max_tokens=6, temperature=1.5, seed=seed, **fields)).ids
                for seed in range(4)]

    free = texts()
    assert texts(typical_p=1.0) == free
    assert texts(typical_p=0.2) != free
    assert texts(typical_p=0.2) == texts(typical_p=0.2)
    # The one token that is nearest to the entropy, whatever the seed.
    assert len({tuple(ids) for ids in texts(typical_p=1e-6)}) == 1


def test_priorities_are_served_in_their_order(serve):
    server = serve("--max-batch", 1)
    ended = []

    def watch(name, stream):
        for _ in stream:
            pass
        ended.append(name)

    def start(name, priority, max_tokens):
        message = greedy("Once upon a time", max_tokens=max_tokens, ignore_eos=True)
        message.scheduling.priority = priority
        thread = threading.Thread(target=watch, args=(name, server.client.stream(message)))
        thread.start()
        return thread

    threads = [start("first", 0, 200)]
    wait_until(lambda: server.client.load().engines[0].running == 1)
    for index, (name, priority) in enumerate((("low", -5), ("middle", 0), ("high", 5)), start=1):
        threads.append(start(name, priority, 4))
        wait_until(lambda count=index: server.client.load().engines[0].waiting == count)
    for thread in threads:
        thread.join()
    assert ended == ["first", "high", "middle", "low"]


def test_what_is_not_built_says_so(client):
    message = greedy(ids=[1])
    message.constraint.regex = "a+"
    with pytest.raises(grpc.RpcError) as error:
        client.generate(message)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.long
def test_many_streams_at_once(client, alone):
    for _ in range(6):
        assert_same(client.generate_all(mixed_requests() * 8), alone * 8)
