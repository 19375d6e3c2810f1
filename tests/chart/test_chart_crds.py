"""Objects of operators, compared with their own definitions, unknown fields being errors."""

import copy

import jsonschema
import pytest
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

import chart

MODELS = {model.__name__: model for model in (ScaledObject, PodMonitor, PrometheusRule, ServiceMonitor)}


def closed(required=(), **properties):
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


NAME = {"type": "string", "minLength": 1, "maxLength": 253}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
# Of GRPCRoute what the chart uses (https://gateway-api.sigs.k8s.io/reference/spec/#grpcroute): no package has it all.
GRPC_ROUTE = closed(
    ("apiVersion", "kind", "metadata", "spec"), apiVersion={"const": "gateway.networking.k8s.io/v1"}, kind={"const": "GRPCRoute"},
    metadata={"type": "object"},
    spec=closed(
        ("parentRefs", "rules"),
        parentRefs={"type": "array", "minItems": 1, "maxItems": 32,
                    "items": closed(("name",), name=NAME, namespace={**NAME, "maxLength": 63}, sectionName=NAME, port=PORT)},
        hostnames={"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 253}},
        rules={"type": "array", "minItems": 1, "maxItems": 16, "items": closed(
            matches={"type": "array", "maxItems": 64, "items": closed(
                method=closed(type={"enum": ["Exact", "RegularExpression"]}, service={"type": "string"}, method={"type": "string"}))},
            backendRefs={"type": "array", "maxItems": 16, "items": closed(("name", "port"), name=NAME, port=PORT)})}))


def check(one):
    if one["kind"] == "GRPCRoute":
        jsonschema.validate(one, GRPC_ROUTE)
    else:
        MODELS[one["kind"]].model_validate(one, extra="forbid")


# Extensions are the same whatever the version.
CUSTOM = [(name, one) for name in chart.SETS for one in chart.render(name) if chart.is_custom(one)]


def test_every_kind_is_met():
    assert {one["kind"] for _, one in CUSTOM} == {kind for _, kind in chart.CUSTOM} == set(MODELS) | {"GRPCRoute"}


@pytest.mark.parametrize("name, one", CUSTOM, ids=[f"{name}-{one['kind']}" for name, one in CUSTOM])
def test_definition(name, one, count):
    check(one)
    count("objects compared with operators' definitions")


@pytest.mark.parametrize("kind", [*MODELS, "GRPCRoute"])
def test_definitions_find_faults(kind):
    """The control."""
    good = next(one for _, one in CUSTOM if one["kind"] == kind)
    unknown = copy.deepcopy(good)
    unknown["spec"]["unheardOf"] = 1
    with pytest.raises(ValueError if kind != "GRPCRoute" else jsonschema.ValidationError):
        check(unknown)
    missing = copy.deepcopy(good)
    missing["spec"].pop({"ScaledObject": "triggers", "PodMonitor": "selector", "ServiceMonitor": "selector",
                         "PrometheusRule": "groups", "GRPCRoute": "rules"}[kind])
    if kind != "PrometheusRule":  # may be empty
        with pytest.raises(ValueError if kind != "GRPCRoute" else jsonschema.ValidationError):
            check(missing)
