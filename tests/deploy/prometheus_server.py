"""A real Prometheus that scrapes a server of ours."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml
from promql import RULES


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """Scrapes `target`, "host:port", twice a second, with our rules in force."""

    def __init__(self, folder, target):
        rules = yaml.safe_load(RULES.read_text())
        for group in rules["groups"]:
            group.pop("interval", None)  # a group's first evaluation may be that far off
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "sluice", "static_configs": [{"targets": [target]}]}]}))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = open(folder / "prometheus.log", "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(self.url + "/-/ready", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None and time.monotonic() < end, self.read_log()
                time.sleep(0.1)

    def read_log(self):
        self.log.seek(0)
        return self.log.read()

    def get(self, path, **parameters):
        """The `data` of an answer of the API."""
        request = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression):
        """[(labels, value)] of an instant query."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def stop(self):
        self.process.kill()
        self.process.wait(10)
        self.log.close()
