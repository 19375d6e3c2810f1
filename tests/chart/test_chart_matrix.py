"""Every value set renders under every version of Kubernetes, with and without the operators, by helm 3 and 4, into objects
that the schemas of that version know."""

import itertools
import json

import pytest

import chart
import crds

CASES = list(itertools.product(chart.VERSIONS, (False, True), (3, 4)))


def pairs_of(name):
    """Cases such that over all sets every two of set, version, extensions and helm meet."""
    index = chart.SETS.index(name)
    return [(version, bool((index + place) & 1), 4 if (index + place) & 2 else 3)
            for place, version in enumerate(chart.VERSIONS)]


def check(name, cases, count):
    for version, extensions, major in cases:
        request = chart.Request(values="{}", of_set=name, version=version, extensions=extensions, major=major)
        if chart.is_refused(name, version):
            run = chart.template(request)
            assert run.returncode != 0 and "image volumes came with Kubernetes 1.31" in run.stderr, (request, run.stderr)
            count("renders refused as they should be")
            continue
        objects = chart.render(name, version=version, extensions=extensions, major=major)
        count("renders")
        count("objects compared with Kubernetes' schemas", chart.check_kubernetes(objects, version))
        custom = [one for one in objects if chart.is_custom(one)]
        assert extensions or not custom, custom
        for one in custom:
            crds.check(one)
            count("objects compared with operators' definitions")


def test_there_are_enough_sets():
    assert len(chart.SETS) >= 30
    assert set(chart.NEEDS_VERSION) <= set(chart.SETS)


def test_pairs_are_all_pairs():
    rows = [(name, *case) for name in chart.SETS for case in pairs_of(name)]
    factors = [chart.SETS, chart.VERSIONS, (False, True), (3, 4)]
    for first, second in itertools.combinations(range(4), 2):
        met = {(row[first], row[second]) for row in rows}
        assert met == set(itertools.product(factors[first], factors[second])), (first, second)


@pytest.mark.parametrize("name", chart.SETS)
def test_pairs(name, count):
    check(name, pairs_of(name), count)


@pytest.mark.long
@pytest.mark.parametrize("name", chart.SETS)
def test_all(name, count):
    check(name, CASES, count)


@pytest.mark.parametrize("name", ["every-flag", "fractions", "production", "secure"])
def test_helm_3_and_4_agree(name):
    assert chart.render(name, major=3) == chart.render(name, major=4)


@pytest.mark.long
def test_helm_3_and_4_agree_on_all():
    for name in chart.SETS:
        test_helm_3_and_4_agree(name)


def lint(name, major, version, count):
    """`helm lint` cannot be told which operators there are, and passes over what the chart refuses."""
    run = chart.helm(major, "lint", "--strict", chart.CHART, "--values", chart.set_path(name), "--kube-version", version)
    assert run.returncode == 0, f"{name}, {version}: {run.stdout}{run.stderr}"
    count("lints")


@pytest.mark.parametrize("major", (3, 4))
def test_lint(major, count):
    for name in chart.SETS:
        lint(name, major, chart.VERSIONS[-1], count)


@pytest.mark.long
@pytest.mark.parametrize("version", chart.VERSIONS[:-1])
@pytest.mark.parametrize("major", (3, 4))
def test_lint_of_all_versions(major, version, count):
    for name in chart.SETS:
        lint(name, major, version, count)


def test_schemas_find_faults():
    """The control: what each version does not know is found."""
    objects = json.loads(json.dumps(chart.render("production", version="1.33")))
    deployment = chart.deployment(objects)
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(AssertionError, match="readynessProbe"):
        chart.check_kubernetes(objects, "1.33")
    with pytest.raises(AssertionError, match="SchemaNotFound|Couldn't find|unknown|Widget"):
        chart.check_kubernetes([{"apiVersion": "v1", "kind": "Widget", "metadata": {"name": "w"}}], "1.33")
    # The hook came with 1.29.
    with pytest.raises(AssertionError, match="sleep"):
        chart.check_kubernetes(chart.render("claim", version="1.33"), "1.27")
