"""`sluice quantize` and `sluice inspect --diff`, run as a person runs them."""

import json
import os
import resource
import signal
import subprocess
import time

import gguf_file
import harness
import pytest

FLOATS = harness.TINY / "tiny-llama.f32.gguf"
TYPES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


def run(binary, *arguments, **options):
    return subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def one_line(text):
    lines = text.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("kind", TYPES)
def test_a_quantised_model_is_verified_and_answers(sluice, tmp_path, kind):
    out = tmp_path / "out.gguf"
    result = run(sluice, "quantize", FLOATS, out, "--type", kind)
    assert result.returncode == 0, result.stderr
    assert "bits per weight" in one_line(result.stdout) and result.stderr == ""
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert run(sluice, "verify", "--model", out).returncode == 0
    answer = run(sluice, "generate", "--model", out, "--token-ids", "1,2,3", "--max-tokens", 8, "--temperature", 0,
                 "--ignore-eos")
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr

    # The golden file was made of the same weights by another program.
    diff = run(sluice, "inspect", "--json", "--diff", out, harness.TINY / f"tiny-llama.{kind}.gguf")
    assert diff.returncode in (0, 1), diff.stderr
    tensors = json.loads(diff.stdout)["tensors"]
    assert tensors == {"only_a": [], "only_b": [], "different": []}


def test_diff_says_what_differs_and_exits_as_diff_does(sluice, tmp_path):
    out = tmp_path / "out.gguf"
    assert run(sluice, "quantize", FLOATS, out, "--type", "q8_0").returncode == 0
    same = run(sluice, "inspect", "--diff", out, out)
    assert same.returncode == 0 and ", 0 different; " in one_line(same.stdout)
    other = run(sluice, "inspect", "--diff", FLOATS, out)
    assert other.returncode == 1
    assert "key general.file_type" in other.stdout and "relative RMS" in other.stdout
    missing = run(sluice, "inspect", "--diff", FLOATS, tmp_path / "none")
    assert missing.returncode == 2 and "none" in one_line(missing.stderr)
    full = subprocess.run([str(sluice), "inspect", "--diff", str(out), str(out)], stdout=open("/dev/full", "w"),
                          stderr=subprocess.PIPE)
    assert full.returncode == 2


@pytest.mark.parametrize("arguments", [
    ["quantize"],
    ["quantize", FLOATS],
    ["quantize", FLOATS, "out", "--type", "q4_k"],
    ["quantize", FLOATS, "out"],
    ["quantize", FLOATS, "out", "--type", "q8_0", "--threads", "-1"],
    ["inspect", FLOATS, FLOATS],
    ["inspect", "--diff", FLOATS],
], ids=lambda arguments: " ".join(str(getattr(word, "name", word)) for word in arguments))
def test_bad_arguments(sluice, tmp_path, arguments):
    result = run(sluice, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert one_line(result.stderr).startswith(f"sluice {arguments[0]}: ") and result.stdout == ""
    assert os.listdir(tmp_path) == []


def test_refusals_leave_files_as_they_are(sluice, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    result = run(sluice, "quantize", FLOATS, out, "--type", "q8_0")
    assert result.returncode == 1 and "is there already" in one_line(result.stderr)
    result = run(sluice, "quantize", out, out, "--type", "q8_0", "--force")
    assert result.returncode == 1
    assert out.read_text() == "mine"
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(FLOATS.read_bytes())
    result = run(sluice, "quantize", copy, f"{tmp_path}/./copy.gguf", "--type", "q8_0", "--force")
    assert result.returncode == 1 and "another file" in one_line(result.stderr)
    assert copy.read_bytes() == FLOATS.read_bytes()
    assert run(sluice, "quantize", copy, out, "--type", "q8_0", "--force").returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["copy.gguf", "out.gguf"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model that takes a second or more."""
    return gguf_file.write(tmp_path_factory.mktemp("large") / "large.gguf", {}, {"blk.0.ffn_up.weight": (4096, 1 << 16)})


def writes_into(process, folder):
    """Whether it has opened its file there, with a name or without."""
    files = f"/proc/{process.pid}/fd"
    for number in os.listdir(files):
        try:
            if os.readlink(f"{files}/{number}").startswith(str(folder)):
                return True
        except FileNotFoundError:
            pass  # closed meanwhile
    return False


@pytest.mark.parametrize("signals, codes", [([signal.SIGINT], [130]), ([signal.SIGTERM], [143]),
                                            ([signal.SIGINT, signal.SIGTERM], [130, 143]), ([signal.SIGKILL], [-9])],
                         ids=["ctrl-c", "term", "two", "kill"])
@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_an_interrupted_run_leaves_no_half_file(sluice, tmp_path, large, signals, codes, replaced):
    out = tmp_path / "out.gguf"
    if replaced:
        out.write_text("mine")
    process = subprocess.Popen([str(sluice), "quantize", str(large), str(out), "--type", "q4_0", "--force"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not writes_into(process, tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # so that all arrive together
    for number in signals:
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    output, error = process.communicate(timeout=60)
    assert process.returncode in codes and output == ""
    if codes in ([130], [143]):
        assert one_line(error) == "sluice quantize: interrupted: nothing was written"
    assert os.listdir(tmp_path) == (["out.gguf"] if replaced else [])
    assert not replaced or out.read_text() == "mine"


def test_a_disk_that_is_really_full(sluice, tmp_path):
    """A file system of 600 KiB, mounted where only the command sees it."""
    script = 'mount -t tmpfs -o size=600k none "$1" || exit 99; "$2" quantize "$3" "$1/out.gguf" --type q8_0; echo "code $?"; ls -A "$1"'
    result = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), str(sluice), str(FLOATS)],
                            capture_output=True, text=True, timeout=60)
    if "code" not in result.stdout:
        pytest.skip(f"nothing can be mounted here: {result.stderr.strip()}")
    assert result.stdout == "code 1\n"
    line = one_line(result.stderr)
    assert "out.gguf: cannot hold" in line and line.endswith("No space left on device")


def limit_file_size():
    """As on a disk of 64 KiB: the limit's signal is ignored, so that writing fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_full_disk_is_an_error_and_leaves_no_file(sluice, tmp_path):
    result = run(sluice, "quantize", FLOATS, tmp_path / "out.gguf", "--type", "q8_0", preexec_fn=limit_file_size)
    assert result.returncode == 1
    assert "out.gguf: cannot" in one_line(result.stderr)
    assert os.listdir(tmp_path) == []


def test_a_directory_of_safetensors_becomes_a_file(sluice, tmp_path):
    out = tmp_path / "out.gguf"
    result = run(sluice, "quantize", harness.GOLDEN / "safetensors" / "llama3", out, "--type", "q5_1")
    assert result.returncode == 0, result.stderr
    facts = json.loads(run(sluice, "inspect", "--json", out).stdout)
    assert facts["problems"] == [] and facts["missing"] == [] and facts["unused"] == []
    assert "llama.tensor_data_layout" not in facts["metadata"]
    text = "The quick brown fox"
    ids = [run(sluice, "tokenize", "--model", model, input=text).stdout
           for model in (out, harness.GOLDEN / "safetensors" / "llama3")]
    assert ids[0] == ids[1] and ids[0].strip()
