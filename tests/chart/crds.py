"""Objects of operators, compared with their own definitions, unknown fields being errors."""

import functools

import jsonschema


@functools.lru_cache(maxsize=None)
def models():
    """Made by PyPI's cloudcoil from the operators' definitions. They take seconds to import."""
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

    return {model.__name__: model for model in (ScaledObject, PodMonitor, PrometheusRule, ServiceMonitor)}


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
    """AssertionError when `one` is not as its definition says."""
    try:
        if one["kind"] == "GRPCRoute":
            jsonschema.validate(one, GRPC_ROUTE)
        else:
            models()[one["kind"]].model_validate(one, extra="forbid")
    except (ValueError, jsonschema.ValidationError) as error:
        raise AssertionError(f"{one['kind']}: {error}") from error
