"""Directories as Hugging Face saves them, through every command; and the memory that a server locks."""

import ctypes
import json
import re
import resource
import subprocess

import harness
import numpy
import pytest
from harness import greedy

FOLDER = harness.GOLDEN / "safetensors"
MODELS = json.loads((FOLDER / "manifest.json").read_text())
PR_CAPBSET_DROP, CAP_IPC_LOCK = 24, 14


def run(binary, *arguments, text=None, **options):
    return subprocess.run([str(binary), *map(str, arguments)], input=text, capture_output=True, timeout=300, **options)


# The others hold no tokenizer.json: their logits are compared in the unit tests.
WITH_TOKENIZER = [model for model in MODELS if (FOLDER / model["directory"] / "tokenizer.json").exists()]


@pytest.mark.parametrize("model", WITH_TOKENIZER, ids=lambda model: model["directory"])
def test_every_command_takes_a_directory(sluice, serve, model):
    directory = FOLDER / model["directory"]
    described = json.loads(run(sluice, "inspect", "--json", directory).stdout)
    assert described["format"] == "safetensors"
    assert described["problems"] == [] and described["missing"] == [] and described["unused"] == []
    assert described["files"] == sorted(path.name for path in directory.glob("*.safetensors"))

    for row in model["texts"][5:25]:
        told = run(sluice, "tokenize", "--model", directory, "--no-bos", text=row["text"].encode())
        assert [int(word) for word in told.stdout.split()] == row["ids_bare"], told.stderr

    verified = run(sluice, "verify", "--model", directory, "--text", "The License is granted to you")
    assert verified.returncode == 0, verified.stdout

    # The first token of a continuation is the best one of the reference, wherever that is sure.
    logits = numpy.load(FOLDER / model["logits"])
    server = serve("--kv-memory", "4M", "--no-mmap", model=directory)
    for length in (8, 24, 40):
        best, second = numpy.argsort(logits[length - 1])[:-3:-1]
        if logits[length - 1][best] - logits[length - 1][second] < 0.02:
            continue
        reply = server.client.generate(greedy(ids=model["ids"][:length], max_tokens=1))
        assert reply.ids == [best]
    served = server.client.generate(greedy("The License", max_tokens=12))
    local = run(sluice, "generate", "--model", directory, "--prompt", "The License", "--temperature", "0",
                "--max-tokens", "12", "--print-token-ids")
    assert [int(word) for word in local.stdout.split()] == served.ids, local.stderr


def test_a_directory_that_is_no_model_is_named(sluice, tmp_path):
    for command in (["serve", "--listen", "127.0.0.1:0", "--log-level", "error", "--model"], ["generate", "--prompt", "a", "--model"], ["tokenize", "--model"],
                    ["verify", "--model"], ["inspect"]):
        told = run(sluice, *command, tmp_path, text=b"")
        assert told.returncode == (78 if command[0] == "serve" else 1)
        assert str(tmp_path) in told.stderr.decode() and "config.json" in told.stderr.decode()
        assert len(told.stderr.decode().strip().splitlines()) == 1


def test_mlock_locks_weights_and_cache(serve):
    server = serve("--mlock", "--kv-memory", "2M", model=FOLDER / "llama3")
    with open(f"/proc/{server.process.pid}/status") as status:
        locked = int(re.search(r"VmLck:\s+(\d+) kB", status.read())[1]) * 1024
    weights = (FOLDER / "llama3" / "model.safetensors").stat().st_size
    assert locked >= 0.95 * (weights + (2 << 20)), locked


def test_mlock_beyond_the_limit_is_refused(sluice):
    def forbid():
        # To root the limit counts only without this capability.
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))

    told = run(sluice, "serve", "--model", FOLDER / "llama3", "--listen", "127.0.0.1:0", "--mlock", preexec_fn=forbid)
    assert told.returncode == 78
    line = told.stderr.decode().strip().splitlines()[-1]
    assert "weights: cannot lock" in line and "may lock 65536 bytes" in line and "RLIMIT_MEMLOCK" in line, line
