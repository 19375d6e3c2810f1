"""What the server writes on standard error: one JSON object a line, whose call it was and of which trace, and no word of it."""

import datetime
import json
import time

import grpc
import harness
import pytest
from credentials import TENANT
from harness import Client, greedy, pb, request
from raw_http2 import Raw

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def server(serve, files):
    return serve("--log-format", "json", "--log-level", "debug", "--auth-file", files)


@pytest.fixture
def client(server):
    client = Client(server.address, TENANT)
    yield client
    client.close()


def lines_of(server):
    return [json.loads(line) for line in server.stderr().splitlines()]


def line_of(server, request_id):
    """The line of a call."""
    found = []

    def written():
        found[:] = [line for line in lines_of(server) if line.get("request_id") == request_id]
        return found
    harness.wait_until(written, 10, f"the line of {request_id}")
    [line] = found
    return line


def test_the_line_on_standard_output_is_an_object_too(server):
    line = json.loads(server.ready_line)
    assert line["level"] == "info" and line["message"].startswith(f"ready on {server.address}: ")
    datetime.datetime.fromisoformat(line["time"].replace("Z", "+00:00"))


def generate(client, request_id, *headers, temperature=0.0):
    message = request("Zebras gallop", request_id=request_id, max_tokens=4, temperature=temperature)
    call = client.stub.Generate(message, timeout=60, metadata=client.metadata + headers)
    reply = harness.Reply()
    for event in call:
        reply.take(event)
    return reply


def test_every_line_is_an_object(server, client):
    begin = time.time()
    reply = generate(client, "r-1")
    line = line_of(server, "r-1")
    at = datetime.datetime.fromisoformat(line["time"]).timestamp()
    assert line["time"].endswith("Z") and begin - 1 < at < time.time() + 1
    assert {name: line[name] for name in ("level", "message", "tenant", "code", "finish_reason", "completion_tokens", "sent_tokens")} == \
        {"level": "info", "message": "generate", "tenant": "acme", "code": "OK", "finish_reason": "length", "completion_tokens": 4,
         "sent_tokens": 4}
    assert line["peer"].startswith("ipv4:127.0.0.1:") and line["prompt_tokens"] == reply.end.usage.prompt_tokens
    assert 0 < line["first_token_seconds"] <= line["total_seconds"] < time.time() - begin + 1
    assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] and line["decode_seconds"] > 0
    assert abs(line["first_token_seconds"] - reply.end.timing.time_to_first_token) < 1e-5
    assert "trace_id" not in line and "reason" not in line
    server.signal()
    assert server.wait() == 0
    levels = {line["level"] for line in lines_of(server)}
    assert {"info"} <= levels <= {"debug", "info", "warning", "error", "critical"}
    assert all({"time", "level", "message"} <= set(line) for line in lines_of(server))
    assert any(line["message"].startswith("the drain is over") for line in lines_of(server))


def test_the_trace_of_a_call_is_in_its_line(server, client):
    generate(client, "sampled", ("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "vendor=x"))
    generate(client, "not-sampled", ("traceparent", f"00-{TRACE}-{SPAN}-00"))
    trace = ("trace_id", "span_id", "trace_sampled")
    assert [line_of(server, "sampled")[name] for name in trace] == [TRACE, SPAN, True]
    assert [line_of(server, "not-sampled")[name] for name in trace] == [TRACE, SPAN, False]
    good = f"00-{TRACE}-{SPAN}-01"
    malformed = ["", "x", good[:-1], good + "0", good.upper(), good.replace(TRACE, "0" * 32), good.replace(SPAN, "0" * 16),
                 "ff" + good[2:], good + "-more", good.replace("-", "_")]
    for index, header in enumerate(malformed):
        assert len(generate(client, f"bad-{index}", ("traceparent", header)).ids) == 4
        assert not set(trace) & set(line_of(server, f"bad-{index}")), header
    # The library of the client sends one only.
    with Raw(server.address) as raw:
        message = greedy("Zebras gallop", request_id="twice", max_tokens=4).SerializeToString()
        assert raw.call("Generate", message, [*client.metadata, ("traceparent", good), ("traceparent", good)]).code == "OK"
    assert not set(trace) & set(line_of(server, "twice"))


def test_a_refused_call_has_a_line_with_its_trace(server, client):
    with pytest.raises(grpc.RpcError):
        generate(client, "refused", ("traceparent", f"00-{TRACE}-{SPAN}-01"), temperature=-1.0)
    harness.wait_until(lambda: any(line.get("reason") == "BAD_FIELD" for line in lines_of(server)), 10, "the line")
    [line] = [line for line in lines_of(server) if line.get("reason") == "BAD_FIELD"]
    assert (line["code"], line["tenant"], line["trace_id"], line["sent_tokens"]) == ("INVALID_ARGUMENT", "acme", TRACE, 0)


def test_no_word_of_prompt_or_reply_is_written(server, client):
    """At the level that says most of what a user runs with."""
    reply = client.generate(greedy("Xylophone marmalade", max_tokens=8))
    message = pb.GenerateRequest()
    message.chat.messages.add(role="user", content="Quixotic periwinkle?")
    message.stopping.max_tokens = 8
    chat = client.generate(message)
    with pytest.raises(grpc.RpcError):
        client.generate(greedy("Wobbly", stop=["Gargantuan", ""]))
    client.stub.Tokenize(pb.TokenizeRequest(text="Sesquipedalian"), timeout=10, metadata=client.metadata)
    server.signal()
    assert server.wait() == 0
    log = server.stderr()
    assert log.count('"message":"generate"') == 3
    for word in ("Xylophone", "marmalade", "Quixotic", "periwinkle", "Wobbly", "Gargantuan", "Sesquipedalian", TENANT):
        assert word not in log
    for text in (reply.text, chat.text):
        assert len(text) > 3 and json.dumps(text)[1:-1] not in log


def test_text_has_the_same(serve):
    server = serve(model=harness.TINY / "tiny-odd.f16.gguf")
    call = server.client.stub.Generate(greedy(ids=[5, 6, 7], request_id="r-2", max_tokens=2, ignore_eos=True), timeout=30,
                                       metadata=(("traceparent", f"00-{TRACE}-{SPAN}-01"),))
    list(call)
    server.await_log(rf'generate id="r-2" tenant=default trace={TRACE} span={SPAN} peer=ipv4:\S+ code=OK reason=- finish=length ')
