"""What has to hold of every render, one function each, with a fault that it must find.

A policy takes a `Render` and asserts. `planted` changes a copy of the objects of its value set so that the policy must fail."""

import dataclasses
import functools
import json
import re

import chart
import crds
from chart import containers, deployment, flags, milliseconds, of_kind, pods, quantity, selects, server, the

POLICIES = {}


@dataclasses.dataclass(frozen=True)
class Render:
    name: str  # of the value set
    version: str
    objects: list = dataclasses.field(hash=False, compare=False)
    program_flags: frozenset = frozenset()
    given: dict = dataclasses.field(default=None, hash=False, compare=False)  # the values, where no set has them
    extensions: bool = True  # whether there are operators

    @functools.cached_property
    def values(self):
        """Those of the chart and what was given; a value that is unset is not there."""
        given = chart.set_values(self.name) if self.given is None else self.given
        return chart.merged(chart.default_values(), given)

    @property
    def pod(self):
        return deployment(self.objects)["spec"]["template"]["spec"]

    @property
    def pod_labels(self):
        return deployment(self.objects)["spec"]["template"]["metadata"]["labels"]

    @property
    def flags(self):
        return flags(server(self.objects))


def policy(planted, of_set="claim"):
    """`planted(objects)` plants the fault into the objects of value set `of_set`."""
    def add(check):
        POLICIES[check.__name__] = (check, planted, of_set)
        return check
    return add


def set_in(*path, value, kind="Deployment"):
    """A fault: the value at `path` of the first object of that kind."""
    def plant(objects):
        place = of_kind(objects, kind)[0]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    return plant


def drop_in(*path, kind="Deployment"):
    def plant(objects):
        place = of_kind(objects, kind)[0]
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
    return plant


POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

# Restricted Pod Security, https://kubernetes.io/docs/concepts/security/pod-security-standards/. Image volumes belong to
# its volumes since 1.33.
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}


def add_capability(objects):
    server(objects)["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]


@policy(add_capability)
def capabilities_are_dropped(render):
    for _, spec in pods(render.objects):
        for container in containers(spec):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@policy(set_in(*CONTAINER, "securityContext", "allowPrivilegeEscalation", value=True))
def no_privileges(render):
    for _, spec in pods(render.objects):
        for container in containers(spec):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert not context.get("privileged", False)
            assert context.get("procMount", "Default") == "Default"


@policy(set_in(*POD, "securityContext", "runAsUser", value=0))
def nobody_is_root(render):
    for _, spec in pods(render.objects):
        assert spec["securityContext"]["runAsNonRoot"] is True
        for context in [spec["securityContext"]] + [container["securityContext"] for container in containers(spec)]:
            assert context.get("runAsNonRoot", True) is True
            assert context.get("runAsUser", 1) != 0 and context.get("runAsGroup", 1) != 0 and context.get("fsGroup", 1) != 0


@policy(drop_in(*POD, "securityContext", "seccompProfile"))
def system_calls_are_filtered(render):
    for _, spec in pods(render.objects):
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(spec):
            assert "seccompProfile" not in container["securityContext"]


@policy(set_in(*POD, "hostNetwork", value=True))
def nothing_of_the_host(render):
    for _, spec in pods(render.objects):
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostAliases", "shareProcessNamespace"} & set(spec)
        assert "sysctls" not in spec["securityContext"] and "seLinuxOptions" not in spec["securityContext"]
        for container in containers(spec):
            assert not [port for port in container.get("ports", []) if "hostPort" in port]


@policy(lambda objects: deployment(objects)["spec"]["template"]["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}))
def volumes_are_restricted(render):
    for _, spec in pods(render.objects):
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        allowed = RESTRICTED_VOLUMES | ({"hostPath"} if render.values["model"].get("hostPath") else set())
        assert kinds <= allowed, kinds - allowed


@policy(set_in(*CONTAINER, "securityContext", "readOnlyRootFilesystem", value=False))
def root_is_read_only(render):
    for _, spec in pods(render.objects):
        for container in containers(spec):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def unlimited_disk(objects):
    [tmp] = [volume for volume in deployment(objects)["spec"]["template"]["spec"]["volumes"] if volume["name"] == "tmp"]
    del tmp["emptyDir"]["sizeLimit"]


@policy(unlimited_disk)
def writable_places_are_bounded(render):
    for _, spec in pods(render.objects):
        assert [mount for mount in spec["containers"][0]["volumeMounts"] if mount["mountPath"] == "/tmp"]
        for volume in spec["volumes"]:
            if "emptyDir" in volume:
                assert quantity(volume["emptyDir"]["sizeLimit"]) > 0
        # What a pod's volumes hold counts as its containers' disk: together they must have room for it.
        held = sum(quantity(volume["emptyDir"]["sizeLimit"]) for volume in spec["volumes"] if "emptyDir" in volume)
        of_containers = sum(quantity(one["resources"]["limits"]["ephemeral-storage"]) for one in spec["containers"])
        of_init = [quantity(one["resources"]["limits"]["ephemeral-storage"]) for one in spec.get("initContainers", [])]
        assert max([of_containers, *of_init]) >= held


@policy(set_in(*CONTAINER, "volumeMounts", 0, "readOnly", value=False))
def files_are_read_only(render):
    for _, spec in pods(render.objects):
        for container in containers(spec):
            for mount in container["volumeMounts"]:
                may_write = mount["name"] == "tmp" or (container["name"] == "copy-model" and mount["name"] == "model")
                assert mount.get("readOnly", False) is not may_write, mount
    for volume in render.pod["volumes"]:
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["readOnly"] is True


@policy(set_in(*CONTAINER, "volumeMounts", 0, "subPath", value="x"))
def files_can_change(render):
    """A single file that is mounted never changes."""
    for _, spec in pods(render.objects):
        for container in containers(spec):
            assert not [mount for mount in container["volumeMounts"] if "subPath" in mount or "subPathExpr" in mount]


@policy(set_in(*CONTAINER, "volumeMounts", 0, "name", value="nowhere"))
def mounts_have_volumes(render):
    for _, spec in pods(render.objects):
        names = [volume["name"] for volume in spec["volumes"]]
        assert len(names) == len(set(names))
        used = set()
        for container in containers(spec):
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths))
            used |= {mount["name"] for mount in container["volumeMounts"]}
        assert used == set(names)


def path_elsewhere(objects):
    arguments = server(objects)["args"]
    arguments[[a.startswith("--model=") for a in arguments].index(True)] = "--model=/data/model.gguf"


@policy(path_elsewhere)
def paths_lie_in_mounts(render):
    for _, spec in pods(render.objects):
        for container in spec["containers"]:
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            for flag, value in flags(container).items():
                if value and value.startswith("/") and flag not in ("model-name", "prompt"):
                    assert [path for path in mounts if value == path or value.startswith(path + "/")], (flag, value)


@policy(set_in(*CONTAINER, "args", 1, value="--tensor-parallel=2"))
def flags_exist(render):
    container = server(render.objects)
    assert container["command"] == ["sluice"] and container["args"][0] == "serve"
    assert all(argument.startswith("--") for argument in container["args"][1:])
    names = [argument.split("=")[0] for argument in container["args"][1:]]
    assert len(names) == len(set(names))
    assert set(render.flags) <= render.program_flags, set(render.flags) - render.program_flags


@policy(set_in(*CONTAINER, "env", value=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]))
def secrets_are_files(render):
    assert not of_kind(render.objects, "Secret")
    for _, spec in pods(render.objects):
        for container in containers(spec):
            assert "envFrom" not in container
            assert all(set(variable) == {"name", "value"} for variable in container.get("env", []))
        for volume in spec["volumes"]:
            if "secret" in volume:
                # Without a group of the volumes nobody but root would read 0440.
                assert volume["secret"]["defaultMode"] == (0o440 if "fsGroup" in spec["securityContext"] else 0o444)
                assert volume["secret"]["items"]


@policy(set_in(*POD, "automountServiceAccountToken", value=True))
def nobody_talks_to_the_api_server(render):
    for _, spec in pods(render.objects):
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
    for account in of_kind(render.objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not [one["kind"] for one in render.objects if "rbac" in one["apiVersion"]]


@policy(set_in("metadata", "name", value="another", kind="ServiceAccount"))
def accounts_exist(render):
    made = {account["metadata"]["name"] for account in of_kind(render.objects, "ServiceAccount")}
    for _, spec in pods(render.objects):
        assert spec["serviceAccountName"] in made or not render.values["serviceAccount"]["create"]


@policy(drop_in(*CONTAINER, "readinessProbe"))
def probes_ask_for_what_they_mean(render):
    container = server(render.objects)
    [ops] = [port["containerPort"] for port in container["ports"] if port["name"] == "ops"]
    for probe, service in (("startupProbe", "startup"), ("livenessProbe", "liveness"), ("readinessProbe", "")):
        assert container[probe]["grpc"] == {"port": ops, "service": service}
        assert 1 <= container[probe]["timeoutSeconds"] <= container[probe]["periodSeconds"]
        assert container[probe]["failureThreshold"] >= 1


@policy(set_in(*CONTAINER, "startupProbe", "failureThreshold", value=3))
def starts_have_time(render):
    spec, probe = deployment(render.objects)["spec"], server(render.objects)["startupProbe"]
    budget = probe["periodSeconds"] * probe["failureThreshold"] + probe.get("initialDelaySeconds", 0)
    assert budget >= 2 * render.values.get("probes", {}).get("worstLoadSeconds", 300)
    assert spec["progressDeadlineSeconds"] >= budget + spec["minReadySeconds"] + 60
    # Once started, liveness alone decides: not before 10 s of trouble.
    liveness = server(render.objects)["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 10


@policy(set_in(*POD, "terminationGracePeriodSeconds", value=30))
def drains_fit_the_grace(render):
    hook = server(render.objects).get("lifecycle", {}).get("preStop", {})
    slept = hook["sleep"]["seconds"] if hook else 0
    needed = slept + (milliseconds(render.flags["lame-duck"]) + milliseconds(render.flags["drain-timeout"])) / 1000
    assert render.pod["terminationGracePeriodSeconds"] >= needed + 15
    # The API server wants a sleep to be shorter than the grace.
    assert slept < render.pod["terminationGracePeriodSeconds"]


@policy(set_in(*CONTAINER, "lifecycle", value={"preStop": {"exec": {"command": ["/bin/sh", "-c", "sleep 15"]}}}))
def endpoints_are_given_time(render):
    """By the hook where Kubernetes has it without a gate (1.30), else by the server's lame duck; never by a shell."""
    wanted = {"preStopSeconds": 15, "lameDuckSeconds": 0} | render.values.get("termination", {})
    hook = server(render.objects).get("lifecycle", {}).get("preStop")
    lame_duck = milliseconds(render.flags["lame-duck"]) / 1000
    if hook is None:
        assert lame_duck == wanted["preStopSeconds"] + wanted["lameDuckSeconds"]
    else:
        assert chart.minor(render.version) >= 30
        assert hook == {"sleep": {"seconds": wanted["preStopSeconds"]}} and lame_duck == wanted["lameDuckSeconds"]
    assert chart.minor(render.version) < 30 or wanted["preStopSeconds"] == 0 or hook


@policy(set_in("spec", "strategy", "rollingUpdate", value={"maxSurge": 0, "maxUnavailable": 0}))
def updates_can_begin(render):
    strategy = deployment(render.objects)["spec"]["strategy"]
    if strategy["type"] == "Recreate":
        assert set(strategy) == {"type"}
    else:
        assert [value for value in strategy["rollingUpdate"].values() if str(value).rstrip("%") != "0"]


@policy(set_in("spec", "selector", "matchLabels", "helm.sh/chart", value="sluice-0.1.0"))
def selectors_never_change(render):
    matched = deployment(render.objects)["spec"]["selector"]["matchLabels"]
    assert set(matched) == {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
    assert matched["app.kubernetes.io/instance"] == "demo"


@policy(set_in("spec", "selector", "app.kubernetes.io/component", value="web", kind="Service"))
def selectors_meet_the_server_only(render):
    selectors = [deployment(render.objects)["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in of_kind(render.objects, "Service")]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        selectors += [one["spec"]["selector"]["matchLabels"] for one in of_kind(render.objects, kind)]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(render.objects, "NetworkPolicy")]
    for term in render.pod.get("topologySpreadConstraints", []):
        selectors.append(term["labelSelector"]["matchLabels"])
    anti = render.pod.get("affinity", {}).get("podAntiAffinity", {})
    selectors += [term["labelSelector"]["matchLabels"] for term in anti.get("requiredDuringSchedulingIgnoredDuringExecution", [])]
    selectors += [term["podAffinityTerm"]["labelSelector"]["matchLabels"]
                  for term in anti.get("preferredDuringSchedulingIgnoredDuringExecution", [])]
    for selector in selectors:
        assert selects(selector, render.pod_labels), selector
        for pod in chart.test_pods(render.objects):
            assert not selects(selector, pod["metadata"]["labels"]), "the test's pod would serve"


@policy(set_in("spec", "ports", 0, "targetPort", value="http", kind="Service"))
def ports_have_names_and_meet(render):
    names = {port["name"]: port for port in server(render.objects)["ports"]}
    assert set(names) == {"grpc", "ops", "metrics"}
    assert len({port["containerPort"] for port in names.values()}) == 3
    assert all(len(name) <= 15 for name in names)
    for service in of_kind(render.objects, "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] == port["name"] and port["name"] in names
            assert port["appProtocol"]
    # The operators' port is nobody's but the kubelet's and the operators': no Service leads there.
    assert not [port for service in of_kind(render.objects, "Service") for port in service["spec"]["ports"] if port["name"] == "ops"]


@policy(set_in(*CONTAINER, "ports", 0, "containerPort", value=50052))
def ports_are_listened_on(render):
    ports = {port["name"]: port["containerPort"] for port in server(render.objects)["ports"]}
    for name, flag in (("grpc", "listen"), ("ops", "ops-listen"), ("metrics", "metrics-listen")):
        address, _, port = render.flags[flag].rpartition(":")
        assert int(port) == ports[name] and address in ("0.0.0.0", "[::]")


@policy(set_in(*CONTAINER, "image", value="sluice:latest"))
def images_are_of_a_version(render):
    for _, spec in pods(render.objects):
        for container in containers(spec):
            assert re.fullmatch(r".+(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})", container["image"])
            assert not container["image"].endswith(":latest")
        for volume in spec["volumes"]:
            if "image" in volume:
                assert ":" in volume["image"]["reference"].rsplit("/", 1)[-1]


@policy(set_in("metadata", "labels", "app.kubernetes.io/part-of", value="a" * 64))
def labels_are_valid(render):
    places = [one["metadata"] for one in render.objects] + [metadata for metadata, _ in pods(render.objects)]
    for metadata in places:
        for key, value in metadata["labels"].items():
            assert isinstance(value, str) and len(value) <= 63 and LABEL_VALUE.fullmatch(value), (key, value)
            assert len(key.rpartition("/")[2]) <= 63
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component",
                "app.kubernetes.io/version", "app.kubernetes.io/part-of"} <= set(metadata["labels"])
    for one in render.objects:
        assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


@policy(set_in(*("spec", "template", "metadata", "labels"), "helm.sh/chart", value="sluice-0.1.0"))
def pods_do_not_change_with_the_chart(render):
    assert not [key for key in render.pod_labels if key.startswith("helm.sh/") or key.endswith("managed-by")]


@policy(set_in("metadata", "name", value="a." + "b" * 62, kind="Service"))
def names_are_valid(render):
    for one in render.objects:
        name = one["metadata"]["name"]
        if one["kind"] == "ServiceAccount" and render.values["serviceAccount"].get("name"):
            assert len(name) <= 253 and re.fullmatch(SUBDOMAIN, name), name
        else:
            assert len(name) <= 63 and DNS_LABEL.fullmatch(name), name
        assert one["metadata"]["namespace"] == "inference"
    names = [(one["kind"], one["metadata"]["name"]) for one in render.objects]
    assert len(names) == len(set(names))


@policy(set_in("apiVersion", value="extensions/v1beta1"))
def apis_are_not_old(render):
    assert {one["apiVersion"] for one in render.objects} <= {
        "v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1", *chart.EXTENSIONS}


@policy(drop_in(*CONTAINER, "resources", "limits", "memory"))
def resources_are_said(render):
    for _, spec in pods(render.objects):
        for container in containers(spec):
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]) and "memory" in resources["limits"]
            for name, limit in resources["limits"].items():
                assert quantity(resources["requests"].get(name, 0)) <= quantity(limit)


@policy(set_in(*CONTAINER, "resources", "requests", "nvidia.com/gpu", value=2), of_set="gpu")
def gpus_are_whole_and_used(render):
    resources = server(render.objects)["resources"]
    asked = {name: value for name, value in resources["requests"].items() if name.startswith("nvidia.com/")}
    assert asked == {name: value for name, value in resources["limits"].items() if name.startswith("nvidia.com/")}
    wants = render.values.get("gpu", {}).get("enabled", False)
    assert list(asked.values()) == ([1] if wants else [])
    assert render.flags.get("device") == ("cuda:0" if wants else None)
    assert bool([one for one in render.pod.get("tolerations", []) if one.get("key") == "nvidia.com/gpu"]) is wants
    for pod in chart.test_pods(render.objects):
        assert not [name for name in pod["spec"]["containers"][0]["resources"]["limits"] if "nvidia" in name]


@policy(lambda objects: server(objects)["args"].append("--threads=64"))
def threads_have_processors(render):
    resources = server(render.objects)["resources"]
    if "threads" not in render.values["server"]:
        cpu = quantity(resources["limits"].get("cpu", resources["requests"]["cpu"]))
        engines = int(render.flags.get("engines", 1))
        assert 1 <= int(render.flags["threads"]) <= max(1, cpu / engines)


@policy(lambda objects: server(objects)["args"].append("--memory-watermark=5G"))
def memory_is_watched_below_its_limit(render):
    watermark = render.flags["memory-watermark"]
    sizes = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    of_flag = float(watermark.rstrip("KMGT")) * sizes.get(watermark[-1], 1)
    asked = render.values["server"].get("memoryWatermark", "")
    limit = quantity(server(render.objects)["resources"]["limits"]["memory"])
    assert of_flag <= limit if asked else 0 < of_flag < limit
    assert of_flag > 0 or asked == "0"


def budget_for_one(objects):
    deployment(objects)["spec"]["replicas"] = 1


@policy(budget_for_one, of_set="replicas")
def budgets_never_block(render):
    scaled = of_kind(render.objects, "HorizontalPodAutoscaler"), of_kind(render.objects, "ScaledObject")
    fewest = [one["spec"]["minReplicas"] for one in scaled[0]] + [one["spec"]["minReplicaCount"] for one in scaled[1]]
    most = [one["spec"]["maxReplicas"] for one in scaled[0]] + [one["spec"]["maxReplicaCount"] for one in scaled[1]]
    pods_ = fewest[0] if fewest else deployment(render.objects)["spec"]["replicas"]
    budgets = of_kind(render.objects, "PodDisruptionBudget")
    # One that lets a number go holds nobody; one that keeps a number would hold a single pod.
    counted = pods_ if "minAvailable" in render.values["pdb"] else max([pods_, *most])
    assert len(budgets) == (1 if render.values["pdb"]["enabled"] and counted > 1 else 0)
    for budget in budgets:
        spec = budget["spec"]
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow" and ("minAvailable" in spec) is not ("maxUnavailable" in spec)
        share = lambda value: -(-int(value[:-1]) * pods_ // 100) if isinstance(value, str) else value  # noqa: E731
        assert (share(spec["maxUnavailable"]) if "maxUnavailable" in spec else pods_ - share(spec["minAvailable"])) >= 1


@policy(set_in("spec", "replicas", value=2), of_set="hpa")
def scalers_own_the_replicas(render):
    scalers = of_kind(render.objects, "HorizontalPodAutoscaler") + of_kind(render.objects, "ScaledObject")
    asked = render.values.get("autoscaling", {})
    # What KEDA would do nobody does where it is not: the release's number stands.
    assert len(scalers) == int(asked.get("enabled", False) and (render.extensions or asked["kind"] != "KEDA"))
    assert ("replicas" in deployment(render.objects)["spec"]) is not bool(scalers)
    for scaler in scalers:
        spec = scaler["spec"]
        assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment",
                                          "name": deployment(render.objects)["metadata"]["name"]}
        behavior = spec["behavior"] if "behavior" in spec else spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] == asked["scaleDownStabilizationSeconds"]
        assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": asked["scaleDownPeriodSeconds"]}]
        least, most = (spec["minReplicas"], spec["maxReplicas"]) if "minReplicas" in spec else (spec["minReplicaCount"], spec["maxReplicaCount"])
        assert 1 <= least <= most


def scaling_by_cpu(objects):
    the(objects, "HorizontalPodAutoscaler")["spec"]["metrics"].append(
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}})


@policy(scaling_by_cpu, of_set="hpa")
def queues_scale_not_processors(render):
    for scaler in of_kind(render.objects, "HorizontalPodAutoscaler"):
        assert [(one["type"], one["pods"]["metric"]["name"]) for one in scaler["spec"]["metrics"]] == [
            ("Pods", "sluice_requests_waiting"), ("Pods", "sluice_kv_usage_ratio")]
    for scaler in of_kind(render.objects, "ScaledObject"):
        # A target of one pod against the sum over all: `AverageValue`.
        assert all(trigger["type"] == "prometheus" and trigger["metricType"] == "AverageValue" and
                   trigger["metadata"]["query"].startswith("sum(") for trigger in scaler["spec"]["triggers"])
        assert scaler["spec"]["fallback"]["replicas"] >= scaler["spec"]["minReplicaCount"]


@policy(set_in("spec", "triggers", 0, "metadata", "query", value='sum(sluice_requests_waiting{namespace="other"})',
               kind="ScaledObject"), of_set="keda")
def queries_mean_this_release(render):
    for scaler in of_kind(render.objects, "ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            namespace, pod = re.search(r'namespace="([^"]*)",pod=~"([^"]*)"', query).groups()
            name = deployment(render.objects)["metadata"]["name"]
            assert namespace == "inference"
            assert re.fullmatch(pod, f"{name}-7c9f8b6d5-x2x4z") and not re.fullmatch(pod, f"other-{name}-7c9f8b6d5-x2x4z")


@policy(set_in("spec", "selector", "matchLabels", "app.kubernetes.io/component", value="server", kind="ServiceMonitor"),
        of_set="service-monitor")
def monitors_meet_one_port(render):
    for monitor in of_kind(render.objects, "PodMonitor"):
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["inference"]}
        assert selects(monitor["spec"]["selector"]["matchLabels"], render.pod_labels)
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    for monitor in of_kind(render.objects, "ServiceMonitor"):
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["inference"]}
        found = [service for service in of_kind(render.objects, "Service")
                 if selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])]
        assert len(found) == 1, "every pod would be read twice, or none"
        [endpoint] = monitor["spec"]["endpoints"]
        assert endpoint["path"] == "/metrics" and endpoint["port"] in [port["name"] for port in found[0]["spec"]["ports"]]
    for monitor in of_kind(render.objects, "PodMonitor") + of_kind(render.objects, "ServiceMonitor"):
        # The rules know Sluice's processes by a job that has "sluice" in its name.
        assert render.pod_labels[monitor["spec"]["jobLabel"]] == "sluice"
    annotations = deployment(render.objects)["spec"]["template"]["metadata"]["annotations"]
    if "prometheus.io/scrape" in annotations:
        [port] = [port["containerPort"] for port in server(render.objects)["ports"] if port["name"] == "metrics"]
        assert annotations["prometheus.io/port"] == str(port)


@policy(set_in("spec", "groups", 0, "rules", value=[], kind="PrometheusRule"), of_set="rules-dashboard")
def rules_are_those_of_the_file(render):
    import yaml

    for rule in of_kind(render.objects, "PrometheusRule"):
        assert rule["spec"] == yaml.load((chart.CHART / "files/rules.yaml").read_text(), yaml.CSafeLoader)
    for board in of_kind(render.objects, "ConfigMap"):
        if board["metadata"]["name"].endswith("-dashboard"):
            [text] = board["data"].values()
            assert json.loads(text) == json.loads((chart.CHART / "files/dashboard.json").read_text())
            assert len(text) < 2**20


@policy(set_in("spec", "unheardOf", value=1, kind="PodMonitor"), of_set="pod-monitor")
def extensions_fit_their_definitions(render):
    for one in render.objects:
        if chart.is_custom(one):
            crds.check(one)


@policy(set_in("spec", "ingress", value=[{}], kind="NetworkPolicy"))
def strangers_stay_out(render):
    wanted = render.values.get("networkPolicy", {})
    policies = of_kind(render.objects, "NetworkPolicy")
    assert len(policies) == int(wanted.get("enabled", True))
    for one in policies:
        spec = one["spec"]
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        names = {port["name"] for port in server(render.objects)["ports"]}
        for rule in spec["ingress"]:
            [port] = rule["ports"]
            assert port["port"] in names
            assert rule.get("from") or (wanted.get("allowAllClients") and port["port"] == "grpc" and "from" not in rule)
            # Metrics and administration are for namespaces that are named.
            if port["port"] != "grpc":
                pickers = [{"podSelector": {}}] if port["port"] == "metrics" and render.values["endpointPicker"]["enabled"] else []
                assert all(set(source) == {"namespaceSelector"} or source in pickers for source in rule["from"])
        if wanted.get("allowDNS"):
            assert all(port["port"] == 53 for rule in spec["egress"] for port in rule["ports"])
        else:
            assert spec["egress"] == []


@policy(set_in("spec", "rules", 0, "backendRefs", 0, "port", value=1, kind="GRPCRoute"), of_set="gateway")
def routes_lead_to_the_service(render):
    for route in of_kind(render.objects, "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                service = the(render.objects, "Service", backend["name"])
                assert backend["port"] in [port["port"] for port in service["spec"]["ports"]]
            assert "sluice.v1.Inference" in [match["method"]["service"] for match in rule["matches"]]
        # The gateway's namespace may call.
        for policy_ in of_kind(render.objects, "NetworkPolicy"):
            allowed = {value for rule in policy_["spec"]["ingress"] for source in rule.get("from", [])
                       for term in source.get("namespaceSelector", {}).get("matchExpressions", []) for value in term["values"]}
            everybody = [rule for rule in policy_["spec"]["ingress"] if "from" not in rule]
            assert everybody or {parent.get("namespace", "inference") for parent in route["spec"]["parentRefs"]} <= allowed


@policy(set_in("spec", "clusterIP", value="10.0.0.1", kind="Service"))
def there_is_a_headless_service(render):
    services = of_kind(render.objects, "Service")
    assert len(services) == 2
    [headless] = [service for service in services if service["spec"].get("clusterIP") == "None"]
    assert headless["metadata"]["name"].endswith("-headless") and headless["spec"]["publishNotReadyAddresses"] is False
    assert not [service for service in services if service["spec"].get("clusterIP", "None") != "None"]
    tls = bool(render.values.get("tls", {}).get("existingSecret"))
    assert {port["appProtocol"] for service in services for port in service["spec"]["ports"] if port["name"] == "grpc"} == {
        "https" if tls else "kubernetes.io/h2c"}


@policy(lambda objects: objects.remove(the(objects, "ConfigMap", "demo-sluice")), of_set="secure")
def config_maps_exist(render):
    made = {one["metadata"]["name"]: one["data"] for one in of_kind(render.objects, "ConfigMap")}
    for volume in render.pod["volumes"]:
        if "configMap" in volume and volume["name"] == "config":
            data = made[volume["configMap"]["name"]]
            read = {value.rsplit("/", 1)[1] for value in render.flags.values() if value and value.startswith("/etc/sluice/config/")}
            assert read == set(data)
            if "tenants.json" in data:
                assert isinstance(json.loads(data["tenants.json"])["tenants"], dict)


@policy(set_in("spec", "template", "metadata", "annotations", value={}), of_set="secure")
def config_restarts_pods(render):
    annotations = deployment(render.objects)["spec"]["template"]["metadata"]["annotations"]
    tenants = render.values.get("tenants", {})
    own = (tenants.get("default") or tenants.get("byName")) and tenants.get("restartOnChange", True)
    expected = bool(own or render.values["model"].get("chatTemplate"))
    assert bool(re.fullmatch("[0-9a-f]{64}", annotations.get("checksum/config", ""))) is expected


@policy(lambda objects: chart.test_pods(objects)[0]["spec"]["containers"][0]["args"].__setitem__(1, "--server=elsewhere:50051"))
def the_test_calls_the_service(render):
    for pod in chart.test_pods(render.objects):
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test" and pod["spec"]["restartPolicy"] == "Never"
        given = flags(pod["spec"]["containers"][0])
        host, port = given["server"].split(":")
        service = the(render.objects, "Service", host.split(".")[0])
        assert host == f"{service['metadata']['name']}.inference.svc"
        assert int(port) in [one["port"] for one in service["spec"]["ports"]]
        # It shows what the server asks for.
        for of_server, of_client in (("tls-cert", "tls-ca"), ("tls-client-ca", "tls-cert"), ("auth-file", "token-file")):
            assert (of_server in render.flags) == (of_client in given)
    asks = "tls-client-ca" in render.flags or "auth-file" in render.flags
    assert chart.test_pods(render.objects) or asks or render.values.get("test", {}).get("enabled") is False


def log_deleted(objects):
    chart.test_pods(objects)[0]["metadata"]["annotations"]["helm.sh/hook-delete-policy"] = "before-hook-creation,hook-succeeded"


@policy(log_deleted)
def tests_leave_their_log(render):
    """Helm 3 reads it when the hook has ended (https://github.com/helm/helm/issues/9098)."""
    for pod in chart.test_pods(render.objects):
        assert pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation"


@policy(lambda objects: chart.test_pods(objects)[0]["spec"].pop("tolerations"), of_set="gpu")
def tests_run_where_the_server_may(render):
    for pod in chart.test_pods(render.objects):
        for name in ("nodeSelector", "tolerations"):
            assert pod["spec"].get(name) == render.pod.get(name), name


@policy(drop_in(*CONTAINER, "terminationMessagePolicy"))
def failures_say_why(render):
    for container in containers(render.pod):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@policy(set_in(*POD, "priorityClassName", value="system-node-critical"))
def placement_is_as_asked(render):
    assert render.pod.get("priorityClassName", "") == render.values.get("priorityClassName", "")
    assert render.pod.get("nodeSelector", {}) == render.values.get("nodeSelector", {})
    spread = {"zone": "ScheduleAnyway", "host": "ScheduleAnyway"} | render.values.get("topologySpread", {})
    ways = {term["topologyKey"]: term["whenUnsatisfiable"] for term in render.pod.get("topologySpreadConstraints", [])}
    assert ways == {key: spread[name] for name, key in (("zone", "topology.kubernetes.io/zone"), ("host", "kubernetes.io/hostname"))
                    if spread[name] != "none"}
    products = render.values.get("gpu", {}).get("products", [])
    if products:  # in every term, since terms are alternatives
        required = render.pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        for term in required["nodeSelectorTerms"]:
            assert {"key": "nvidia.com/gpu.product", "operator": "In", "values": products} in term["matchExpressions"]


@policy(set_in("spec", "template", "metadata", "labels", "inference.networking.k8s.io/engine-type", value="sglang"), of_set="scrape-annotations")
def endpoint_pickers_know_the_metrics(render):
    """Those of the Gateway API Inference Extension read them by the type of the engine; ours has vLLM's names."""
    wanted = render.values.get("endpointPicker", {}).get("enabled", False)
    for key in ("inference.networking.k8s.io/engine-type", "llm-d.ai/engine-type"):
        assert render.pod_labels.get(key) == ("vllm" if wanted else None)


def unescaped(objects):
    arguments = chart.test_pods(objects)[0]["spec"]["containers"][0]["args"]
    [place] = [index for index, argument in enumerate(arguments) if argument.startswith("--prompt=")]
    arguments[place] += "$$1"


@policy(unescaped)
def text_comes_as_it_was_given(render):
    """The kubelet looks for variables in arguments."""
    variables = {one["name"]: one["value"] for one in render.values.get("env", [])}
    model = render.values["model"]
    wanted = model.get("file", "")
    if model["copy"]["enabled"]:
        wanted = wanted.rpartition("/")[2]
        arguments = render.pod["initContainers"][0]["args"]
        # The script has parentheses behind dollars of its own: none is a variable's name.
        assert chart.expand(arguments[0], variables) == arguments[0] and "$$" not in arguments[0]
        assert [chart.expand(one, variables) for one in arguments[2:4]] == [f"/source/{model['file']}", f"/models/{wanted}"]
    given = {flag: chart.expand(value, variables) for flag, value in render.flags.items() if value}
    assert given["model"] == f"/models/{wanted}".rstrip("/")
    assert given.get("model-name", "") == model.get("name", "")
    for pod in chart.test_pods(render.objects):
        assert chart.expand(flags(pod["spec"]["containers"][0])["prompt"], {}) == render.values["test"]["prompt"]


@policy(set_in(*POD, "tolerations", value=[{"operator": "Equal", "value": "x"}]))
def taints_and_affinities_are_well_formed(render):
    """What the API server asks beyond its schema (k8s.io/kubernetes/pkg/apis/core/validation)."""
    for _, spec in pods(render.objects):
        for one in spec.get("tolerations", []):
            assert "key" in one or one.get("operator") == "Exists", one
            assert one.get("operator", "Equal") == "Equal" or not one.get("value"), one
            assert "tolerationSeconds" not in one or one.get("effect") == "NoExecute", one
    affinity = render.pod.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    terms = terms + [one["preference"] for one in affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])]
    for one in [one for term in terms for one in term.get("matchExpressions", []) + term.get("matchFields", [])]:
        values = one.get("values", [])
        assert one["operator"] not in ("In", "NotIn") or values, one
        assert one["operator"] not in ("Exists", "DoesNotExist") or not values, one
        assert one["operator"] not in ("Gt", "Lt") or (len(values) == 1 and int(values[0]) is not None), one
        assert all(LABEL_VALUE.fullmatch(value) and len(value) <= 63 for value in values), one
    for one in [one for term in terms for one in term.get("matchFields", [])]:
        assert one["key"] == "metadata.name" and one["operator"] in ("In", "NotIn") and len(one["values"]) == 1, one


@policy(set_in(*CONTAINER, "env", value=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]))
def lists_with_keys_have_each_once(render):
    """Applied on the server's side, as helm 4 does, a list that is a map takes no key twice."""
    for _, spec in pods(render.objects):
        for entries, key in [(spec.get("imagePullSecrets", []), "name"), (spec["volumes"], "name")]:
            assert len({one[key] for one in entries}) == len(entries)
        for container in containers(spec):
            names = [one["name"] for one in container.get("env", [])]
            assert len(names) == len(set(names))
    for route in of_kind(render.objects, "GRPCRoute"):
        parents = [json.dumps(one, sort_keys=True) for one in route["spec"]["parentRefs"]]
        assert len(parents) == len(set(parents))


@policy(set_in("spec", "ipFamilyPolicy", value="RequireDualStack", kind="Service"))
def who_has_an_address_listens_on_it(render):
    for service in of_kind(render.objects, "Service"):
        families, way = service["spec"].get("ipFamilies", []), service["spec"].get("ipFamilyPolicy", "SingleStack")
        assert len(families) <= (1 if way == "SingleStack" else 2)
        if "IPv6" in families or way != "SingleStack":
            assert render.flags["listen"].startswith("[::]:") and render.flags["ops-listen"].startswith("[::]:")


def unread(objects):
    [policy_] = of_kind(objects, "NetworkPolicy")
    policy_["spec"]["ingress"] = [rule for rule in policy_["spec"]["ingress"] if rule["ports"][0]["port"] != "metrics"]


@policy(unread, of_set="scrape-annotations")
def metrics_can_be_read(render):
    """By whom they are for: namespaces of Prometheus, and pickers beside the pods."""
    for one in of_kind(render.objects, "NetworkPolicy"):
        sources = [source for rule in one["spec"]["ingress"] if rule["ports"][0]["port"] == "metrics" for source in rule["from"]]
        named = {value for source in sources for term in source.get("namespaceSelector", {}).get("matchExpressions", [])
                 for value in term["values"]}
        assert named == set(render.values["networkPolicy"].get("monitoringNamespaces", []))
        assert ({"podSelector": {}} in sources) is render.values["endpointPicker"]["enabled"]


@policy(set_in(*CONTAINER, "resources", "limits", value={"memory": "1e3000"}))
def quantities_are_in_bounds(render):
    """Quantities that the server of the API can hold, numbers of 32 bits."""
    for _, spec in pods(render.objects):
        for container in containers(spec):
            for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
                for name, value in amounts.items():
                    assert re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|Ki|[MGT]i?)?", str(value)), (name, value)
                    assert 0 < quantity(value) < 2**62, (name, value)
                    assert re.fullmatch(r"([a-z0-9.-]+/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name), name

    def numbers(part):
        if isinstance(part, dict):
            part = list(part.values())
        if isinstance(part, list):
            return [number for one in part for number in numbers(one)]
        return [part] if isinstance(part, (int, float)) and not isinstance(part, bool) else []

    for one in render.objects:
        if not chart.is_custom(one):
            assert all(abs(number) < 2**31 for number in numbers(one.get("spec", {}))), one["kind"]


@policy(set_in("spec", "template", "metadata", "annotations", "example.com/note", value="other\n"), of_set="labels")
def what_is_given_arrives(render):
    """To the last space and line."""
    values = render.values
    pod = deployment(render.objects)["spec"]["template"]["metadata"]["annotations"]
    own = {key: text for key, text in pod.items()
           if not key.startswith(("checksum/", "prometheus.io/")) and key != "kubectl.kubernetes.io/default-container"}
    assert own == values.get("podAnnotations", {})
    name = deployment(render.objects)["metadata"]["name"]
    for kind, of_kind_, given in (("Service", name, values["service"]), ("GRPCRoute", name, values["gateway"]),
                                  ("ServiceAccount", None, values["serviceAccount"]),
                                  ("ConfigMap", name + "-dashboard", values["monitoring"]["dashboard"])):
        for one in of_kind(render.objects, kind, of_kind_):
            assert one["metadata"].get("annotations", {}) == given.get("annotations", {}), kind
    assert server(render.objects).get("env", []) == values.get("env", [])
    own = [one for one in render.pod.get("tolerations", []) if one.get("key") != "nvidia.com/gpu"]
    assert own == [one for one in values.get("tolerations", []) if one.get("key") != "nvidia.com/gpu"]
    for volume in render.pod["volumes"]:
        if "csi" in volume:
            assert volume["csi"].get("volumeAttributes", {}) == values["model"]["csi"].get("volumeAttributes", {})
