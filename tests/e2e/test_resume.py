"""A server dies in the middle of a stream, and another one goes on with it: the same tokens, the same text."""

import importlib.util
import signal
import subprocess
import time

import grpc
import harness
import pytest
from google.rpc import error_details_pb2, status_pb2
from harness import greedy, pb, request

PROMPT = "Once upon a time"
SAMPLINGS = [pytest.param({"temperature": 0.0, "repetition_penalty": 1.1}, id="greedy"),
             pytest.param({"temperature": 0.9, "top_p": 0.95, "seed": 7, "frequency_penalty": 0.3, "presence_penalty": 0.2},
                          id="seeded")]

spec = importlib.util.spec_from_file_location("resume", harness.ROOT / "examples" / "resume.py")
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def resumed(message, accepted, ids):
    call = pb.GenerateRequest()
    call.CopyFrom(message)
    example.resolve(call, accepted)
    call.resume.token_ids.extend(ids)
    return call


def collect(events, ids=(), text=""):
    """Events as a Reply that has `ids` and `text` already, and the texts by number of tokens."""
    reply = harness.Reply(ids=list(ids), text=text)
    texts = {len(ids): text}
    for event in events:
        reply.take(event)
        texts[len(reply.ids)] = reply.text
    return reply, texts


def assert_same(reply, whole):
    assert reply.ids == whole.ids
    assert reply.text == whole.text
    assert reply.finished == whole.finished
    assert reply.end.usage.completion_tokens == whole.end.usage.completion_tokens == len(whole.ids)


def with_stop(client, sampling):
    """A request that ends at a stop string of several tokens, its stream, its texts by number of tokens."""
    message = request(PROMPT, max_tokens=40, logprobs=2, **sampling)
    text = client.generate(message).text
    message.stopping.stop.append(text[-24:-12])
    whole, texts = collect(client.stream(message))
    assert whole.finished.finish_reason == pb.FINISH_REASON_STOP
    return message, whole, texts


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_any_token_may_be_the_last_before_the_break(client, serve, sampling):
    message, whole, texts = with_stop(client, sampling)
    other = serve()
    held_back = 0
    for cut in sorted(texts):
        rest = resumed(message, whole.accepted, whole.ids[:cut])
        reply, _ = collect(other.client.stream(rest), whole.ids[:cut], texts[cut])
        assert_same(reply, whole)
        assert reply.end.usage.resumed_tokens == cut
        assert reply.logprobs == whole.logprobs[cut:]  # bit for bit
        held_back += cut < len(whole.ids) and texts[cut] == whole.text
    print(f"{len(texts)} cuts, {held_back} of them inside the stop string")
    # A client that is late has several tokens in one event, and so fewer places to cut at.
    assert len(texts) > 10 and held_back >= 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_killed_server_in_the_middle_of_a_stop_string(client, serve, sampling):
    message, whole, texts = with_stop(client, sampling)
    cut = max(count for count in texts if count < len(whole.ids))
    assert texts[cut] == whole.text  # the stop string has begun, and is held back
    doomed, other = serve(), serve()
    ids, text = [], ""
    stream = doomed.client.stream(message)
    for event in stream:
        if event.HasField("delta"):
            ids += event.delta.token_ids
            text += event.delta.text
            if len(ids) >= cut:
                break
    doomed.signal(signal.SIGKILL)
    doomed.wait()
    assert ids[:cut] == whole.ids[:cut] and text == texts[cut]
    reply, _ = collect(other.client.stream(resumed(message, whole.accepted, ids[:cut])), ids[:cut], text)
    assert_same(reply, whole)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_python_client_goes_on_elsewhere(client, serve, sampling):
    message = request(PROMPT, max_tokens=160, ignore_eos=True, **sampling)
    whole = client.generate(message)
    doomed, other = serve(), serve()

    def events():
        for count, event in enumerate(example.generate([doomed.address, other.address], message)):
            if count == 5:
                doomed.signal(signal.SIGKILL)
            yield event

    reply, _ = collect(events())
    assert_same(reply, whole)
    assert reply.events.count("accepted") == 1
    assert 4 <= reply.end.usage.resumed_tokens < 160


@pytest.mark.parametrize("sampling", [["--temperature", "0"], ["--temperature", "0.9", "--seed", "7"]], ids=["greedy", "seeded"])
def test_program_goes_on_elsewhere(sluice, shared, serve, sampling):
    def command(*servers):
        return [str(sluice), "generate", "--server", ",".join(servers), "--prompt", PROMPT, "--max-tokens", "160",
                "--ignore-eos", "--resume", *sampling]

    whole = subprocess.run(command(shared.address), capture_output=True, timeout=120)
    assert whole.returncode == 0 and b"resumed" not in whole.stderr
    doomed, other = serve(), serve()
    with subprocess.Popen(command(doomed.address, other.address), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          bufsize=0) as process:
        begin = process.stdout.read(8)  # some of the first words
        doomed.signal(signal.SIGKILL)
        rest, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert begin + rest == whole.stdout
    assert b"160 tokens (length)" in stderr and b"resumed 1 times" in stderr


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_chat_goes_on_elsewhere(serve, tmp_path, sampling):
    """Its template tells the second: the prompt is that of the broken stream, whenever the next server renders it."""
    template = tmp_path / "dated.jinja"
    template.write_text("Now is {{ strftime_now('%Y-%m-%d %H:%M:%S') }}. {{ messages[0].content }}")
    message = request("", max_tokens=120, ignore_eos=True, **sampling)
    message.chat.messages.add(role="user", content=PROMPT)
    doomed, other = (serve("--chat-template", template) for _ in range(2))
    accepted = []

    def events():
        for count, event in enumerate(example.generate([doomed.address, other.address], message)):
            if event.HasField("accepted"):
                accepted.append(event.accepted)
            if count == 5:
                doomed.signal(signal.SIGKILL)
                time.sleep(1.1)  # another second: rendered anew, it would be another prompt
            yield event

    reply, _ = collect(events())
    assert 4 <= reply.end.usage.resumed_tokens < 120
    whole, _ = collect(other.client.stream(resumed(message, accepted[0], [])))
    assert whole.accepted.prompt_digest == accepted[0].prompt_digest
    assert_same(reply, whole)
    later = resumed(message, accepted[0], whole.ids[:5])
    later.resume.ClearField("rendered_at")
    error, reason = error_of(other.client, later)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and reason.reason == "PROMPT_MISMATCH"


def test_drained_server_hands_its_streams_on(client, serve):
    message = greedy(PROMPT, max_tokens=160, ignore_eos=True)
    whole = client.generate(message)
    leaving, other = serve("--drain-timeout", "0s"), serve()

    def events():
        for count, event in enumerate(example.generate([leaving.address, other.address], message)):
            if count == 5:
                leaving.signal(signal.SIGTERM)
            yield event

    reply, _ = collect(events())
    assert_same(reply, whole)
    assert reply.end.usage.resumed_tokens < 160


def error_of(client, message):
    with pytest.raises(grpc.RpcError) as raised:
        client.generate(message)
    details = status_pb2.Status.FromString(dict(raised.value.trailing_metadata())["grpc-status-details-bin"])
    reason = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(reason) for detail in details.details)
    return raised.value, reason


def test_other_provenance_is_refused(client, serve):
    message = greedy(PROMPT, max_tokens=12)
    whole = client.generate(message)
    call = resumed(message, whole.accepted, whole.ids[:5])
    error, reason = error_of(serve("--kv-dtype", "f16").client, call)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and reason.reason == "PROVENANCE_MISMATCH"
    assert "kv-f32" in reason.metadata["resumed_numerics"] and "kv-f16" in reason.metadata["served_numerics"]
    assert set(reason.metadata) == {"resumed_numerics", "served_numerics"}
    other = serve(model=next(harness.TINY.glob("*.gguf"))).client
    call.model = ""
    call.ClearField("text")
    call.token_ids.ids.append(1)
    call.output.return_text = False
    error, reason = error_of(other, call)
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and reason.reason == "PROVENANCE_MISMATCH"
    assert {"resumed_model", "resumed_weights_digest"} <= set(reason.metadata)
