"""A real Prometheus scrapes a real server under load: every query of the rules and of the dashboard has an answer."""

import contextlib
import datetime
import json
import random
import re
import subprocess
import sys
import threading

import grpc
import harness
import promql
import pytest
from certificates import Issuer
from credentials import TENANT, entry
from harness import Client, pb, wait_until
from prometheus_server import Prometheus

PREFIX = "You are a helpful assistant. Answer in one short sentence, and do not repeat what was asked. "


class Load:
    """Six clients that call as callers do: replies to read, prompts that begin alike, cancels, mistakes."""

    def __init__(self, address, tls):
        self.client = Client(address, TENANT, tls)
        self.stranger = Client(address, "wrong", tls)
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(seed,)) for seed in range(6)]
        for thread in self.threads:
            thread.start()

    def run(self, seed):
        draw = random.Random(seed)
        while not self.ended.is_set():
            with contextlib.suppress(grpc.RpcError):
                self.call(draw)

    def call(self, draw):
        kind = draw.random()
        text = PREFIX + "What is " + " and ".join(str(draw.randrange(1000)) for _ in range(draw.randrange(1, 9)))
        if kind < 0.08:
            self.client.generate(harness.request(text, temperature=-1.0))
        elif kind < 0.12:
            self.stranger.load()
        elif kind < 0.2:
            self.client.stub.Tokenize(pb.TokenizeRequest(text=text), timeout=10, metadata=self.client.metadata)
        elif kind < 0.3:
            call = self.client.stream(harness.request(text, max_tokens=100, ignore_eos=True))
            next(iter(call))
            call.cancel()
        else:
            self.client.generate(harness.request(text, max_tokens=draw.randrange(4, 40)))

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join()
        self.client.close()
        self.stranger.close()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A certificate, its key, tokens and tenants, as flags name them."""
    folder = tmp_path_factory.mktemp("server")
    issuer = Issuer()
    chain, key = issuer.issue("localhost")
    contents = {"chain": chain, "key": key, "tokens": json.dumps({"tokens": [entry(TENANT)]}).encode(),
                "tenants": json.dumps({"tenants": {"acme": {"max_concurrent": 64}}}).encode()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {**{name: folder / name for name in contents}, "tls": grpc.ssl_channel_credentials(issuer.pem)}


@pytest.fixture(scope="module")
def server(sluice, deployed):
    server = harness.Server(sluice, "--tls-cert", deployed["chain"], "--tls-key", deployed["key"], "--auth-file", deployed["tokens"],
                            "--tenants", deployed["tenants"], "--threads", 1)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prometheus(server, deployed, tmp_path_factory):
    load = Load(server.address, deployed["tls"])
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server.await_log(r"metrics on (\S+:\d+)")[1])
    yield prometheus
    prometheus.stop()
    load.stop()


def unanswered(prometheus, queries):
    """Those without a number: NaN, which a quantile of nothing is, is none."""
    return [query for query in queries if not any(value == value for _, value in prometheus.query(query))]


def await_answers(prometheus, queries):
    """Waits until every query has data. Those that have some are asked once."""
    left = list(queries)

    def all_answered():
        left[:] = unanswered(prometheus, left)
        return not left
    with contextlib.suppress(AssertionError):
        wait_until(all_answered, 40)
    assert not left, f"{len(left)} of {len(queries)} queries have no data:\n" + "\n".join(left)


def test_every_query_of_the_rules_has_data(prometheus):
    recording = [rule["expr"] for rule in promql.records().values()]
    # Of alerts what they are made of: whole, they have data when they fire. None has to wait for an event, because every
    # series begins at zero.
    parts = {text for rule in promql.alerts().values() for _, text in promql.selectors(rule["expr"])}
    await_answers(prometheus, recording + sorted(parts))
    print(f"{len(recording)} recording rules, {len(parts)} selectors of {len(promql.alerts())} alerts")


def test_every_query_of_the_dashboard_has_data(prometheus):
    queries = promql.dashboard_queries()
    # Nothing is wrong, so nothing is refused but what the load makes so; what is zero is data.
    await_answers(prometheus, [expression for _, expression in queries])
    print(f"{len(queries)} queries of {len({title for title, _ in queries})} panels")


def test_rules_are_evaluated_and_nothing_fires(prometheus):
    await_answers(prometheus, list(promql.records()))
    begin = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")

    def evaluated():
        groups = prometheus.get("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert not [rule for rule in rules if rule.get("lastError")], rules
        assert len(rules) == len(promql.load_rules())
        return all(rule["health"] == "ok" for rule in rules) and all(group["lastEvaluation"] > begin for group in groups)
    wait_until(evaluated, 20, "evaluation")
    assert prometheus.query('count by (alertname) (ALERTS{alertstate="firing"})') == []


def test_cases_of_the_rules_have_the_labels_of_the_server(prometheus):
    """promtool believes every series that a case makes up: they are those that the server has."""
    compared = set()
    for case in promql.cases():
        for series in case["input_series"]:
            [(name, _)] = promql.selectors(series["series"])
            if name == "up" or (name.startswith("process_") and "sluice" not in series["series"]):
                continue
            real = prometheus.query(name)
            assert real, name
            labels = set(real[0][0]) - {"__name__"}
            assert promql.labels_of(series["series"]) == labels, (series["series"], labels)
            compared.add(name)
    assert len(compared) > 25


def test_values_are_those_of_the_server(prometheus, server):
    [(_, tokens)] = prometheus.query("sum(sluice_generation_tokens_total)")
    shown = sum(float(value) for value in re.findall(r"^sluice_generation_tokens_total{.*} (\S+)$", server.metrics(), re.M))
    assert 0 < tokens <= shown
    [(_, rate)] = prometheus.query("sum(rate(sluice_generation_tokens_total[15s]))")
    assert rate > 1
    [(labels, _)] = prometheus.query("sluice_build_info")
    assert labels["backend"].startswith("cpu") and labels["model"]


def test_promtool_finds_no_fault_with_what_the_server_exports(server):
    run = subprocess.run(["promtool", "check", "metrics"], input=server.metrics(), capture_output=True, text=True, timeout=60)
    # What it says of names is advice; of the text it says "error while linting".
    faults = [line for line in run.stderr.splitlines() if line and not re.search(r"^(vllm|sluice_cancelled|sluice_selfcheck)", line)]
    assert run.returncode in (0, 3) and not faults, run.stderr


def test_an_alert_fires_on_the_server(prometheus, deployed):
    """Last: a change that is refused."""
    deployed["tenants"].write_text("{")
    query = 'ALERTS{alertname="SluiceChangeRefused",alertstate="firing"}'
    wait_until(lambda: prometheus.query(query), 20, "the alert")
    [(labels, _)] = prometheus.query(query)
    assert labels["file"] == "tenants" and labels["severity"] == "warning"
    [alert] = [alert for alert in prometheus.get("alerts")["alerts"] if alert["labels"]["alertname"] == "SluiceChangeRefused"]
    assert re.fullmatch(r"a change of the file tenants of 127.0.0.1:\d+ was refused", alert["annotations"]["summary"])


def test_the_dashboard_is_what_its_script_writes():
    script = promql.ROOT / "scripts" / "dashboard.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout
