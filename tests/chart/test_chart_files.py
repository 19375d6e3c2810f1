"""The files of the chart: schema, README, golden render, package."""

import difflib
import json
import pathlib
import re
import subprocess
import sys

import yaml

import chart

GOLDEN = pathlib.Path(__file__).parent / "default.golden.yaml"


def schema():
    return json.loads((chart.CHART / "values.schema.json").read_text())


def values():
    return yaml.safe_load((chart.CHART / "values.yaml").read_text())


def resolve(part, definitions):
    while "$ref" in part:
        part = definitions[part["$ref"].rpartition("/")[2]]
    return part


def test_golden():
    """The default render, to be read where it changes: tests/chart/test_chart_files.py writes it."""
    wanted, actual = GOLDEN.read_text(), chart.text_of(golden_request())
    assert actual == wanted, "\n" + "".join(difflib.unified_diff(wanted.splitlines(True), actual.splitlines(True), str(GOLDEN), "render"))


def golden_request():
    return chart.Request(version="1.33", extensions=False, release="sluice", namespace="default")


def test_schema_is_closed():
    """Every object says which fields it has, but for what Helm owns."""
    whole = schema()
    seen = 0

    def walk(part, path):
        nonlocal seen
        if not isinstance(part, dict):
            return
        if "properties" in part or part.get("type") == "object":
            if path == "properties.global":  # Helm gives it to subcharts
                return
            if part.get("additionalProperties") is not False:
                assert isinstance(part.get("additionalProperties"), dict), f"{path} takes anything"
            seen += 1
        for key, value in part.items():
            if key in ("properties", "definitions"):
                for name, one in value.items():
                    walk(one, f"{key}.{name}" if not path else f"{path}.{key}.{name}")
            elif key in ("additionalProperties", "items", "not", "propertyNames"):
                walk(value, f"{path}.{key}")
            elif key in ("anyOf", "allOf", "oneOf"):
                for one in value:
                    walk(one, f"{path}.{key}")

    # "allOf" with "required" beside it is a refinement of a closed object.
    for refined in ("requests", "limits"):
        assert whole["definitions"]["resources"]["properties"][refined]["allOf"] == [{"$ref": "#/definitions/quantities"}]
    walk(whole, "")
    assert seen > 25


def test_schema_and_values_have_the_same_fields():
    whole = schema()

    def walk(part, value, path):
        part = resolve(part, whole["definitions"])
        if isinstance(value, dict) and part.get("additionalProperties") is False:
            assert set(part["properties"]) - {"global"} == set(value) or not value, (path, set(part["properties"]) ^ set(value))
            for name, one in value.items():
                walk(part["properties"][name], one, f"{path}.{name}")

    walk(whole, values(), "values")


def test_what_has_a_default_cannot_be_taken_away():
    """null takes a default away: where the chart reckons with one, the schema wants the value."""
    whole = schema()

    def may_be_null(part):
        return part.get("type") == "null" or "null" in part.get("type", []) or None in part.get("enum", []) or any(
            may_be_null(one) for one in part.get("anyOf", []))

    def walk(part, value):
        part = resolve(part, whole["definitions"])
        wanted = set()
        for name, one in part["properties"].items():
            inner = resolve(one, whole["definitions"])
            default = value.get(name)
            if default and "properties" in inner and inner.get("additionalProperties") is False:
                wanted.add(name)
                if name != "resources":
                    walk(inner, default)
            elif default not in (None, "", {}, []) and not isinstance(default, (dict, list)) and not may_be_null(inner):
                wanted.add(name)
        assert set(part.get("required", [])) == wanted, set(part.get("required", [])) ^ wanted

    walk(whole, values())


def test_every_flag_can_be_set(serve_flags):
    """What the program offers the chart does, but for one that does nothing."""
    container = chart.server(chart.render("every-flag"))
    given = set(chart.flags(container))
    for name in ("claim-file", "chat-template", "secure", "gpu-mig", "memory-locked"):
        given |= set(chart.flags(chart.server(chart.render(name))))
    assert serve_flags - given == {"no-mmap"}


def test_the_table_of_values_is_that_of_the_file():
    script = chart.ROOT / "scripts" / "chart_table.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_value_is_described():
    text = (chart.CHART / "README.md").read_text()
    shown = re.findall(r"^\| `([\w.]+)` \|", text, re.M)
    assert len(shown) == len(set(shown)) > 100

    def leaves(value, path):
        if path in shown:
            return []
        if isinstance(value, dict) and value:
            return [leaf for name, one in value.items() for leaf in leaves(one, f"{path}.{name}" if path else name)]
        return [path]

    assert not leaves(values(), "")


def test_versions_are_those_of_the_project():
    facts = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    [version] = re.findall(r"^project\(sluice VERSION (\S+)", (chart.ROOT / "CMakeLists.txt").read_text(), re.M)
    assert facts["appVersion"] == facts["version"] == version


def test_the_package_holds_what_it_needs(tmp_path):
    for major in (3, 4):
        run = chart.helm(major, "package", chart.CHART, "--destination", tmp_path)
        assert run.returncode == 0, run.stderr
        [package] = tmp_path.glob("*.tgz")
        names = subprocess.run(["tar", "-tzf", package], capture_output=True, text=True, check=True).stdout.split()
        assert {"sluice/files/rules.yaml", "sluice/files/dashboard.json", "sluice/values.schema.json"} <= set(names)
        assert not [name for name in names if "/ci/" in name]
        run = chart.helm(major, "template", "p", package, "--set", "model.existingClaim=models")
        assert run.returncode == 0 and "kind: Deployment" in run.stdout, run.stderr
        package.unlink()


if __name__ == "__main__":
    GOLDEN.write_text(chart.text_of(golden_request()))
