"""Values that must not render: each is refused by helm 3 and 4, in words that name it."""

import json

import pytest

import chart

CLAIM = {"model": {"existingClaim": "models"}}
HASH = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
GPU = {"gpu": {"enabled": True}}
TLS = {"tls": {"existingSecret": "tls"}}

# name: (values beside a claim with the model, words of the complaint[, version of Kubernetes])
# What the schema refuses names the place; what the templates refuse says what would be right.
REFUSED = {
    # The model.
    "no model": ({"model": {"existingClaim": ""}}, "say where it lies"),
    "two models": ({"model": {"hostPath": "/models"}}, "one of existingClaim, hostPath, not several"),
    "host path that is relative": ({"model": {"existingClaim": "", "hostPath": "models"}}, "model.hostPath"),
    "host path that climbs": ({"model": {"existingClaim": "", "hostPath": "/models/../etc"}}, "without '.' and '..'"),
    "file that climbs": ({"model": {"file": "../secrets/key"}}, "without '.' and '..'"),
    "file that is absolute": ({"model": {"file": "/etc/passwd"}}, "model.file"),
    "hash that is short": ({"model": {"file": "m.gguf", "sha256": HASH[:-1]}}, "model.sha256"),
    "hash of nothing": ({"model": {"sha256": HASH}}, "model.sha256: needs model.file"),
    "copy without hash": (
        {"model": {"file": "m.gguf", "copy": {"enabled": True}}},
        "model.copy: needs model.file and model.sha256"),
    "copy of a directory": ({"model": {"copy": {"enabled": True}}}, "model.copy: needs model.file and model.sha256"),
    "copy without size": (
        {"model": {"file": "m", "sha256": HASH, "copy": {"enabled": True, "sizeLimit": ""}}},
        "model.copy.sizeLimit"),
    "copy by latest": (
        {"model": {"file": "m", "sha256": HASH, "copy": {"enabled": True, "image": "busybox:latest"}}},
        "tag other than latest"),
    "model image without tag": (
        {"model": {"existingClaim": "", "image": {"reference": "registry.example.com:5000/m"}}},
        "tag other than latest"),
    "model image before its time": (
        {"model": {"existingClaim": "", "image": {"reference": "m:1"}}},
        "came with Kubernetes 1.31", "1.30"),
    "csi without driver": ({"model": {"csi": {"volumeAttributes": {"a": "b"}}}}, "needs model.csi.driver"),
    "csi attribute that is a number": (
        {"model": {"existingClaim": "", "csi": {"driver": "d", "volumeAttributes": {"a": 1}}}},
        "volumeAttributes"),
    "name that is not for terminals": ({"model": {"name": "a\u009bb"}}, "specifications of the schema"),
    "claim of no name": ({"model": {"existingClaim": "My Claim"}}, "model.existingClaim"),
    # The server.
    "no engines": ({"server": {"engines": 0}}, "server.engines"),
    "too many engines": ({"server": {"engines": 65}}, "server.engines"),
    "no threads": ({"server": {"threads": 0}}, "server.threads"),
    "threads in words": ({"server": {"threads": "four"}}, "server.threads"),
    "size of Kubernetes": ({"server": {"kvMemory": "2Gi"}}, "server.kvMemory"),
    "unknown type of KV cache": ({"server": {"kvDtype": "int8"}}, "server.kvDtype"),
    "unknown numerics": ({"server": {"numerics": "sloppy"}}, "server.numerics"),
    "unknown instructions": ({"server": {"isa": "neon"}}, "server.isa"),
    "step smaller than the batch": ({"server": {"maxBatch": 128, "maxStepTokens": 64}}, "must not be fewer than server.maxBatch"),
    "batch larger than the usual step": ({"server": {"maxBatch": 1024}}, "must not be fewer than server.maxBatch"),
    "unknown log level": ({"server": {"logLevel": "verbose"}}, "server.logLevel"),
    "unknown log format": ({"server": {"logFormat": "xml"}}, "server.logFormat"),
    "prefix cache in words": ({"server": {"prefixCache": "on"}}, "server.prefixCache"),
    "address of one interface": ({"server": {"listenAddress": "127.0.0.1"}}, "server.listenAddress"),
    "flag that does not exist": ({"server": {"tensorParallel": 2}}, "tensorParallel"),
    "two ports alike": ({"ports": {"ops": 50051}}, "must differ"),
    "privileged port": ({"ports": {"grpc": 443}}, "ports.grpc"),
    "port in words": ({"ports": {"metrics": "http"}}, "ports.metrics"),
    # Hardware.
    "two GPUs": ({"gpu": {"enabled": True, "count": 2}}, "not built yet"),
    "engines on a GPU": ({**GPU, "server": {"engines": 2}}, "server.engines: 1 with gpu.enabled"),
    "GPU of another make": ({"gpu": {"enabled": True, "resourceName": "amd.com/gpu"}}, "gpu.resourceName"),
    "products without GPU": ({"gpu": {"products": ["NVIDIA-H200"]}}, "need gpu.enabled"),
    "all memory and more": ({"gpu": {"enabled": True, "memoryFraction": 1.5}}, "gpu.memoryFraction"),
    "no memory limit": ({"resources": {"limits": {"memory": None}}}, "memory"),
    "request above limit": ({"resources": {"requests": {"memory": "8Gi"}}}, "request of memory (8Gi) is above its limit (4Gi)"),
    "CPU request above limit": ({"resources": {"limits": {"cpu": "1500m"}}}, "request of cpu (2) is above its limit (1500m)"),
    "memory of no unit": ({"resources": {"limits": {"memory": "lots"}}}, "memory"),
    "no memory": ({"resources": {"limits": {"memory": "0"}}}, "memory"),
    "GPU among the resources": ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "nvidia.com/gpu"),
    # Ending and starting.
    "grace shorter than the drain": ({"termination": {"gracePeriodSeconds": 100}}, "at least 150"),
    "grace shorter by one": ({"termination": {"gracePeriodSeconds": 149}}, "at least 150"),
    "grace without the lame duck": ({"termination": {"lameDuckSeconds": 10, "gracePeriodSeconds": 150}}, "at least 160"),
    "grace without the hook": ({"termination": {"preStopSeconds": 60, "gracePeriodSeconds": 150}}, "at least 195", "1.27"),
    "negative sleep": ({"termination": {"preStopSeconds": -1}}, "termination.preStopSeconds"),
    "drain in words": ({"termination": {"drainTimeoutSeconds": "2m"}}, "termination.drainTimeoutSeconds"),
    "deadline shorter than the start": ({"strategy": {"progressDeadlineSeconds": 600}}, "at least 670"),
    "deadline shorter than a slow start": (
        {"probes": {"worstLoadSeconds": 3600}, "strategy": {"progressDeadlineSeconds": 7200}},
        "at least 7270"),
    "probe longer than its period": ({"probes": {"readiness": {"timeoutSeconds": 5}}}, "must not exceed periodSeconds"),
    "probe that never fails": ({"probes": {"liveness": {"failureThreshold": 0}}}, "failureThreshold"),
    "update that cannot begin": ({"strategy": {"maxSurge": 0}}, "both 0"),
    "update that cannot begin, in shares": ({"strategy": {"maxSurge": "0%", "maxUnavailable": "0%"}}, "both 0"),
    "unknown strategy": ({"strategy": {"type": "BlueGreen"}}, "strategy.type"),
    # How many.
    "no replicas": ({"replicaCount": 0}, "replicaCount"),
    "half a replica": ({"replicaCount": 1.5}, "replicaCount"),
    "budget that keeps all": ({"replicaCount": 3, "pdb": {"minAvailable": 3}}, "no node could be drained"),
    "budget that keeps all, in shares": ({"replicaCount": 2, "pdb": {"minAvailable": "51%"}}, "no node could be drained"),
    "budget that lets none go": ({"replicaCount": 2, "pdb": {"maxUnavailable": 0}}, "no node could be drained"),
    "budget above the fewest": (
        {"autoscaling": {"enabled": True, "minReplicas": 2}, "pdb": {"minAvailable": 2}},
        "no node could be drained"),
    "scaling to nothing": ({"autoscaling": {"enabled": True, "minReplicas": 0}}, "autoscaling.minReplicas"),
    "more at least than at most": ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "is below minReplicas"),
    "KEDA without Prometheus": ({"autoscaling": {"enabled": True, "kind": "KEDA"}}, "autoscaling.keda.serverAddress"),
    "fallback above the most": (
        {"autoscaling": {"enabled": True, "kind": "KEDA", "keda": {"serverAddress": "http://p:9090", "fallbackReplicas": 5}}},
        "at most autoscaling.maxReplicas"),
    "Prometheus without scheme": (
        {"autoscaling": {"enabled": True, "kind": "KEDA", "keda": {"serverAddress": "p:9090"}}},
        "serverAddress"),
    "use in percent": ({"autoscaling": {"kvUsage": 80}}, "autoscaling.kvUsage"),
    "scaling by CPU": ({"autoscaling": {"targetCPUUtilizationPercentage": 80}}, "targetCPUUtilizationPercentage"),
    # Who may call.
    "client certificates without TLS": ({"tls": {"clientCASecret": "ca"}}, "needs tls.existingSecret"),
    "test certificate without TLS": ({"test": {"clientCertSecret": "c"}}, "needs tls.existingSecret"),
    "token in the values": ({"auth": {"token": "secret"}}, "token"),
    "two files of tenants": ({"tenants": {"existingConfigMap": "t", "default": {"weight": 1}}}, "not both"),
    "burst without rate": ({"tenants": {"byName": {"a": {"burst_tokens": 5}}}}, "burst_tokens needs tokens_per_second"),
    "burst without rate for all": ({"tenants": {"default": {"burst_tokens": 5}, "byName": {"default": {"tokens_per_second": 5}}}},
                                   "burst_tokens needs tokens_per_second"),
    "more tenants than a ConfigMap holds": (
        {"tenants": {"byName": {f"tenant-{number}": {"weight": 1} for number in range(26000)}}}, "at most 1048576 bytes expected, got 1"),
    "template that a ConfigMap does not hold": ({"model": {"chatTemplate": "a" * 1048577}}, "at most 1048576 bytes expected, got 1048577"),
    "tenant of no name": ({"tenants": {"byName": {"a b": {}}}}, "a b"),
    "tenant of great weight": ({"tenants": {"byName": {"a": {"weight": 1001}}}}, "weight"),
    "limit that does not exist": ({"tenants": {"default": {"requests": 5}}}, "requests"),
    "share above all": ({"tenants": {"default": {"kv_share": 1.5}}}, "kv_share"),
    "node port of a cluster's own": ({"service": {"nodePort": 30000}}, "service.nodePort"),
    "traffic policy of a cluster's own": ({"service": {"externalTrafficPolicy": "Local"}}, "service.externalTrafficPolicy"),
    "source ranges without balancer": (
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "need service.type LoadBalancer"),
    "range that is none": (
        {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"]}},
        "loadBalancerSourceRanges"),
    "balancer for nobody": ({"service": {"type": "LoadBalancer"}}, "nobody from outside may call"),
    "unknown type of service": ({"service": {"type": "ExternalName"}}, "service.type"),
    "route without gateway": ({"gateway": {"enabled": True}}, "gateway.parentRefs"),
    "host with a port": ({"gateway": {"hostnames": ["llm.example.com:443"]}}, "hostnames"),
    "network that is none": ({"networkPolicy": {"clientCIDRs": ["everywhere"]}}, "clientCIDRs"),
    # What nobody would find out before something did not work.
    "defaults taken away": ({"termination": {"drainTimeoutSeconds": None}}, "drainTimeoutSeconds"),
    "all of a default taken away": ({"probes": None}, "probes"),
    "disk without limit": ({"resources": {"limits": {"ephemeral-storage": None}}}, "ephemeral-storage"),
    "disk smaller than /tmp": ({"resources": {"requests": {"ephemeral-storage": "1Mi"}, "limits": {"ephemeral-storage": "63Mi"}}}, "at least 64Mi"),
    "memory beyond all machines": ({"resources": {"limits": {"memory": "99999999Ti"}}}, "resources.limits.memory"),
    "CPU finer than a thousandth": ({"resources": {"requests": {"cpu": "0.0001"}}}, "resources.requests.cpu"),
    "watermark above the limit": ({"server": {"memoryWatermark": "5G"}}, "at most resources.limits.memory (4Gi)"),
    "liveness at the first pause": ({"probes": {"liveness": {"periodSeconds": 3}}}, "at least 10 s expected, got 9"),
    "IPv6 that nobody listens on": (
        {"service": {"ipFamilyPolicy": "RequireDualStack"}, "server": {"listenAddress": "0.0.0.0"}},
        "where nobody would listen"),
    "IPv6 alone that nobody listens on": (
        {"service": {"ipFamilies": ["IPv6"]}, "server": {"listenAddress": "0.0.0.0"}},
        "where nobody would listen"),
    "two families of one": ({"service": {"ipFamilies": ["IPv4", "IPv6"]}, "server": {"listenAddress": "[::]"}}, "service.ipFamilies: one, or"),
    "a family twice": ({"service": {"ipFamilies": ["IPv4", "IPv4"]}}, "service.ipFamilies"),
    "fallback below the fewest": (
        {"autoscaling": {"enabled": True, "kind": "KEDA", "minReplicas": 2, "keda": {"serverAddress": "http://p:9090", "fallbackReplicas": 1}}},
        "at least autoscaling.minReplicas"),
    "variable twice": ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "env: A is there twice"),
    "pull secret twice": ({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}, "imagePullSecrets"),
    "gateway twice": ({"gateway": {"enabled": True, "parentRefs": [{"name": "a"}, {"name": "a"}]}}, "gateway.parentRefs"),
    "namespace with dots": ({"networkPolicy": {"clientNamespaces": ["a.b"]}}, "clientNamespaces"),
    "name with an empty part": ({"priorityClassName": "a..b"}, "priorityClassName"),
    "label whose key is too long": ({"commonLabels": {"a" * 64: "b"}}, "specifications of the schema"),
    "network outside of all": ({"networkPolicy": {"clientCIDRs": ["10.0.0.256/8"]}}, "clientCIDRs"),
    "network of no address": ({"networkPolicy": {"clientCIDRs": ["1:::2/64"]}}, "clientCIDRs"),
    "part of a GPU that does not exist": ({"gpu": {"enabled": True, "resourceName": "nvidia.com/mig-."}}, "gpu.resourceName"),
    "key of a Secret that is a folder": ({"test": {"tokenKey": ".."}}, "test.tokenKey"),
    "toleration of nothing": ({"tolerations": [{"value": "a"}]}, "needs a key"),
    "toleration of all values and one": ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "takes no value"),
    "toleration that ends without eviction": (
        {"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1}]},
        "need the effect NoExecute"),
    "affinity to no values": (
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "In"}]}]}}},
        "needs values"),
    "affinity to a number in words": (
        {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["b"]}]}}]}},
        "needs one value, a whole number"),
    "affinity to a field that is not known": (
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "spec.name", "operator": "In", "values": ["a"]}]}]}}},
        "matchFields know metadata.name"),
    # The rest.
    "value at the top that does not exist": ({"replicas": 3}, "replicas"),
    "value below that does not exist": ({"image": {"registry": "docker.io"}}, "registry"),
    "raw security context": ({"securityContext": {"privileged": True}}, "securityContext"),
    "root": ({"security": {"runAsUser": 0}}, "security.runAsUser"),
    "root's group": ({"security": {"fsGroup": 0}}, "security.fsGroup"),
    "image with latest": ({"image": {"tag": "latest"}}, "image.tag"),
    "image with its tag in its name": ({"image": {"repository": "sluice:1"}}, "image.repository"),
    "digest of another kind": ({"image": {"digest": "md5:00"}}, "image.digest"),
    "unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy"),
    "pull secret of no name": ({"imagePullSecrets": [{}]}, "imagePullSecrets"),
    "label that selects": ({"podLabels": {"app.kubernetes.io/name": "other"}}, "the chart's own"),
    "common label that selects": ({"commonLabels": {"app.kubernetes.io/instance": "other"}}, "the chart's own"),
    "label twice": ({"commonLabels": {"team": "a"}, "podLabels": {"team": "b"}}, "in commonLabels too"),
    "label that is too long": ({"commonLabels": {"team": "a" * 64}}, "commonLabels"),
    "label that is a number": ({"podLabels": {"cost-center": 42}}, "podLabels"),
    "annotation of the chart": ({"podAnnotations": {"checksum/config": "0"}}, "the chart's own"),
    "name with capitals": ({"nameOverride": "Sluice"}, "nameOverride"),
    "variable without value": ({"env": [{"name": "A"}]}, "env"),
    "variable of no name": ({"env": [{"name": "1A", "value": ""}]}, "env"),
    "toleration that does not exist": ({"tolerations": [{"key": "a", "operator": "In"}]}, "tolerations"),
    "affinity of another kind": ({"nodeAffinity": {"podAffinity": {}}}, "podAffinity"),
    "weight above its scale": (
        {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "preference": {}}]}},
        "weight"),
    "spread that does not exist": ({"topologySpread": {"zone": "Always"}}, "topologySpread.zone"),
    "two monitors": ({"monitoring": {"scrape": ["PodMonitor", "ServiceMonitor"]}}, "monitoring.scrape"),
    "scrape longer than its interval": ({"monitoring": {"interval": "5s"}}, "must not exceed monitoring.interval"),
    "interval without unit": ({"monitoring": {"interval": "15"}}, "monitoring.interval"),
    "annotations of an account that is not made": (
        {"serviceAccount": {"create": False, "annotations": {"a": "b"}}},
        "need serviceAccount.create"),
    "test of an empty prompt": ({"test": {"prompt": ""}}, "test.prompt"),
    "test without end": ({"test": {"maxTokens": 0}}, "test.maxTokens"),
}


def with_claim(values):
    """What is null stays: helm has to see it."""
    return {**values, "model": {**CLAIM["model"], **values.get("model", {})}}


def test_there_are_enough():
    assert len(REFUSED) >= 40


@pytest.mark.parametrize("major", (3, 4))
def test_the_base_renders(major):
    """The control: what is refused below is refused for what was added."""
    for version in ("1.27", "1.30", chart.VERSIONS[-1]):
        assert chart.template(chart.Request(values=json.dumps(CLAIM), version=version, major=major)).returncode == 0


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, count):
    values, words, *version = REFUSED[name]
    for major in (3, 4):
        request = chart.Request(values=json.dumps(with_claim(values)), major=major, **({"version": version[0]} if version else {}))
        run = chart.template(request)
        assert run.returncode != 0, f"helm {major} rendered it"
        assert not run.stdout
        # helm 4 writes places as paths.
        said = run.stderr.replace("at '/", "").replace("/", ".")
        assert words.replace("/", ".") in said, f"helm {major}: {run.stderr}"
        count("refusals")


@pytest.mark.parametrize("major", (3, 4))
def test_versions_that_are_too_old(major):
    run = chart.template(chart.Request(version="1.26", major=major))
    assert run.returncode != 0 and "1.27" in run.stderr
