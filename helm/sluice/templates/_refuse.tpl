{{/* What the schema of the values cannot say. Every complaint names a value and what would be right. */}}
{{- define "sluice.refuse" -}}
{{- $v := .Values -}}

{{- $sources := list -}}
{{- range $name, $value := dict "existingClaim" $v.model.existingClaim "hostPath" $v.model.hostPath "image.reference" $v.model.image.reference "csi.driver" $v.model.csi.driver -}}
{{- if $value }}{{ $sources = append $sources $name }}{{ end -}}
{{- end -}}
{{- if eq (len $sources) 0 -}}
{{- fail "model: say where it lies: model.existingClaim, model.hostPath, model.image.reference or model.csi.driver" -}}
{{- else if gt (len $sources) 1 -}}
{{- fail (printf "model: one of %s, not several" (join ", " (sortAlpha $sources))) -}}
{{- end -}}
{{- range $name := list "file" "hostPath" -}}
{{- $path := get $v.model $name -}}
{{- range splitList "/" $path -}}
{{- if has . (list ".." ".") -}}
{{- fail (printf "model.%s: a path without '.' and '..' expected, got %q" $name $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $image := dict "model.image.reference" $v.model.image.reference "model.copy.image" $v.model.copy.image -}}
{{- if and $image (or (hasSuffix ":latest" $image) (not (regexMatch "(:[^/:]+|@sha256:[0-9a-f]{64})$" $image))) -}}
{{- fail (printf "%s: a tag other than latest, or a digest, expected, got %q" $name $image) -}}
{{- end -}}
{{- end -}}
{{- if and $v.model.sha256 (not $v.model.file) -}}
{{- fail "model.sha256: needs model.file, whose hash it is" -}}
{{- end -}}
{{- if and $v.model.copy.enabled (or (not $v.model.file) (not $v.model.sha256)) -}}
{{- fail "model.copy: needs model.file and model.sha256, or nobody would know whether the copy is right" -}}
{{- end -}}
{{- if and $v.model.image.reference (semverCompare "<1.31-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "model.image: image volumes came with Kubernetes 1.31, this is %s" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (not $v.model.csi.driver) (or $v.model.csi.fsType $v.model.csi.volumeAttributes $v.model.csi.nodePublishSecret) -}}
{{- fail "model.csi: needs model.csi.driver" -}}
{{- end -}}

{{- if gt (int $v.gpu.count) 1 -}}
{{- fail (printf "gpu.count: 1 expected, got %d: one model over several GPUs is not built yet; use replicaCount" (int $v.gpu.count)) -}}
{{- end -}}
{{- if and $v.gpu.enabled (gt (int $v.server.engines) 1) -}}
{{- fail "server.engines: 1 with gpu.enabled: several engines share a CPU's weights, not a GPU; use replicaCount" -}}
{{- end -}}
{{- if and (not $v.gpu.enabled) (or $v.gpu.products $v.gpu.runtimeClassName (not (kindIs "invalid" $v.gpu.memoryFraction))) -}}
{{- fail "gpu: products, runtimeClassName and memoryFraction need gpu.enabled" -}}
{{- end -}}
{{- $batch := ternary 64 $v.server.maxBatch (kindIs "invalid" $v.server.maxBatch) | int -}}
{{- $step := ternary 512 $v.server.maxStepTokens (kindIs "invalid" $v.server.maxStepTokens) | int -}}
{{- if lt $step $batch -}}
{{- fail (printf "server.maxStepTokens (%d) must not be fewer than server.maxBatch (%d)" $step $batch) -}}
{{- end -}}

{{- $ports := list (int $v.ports.grpc) (int $v.ports.ops) (int $v.ports.metrics) -}}
{{- if ne (len (uniq $ports)) 3 -}}
{{- fail (printf "ports: grpc, ops and metrics must differ, got %s" (join ", " $ports)) -}}
{{- end -}}

{{- range $name, $limit := $v.resources.limits -}}
{{- $request := get $v.resources.requests $name -}}
{{- $measure := ternary "sluice.millicores" "sluice.bytes" (eq $name "cpu") -}}
{{- if and $request (not (kindIs "invalid" $limit)) (gt (include $measure $request | int64) (include $measure $limit | int64)) -}}
{{- fail (printf "resources: the request of %s (%v) is above its limit (%v)" $name $request $limit) -}}
{{- end -}}
{{- end -}}

{{- $grace := include "sluice.graceSeconds" . | int -}}
{{- $least := include "sluice.leastGraceSeconds" . | int -}}
{{- if lt $grace $least -}}
{{- fail (printf "termination.gracePeriodSeconds: at least %d (preStopSeconds %d + lameDuckSeconds %d + drainTimeoutSeconds %d + 15) expected, got %d: the kubelet would kill calls that may still end" $least (int $v.termination.preStopSeconds) (int $v.termination.lameDuckSeconds) (int $v.termination.drainTimeoutSeconds) $grace) -}}
{{- end -}}
{{- $limits := $v.resources.limits -}}
{{- $memory := include "sluice.bytes" $limits.memory | int64 -}}
{{- with $v.server.memoryWatermark -}}
{{- if gt (include "sluice.sizeBytes" . | int64) $memory -}}
{{- fail (printf "server.memoryWatermark: at most resources.limits.memory (%s) expected, got %s: the pod would be killed before" $limits.memory .) -}}
{{- end -}}
{{- end -}}
{{- if lt (include "sluice.bytes" (get $limits "ephemeral-storage") | int64) 67108864 -}}
{{- fail (printf "resources.limits.ephemeral-storage: at least 64Mi expected, the size of /tmp, got %s" (get $limits "ephemeral-storage")) -}}
{{- end -}}

{{- $progress := include "sluice.progressSeconds" . | int -}}
{{- $leastProgress := include "sluice.leastProgressSeconds" . | int -}}
{{- if lt $progress $leastProgress -}}
{{- fail (printf "strategy.progressDeadlineSeconds: at least %d (twice probes.worstLoadSeconds + strategy.minReadySeconds + 60) expected, got %d: a slow load would count as a failed update" $leastProgress $progress) -}}
{{- end -}}
{{- range $name := list "liveness" "readiness" -}}
{{- $probe := get $v.probes $name -}}
{{- if gt (int $probe.timeoutSeconds) (int $probe.periodSeconds) -}}
{{- fail (printf "probes.%s: timeoutSeconds (%d) must not exceed periodSeconds (%d)" $name (int $probe.timeoutSeconds) (int $probe.periodSeconds)) -}}
{{- end -}}
{{- end -}}
{{- $trouble := mul $v.probes.liveness.periodSeconds $v.probes.liveness.failureThreshold -}}
{{- if lt $trouble 10 -}}
{{- fail (printf "probes.liveness: periodSeconds x failureThreshold: at least 10 s expected, got %d: a short pause would end the pod" $trouble) -}}
{{- end -}}
{{- if gt (trimSuffix "s" $v.monitoring.scrapeTimeout | int) (trimSuffix "s" $v.monitoring.interval | int) -}}
{{- fail (printf "monitoring.scrapeTimeout (%s) must not exceed monitoring.interval (%s)" $v.monitoring.scrapeTimeout $v.monitoring.interval) -}}
{{- end -}}
{{- $none := list "0" "0%" -}}
{{- if and (eq $v.strategy.type "RollingUpdate") (has (toString $v.strategy.maxSurge) $none) (has (toString $v.strategy.maxUnavailable) $none) -}}
{{- fail "strategy: maxSurge and maxUnavailable are both 0: no update could begin" -}}
{{- end -}}

{{- $replicas := include "sluice.leastReplicas" . | int -}}
{{- if include "sluice.hasPdb" . -}}
{{- if not (kindIs "invalid" $v.pdb.minAvailable) -}}
{{- /* A share is rounded up. */ -}}
{{- $stay := int $v.pdb.minAvailable -}}
{{- if kindIs "string" $v.pdb.minAvailable -}}
{{- $stay = div (add (mul (trimSuffix "%" $v.pdb.minAvailable | int) $replicas) 99) 100 | int -}}
{{- end -}}
{{- if ge $stay $replicas -}}
{{- fail (printf "pdb.minAvailable: fewer than the %d pods that there are at least, got %v: no node could be drained" $replicas $v.pdb.minAvailable) -}}
{{- end -}}
{{- else if and (not (kindIs "invalid" $v.pdb.maxUnavailable)) (has (toString $v.pdb.maxUnavailable) $none) -}}
{{- fail "pdb.maxUnavailable: at least 1: no node could be drained" -}}
{{- end -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- if lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas) -}}
{{- fail (printf "autoscaling: maxReplicas (%d) is below minReplicas (%d)" (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "KEDA") (not $v.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress: the Prometheus that KEDA asks" -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "KEDA") (gt (int (default 0 $v.autoscaling.keda.fallbackReplicas)) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.keda.fallbackReplicas: at most autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "KEDA") $v.autoscaling.keda.fallbackReplicas (lt (int $v.autoscaling.keda.fallbackReplicas) (int $v.autoscaling.minReplicas)) -}}
{{- fail "autoscaling.keda.fallbackReplicas: at least autoscaling.minReplicas" -}}
{{- end -}}
{{- end -}}

{{- if and $v.tls.clientCASecret (not $v.tls.existingSecret) -}}
{{- fail "tls.clientCASecret: needs tls.existingSecret: certificates of clients are asked for with TLS only" -}}
{{- end -}}
{{- if and $v.test.clientCertSecret (not $v.tls.existingSecret) -}}
{{- fail "test.clientCertSecret: needs tls.existingSecret" -}}
{{- end -}}
{{- if and $v.tenants.existingConfigMap (or $v.tenants.default $v.tenants.byName) -}}
{{- fail "tenants: existingConfigMap, or default and byName, not both" -}}
{{- end -}}
{{- range $limits := append (values (default dict $v.tenants.byName)) (default dict $v.tenants.default) -}}
{{- if and $limits.burst_tokens (not $limits.tokens_per_second) -}}
{{- fail (printf "tenants: burst_tokens needs tokens_per_second, got %s" (toJson $limits)) -}}
{{- end -}}
{{- end -}}

{{- $held := len (default "" $v.model.chatTemplate) -}}
{{- if include "sluice.ownTenants" . -}}
{{- $held = add $held (len (include "sluice.tenants" .)) -}}
{{- end -}}
{{- if gt (int $held) 1048576 -}}
{{- fail (printf "tenants: with model.chatTemplate at most 1048576 bytes expected, got %d: a ConfigMap holds no more" $held) -}}
{{- end -}}

{{- if and $v.service.nodePort (eq $v.service.type "ClusterIP") -}}
{{- fail "service.nodePort: needs service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and $v.service.externalTrafficPolicy (eq $v.service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy: needs service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and (ne $v.service.type "LoadBalancer") (or $v.service.loadBalancerClass $v.service.loadBalancerSourceRanges) -}}
{{- fail "service: loadBalancerClass and loadBalancerSourceRanges need service.type LoadBalancer" -}}
{{- end -}}
{{- if and (include "sluice.wantsIPv6" .) (eq (include "sluice.listenAddress" .) "0.0.0.0") -}}
{{- fail "server.listenAddress: [::] expected, got 0.0.0.0: the Service has addresses of IPv6, where nobody would listen" -}}
{{- end -}}
{{- if and (gt (len (default list $v.service.ipFamilies)) 1) (not (hasSuffix "DualStack" (default "" $v.service.ipFamilyPolicy))) -}}
{{- fail "service.ipFamilies: one, or service.ipFamilyPolicy PreferDualStack or RequireDualStack" -}}
{{- end -}}
{{- $policy := $v.networkPolicy -}}
{{- if and $policy.enabled (ne $v.service.type "ClusterIP") (not (or $policy.allowAllClients $policy.clientCIDRs $v.service.loadBalancerSourceRanges)) -}}
{{- fail (printf "networkPolicy: a Service of type %s, and nobody from outside may call: networkPolicy.clientCIDRs, service.loadBalancerSourceRanges or networkPolicy.allowAllClients" $v.service.type) -}}
{{- end -}}
{{- if and $v.gateway.enabled (not $v.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: the gateways to attach the route to" -}}
{{- end -}}

{{- if and (not $v.serviceAccount.create) $v.serviceAccount.annotations -}}
{{- fail "serviceAccount.annotations: need serviceAccount.create" -}}
{{- end -}}
{{- range $key, $value := $v.podLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $key) (hasPrefix "helm.sh/" $key) -}}
{{- fail (printf "podLabels: %s is the chart's own" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := $v.commonLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $key) (hasPrefix "helm.sh/" $key) -}}
{{- fail (printf "commonLabels: %s is the chart's own" $key) -}}
{{- end -}}
{{- if hasKey (default dict $v.podLabels) $key -}}
{{- fail (printf "podLabels: %s is in commonLabels too" $key) -}}
{{- end -}}
{{- end -}}
{{- include "sluice.refusePlacement" . -}}
{{- $names := list -}}
{{- range $v.env -}}
{{- if has .name $names -}}
{{- fail (printf "env: %s is there twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- range $key, $value := $v.podAnnotations -}}
{{- if or (hasPrefix "checksum/" $key) (hasPrefix "prometheus.io/" $key) (eq $key "kubectl.kubernetes.io/default-container") -}}
{{- fail (printf "podAnnotations: %s is the chart's own" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the API server would not take of a pod's tolerations and its affinity to nodes. */}}
{{- define "sluice.refusePlacement" -}}
{{- range $index, $one := .Values.tolerations -}}
{{- $operator := default "Equal" $one.operator -}}
{{- if and (not $one.key) (eq $operator "Equal") -}}
{{- fail (printf "tolerations: number %d needs a key, or the operator Exists for every taint" $index) -}}
{{- end -}}
{{- if and $one.value (eq $operator "Exists") -}}
{{- fail (printf "tolerations: number %d has the operator Exists, which takes no value" $index) -}}
{{- end -}}
{{- if and (hasKey $one "tolerationSeconds") (ne (default "" $one.effect) "NoExecute") -}}
{{- fail (printf "tolerations: number %d has tolerationSeconds, which need the effect NoExecute" $index) -}}
{{- end -}}
{{- end -}}
{{- $terms := list -}}
{{- $affinity := default dict .Values.nodeAffinity -}}
{{- range dig "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" list $affinity -}}
{{- $terms = append $terms . -}}
{{- end -}}
{{- range default list (get $affinity "preferredDuringSchedulingIgnoredDuringExecution") -}}
{{- $terms = append $terms .preference -}}
{{- end -}}
{{- range $terms -}}
{{- range concat (default list .matchExpressions) (default list .matchFields) -}}
{{- $count := len (default list .values) -}}
{{- if and (has .operator (list "In" "NotIn")) (eq $count 0) -}}
{{- fail (printf "nodeAffinity: %s with the operator %s needs values" .key .operator) -}}
{{- else if and (has .operator (list "Exists" "DoesNotExist")) (gt $count 0) -}}
{{- fail (printf "nodeAffinity: %s with the operator %s takes no values" .key .operator) -}}
{{- else if and (has .operator (list "Gt" "Lt")) (or (ne $count 1) (not (regexMatch "^-?[0-9]{1,18}$" (first .values | toString)))) -}}
{{- fail (printf "nodeAffinity: %s with the operator %s needs one value, a whole number" .key .operator) -}}
{{- end -}}
{{- end -}}
{{- range default list .matchFields -}}
{{- if or (ne .key "metadata.name") (not (has .operator (list "In" "NotIn"))) (ne (len (default list .values)) 1) -}}
{{- fail (printf "nodeAffinity: matchFields know metadata.name with the operator In or NotIn and one value, got %s" (toJson .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
