"""The rules of Prometheus, their cases, the dashboard's queries, and what of PromQL is needed to look into them."""

import functools
import json
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ROOT / "helm" / "sluice" / "files" / "rules.yaml"
DASHBOARD = ROOT / "helm" / "sluice" / "files" / "dashboard.json"
RECORDED = sorted((ROOT / "deploy" / "prometheus" / "tests" / "recorded").glob("*.yaml"))
CASES = sorted((ROOT / "deploy" / "prometheus" / "tests").glob("*.yaml"))

NOT_METRICS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?![\w:])(\{(?:[^}\"]|\"[^\"]*\")*\})?(\[\w+\])?(?!\s*\()")


def selectors(expression):
    """The vector selectors of an expression, in order: [(metric, "metric{...}")]. Ranges are left off."""
    found = SELECTOR.finditer(GROUPING.sub(" ", expression))
    return [(match[1], match[1] + (match[2] or "")) for match in found if match[1].lower() not in NOT_METRICS]


def labels_of(series):
    """The names of the labels of "metric{name="value",...}"."""
    return set(re.findall(r"(\w+)=\"", series))


@functools.cache
def load_rules():
    """Every rule, in order."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return {rule["alert"]: rule for rule in load_rules() if "alert" in rule}


def records():
    return {rule["record"]: rule for rule in load_rules() if "record" in rule}


@functools.cache
def cases():
    """Every case of `promtool test rules`, in order."""
    return [case for file in CASES for case in yaml.safe_load(file.read_text())["tests"]]


def metrics_behind(expression):
    """The metrics that an expression names, those of recording rules by what they are made of."""
    recorded = records()
    names = set()
    for name, _ in selectors(expression):
        names |= metrics_behind(recorded[name]["expr"]) if name in recorded else {name}
    return names


def dashboard_queries():
    """[(title, expression)] of every panel, for a dashboard that shows all instances over a minute."""
    values = {"$job": ".*", "$instance": ".*", "$__rate_interval": "15s", "$__range": "1m"}
    queries = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, expression
            queries.append((panel["title"], expression))
    return queries
