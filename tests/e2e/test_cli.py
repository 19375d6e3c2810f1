"""The commands of the program, run as a person runs them."""

import concurrent.futures
import fcntl
import json
import os
import pathlib
import re
import resource
import select
import signal
import subprocess
import sys
import time

import harness
import pytest

COUNT = next(prompt for prompt in harness.golden_prompts() if prompt["name"] == "count")


def run(binary, *arguments, text=None, timeout=300):
    return subprocess.run([str(binary), *map(str, arguments)], input=text, capture_output=True, timeout=timeout)


def one_line(stderr):
    lines = stderr.decode().strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("arguments", [
    ["serve", "--model", "x", "--no-such-flag"],
    ["serve", "--model", "x", "--kv-memory", "2X"],
    ["serve", "--model", "x", "--kv-dtype", "f64"],
    ["serve", "--model", "x", "--listen", "nowhere"],
    ["serve", "--model", "x", "--threads", "100000"],
    ["serve", "--model", "x", "--device", "gpu"],
    ["serve", "--model", "x", "--max-step-tokens", "7"],
    ["serve", "--model", "x", "--model-sha256", "abc"],
    ["serve", "--model", "x", "--model-name", "a\nb"],
    ["generate", "--model", "x", "--prompt", "a", "--max-step-tokens", "7"],
    ["chat", "--model", "x", "--max-step-tokens", "7"],
    ["verify", "--model", "x", "--device", "cuda:-1"],
    ["generate", "--model", "x", "--prompt", "a", "--device", "cuda:"],
    ["serve"],
    ["generate", "--model", "x", "--prompt", "a", "--top-p", "nan"],
    ["generate", "--model", "x"],
    ["generate", "--model", "x", "--prompt", "a", "--threads", "100000"],
    ["verify", "--model", "x", "--threads", "-1"],
    ["generate", "--model", "x", "--server", "y", "--prompt", "a"],
    ["generate", "--model", "x", "--token-ids", "1,b"],
    ["generate", "--model", "x", "--prompt", "a", "--resume"],
    ["generate", "--server", "x:1,y:1", "--prompt", "a"],
    ["generate", "--server", "x:1,,y:1", "--prompt", "a", "--resume"],
    ["generate", "--server", "x:1", "--prompt", "a", "--resume", "--n", "2"],
    ["tokenize"],
    ["inspect"],
    ["verify", "--model"],
    ["dance"],
    [],
], ids=lambda arguments: " ".join(arguments) or "nothing")
def test_usage_errors_are_one_line_and_exit_2(sluice, arguments):
    result = run(sluice, *arguments, timeout=60)
    assert result.returncode == 2
    assert one_line(result.stderr).startswith("sluice")
    assert result.stdout == b""


@pytest.mark.parametrize("arguments, text", [
    (["generate", "--prompt", COUNT["text"], "--max-tokens", "4"], None),
    (["chat", "--max-tokens", "4"], "Hi\n"),
], ids=["generate", "chat"])
def test_an_engine_of_its_own_is_for_the_sequences_that_run(sluice, arguments, text):
    """A KV cache for 64 sequences would take gigabytes, of which there is one."""
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    command = [str(sluice), *arguments, "--model", str(harness.MODEL), "--threads", "2"]
    result = subprocess.run(command, input=text and text.encode(), capture_output=True, timeout=120, preexec_fn=limit)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("command", [[], ["serve"], ["generate"], ["chat"], ["inspect"], ["quantize"], ["tokenize"],
                                     ["verify"], ["bench"]],
                         ids=str)
def test_help(sluice, command):
    result = run(sluice, *command, "--help")
    assert result.returncode == 0 and b"Usage: sluice" in result.stdout and result.stderr == b""
    longest = max(result.stdout.decode().splitlines(), key=len)
    assert len(longest) <= 110, longest
    assert b"plant" not in result.stdout


@pytest.mark.parametrize("arguments", [
    ["--version"],
    ["--help"],
    ["inspect", harness.MODEL],
    ["tokenize", "--model", harness.MODEL],
    ["generate", "--model", harness.MODEL, "--prompt", "Once", "--max-tokens", 40, "--ignore-eos"],
    ["verify", "--model", harness.TINY / "tiny-odd.f16.gguf"],
], ids=lambda arguments: arguments[0])
def test_lost_output_is_an_error(sluice, arguments):
    with open("/dev/full", "w") as full:
        result = subprocess.run([str(sluice), *map(str, arguments)], input=b"text", stdout=full, stderr=subprocess.PIPE,
                                timeout=300)
    assert result.returncode == 1
    assert one_line(result.stderr).endswith("standard output: cannot be written")


def test_lost_output_of_a_server_is_an_error(sluice, shared):
    with open("/dev/full", "w") as full:
        result = subprocess.run([str(sluice), "generate", "--server", shared.address, "--prompt", "Once", "--max-tokens",
                                 "40", "--ignore-eos"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert result.returncode == 1
    assert one_line(result.stderr).endswith("standard output: cannot be written")


@pytest.fixture
def stuck(sluice):
    """`generate` that has written its tokens and stands before a stderr that is full: process, pipe to read from."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"." * 4096)
    process = subprocess.Popen([str(sluice), "generate", "--model", harness.TINY / "tiny-odd.f16.gguf", "--token-ids",
                                "5,6,7", "--max-tokens", "8", "--temperature", "0", "--ignore-eos",
                                "--print-token-ids"], stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    assert select.select([process.stdout], [], [], 30)[0], "nothing on stdout"
    line = process.stdout.readline()
    assert len(line.split()) == 8, line
    time.sleep(0.3)
    assert process.poll() is None
    yield process, reader
    if process.poll() is None:
        process.kill()
        process.wait(10)
    process.stdout.close()
    os.close(reader)


def test_a_full_stderr_loses_nothing(stuck):
    process, reader = stuck
    with open(os.dup(reader), "rb") as pipe:
        rest = pipe.read().lstrip(b".")
    assert process.wait(30) == 0
    assert rest.startswith(b"8 tokens (length)"), rest
    assert len(rest.splitlines()) == 1


def test_a_full_stderr_does_not_keep_signals_from_ending_it(stuck):
    process, _ = stuck
    for _ in range(2):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.wait(5) in (143, -signal.SIGTERM)


def test_a_host_without_address_is_said_so(sluice):
    result = run(sluice, "generate", "--server", "no-such-host.invalid:1", "--prompt", "a", timeout=60)
    assert result.returncode == 1
    line = one_line(result.stderr)
    assert line.startswith("sluice generate: UNAVAILABLE: DNS resolution failed for no-such-host.invalid:1"), line
    result = run(sluice, "serve", "--model", "x", "--listen", "no-such-host.invalid:1", timeout=60)
    assert result.returncode == 69
    assert one_line(result.stderr).endswith("the host name has no address (a failure of DNS?)")


@pytest.mark.parametrize("command", [
    ["ctl", "probe"],
    ["generate", "--prompt", "a", "--max-tokens", "2"],
    ["chat", "--max-tokens", "2"],
    ["bench", "--requests", "1", "--output", "2"],
], ids=lambda command: command[0])
def test_clients_take_no_proxy_of_the_environment(sluice, shared, command):
    nobody = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    result = subprocess.run([str(sluice), *command, "--server", shared.address], input=b"hello\n", capture_output=True, timeout=60,
                            env={**os.environ, **nobody, "no_proxy": ""})
    assert result.returncode == 0 and result.stdout.strip(), result.stderr


def test_version(sluice):
    assert re.fullmatch(r"sluice \d+\.\d+\.\d+\+\w+\n", run(sluice, "--version").stdout.decode())


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    with open(harness.MODEL, "rb") as file:
        head = file.read(4 << 20)
    contents = {"empty": b"", "text": b"not a model at all\n" * 10, "magic-only": b"GGUF", "cut-metadata": head[:5000],
                "no-weights": head}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents] + [folder / "absent", folder]


def test_bad_files(sluice, bad_files):
    for file in bad_files:
        result = run(sluice, "serve", "--listen", "127.0.0.1:0", "--log-level", "off", "--model", file, timeout=60)
        assert result.returncode == 78, file
        assert one_line(result.stderr).startswith("sluice serve: ")
        for arguments in (["generate", "--prompt", "a", "--model", file], ["verify", "--model", file]):
            result = run(sluice, *arguments, timeout=60)
            assert result.returncode == 1, (arguments, result.stderr)
            one_line(result.stderr)


def tokenized(sluice, model, text, *flags):
    result = run(sluice, "tokenize", "--model", model, *flags, text=text.encode())
    assert result.returncode == 0, result.stderr
    return [int(word) for word in result.stdout.split()]


def test_tokenize_is_the_reference(sluice):
    with open(harness.GOLDEN / "smollm2/tokenizer.jsonl") as file:
        rows = [json.loads(line) for line in file]

    def differences(row):
        return [(row["text"], flags) for flags, key in (((), "ids_special"), (("--no-special",), "ids_plain"))
                if tokenized(sluice, harness.MODEL, row["text"], *flags) != row[key]]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert [d for row in pool.map(differences, rows) for d in row] == []
    assert len(rows) == 71


def test_tokenize_reads_a_vocabulary_without_tensors(sluice):
    model = harness.TINY / "vocab-spm.gguf"
    with open(harness.TINY / "vocab-spm.tokenizer.jsonl") as file:
        rows = [json.loads(line) for line in file]
    for row in rows[:12]:
        assert tokenized(sluice, model, row["text"], "--no-bos") == row["ids"], row["text"]
        assert tokenized(sluice, model, row["text"])[1:] == row["ids"]


def test_tokenize_json(sluice):
    result = run(sluice, "tokenize", "--json", "--model", harness.MODEL, text="Hello 東".encode())
    value = json.loads(result.stdout)
    assert value["ids"] == tokenized(sluice, harness.MODEL, "Hello 東") and len(value["pieces"]) == len(value["ids"])
    bad = run(sluice, "tokenize", "--model", harness.MODEL, text=b"abc\xff")
    assert bad.returncode == 1 and "3" in one_line(bad.stderr)


def test_inspect(sluice):
    result = run(sluice, "inspect", harness.MODEL)
    assert result.returncode == 0 and "blk.29.ffn_down.weight" in result.stdout.decode()
    value = json.loads(run(sluice, "inspect", "--json", harness.MODEL).stdout)
    for key in ("path", "version", "alignment", "architecture", "facts", "metadata", "tensors", "missing", "unused",
                "tokenizer", "problems"):
        assert key in value, key
    assert value["architecture"] == "llama" and len(value["tensors"]) == 272
    assert value["missing"] == [] and value["unused"] == [] and value["problems"] == []


def generate(sluice, *arguments, **options):
    result = run(sluice, "generate", *arguments, **options)
    assert result.returncode == 0, result.stderr
    return result


def test_generate_goes_on_counting(sluice, shared):
    sampling = ["--prompt", COUNT["text"], "--max-tokens", 20, "--temperature", 0]
    local = generate(sluice, "--model", harness.MODEL, *sampling)
    text = local.stdout.decode()
    assert text.strip() and COUNT["greedy_text"].startswith(text.rstrip("\n"))
    assert re.search(r"20 tokens \(length\), [\d.]+ tokens/s, first token after [\d.]+ ms", one_line(local.stderr))
    remote = generate(sluice, "--server", shared.address, *sampling)
    assert remote.stdout == local.stdout
    one_line(remote.stderr)


def test_generate_forms(sluice, tmp_path):
    ids = ",".join(map(str, COUNT["prompt_ids"]))
    expected = [token for token, _ in COUNT["greedy"][:8]]
    common = ["--model", harness.MODEL, "--max-tokens", 8, "--temperature", 0]
    from_ids = generate(sluice, *common, "--token-ids", ids, "--print-token-ids").stdout
    assert [int(word) for word in from_ids.split()] == expected
    file = tmp_path / "prompt"
    file.write_text(COUNT["text"])
    from_file = generate(sluice, *common, "--prompt-file", file).stdout
    from_stdin = generate(sluice, *common, "--prompt-file", "-", text=COUNT["text"].encode()).stdout
    assert from_file == from_stdin and from_file.strip()
    seeded = [generate(sluice, "--model", harness.MODEL, "--prompt", "Once", "--n", 2, "--seed", 3, "--max-tokens", 6).stdout
              for _ in range(2)]
    assert seeded[0] == seeded[1] and seeded[0].count(b"--- sequence") == 2


def test_generate_remote_error_is_one_line(sluice, shared):
    result = run(sluice, "generate", "--server", shared.address, "--prompt", "a", "--model-name", "other")
    assert result.returncode == 1 and "NOT_FOUND" in one_line(result.stderr)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_a_prompt_that_is_not_utf_8_is_said_so(sluice, shared, where):
    target = ["--model", harness.MODEL] if where == "local" else ["--server", shared.address]
    result = run(sluice, "generate", *target, "--prompt", b"abc\xff".decode(errors="surrogateescape"))
    assert result.returncode == 1
    assert one_line(result.stderr) == "sluice generate: INVALID_ARGUMENT: expected UTF-8, but the text is wrong from byte 3"
    talk = run(sluice, "chat", *target, "--max-tokens", 2, text=b"abc\xff\n")
    assert talk.returncode == 1
    assert re.fullmatch(r"sluice chat: INVALID_ARGUMENT: expected UTF-8, but the text is wrong from byte \d+", one_line(talk.stderr))


@pytest.mark.parametrize("flag", ["--stop", "--model-name"])
def test_a_flag_that_is_sent_is_utf_8(sluice, flag):
    result = run(sluice, "generate", "--server", "127.0.0.1:1", "--prompt", "a", flag, b"\xff".decode(errors="surrogateescape"))
    assert result.returncode == 1
    assert one_line(result.stderr) == f"sluice generate: INVALID_ARGUMENT: {flag}: expected UTF-8, but the text is wrong from byte 0"


@pytest.mark.parametrize("where", ["local", "remote"])
def test_ctrl_c_cancels(sluice, shared, where):
    target = ["--model", harness.MODEL] if where == "local" else ["--server", shared.address]
    process = subprocess.Popen([str(sluice), "generate", *map(str, target), "--prompt", "Once", "--ignore-eos"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - start < 2


def test_verify_passes(sluice):
    result = run(sluice, "verify", "--model", harness.MODEL)
    assert result.returncode == 0, result.stdout.decode()[-500:]
    assert b"passed" in result.stdout


PLANTED = {
    "kv-head0": harness.MODEL,
    "prefill-stride": harness.MODEL,
    "ffn-4e": harness.MODEL,
    "k-bias": harness.TINY / "tiny-odd.f16.gguf",  # SmolLM2 has no biases
    "rope-base": harness.MODEL,
    "vocab-unpadded": harness.MODEL,
}


@pytest.mark.parametrize("bug", PLANTED)
def test_verify_goes_red_for_planted_bugs(sluice_planted, bug):
    result = run(sluice_planted, "verify", "--model", PLANTED[bug], "--plant-bug", bug)
    print((result.stdout + result.stderr).decode().strip().splitlines()[-1])
    assert result.returncode == 1
    assert b"FAILED" in result.stdout or one_line(result.stderr).startswith("sluice verify: ")


# A wrong rope base moves the canary's few positions too little in one layer; verify looks at all of them.
@pytest.mark.parametrize("bug", sorted(set(PLANTED) - {"rope-base"}))
def test_serve_refuses_a_model_that_fails_its_self_check(sluice_planted, bug):
    result = run(sluice_planted, "serve", "--listen", "127.0.0.1:0", "--log-level", "off", "--model", PLANTED[bug], "--plant-bug",
                 bug)
    assert result.returncode == 78
    one_line(result.stderr)


def test_release_holds_no_planted_bugs(sluice):
    result = run(sluice, "verify", "--model", harness.MODEL, "--plant-bug", "kv-head0")
    assert result.returncode == 2 and "planted" in one_line(result.stderr)


def test_release_holds_no_failpoints(sluice, sluice_planted):
    result = run(sluice, "serve", "--model", harness.MODEL, "--failpoint", "runner=error")
    assert result.returncode == 2 and "without failpoints" in one_line(result.stderr)
    words = b"expected error, sleep:"
    assert words not in sluice.read_bytes() and words in sluice_planted.read_bytes()


@pytest.mark.parametrize("flag", ["--hang-timeout", "--stall-timeout"])
def test_serve_refuses_patience_that_it_cannot_measure(sluice, flag):
    result = run(sluice, "serve", "--model", harness.MODEL, "--listen", "127.0.0.1:0", flag, "99ms")
    assert result.returncode == 2 and flag in one_line(result.stderr)


def test_release_is_hardened(sluice):
    def readelf(*flags):
        return subprocess.run(["readelf", "-W", *flags, sluice], capture_output=True, text=True, check=True).stdout
    segments = re.findall(r"^  (\w+) +(?:0x\w+ ){5}([RWE ]{3})", readelf("-l"), re.M)
    assert segments and not [flags for _, flags in segments if "W" in flags and "E" in flags], segments
    assert dict(segments)["GNU_STACK"].strip() == "RW" and "GNU_RELRO" in dict(segments)
    assert re.search(r"Type: +DYN", readelf("-h")) and re.search(r"FLAGS_1.* NOW.* PIE", readelf("-d"))
    symbols = set(re.findall(r" UND (\w+)", readelf("--dyn-syms")))
    assert "__stack_chk_fail" in symbols
    assert {"__memcpy_chk", "__snprintf_chk"} <= symbols, symbols  # of _FORTIFY_SOURCE
    assert not symbols & {"system", "popen", "dlopen", "gets", "strcpy", "sprintf", "regcomp"}, symbols


# The program as uid 65532 without any capability, where nothing can be written and the network is a loopback of its own.
CONFINED = """#!/bin/sh
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
cp {program} /mnt/sluice
cp {model} /mnt/model.gguf
{python} -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))'  # up, running
while read -r device place kind rest; do
  [ "$kind" = proc ] || mount -o remount,bind,ro "$place" 2>/dev/null || true
done < /proc/self/mounts
for place in / /tmp /var/tmp /run /dev/shm /mnt; do
  if touch "$place/written" 2>/dev/null; then echo "$place can be written to" >&2; exit 1; fi
done
exec setpriv --reuid 65532 --regid 65532 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs /mnt/sluice "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and becomes another user: needs root")
def test_it_serves_confined(sluice, serve, tmp_path):
    script = tmp_path / "confined"
    script.write_text(CONFINED.format(program=sluice, model=harness.TINY / "tiny-odd.f16.gguf", python=sys.executable))
    script.chmod(0o755)
    wrapper = tmp_path / "unshared"
    wrapper.write_text(f'#!/bin/sh\nexec unshare --mount --net "{script}" "$@"\n')
    wrapper.chmod(0o755)
    server = serve(binary=wrapper, model="/mnt/model.gguf")
    proc = pathlib.Path("/proc", str(server.process.pid))
    status = dict(re.findall(r"^(\w+):\s*(.*)$", (proc / "status").read_text(), re.M))
    assert status["Name"] == "sluice" and status["Uid"].split() == status["Gid"].split() == ["65532"] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16} and status["NoNewPrivs"] == "1"
    devices = re.findall(r"^ *(\S+):", (proc / "net/dev").read_text(), re.M)
    assert set(devices) <= {"lo", "sit0", "tunl0", "ip6tnl0"} and not (proc / "net/route").read_text().splitlines()[1:]
    done = run("nsenter", "--target", server.process.pid, "--net", sluice, "generate", "--server", server.address, "--token-ids",
               "5,6,7", "--max-tokens", "4", "--ignore-eos", timeout=60)
    assert done.returncode == 0, done.stderr
    server.signal()
    assert server.wait(30) == 0


@pytest.mark.long
def test_verify_kl(sluice):
    text = harness.GOLDEN / "kl_text.txt"
    result = run(sluice, "verify", "--model", harness.MODEL, "--kl", text, timeout=1800)
    print(result.stdout.decode()[-400:])
    assert result.returncode == 0
    mean = float(re.search(r"mean ([\d.e+-]+)", result.stdout.decode())[1])
    assert mean <= 1e-6
