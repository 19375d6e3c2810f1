"""What the pages for operators say of flags, metrics and reasons is what the program has."""

import pathlib
import re
import subprocess
import sys

import grpc
import harness
from harness import greedy

DOCS = harness.ROOT / "docs"


def test_the_table_of_flags_is_the_help(sluice):
    script = harness.ROOT / "scripts" / "configuration_table.py"
    run = subprocess.run([sys.executable, script, "--check", sluice], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stdout + run.stderr
    # The help is not read past: every flag that it names is in the table.
    text = subprocess.run([sluice, "serve", "--help"], capture_output=True, text=True, timeout=30).stdout
    flags = set(re.findall(r"^  (--[\w-]+)", text, re.M))
    assert flags == set(re.findall(r"^\| `(--[\w-]+)`", (DOCS / "configuration.md").read_text(), re.M))


def test_the_table_of_metrics_is_what_is_exported(serve, issuer, pair):
    server = serve("--tls-cert", pair[0], "--tls-key", pair[1], model=harness.TINY / "tiny-odd.f16.gguf")
    client = harness.Client(server.address, tls=grpc.ssl_channel_credentials(issuer.pem))
    client.generate(greedy(ids=[5, 6, 7], max_tokens=2, ignore_eos=True))
    client.close()
    script = harness.ROOT / "scripts" / "metrics_table.py"
    run = subprocess.run([sys.executable, script, "--check"], input=server.metrics(), capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stdout + run.stderr


def test_metrics_of_the_pages_exist(serve, tmp_path):
    (tmp_path / "tenants.json").write_text('{"tenants": {"default": {"max_concurrent": 1}}}')
    server = serve("--tenants", tmp_path / "tenants.json", model=harness.TINY / "tiny-odd.f16.gguf")
    server.client.generate(greedy(ids=[5, 6, 7], max_tokens=2, ignore_eos=True))
    exported = set(re.findall(r"^# TYPE (\S+) ", server.metrics(), re.M))
    exported |= {name + suffix for name in exported for suffix in ("_bucket", "_count", "_sum")}
    exported.add("sluice_tls_certificate_not_after_seconds")  # with TLS only (test_identity.py)
    named = set()
    for page in ("observability.md", "security.md", "runbook.md", "configuration.md", "errors.md"):
        named |= set(re.findall(r"\bsluice_[a-z_]+", (DOCS / page).read_text()))
    named -= {"sluice_planted"}
    assert named and not named - exported, named - exported


def test_reasons_of_the_catalogue_of_errors_are_those_of_the_source():
    source = "".join(path.read_text() for folder in ("server", "engine") for path in (harness.ROOT / folder).rglob("*.cc"))
    page = (DOCS / "errors.md").read_text()
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+|LOADING|DRAINING|FEATURE)`", page)) - set(
        "INVALID_ARGUMENT PERMISSION_DENIED NOT_FOUND ALREADY_EXISTS FAILED_PRECONDITION RESOURCE_EXHAUSTED".split())
    assert not [reason for reason in named if f'"{reason}"' not in source]
    used = set(re.findall(r'reason = "([A-Z_]+)"', source))
    used |= set(re.findall(r'(?:MakeError|PermissionDenied)\((?:[^;"]|"[^"]*")*?"([A-Z_]{2,})"\)', source))
    assert used and not used - named, used - named
