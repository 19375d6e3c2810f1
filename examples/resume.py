"""Generates with several servers of one model. When a stream breaks, because its server died or is going away, the next
server goes on with it, and the text is the one that a stream that never broke would have given.

    python3 -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. sluice/v1/inference.proto
    PYTHONPATH=. python3 examples/resume.py 127.0.0.1:50051,127.0.0.1:50052 "Once upon a time"
"""

import itertools
import sys

import grpc
from sluice.v1 import inference_pb2 as pb
from sluice.v1 import inference_pb2_grpc

# What another server may do better: this one is gone, broken or full, or not of equal provenance.
ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED,
             grpc.StatusCode.FAILED_PRECONDITION)


def generate(addresses, request, timeout=None):
    """The events of one Generate stream, from whichever servers they come. `request` asks for one sequence. After the
    last event each server is tried once; `timeout` is of each call."""
    call = pb.GenerateRequest()
    call.CopyFrom(request)
    call.output.return_token_ids = True
    accepted = False
    tries = 1
    for address in itertools.cycle(addresses):
        try:
            # A pool of its own: what the process knows of a server that was down is out of date.
            with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                for event in inference_pb2_grpc.InferenceStub(channel).Generate(call, timeout=timeout):
                    kind = event.WhichOneof("event")
                    if kind == "accepted":
                        if accepted:
                            continue
                        accepted = True
                        resolve(call, event.accepted)
                    elif kind == "delta":
                        call.resume.token_ids.extend(event.delta.token_ids)
                    tries = 0
                    yield event
                return
        except grpc.RpcError as error:
            if error.code() not in ELSEWHERE or tries >= len(addresses):
                raise
            tries += 1


def resolve(call, accepted):
    """Makes `call` the one that goes on: with every value as it was resolved, the seed included."""
    call.model = accepted.model
    call.sampling.CopyFrom(accepted.sampling)
    call.stopping.CopyFrom(accepted.stopping)
    call.output.CopyFrom(accepted.output)
    call.add_special = accepted.add_special
    call.parse_special = accepted.parse_special
    call.resume.provenance.CopyFrom(accepted.provenance)
    call.resume.prompt_digest = accepted.prompt_digest
    if accepted.HasField("rendered_at"):  # a chat's template may tell the date
        call.resume.rendered_at = accepted.rendered_at


def main():
    servers, prompt = sys.argv[1:]
    request = pb.GenerateRequest(text=prompt)
    request.stopping.max_tokens = 200
    for event in generate(servers.split(","), request):
        if event.HasField("delta"):
            print(event.delta.text, end="", flush=True)
        elif event.HasField("request_finished"):
            usage = event.request_finished.usage
            print(f"\n{usage.completion_tokens} tokens, {usage.resumed_tokens} of them from before")


if __name__ == "__main__":
    main()
