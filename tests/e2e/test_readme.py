"""The programs that the README shows are whole and run."""

import re
import shutil
import subprocess
import sys

import harness

README = (harness.ROOT / "README.md").read_text()


def block(language, first_line):
    [text] = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.S) if code.startswith(first_line)]
    return text


def test_python_client(shared, tmp_path):
    code = block("python", "# client.py\n")
    assert "127.0.0.1:50051" in code
    (tmp_path / "client.py").write_text(code.replace("127.0.0.1:50051", shared.address))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--python_out={tmp_path}",
                    f"--grpc_python_out={tmp_path}", "sluice/v1/inference.proto"], check=True, cwd=harness.ROOT)
    run = subprocess.run([sys.executable, "client.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout and re.search(r"^\d+ tokens$", run.stdout, re.M)


def test_cpp_client(shared, tmp_path):
    code = block("cpp", "// client.cc\n")
    assert "127.0.0.1:50051" in code
    (tmp_path / "client.cc").write_text(code.replace("127.0.0.1:50051", shared.address))
    build = block("sh", "protoc ").replace("./client\n", "").replace("-std=c++17", "-std=c++17 -O0")
    shutil.copytree(harness.ROOT / "proto", tmp_path / "proto")
    subprocess.run(["bash", "-ec", build], cwd=tmp_path, check=True, timeout=300)
    run = subprocess.run(["./client"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout


def test_flags_in_the_readme_exist(sluice):
    shown = set(re.findall(r"^\| `(--[a-z-]+)", README, re.M))
    help_text = subprocess.run([sluice, "serve", "--help"], capture_output=True, text=True).stdout
    assert len(shown) >= 8 and not [flag for flag in shown if flag not in help_text]
