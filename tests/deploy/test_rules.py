"""The rules of Prometheus: each alert has cases that make it fire and that leave it quiet, and a section of the runbook."""

import re
import subprocess

import promql
import pytest
import yaml

RUNBOOK = (promql.ROOT / "docs" / "runbook.md").read_text()


def test_selectors_of_an_expression_are_found():
    """The rest of this file, and the live test, are only as good as this."""
    expression = 'sum by (le, job) (rate(a_bucket{le="+Inf",x=~"b}|c"}[5m])) / on (job) (c:d > 0.5e3) unless time() - e offset 5m and absent(f)'
    assert [text for _, text in promql.selectors(expression)] == ['a_bucket{le="+Inf",x=~"b}|c"}', "c:d", "e", "f"]
    assert promql.selectors("vector(1) > bool 2 or inf") == []


def test_promtool_finds_no_fault():
    run = subprocess.run(["promtool", "check", "rules", promql.RULES], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "SUCCESS" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("file", promql.CASES + promql.RECORDED, ids=lambda file: file.stem)
def test_cases(file):
    run = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_recording_rule_has_a_case_of_its_value():
    recorded = set(re.findall(r"^ +- record: (\S+)$", promql.RULES.read_text(), re.M))
    tests = [test for file in promql.RECORDED for case in yaml.safe_load(file.read_text())["tests"] for test in case["promql_expr_test"]]
    assert all(test["exp_samples"] for test in tests)
    assert {test["expr"] for test in tests} == recorded and len(recorded) > 10


def firing(case):
    """The alerts that a case wants."""
    [test] = case["promql_expr_test"]
    assert test["expr"] == 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {re.fullmatch(r'{alertname="(\w+)"}', sample["labels"])[1] for sample in test["exp_samples"]}


def test_every_alert_has_a_case_that_fires_and_one_that_is_quiet():
    fired, quiet = set(), set()
    for case in promql.cases():
        name, verb = re.match(r"(\w+) (fires|is quiet): ", case["name"]).groups()
        assert (name in firing(case)) == (verb == "fires"), case["name"]
        given = {promql.selectors(series["series"])[0][0] for series in case["input_series"]}
        needed = promql.metrics_behind(promql.alerts()[name]["expr"])
        # To be quiet for want of series proves nothing.
        assert given & needed, case["name"]
        if verb == "fires":
            fired.add(name)
        elif needed <= given:
            quiet.add(name)
    wanted = set(promql.alerts())
    assert len(wanted) >= 20
    assert fired == wanted and quiet == wanted, (wanted - fired, wanted - quiet)


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_alert_has_a_section_of_the_runbook():
    headings = re.findall(r"^### (\w+)$", RUNBOOK, re.M)
    assert headings == list(promql.alerts()), "sections of docs/runbook.md and alerts, in order"
    for name, alert in promql.alerts().items():
        assert alert["annotations"]["runbook"] == f"docs/runbook.md#{anchor(name)}"
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        for key in ("summary", "description"):
            assert alert["annotations"][key]


def test_the_runbook_names_rules_and_metrics_that_exist():
    named = set(re.findall(r"\bsluice:[a-z_:0-9]+", RUNBOOK))
    assert named <= set(promql.records()), named - set(promql.records())
