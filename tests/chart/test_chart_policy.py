"""The policies over all value sets, and what two releases, upgrades and notes must be."""

import copy
import json
import pathlib
import shutil

import pytest
import yaml
from yamllint import config, linter

import chart
import crds
import policies
from chart import deployment, of_kind, selects, the

pytestmark = pytest.mark.xdist_group("policy")  # one process makes all renders

NEWEST = chart.VERSIONS[-1]
# What differs by version is the hook: these are looked at without it too.
WITHOUT_HOOK = ("claim", "every-flag", "long-grace", "no-sleep", "production", "recreate")
LINT = config.YamlLintConfig((pathlib.Path(__file__).parent / "yamllint.yaml").read_text())


@pytest.fixture(scope="session")
def program_flags(serve_flags):
    return frozenset(serve_flags)


def render_of(name, version, program_flags, extensions=True):
    return policies.Render(name, version, chart.render(name, version=version, extensions=extensions), program_flags, extensions=extensions)


def findings_of(check, cases, program_flags, count):
    findings = []
    for of_set, version, extensions in cases:
        try:
            check(render_of(of_set, version, program_flags, extensions))
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            findings.append(f"{of_set}, Kubernetes {version}, operators {extensions}: {type(error).__name__} {error}")
        count("policy checks")
    return "\n".join(findings)


def test_there_are_enough():
    assert len(policies.POLICIES) >= 25


@pytest.mark.parametrize("name", policies.POLICIES)
def test_policy(name, program_flags, count):
    check, _, _ = policies.POLICIES[name]
    cases = [(one, NEWEST, True) for one in chart.SETS] + [(one, "1.29", True) for one in WITHOUT_HOOK]
    findings = findings_of(check, cases, program_flags, count)
    assert not findings, findings


@pytest.mark.long
@pytest.mark.parametrize("name", policies.POLICIES)
def test_policy_elsewhere(name, program_flags, count):
    """Where there are no operators, and under other versions."""
    check, _, _ = policies.POLICIES[name]
    cases = [(one, version, extensions) for one in chart.SETS for version in ("1.27", "1.30", NEWEST) for extensions in (False, True)
             if not chart.is_refused(one, version)]
    findings = findings_of(check, cases, program_flags, count)
    assert not findings, findings


@pytest.mark.parametrize("name", policies.POLICIES)
def test_policy_finds_its_fault(name, program_flags, count):
    check, plant, of_set = policies.POLICIES[name]
    render = render_of(of_set, NEWEST, program_flags)
    objects = copy.deepcopy(render.objects)
    plant(objects)
    assert objects != render.objects, "nothing was planted"
    with pytest.raises((AssertionError, AttributeError, KeyError, ValueError)):
        check(policies.Render(of_set, NEWEST, objects, program_flags))
    count("planted faults found")


@pytest.mark.parametrize("kind, part", [("ScaledObject", "triggers"), ("PodMonitor", "selector"), ("ServiceMonitor", "selector"),
                                        ("PrometheusRule", None), ("GRPCRoute", "rules")])
def test_definitions_find_faults(kind, part, count):
    """The control. Every kind there is is met, too."""
    good = next(one for name in chart.SETS for one in chart.render(name) if one["kind"] == kind)
    crds.check(good)
    count("kinds of operators compared with their definitions")
    unknown = copy.deepcopy(good)
    unknown["spec"]["unheardOf"] = 1
    with pytest.raises(AssertionError, match="unheardOf"):
        crds.check(unknown)
    if part:
        missing = copy.deepcopy(good)
        del missing["spec"][part]
        with pytest.raises(AssertionError, match=part):
            crds.check(missing)


def test_every_kind_of_the_operators_is_known():
    kinds = {(one["apiVersion"], one["kind"]) for name in chart.SETS for one in chart.render(name) if "." in one["apiVersion"].split("/")[0]}
    own = {("networking.k8s.io/v1", "NetworkPolicy")}
    assert kinds - own == chart.CUSTOM and {kind for _, kind in chart.CUSTOM} == set(crds.models()) | {"GRPCRoute"}


@pytest.mark.parametrize("name", chart.SETS)
def test_rendered_text_is_clean(name, count):
    text = chart.text_of(chart.Request(values="{}", of_set=name))
    problems = [f"{problem.line}: {problem.desc}" for problem in linter.run(text, LINT)]
    assert not problems, "\n".join(problems)
    assert not [line for line in text.splitlines() if "<no value>" in line or "%!" in line]
    count("rendered texts linted")


def test_files_are_clean():
    for path in [*chart.CHART.glob("*.yaml"), *(chart.CHART / "ci").glob("*.yaml")]:
        problems = [f"{path.name}:{problem.line}: {problem.desc}" for problem in linter.run(path.read_text(), LINT)]
        assert not problems, "\n".join(problems)


def test_lint_finds_faults():
    assert list(linter.run("a: 1\na: 2 \n", LINT))


def identities(objects):
    return {(one["kind"], one["metadata"]["name"]) for one in objects}


# A release "a" and one "a-sluice" would meet by the convention that RELEASE-CHART is shortened; helm refuses the second.
@pytest.mark.parametrize("first, second", [
    ("a", "b"), ("sluice", "sluice2"), ("sluice", "my-sluice"), ("a.b", "a-b"), ("1", "s-1"),
    ("x" * 52 + "a", "x" * 52 + "b"), ("a-" + "y" * 50, "a-" + "y" * 49 + "z")])
def test_two_releases_of_a_namespace(first, second, program_flags):
    of_first, of_second = (chart.render("rules-dashboard", release=release) for release in (first, second))
    assert not identities(of_first) & identities(of_second)
    for one, other in ((of_first, of_second), (of_second, of_first)):
        labels = deployment(other)["spec"]["template"]["metadata"]["labels"]
        selectors = [deployment(one)["spec"]["selector"]["matchLabels"]] + [s["spec"]["selector"] for s in of_kind(one, "Service")]
        assert not [selector for selector in selectors if selects(selector, labels)]
    for objects in (of_first, of_second):
        policies.names_are_valid(policies.Render("rules-dashboard", NEWEST, objects, program_flags))
        policies.labels_are_valid(policies.Render("rules-dashboard", NEWEST, objects, program_flags))


def test_upgrades_keep_what_cannot_change(tmp_path):
    """Another version of chart and program: selectors and names stay."""
    later = tmp_path / "sluice"
    shutil.copytree(chart.CHART, later)
    facts = yaml.safe_load((later / "Chart.yaml").read_text())
    (later / "Chart.yaml").write_text(yaml.safe_dump(facts | {"version": "9.9.9", "appVersion": "9.9.9"}))
    before, after = chart.render("production"), chart.render("production", chart=later)
    assert identities(before) == identities(after)
    assert deployment(before)["spec"]["selector"] == deployment(after)["spec"]["selector"]
    assert deployment(after)["spec"]["template"]["spec"]["containers"][0]["image"] == "sluice:9.9.9-cuda"
    # With the program the same, a new chart does not restart the pods.
    (later / "Chart.yaml").write_text(yaml.safe_dump(facts | {"version": "9.9.8", "description": "other"}))
    assert deployment(chart.render("claim", chart=later))["spec"]["template"] == deployment(chart.render("claim"))["spec"]["template"]


def template_of(values):
    return deployment(chart.render(values={**chart.MODEL, **values}))["spec"]["template"]


def test_changed_limits_restart_pods():
    one = {"tenants": {"default": {"weight": 1}}}
    other = {"tenants": {"default": {"weight": 2}}}
    assert template_of(one) != template_of(other)
    for values in (one, other):
        values["tenants"]["restartOnChange"] = False
    assert template_of(one) == template_of(other)


def test_changed_chat_templates_restart_pods():
    templates = [template_of({"model": {"existingClaim": "models", "chatTemplate": text}}) for text in ("a", "b")]
    assert templates[0] != templates[1]


def test_texts_arrive_unchanged():
    """What is given as text is no template and no YAML."""
    text = '{{ .Values }}\n{%- if a %}\n  "b": \'c\'\t#\n{%- endif %}\\n\n\n'
    config = the(chart.render(values={"model": {"existingClaim": "models", "chatTemplate": text, "name": 'a "b": {{ x }}'}}), "ConfigMap")
    assert config["data"]["chat-template.jinja"] == text
    container = chart.server(chart.render(values={"model": {"existingClaim": "models", "name": 'a "b": {{ x }} #'}}))
    assert chart.flags(container)["model-name"] == 'a "b": {{ x }} #'
    pod = chart.test_pods(chart.render(values={**chart.MODEL, "test": {"prompt": 'say "x: #1"\n{{ y }}'}}))[0]
    assert chart.flags(pod["spec"]["containers"][0])["prompt"] == 'say "x: #1"\n{{ y }}'


def test_names_that_look_like_other_things(program_flags):
    """YAML has words and numbers of its own; what is a name stays text."""
    values = {"model": {"existingClaim": "1e3"}, "nameOverride": "0", "fullnameOverride": "true", "priorityClassName": "1",
              "serviceAccount": {"name": "null"}, "tls": {"existingSecret": "123", "clientCASecret": "0"}, "auth": {"existingSecret": "1.5"},
              "commonLabels": {"yes": "no"}, "podLabels": {"on": "1"}, "imagePullSecrets": [{"name": "2"}],
              "test": {"tokenSecret": "7", "tokenKey": "8", "clientCertSecret": "9"},
              "gateway": {"enabled": True, "parentRefs": [{"name": "1", "namespace": "2"}], "hostnames": ["1"]}}
    objects = chart.render(values=values, release="17", namespace="42")
    chart.check_kubernetes(objects, NEWEST)
    assert {one["metadata"]["namespace"] for one in objects} == {"42"}
    spec = deployment(objects)["spec"]["template"]["spec"]
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "1e3" and spec["serviceAccountName"] == "null"


def test_limits_of_tenants_are_exact():
    """No number becomes a power of ten that the program does not read as a whole one."""
    limits = {"max_concurrent": 1000000000, "tokens_per_second": 12345678.5, "burst_tokens": 1000000000000, "kv_share": 0.001,
              "max_priority": -100, "models": ["a: b"]}
    config = the(chart.render(values={**chart.MODEL, "tenants": {"byName": {"t": limits}}}), "ConfigMap")
    text = config["data"]["tenants.json"]
    assert json.loads(text) == {"tenants": {"t": limits}} and "e+" not in text
    # "default" is a tenant's name like another: everybody's, where nobody shows credentials.
    both = {"default": {"weight": 2}, "byName": {"default": {"max_concurrent": 3}}}
    text = the(chart.render(values={**chart.MODEL, "tenants": both}), "ConfigMap")["data"]["tenants.json"]
    assert json.loads(text) == {"default": {"weight": 2}, "tenants": {"default": {"max_concurrent": 3}}}
    flags = chart.flags(chart.server(chart.render(values={**chart.MODEL, "server": {"maxQueueTokens": 10**12, "maxStreams": 1000000}})))
    assert flags["max-queue-tokens"] == str(10**12) and flags["max-streams"] == "1000000"


def test_the_chart_as_part_of_another(tmp_path):
    """As a subchart: helm adds `global` to the values, and the chart's own values lie under its name."""
    umbrella = tmp_path / "umbrella"
    (umbrella / "charts").mkdir(parents=True)
    (umbrella / "Chart.yaml").write_text("apiVersion: v2\nname: umbrella\nversion: 0.0.1\n")
    shutil.copytree(chart.CHART, umbrella / "charts" / "sluice")
    for major in (3, 4):
        run = chart.helm(major, "template", "u", umbrella, "--values", "-",
                         stdin=json.dumps({"global": {"region": "x"}, "sluice": chart.MODEL}))
        assert run.returncode == 0, run.stderr
        assert 'name: "u-sluice"\n' in run.stdout


NOTES = {
    "host-path": "WARNING: model.hostPath", "tokens": "WARNING: auth without tls", "pod-monitor": "there is no PodMonitor",
    "rules-dashboard": "there are no rules", "keda": "nothing scales", "gateway": "there is no route",
    "gateway-tls": "BackendTLSPolicy", "gpu": "one GPU more", "secure": "--token-file token",
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_warn(name):
    assert NOTES[name] in " ".join(chart.notes(name).split())


@pytest.mark.parametrize("text, wanted", [
    ("a $(A) b", "a 1 b"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("$$$(A)", "$1"), ("$$$$", "$$"), ("$5 $", "$5 $"), ("$(A", "$(A"),
    ('$(wc -c <"$1") $((1 + 1))', '$(wc -c <"$1") $((1 + 1))'), ("$(A)$(A)", "11")])
def test_arguments_are_expanded_as_by_the_kubelet(text, wanted):
    """Cases as in Kubernetes' own third_party/forked/golang/expansion."""
    assert chart.expand(text, {"A": "1"}) == wanted


BALANCER = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}
WARNED = {
    "who calls cannot be seen": ({"service": BALANCER}, "nodes may hand calls on under their own addresses"),
    "KV cache above the memory": ({"server": {"engines": 3, "kvMemory": "1.5G"}}, "does not fit into resources.limits.memory (4Gi)"),
    "budget of a single pod": (
        {"autoscaling": {"enabled": True}, "pdb": {"minAvailable": 1}}, "there is no PodDisruptionBudget"),
    "update that needs a node": ({"podAntiAffinity": "hard"}, "one node more than there are pods"),
    "rules of a job of another name": (
        {"monitoring": {"scrape": "Annotations", "prometheusRule": {"enabled": True}}}, "SluiceGone fires for ever"),
    "metrics that nobody reaches": (
        {"monitoring": {"scrape": "Annotations"}, "service": {"ipFamilies": ["IPv6"]}}, "metrics are on IPv4 alone"),
}
FITTING = [{"service": {**BALANCER, "externalTrafficPolicy": "Local"}}, {"server": {"engines": 2, "kvMemory": "2G"}},
           {"gpu": {"enabled": True}, "server": {"kvMemory": "64G"}}, {"autoscaling": {"enabled": True}},
           {"podAntiAffinity": "hard", "strategy": {"maxUnavailable": 1}}, {"monitoring": {"scrape": "Annotations"}},
           {"monitoring": {"scrape": "PodMonitor", "prometheusRule": {"enabled": True}}, "service": {"ipFamilies": ["IPv4"]}},
           {"service": {"ipFamilies": ["IPv6"]}}]


@pytest.mark.parametrize("name", WARNED)
def test_notes_warn_of_values(name):
    values, words = WARNED[name]
    assert words in " ".join(chart.notes(values={**chart.MODEL, **values}).split())


def test_notes_warn_of_nothing_that_fits():
    for values in FITTING:
        text = " ".join(chart.notes(values={**chart.MODEL, **values}).split())
        assert not [words for _, words in WARNED.values() if words in text], (values, text)


def test_listening_follows_the_addresses_of_the_service():
    for values, address in (({}, "0.0.0.0"), ({"ipFamilyPolicy": "SingleStack"}, "0.0.0.0"), ({"ipFamilies": ["IPv4"]}, "0.0.0.0"),
                            ({"ipFamilyPolicy": "PreferDualStack"}, "[::]"), ({"ipFamilies": ["IPv6"]}, "[::]")):
        flags = chart.flags(chart.server(chart.render(values={**chart.MODEL, "service": values})))
        assert flags["listen"] == f"{address}:50051" and flags["ops-listen"] == f"{address}:9090"


def test_what_the_server_does_not_ask_for_is_not_shown():
    test = {"tokenSecret": "token", "clientCertSecret": "certificate"}
    [pod] = chart.test_pods(chart.render(values={**chart.MODEL, "tls": {"existingSecret": "tls"}, "test": test}))
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["tmp", "ca"]


def test_notes_of_the_default_warn_of_nothing():
    text = chart.notes()
    assert "WARNING" not in text and "helm test demo -n inference" in text
    assert "there is no helm test" in " ".join(chart.notes("tokens").split())


def test_labels_that_meet_are_written_once():
    """What is given twice, or is the chart's own, would make a map with two equal keys."""
    same = {"team": "a", "app.kubernetes.io/part-of": "other"}
    values = {"model": {"existingClaim": "models"}, "commonLabels": {"team": "b"}, "endpointPicker": {"enabled": True},
              "podLabels": {"llm-d.ai/engine-type": "other"},
              "monitoring": {"scrape": "PodMonitor", "labels": same, "prometheusRule": {"enabled": True, "labels": same},
                             "dashboard": {"enabled": True, "labels": same}}}
    for major in (3, 4):
        text = chart.text_of(chart.Request(values=json.dumps(values), major=major))
        objects = [one for one in yaml.load_all(text, chart.UniqueLoader) if one]
        assert the(objects, "PodMonitor")["metadata"]["labels"]["app.kubernetes.io/part-of"] == "sluice"
        assert the(objects, "PodMonitor")["metadata"]["labels"]["team"] == "a"
        assert deployment(objects)["spec"]["template"]["metadata"]["labels"]["llm-d.ai/engine-type"] == "vllm"
    for of_set in chart.SETS:
        list(yaml.load_all(chart.text_of(chart.Request(values="{}", of_set=of_set)), chart.UniqueLoader))
