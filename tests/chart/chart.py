"""The chart as helm renders it: value sets, versions of Kubernetes, objects, and what Kubernetes' own schemas say of them."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Another chart can be tested, to see that a fault planted in a copy is found.
CHART = pathlib.Path(os.environ.get("SLUICE_CHART", ROOT / "helm" / "sluice"))
HELM = {major: ROOT / "build" / "helm" / str(major) / "helm" for major in (3, 4)}

# From the oldest that Chart.yaml allows to the newest that helm 4 knows.
VERSIONS = tuple(f"1.{minor}" for minor in range(27, 36))
# What operators add to a cluster.
EXTENSIONS = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1", "gateway.networking.k8s.io/v1")
SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
# Value sets that older versions refuse, and which is the first that takes them.
NEEDS_VERSION = {"image-volume": "1.31", "copy-image": "1.31"}
MODEL = {"model": {"existingClaim": "models"}}


def minor(version):
    return int(version.split(".")[1])


def set_path(name):
    return CHART / "ci" / f"{name}-values.yaml"


def set_values(name):
    return yaml.load(set_path(name).read_text(), yaml.CSafeLoader)


def is_refused(name, version):
    return minor(version) < minor(NEEDS_VERSION.get(name, version))


@dataclasses.dataclass(frozen=True)
class Request:
    """A call of helm. Hashable, so that equal renders are made once."""

    values: str = json.dumps(MODEL)  # JSON, after the set's
    of_set: str = ""
    version: str = VERSIONS[-1]
    extensions: bool = True
    major: int = 4
    release: str = "demo"
    namespace: str = "inference"
    chart: pathlib.Path = CHART

    def arguments(self):
        arguments = ["--namespace", self.namespace, "--kube-version", self.version]
        if self.extensions:
            arguments += ["--api-versions", ",".join(EXTENSIONS)]
        if self.of_set:
            arguments += ["--values", str(self.chart / "ci" / f"{self.of_set}-values.yaml")]
        return arguments + ["--values", "-"]


def helm(major, *arguments, stdin=""):
    assert HELM[major].exists(), f"{HELM[major]} is not there: run scripts/fetch_helm.sh"
    # Short runs: collecting garbage is a third of their time.
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent", "GOGC": "off"}
    return subprocess.run([HELM[major], *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120,
                          env=environment)


def template(request):
    """The finished process, whatever came of it."""
    return helm(request.major, "template", request.release, request.chart, *request.arguments(), stdin=request.values)


@functools.lru_cache(maxsize=None)
def text_of(request):
    run = template(request)
    assert run.returncode == 0, f"{request}: {run.stderr}"
    return run.stdout


@functools.lru_cache(maxsize=None)
def _objects_of(request):
    return [document for document in yaml.load_all(text_of(request), yaml.CSafeLoader) if document]


def render(of_set="", values=None, **fields):
    """The objects of a render; `values` on top of the set's, or of the least there must be. Not to be changed."""
    given = values if values is not None else {} if of_set else MODEL
    return _objects_of(Request(values=json.dumps(given), of_set=of_set, **fields))


def notes(of_set="", values=None, **fields):
    given = values if values is not None else {} if of_set else MODEL
    request = Request(values=json.dumps(given), of_set=of_set, **fields)
    # Only helm 4 writes notes without a cluster, and for a cluster of its own version without extensions.
    arguments = [argument for argument in request.arguments()]
    for option in ("--kube-version", "--api-versions"):
        if option in arguments:
            place = arguments.index(option)
            del arguments[place:place + 2]
    run = helm(4, "install", request.release, request.chart, "--dry-run=client", *arguments, stdin=request.values)
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\nNOTES:\n", 1)[1]


def of_kind(objects, kind, name=None):
    return [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]


def the(objects, kind, name=None):
    found = of_kind(objects, kind, name)
    assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}"
    return found[0]


def deployment(objects):
    return the(objects, "Deployment")


def test_pods(objects):
    return of_kind(objects, "Pod")


def pods(objects):
    """[(metadata, spec)] of all pods that the objects make."""
    template_ = deployment(objects)["spec"]["template"]
    return [(template_["metadata"], template_["spec"])] + [(pod["metadata"], pod["spec"]) for pod in test_pods(objects)]


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def server(objects):
    [container] = deployment(objects)["spec"]["template"]["spec"]["containers"]
    return container


def flags(container):
    """{flag: value} of the arguments; a flag without one has None."""
    return dict(argument.removeprefix("--").split("=", 1) if "=" in argument else (argument.removeprefix("--"), None)
                for argument in container["args"] if argument.startswith("--"))


def milliseconds(text):
    assert text.endswith("s") and not text.endswith("ms"), text
    return int(text[:-1]) * 1000


def quantity(value):
    """A quantity of Kubernetes as a number."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    text = str(value)
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit):
            return float(text[:-len(unit)]) * units[unit]
    return float(text)


def merged(base, values):
    """`values` on top of `base`, as helm does it: null takes a value away."""
    result = dict(base)
    for key, value in values.items():
        if value is None:
            result.pop(key, None)
        else:
            below = base[key] if isinstance(base.get(key), dict) else {}
            result[key] = merged(below, value) if isinstance(value, dict) else value
    return result


@functools.lru_cache(maxsize=None)
def default_values():
    return merged({}, yaml.load((CHART / "values.yaml").read_text(), yaml.CSafeLoader))


def expand(text, variables):
    """An argument as the kubelet hands it on: $(NAME) of a variable that there is, one $ for two."""
    return re.sub(r"\$(\$|\(([^)]*)\))",
                  lambda match: "$" if match[1] == "$" else variables.get(match[2], match[0]), text)


class UniqueLoader(yaml.SafeLoader):
    """Refuses a map with two equal keys."""


def _construct_unique(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"twice in {keys}"
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


UniqueLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_unique)


def selects(labels, of):
    return all(of.get(key) == value for key, value in labels.items())


# What is no part of Kubernetes: checked by models of its own (crds.py).
CUSTOM = {("monitoring.coreos.com/v1", "PodMonitor"), ("monitoring.coreos.com/v1", "ServiceMonitor"),
          ("monitoring.coreos.com/v1", "PrometheusRule"), ("keda.sh/v1alpha1", "ScaledObject"),
          ("gateway.networking.k8s.io/v1", "GRPCRoute")}


def is_custom(one):
    return (one["apiVersion"], one["kind"]) in CUSTOM


@functools.lru_cache(maxsize=None)
def _check(text, version):
    import kubernetes_validate.utils as validate

    if not hasattr(validate.schema_contents, "cache_info"):  # each is some MB of JSON
        validate.schema_contents = functools.lru_cache(maxsize=None)(validate.schema_contents)
    # An unknown kind raises SchemaNotFoundError, a failure like the others.
    validate.validate(json.loads(text), version, strict=True)


def check_kubernetes(objects, version):
    """Compares every object that is Kubernetes' own with the schema of `version`, unknown fields being errors. Their number."""
    own = [one for one in objects if not is_custom(one)]
    for one in own:
        try:
            _check(json.dumps(one, sort_keys=True), version)
        except Exception as error:
            raise AssertionError(f"{one['kind']} {one['metadata']['name']}, Kubernetes {version}: {error}") from error
    return len(own)
