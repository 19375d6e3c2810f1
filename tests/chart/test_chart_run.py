"""Runs what the chart says: the real program with the command, arguments, files, user, root, probes, hook and signal of the
rendered pod (pod_runner.py)."""

import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import yaml

import chart
import harness
from certificates import Issuer
from chart import deployment, flags, milliseconds, of_kind, server

pytestmark = pytest.mark.xdist_group("run")  # one process makes all runs

RUNNER = chart.ROOT / "tests" / "chart" / "pod_runner.py"
TINY = harness.TINY / "tiny-llama.q4_0.gguf"
TINY_HASH = hashlib.sha256(TINY.read_bytes()).hexdigest()
QUICK = {"termination": {"preStopSeconds": 1}}
NAME = "$(A) $$(A) $$ $5"
# What `unshare` needs to make namespaces: root, or a kernel that lets others be root in namespaces of their own.
AS_ROOT = os.geteuid() == 0
UNSHARE = ["unshare", *([] if AS_ROOT else ["--user", "--map-root-user"]), "--mount", "--net"]


def credentials():
    issuer, clients = Issuer("servers"), Issuer("clients")
    certificate, key = issuer.issue("localhost", "demo-sluice.inference.svc")
    client_certificate, client_key = clients.issue("client.example.com")
    token = "a-token-of-the-tests"
    auth = {"tokens": [{"sha256": hashlib.sha256(token.encode()).hexdigest(), "tenant": "acme", "scopes": ["inference"]}]}
    sources = {"sluice-tls": {"tls.crt": certificate.decode(), "tls.key": key.decode()}, "sluice-ca": {"ca.crt": issuer.pem.decode()},
               "clients-ca": {"ca.crt": clients.pem.decode()}, "test-client": {"tls.crt": client_certificate.decode(), "tls.key": client_key.decode()},
               "sluice-auth": {"auth.json": json.dumps(auth)}, "test-token": {"value": token + "\n"}}
    return sources, {"ca": issuer.pem.decode(), "cert": client_certificate.decode(), "key": client_key.decode(), "token": token}


SECURE_SOURCES, SECURE_CLIENT = credentials()
COPY = {"model": {"existingClaim": "models", "file": TINY.name, "sha256": TINY_HASH.upper(), "copy": {"enabled": True, "sizeLimit": "16Mi"}}, **QUICK}
PART = {"emptyDir model": {TINY.name + ".part": TINY.read_bytes()[:1000].decode("latin-1")}}

# name: of_set, values, version, model in the claim under its name, further sources, credentials of the client.
CASES = {
    # Nothing but the claim: the default as it is, with its 15 s of sleep.
    "default": dict(model={"SmolLM2-135M-Instruct.Q4_1.gguf": harness.MODEL}, stream_tokens=200, notes=True),
    "copy": dict(values=COPY, model={TINY.name: TINY}),
    "copy that goes on": dict(values=COPY, model={TINY.name: TINY}, sources=PART),
    "secure": dict(of_set="secure", values={**QUICK, "model": {"name": "smollm2", "file": "m.gguf"}}, model={"m.gguf": TINY},
                   sources=SECURE_SOURCES, client=SECURE_CLIENT),
    "every-flag": dict(of_set="every-flag", model={"model.gguf": TINY}, stream_tokens=40),
    "before the hook": dict(values={**chart.MODEL, "termination": {"preStopSeconds": 2}}, version="1.29", model={"m.gguf": TINY}),
    # Of a name that the kubelet could take for something else.
    "chat-template": dict(of_set="chat-template", model={"m.gguf": TINY},
                          values={**QUICK, "model": {"name": NAME}, "env": [{"name": "A", "value": "wrong"}]}),
    "tenants-in-place": dict(of_set="tenants-in-place", values={**QUICK, "server": {"listenAddress": "[::]"}}, model={"m.gguf": TINY}),
}
# Pods that must not serve.
BROKEN = {
    "copy of another hash": dict(values={**COPY, "model": {**COPY["model"], "sha256": "0" * 64}}, model={TINY.name: TINY}),
    "copy of nothing": dict(values=COPY, model={"another.gguf": TINY}),
    "another hash": dict(values={"model": {"existingClaim": "models", "file": "m.gguf", "sha256": "0" * 64}}, model={"m.gguf": TINY}),
    "no model": dict(values=chart.MODEL, model={}),
    "two models": dict(values=chart.MODEL, model={"a.gguf": TINY, "b.gguf": TINY}),
}


def run_pod(case, program, folder):
    version = case.get("version", "1.33")
    objects = chart.render(case.get("of_set", ""), values=case.get("values"), version=version)
    claim = folder / "claim"
    claim.mkdir()
    for name, path in case["model"].items():
        try:
            os.link(path, claim / name)
        except OSError:
            (claim / name).write_bytes(path.read_bytes())
    names = [f"{service['metadata']['name']}.inference.svc" for service in of_kind(objects, "Service")]
    [port] = [one for one in server(objects)["ports"] if one["name"] == "metrics"]
    calls = []
    if case.get("notes"):
        calls = re.findall(r"^  (sluice generate .*)$", chart.notes(values=case.get("values")), re.M)
    spec = {
        "pod": deployment(objects)["spec"]["template"]["spec"], "program": str(program), "hosts": names,
        "sources": {"models": str(claim), **case.get("sources", {}),
                    **{one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}},
        "tests": [pod["spec"] for pod in chart.test_pods(objects)], "client": case.get("client", {}),
        "calls": calls, "prompt_tokens": [5, 6, 7, 8], "stream_tokens": case.get("stream_tokens", 60),
        "reader": {"port": port["containerPort"], "path": "/metrics"}}
    (folder / "spec.json").write_text(json.dumps(spec))
    run = subprocess.run([*UNSHARE, "--", sys.executable, RUNNER, folder / "spec.json"], capture_output=True, text=True, timeout=300,
                         env={**os.environ, "POD_RUNNER_USER": "root" if AS_ROOT else "mapped"})
    assert run.returncode == 0, run.stderr
    return objects, json.loads(run.stdout)


@pytest.fixture(scope="session")
def runs(program, tmp_path_factory):
    """All pods, side by side: each has a network of its own."""
    assert harness.MODEL.exists(), "run scripts/fetch_model.sh first"
    probe = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no namespaces can be made here: {probe.stderr.strip()}")
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        cases = {**CASES, **BROKEN}
        pending = {name: threads.submit(run_pod, case, program, tmp_path_factory.mktemp("pod")) for name, case in cases.items()}
        return {name: future.result() for name, future in pending.items()}


@pytest.fixture(params=CASES)
def case(request, runs, count):
    objects, seen = runs[request.param]
    assert "process" in seen, seen
    count("checks of pods that ran")
    return request.param, objects, seen


def test_it_starts_and_is_probed(case):
    name, objects, seen = case
    probe = server(objects)["startupProbe"]
    assert seen["startup"]["words"][-1] == "SERVING"
    assert seen["startup"]["seconds"] < probe["periodSeconds"] * probe["failureThreshold"]
    assert seen["livenessProbe"] == seen["readinessProbe"] == "SERVING"


def test_it_runs_as_nobody(case):
    name, objects, seen = case
    security, process = deployment(objects)["spec"]["template"]["spec"]["securityContext"], seen["process"]
    assert process["pid"] == "1"
    assert process["capabilities"] == [0] * 5
    assert process["no_new_privileges"] == "1"
    if AS_ROOT:
        assert process["uid"] == [str(security["runAsUser"])] * 4 == ["65532"] * 4
        assert process["gid"] == [str(security["runAsGroup"])] * 4
        assert process["groups"] == [str(security["fsGroup"])]


def test_it_can_write_nowhere_but_tmp(case):
    name, objects, seen = case
    assert seen["writable"] == ["/tmp"]
    mounts = seen["process"]["mounts"]
    assert mounts["/"] == "ro" and mounts["/models"] == "ro"
    for mount in server(objects)["volumeMounts"]:
        assert mounts[mount["mountPath"]] == ("ro" if mount.get("readOnly") else "rw")


def test_metrics_are_read_and_have_every_name(case):
    """What monitors, scalers, rules and pickers name is there."""
    name, objects, seen = case
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", seen["metrics"], re.M))
    exported = set(types) | {f"{one}_{end}" for one, kind in types.items() if kind == "histogram" for end in ("bucket", "count", "sum")}
    scalers = [one for of_set in ("hpa", "keda") for one in chart.render(of_set)]
    named = {one["pods"]["metric"]["name"] for scaler in of_kind(scalers, "HorizontalPodAutoscaler") for one in scaler["spec"]["metrics"]}
    assert len(named) == 2
    for scaler in of_kind(scalers, "ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            named |= set(re.findall(r"sluice_\w+", trigger["metadata"]["query"]))
    named |= set(re.findall(r"vllm:\w+", (chart.CHART / "README.md").read_text()))
    assert len(named) >= 5 and not named - exported, named - exported


def test_text_comes_as_it_was_given(runs):
    metrics = runs["chat-template"][1]["metrics"]
    assert f'model="{NAME}"' in metrics, re.findall("^sluice_build_info.*", metrics, re.M)


def test_rules_name_metrics_that_are_exported(runs):
    seen = runs["secure"][1]  # the one with all features
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", seen["metrics"], re.M))
    exported = set(types) | {f"{one}_{end}" for one, kind in types.items() if kind == "histogram" for end in ("bucket", "count", "sum")}
    groups = yaml.safe_load((chart.CHART / "files/rules.yaml").read_text())["groups"]
    named = {word for group in groups for rule in group["rules"] for word in re.findall(r"(?<![\w:])sluice_\w+", rule["expr"])}
    assert named and not named - exported, named - exported


def test_the_test_of_helm_succeeds(case):
    name, objects, seen = case
    assert len(seen["tests"]) == 1
    for test in seen["tests"]:
        assert test["code"] == 0, test
        assert re.search(r"^\d+ tokens \(length\), ", test["err"], re.M), test


def test_the_call_of_the_notes_succeeds(runs):
    objects, seen = runs["default"]
    assert [call["code"] for call in seen["calls"]] == [0], seen["calls"]
    assert "Paris" in seen["calls"][0]["out"] and "Paris" in seen["tests"][0]["out"]


def test_it_ends_within_the_grace_and_loses_nothing(case):
    name, objects, seen = case
    drain, pod = seen["drain"], deployment(objects)["spec"]["template"]["spec"]
    assert drain["code"] == 0, seen["log"]
    assert drain["stream"] == ["OK", CASES[name].get("stream_tokens", 60)]
    slept = 0
    if drain["hook"]:
        slept = drain["hook"]["sleep"]["seconds"]
        # The pod is as before: who has not heard yet is served.
        assert drain["readiness in the hook"] == "SERVING" and drain["call in the hook"] == ["OK", True]
    assert slept + drain["seconds"] < pod["terminationGracePeriodSeconds"] - 5, "near the kill"
    lame_duck = milliseconds(flags(server(objects))["lame-duck"]) / 1000
    if lame_duck:
        assert drain["call after SIGTERM"] == ["OK", True]
        assert drain["seconds"] >= lame_duck
    if "readiness after SIGTERM" in drain:  # else it has ended already
        assert drain["readiness after SIGTERM"] in ("NOT_SERVING", "UNAVAILABLE")


def test_without_the_hook_the_server_waits(runs):
    """Before Kubernetes 1.30: as long as the hook would sleep, calls of who has not heard yet are taken."""
    drain = runs["before the hook"][1]["drain"]
    assert drain["hook"] is None and drain["call after SIGTERM"] == ["OK", True] and drain["seconds"] >= 2


def test_draining_refuses_and_stays_alive(runs):
    """With a stream that takes longer than the look: new calls go elsewhere, and the kubelet does not kill the pod."""
    drain = runs["default"][1]["drain"]
    assert drain["readiness after SIGTERM"] == "NOT_SERVING"
    assert drain["liveness after SIGTERM"] == "SERVING"
    assert drain["call after SIGTERM"][0] == "UNAVAILABLE"


def test_the_copy_is_checked_and_goes_on(runs):
    assert "from byte 0\n" in runs["copy"][1]["init"][0]["out"]
    assert "from byte 1000\n" in runs["copy that goes on"][1]["init"][0]["out"]
    for name in ("copy", "copy that goes on"):
        assert runs[name][1]["init"][0]["out"].endswith("has the hash\n")


def test_a_copy_of_another_hash_is_thrown_away(runs):
    seen = runs["copy of another hash"][1]
    assert seen["init"][0]["code"] == 1 and "another sha256" in seen["init"][0]["err"]
    assert seen["left by init"]["model"] == [] and "process" not in seen


def test_a_model_that_is_not_there_fails_closed(runs):
    seen = runs["copy of nothing"][1]
    assert seen["init"][0]["code"] == 1 and "no such file" in seen["init"][0]["err"]


@pytest.mark.parametrize("name, words", [("another hash", "sha256: expected 0000"), ("no model", "without config.json"),
                                         ("two models", "expected one GGUF file, got 2")])
def test_a_bad_model_ends_the_server(runs, name, words):
    seen = runs[name][1]
    assert seen["code"] == 78 and words in seen["log"], seen
    assert "SERVING" not in seen["startup"]["words"]
