"""Value sets that nobody thought of, drawn from the schema (random_values.py). Each either renders into objects that every
schema and policy takes, or is refused in one sentence that names a value which was given; then that value is left to its
default, and the rest is tried again, until it renders."""

import functools
import json
import random
import re
import subprocess

import pytest
import yaml
from yamllint import linter

import chart
import crds
import policies
from certificates import Issuer
from credentials import TENANT, entry
from random_values import Drawer, paths, schema, without
from test_chart_policy import LINT

SEEDS = range(40)
MANY = range(1000, 1200)
EXCEPT_NAMES = re.compile(r"<no value>|<nil>|%!|nil pointer|map\[")


def sentence(stderr):
    """The one sentence of a refusal, and the names of values in it, dotted."""
    text = stderr.replace("\n\nUse --debug flag to render out invalid YAML", "").rstrip("\n")
    if match := re.search(r"^Error: execution error at \(sluice/templates/[^)]*\): (.+)\Z", text, re.M):
        words = match[1]
        assert not EXCEPT_NAMES.search(words), words
        head = re.match(r"[A-Za-z][\w.-]*(?=: | \()", words)
        assert head, f"names no value first: {words}"
        return words, [head[0], *re.findall(r"\b[A-Za-z]\w*(?:\.[A-Za-z][\w-]*)+", words)]
    # Of the schema: what null took away, or where it is no value.
    assert "specifications of the schema" in text, text
    named = []
    for place, words in re.findall(r"^ *- (at '.*?'|[^:]*): (.*)$", text, re.M):
        above = re.sub(r"^at '/?|'$|^\(root\)$", "", place).replace("/", ".")
        missing = re.findall(r"'([^']+)'", words) if "missing propert" in words else re.findall(r"^([\w-]+) is required", words)
        named += [f"{above}.{one}".lstrip(".") for one in missing] or [above]
    assert named and re.search("missing propert|is required|null", text), text
    return text.splitlines()[-1], named


@functools.lru_cache(maxsize=None)
def render(seed):
    """(request, values, number of refusals) of the first of a seed that renders."""
    draw = random.Random(-seed - 1)
    version, major = draw.choice(chart.VERSIONS), draw.choice((3, 4))
    values = Drawer(seed).values()
    for refusals in range(200):
        request = chart.Request(values=json.dumps(values, ensure_ascii=False), version=version, major=major)
        run = chart.template(request)
        if run.returncode == 0:
            return request, values, refusals
        words, named = sentence(run.stderr)
        given = set(paths(values))
        # The nearest that was given of each that is named.
        found = []
        for name in named:
            while name and name not in given:
                name = name.rpartition(".")[0]
            found += [name] if name else []
        assert found, f"seed {seed}: refused for nothing that was given: {words}\n{json.dumps(values)}"
        found = [name for name in found if not any(other.startswith(name + ".") for other in found)]
        values = without(values, draw.choice(found))
        if not any(path in ("model.existingClaim", "model.hostPath", "model.image.reference", "model.csi.driver") for path in paths(values)):
            values["model"] = {**(values.get("model") or {}), "existingClaim": "models"}
    raise AssertionError(f"seed {seed} never renders: {words}")


def check(seed, program_flags, count):
    request, values, refusals = render(seed)
    count("random sets refused in one sentence", refusals)
    text = chart.text_of(request)
    objects = [one for one in yaml.load_all(text, chart.UniqueLoader) if one]
    count("random sets that render")
    count("values of random sets", len(list(paths(values))))
    findings = [f"line {problem.line}: {problem.desc}" for problem in linter.run(text, LINT)]
    # Texts that were drawn may hold anything.
    given = json.dumps(values, ensure_ascii=False)
    findings += [line for line in text.splitlines() if re.search("<no value>|<nil>|%!", line) and "%" not in given]
    looked = policies.Render(f"seed {seed}", request.version, objects, program_flags, values)
    for name, (policy, _, _) in policies.POLICIES.items():
        try:
            policy(looked)
        except Exception as error:
            findings.append(f"{name}: {type(error).__name__} {error}")
        count("policy checks of random sets")
    for one in objects:
        if chart.is_custom(one):
            crds.check(one)
    try:
        count("objects of random sets compared with Kubernetes' schemas", chart.check_kubernetes(objects, request.version))
    except AssertionError as error:
        findings.append(str(error))
    assert not findings, f"seed {seed}, helm {request.major}, Kubernetes {request.version}\n" + "\n".join(findings) + "\n" + json.dumps(values, indent=1)
    return request


@pytest.fixture(scope="session")
def program_flags(serve_flags):
    return frozenset(serve_flags)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_values(seed, program_flags, count):
    check(seed, program_flags, count)


@pytest.mark.long
@pytest.mark.parametrize("seed", MANY)
def test_many_random_values(seed, program_flags, count):
    request = check(seed, program_flags, count)
    # The other helm says the same.
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    other = chart.Request(**{**fields, "major": 7 - request.major})
    assert list(yaml.load_all(chart.text_of(other), yaml.CSafeLoader)) == list(yaml.load_all(chart.text_of(request), yaml.CSafeLoader))


def nulls(part, whole, wanted):
    """Values in which everything is null that `wanted` says, required or not."""
    part = Drawer(0, whole).resolve(part)
    result = {}
    for name, one in part["properties"].items():
        inner = Drawer(0, whole).resolve(one)
        if name == "global":
            continue
        if "properties" in inner and name in part.get("required", []):
            if below := nulls(inner, whole, wanted):
                result[name] = below
        elif (name in part.get("required", [])) is wanted:
            result[name] = None
    return result


@pytest.mark.parametrize("major", (3, 4))
def test_all_that_may_be_null_is(major, program_flags, count):
    whole = schema()
    values = nulls(whole, whole, False)
    assert len(list(paths(values))) > 80
    values["model"]["existingClaim"] = "models"
    for more in ({}, {"gateway": {"enabled": True, "parentRefs": [{"name": "a"}]}, "tenants": {"default": {"weight": 2}},
                      "autoscaling": {"enabled": True}, "monitoring": {"dashboard": {"enabled": True}}}):
        given = {**values, **{name: {**values[name], **one} for name, one in more.items()}}
        objects = chart.render(values=given, major=major)
        chart.check_kubernetes(objects, chart.VERSIONS[-1])
        looked = policies.Render("all null", chart.VERSIONS[-1], objects, program_flags, given)
        for policy, _, _ in policies.POLICIES.values():
            policy(looked)
            count("policy checks of what may be null")


def leaves(values, above=""):
    for name, value in values.items():
        if value is None:
            yield above + name
        else:
            yield from leaves(value, f"{above}{name}.")


def with_null(path):
    head, _, rest = path.partition(".")
    return {head: with_null(rest) if rest else None}


@pytest.mark.long
@pytest.mark.parametrize("major", (3, 4))
def test_what_is_reckoned_with_may_not_be_null(major, count):
    whole = schema()
    for path in leaves(nulls(whole, whole, True)):
        values = with_null(path)
        values["model"] = {**values.get("model", {}), **chart.MODEL["model"]}
        run = chart.template(chart.Request(values=json.dumps(values), major=major))
        assert run.returncode != 0 and path in sentence(run.stderr)[1], (path, run.stderr)
        count("defaults that cannot be taken away")


def every_path(part, whole, above=""):
    """Dotted names of every property of the schema that has a default of its own."""
    while "$ref" in part:
        part = whole["definitions"][part["$ref"].rpartition("/")[2]]
    if "allOf" in part:
        part = whole["definitions"][part["allOf"][0]["$ref"].rpartition("/")[2]]
    for name, one in part.get("properties", {}).items():
        yield above + name
        yield from every_path(one, whole, f"{above}{name}.")


def test_every_property_is_drawn():
    whole = schema()
    wanted = set(every_path(whole, whole)) - {"global"}
    drawn = {path for seed in SEEDS for path in paths(Drawer(seed, whole).values())}
    assert len(wanted) > 150
    assert not wanted - drawn, wanted - drawn


def test_what_is_drawn_fits_the_schema():
    """But for what null takes away."""
    import jsonschema

    whole = schema()
    for seed in SEEDS:
        values = chart.merged(chart.default_values(), Drawer(seed, whole).values())
        faults = [error for error in jsonschema.Draft7Validator(whole).iter_errors(values) if error.validator != "required"]
        assert not faults, (seed, faults[0].message)
    assert Drawer(3).values() == Drawer(3).values() != Drawer(4).values()


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """What Secrets would hold, under the names of their flags."""
    folder = tmp_path_factory.mktemp("files")
    issuer = Issuer()
    certificate, key = issuer.issue("localhost")
    contents = {"tls-cert": certificate, "tls-key": key, "tls-client-ca": issuer.pem,
                "auth-file": json.dumps({"tokens": [entry(TENANT)]}).encode(), "tenants": b'{"tenants": {}}'}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_the_program_takes_the_flags(seed, program, files, tmp_path, count):
    """It finds no fault but that there is no model."""
    request, values, _ = render(seed)
    objects = [one for one in yaml.load_all(chart.text_of(request), yaml.CSafeLoader) if one]
    container = chart.server(objects)
    variables = {one["name"]: one["value"] for one in container.get("env", [])}
    arguments = []
    for argument in container["args"]:
        flag, _, value = chart.expand(argument, variables).removeprefix("--").partition("=")
        if flag == "tenants" and not values.get("tenants", {}).get("existingConfigMap"):
            [name] = [volume["configMap"]["name"] for volume in chart.pods(objects)[0][1]["volumes"] if volume["name"] == "config"]
            config = chart.the(objects, "ConfigMap", name)
            (tmp_path / "tenants.json").write_text(config["data"]["tenants.json"])
            value = str(tmp_path / "tenants.json")
        elif (files / flag).exists():
            value = str(files / flag)
        elif flag == "model":
            value = "/nonexistent/model.gguf"
        elif flag.endswith("listen"):
            value = "127.0.0.1:0"
        elif flag == "threads":  # there are as many as the machine allows
            value = "1"
        elif flag == "chat-template":
            continue
        elif flag == "log-level":
            value = "off"
        arguments.append(f"--{flag}={value}" if "=" in argument else argument)
    run = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert run.returncode == 78 and "/nonexistent/model.gguf" in run.stderr, (arguments, run)
    count("command lines of random sets that the program takes", 1)

