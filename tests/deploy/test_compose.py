"""What deploy/compose.yaml starts exists here, and takes the flags that it is given."""

import json
import pathlib
import re
import subprocess

import promql
import yaml

DEPLOY = promql.ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def binds(service):
    """{target: path here} of what is mounted into a service from this tree."""
    return {volume["target"]: DEPLOY / re.sub(r"\$\{\w+:-(.*)\}", r"\1", volume["source"])
            for volume in SERVICES[service]["volumes"] if volume["type"] == "bind"}


def test_what_is_mounted_exists_and_is_not_written():
    for service in SERVICES:
        for target, path in binds(service).items():
            assert path.exists(), (service, target, path)
        assert all(volume.get("read_only") for volume in SERVICES[service]["volumes"] if volume["type"] == "bind")
    assert set(COMPOSE["volumes"]) == {volume["source"] for service in SERVICES.values() for volume in service["volumes"]
                                       if volume["type"] == "volume"}


def test_the_server_starts_as_the_file_says_and_is_healthy(sluice, tmp_path):
    service = SERVICES["sluice"]
    command = [argument.replace("0.0.0.0", "127.0.0.1") for argument in service["command"]]
    paths = {str(target): str(path.resolve()) for target, path in binds("sluice").items()}
    for target, path in paths.items():
        command = [argument.replace(target, path) for argument in command]
    ports = dict(re.fullmatch(r"--([\w-]*listen)=127.0.0.1:(\d+)", argument).groups() for argument in command if "listen=" in argument)
    # Free ports, so that it runs beside others.
    command = [re.sub(r"(listen=127.0.0.1):\d+", r"\1:0", argument) for argument in command]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen([sluice, *command], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert json.loads(process.stdout.readline())["message"].startswith("ready on 127.0.0.1:")
            lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
            [ops] = [match[1] for line in lines if (match := re.match(r"operators' port on (\S+)", line["message"]))]
            kind, program, *arguments = service["healthcheck"]["test"]
            assert (kind, program) == ("CMD", "sluice")
            arguments = [argument.replace(f"127.0.0.1:{ports['ops-listen']}", ops) for argument in arguments]
            probe = subprocess.run([sluice, *arguments], capture_output=True, text=True, timeout=30)
            assert (probe.returncode, probe.stdout) == (0, "SERVING\n"), probe.stderr
        finally:
            process.terminate()
            assert process.wait(30) == 0
            process.stdout.close()
    config = yaml.safe_load(binds("prometheus")["/etc/prometheus/prometheus.yaml"].read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"sluice:{ports['metrics-listen']}"]
    assert service["ports"] == [f"127.0.0.1:{ports['listen']}:{ports['listen']}"]
    drain = [int(argument[16:-1]) for argument in command if argument.startswith("--drain-timeout=")]
    assert int(service["stop_grace_period"][:-1]) > drain[0] + 5


def test_nothing_is_open_to_other_machines_or_privileged():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert not service["image"].endswith(":latest") or "build" in service


def test_prometheus_takes_its_file(tmp_path):
    mounted = binds("prometheus")
    text = mounted["/etc/prometheus/prometheus.yaml"].read_text()
    for target, path in mounted.items():
        text = text.replace(target, str(path.resolve()))
    (tmp_path / "prometheus.yaml").write_text(text)
    run = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "SUCCESS" in run.stdout, run.stdout + run.stderr
    [job] = yaml.safe_load(text)["scrape_configs"]
    assert "sluice" in job["job_name"]  # as the rules want it


def test_grafana_finds_its_source_and_dashboard():
    mounted = binds("grafana")
    provisioning = mounted["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    host, port = re.fullmatch(r"http://([\w-]+):(\d+)", source["url"]).groups()
    assert host in SERVICES and SERVICES[host]["ports"][0].endswith(f":{port}")
    [provider] = yaml.safe_load((provisioning / "dashboards" / "sluice.yaml").read_text())["providers"]
    [(target, path)] = [(target, path) for target, path in mounted.items() if target.endswith(".json")]
    assert pathlib.PurePosixPath(target).parent == pathlib.PurePosixPath(provider["options"]["path"])
    assert json.loads(path.read_text())["title"] == "Sluice"
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == target
