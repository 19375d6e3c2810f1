{{/* What is asked for and can be had. Each answers "true" or nothing. */}}

{{- define "sluice.hasOperator" -}}
{{- if .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}true{{ end -}}
{{- end -}}

{{- define "sluice.usesHpa" -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.kind "HPA") }}true{{ end -}}
{{- end -}}

{{- define "sluice.usesKeda" -}}
{{- if and .Values.autoscaling.enabled (eq .Values.autoscaling.kind "KEDA") (.Capabilities.APIVersions.Has "keda.sh/v1alpha1") }}true{{ end -}}
{{- end -}}

{{- define "sluice.isScaled" -}}
{{- if or (include "sluice.usesHpa" .) (include "sluice.usesKeda" .) }}true{{ end -}}
{{- end -}}

{{/* The fewest pods there are. */}}
{{- define "sluice.leastReplicas" -}}
{{- if .Values.autoscaling.enabled -}}
{{- int .Values.autoscaling.minReplicas -}}
{{- else -}}
{{- int .Values.replicaCount -}}
{{- end -}}
{{- end -}}

{{/* The most. */}}
{{- define "sluice.mostReplicas" -}}
{{- if include "sluice.isScaled" . -}}
{{- int .Values.autoscaling.maxReplicas -}}
{{- else -}}
{{- include "sluice.leastReplicas" . -}}
{{- end -}}
{{- end -}}

{{- define "sluice.hasPdb" -}}
{{- $pods := include (ternary "sluice.mostReplicas" "sluice.leastReplicas" (kindIs "invalid" .Values.pdb.minAvailable)) . | int -}}
{{- if and .Values.pdb.enabled (gt $pods 1) }}true{{ end -}}
{{- end -}}

{{- define "sluice.wantsIPv6" -}}
{{- if or (hasSuffix "DualStack" (default "" .Values.service.ipFamilyPolicy)) (has "IPv6" (default list .Values.service.ipFamilies)) }}true{{ end -}}
{{- end -}}

{{- define "sluice.listenAddress" -}}
{{- default (ternary "[::]" "0.0.0.0" (eq (include "sluice.wantsIPv6" .) "true")) .Values.server.listenAddress -}}
{{- end -}}

{{- define "sluice.hasGateway" -}}
{{- if and .Values.gateway.enabled (.Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1") }}true{{ end -}}
{{- end -}}

{{/* Whether the ConfigMap has tenants.json. */}}
{{- define "sluice.ownTenants" -}}
{{- if or .Values.tenants.default .Values.tenants.byName }}true{{ end -}}
{{- end -}}

{{- define "sluice.hasTenants" -}}
{{- if or (include "sluice.ownTenants" .) .Values.tenants.existingConfigMap }}true{{ end -}}
{{- end -}}

{{- define "sluice.hasConfig" -}}
{{- if or (include "sluice.ownTenants" .) .Values.model.chatTemplate }}true{{ end -}}
{{- end -}}

{{/* Whether `helm test` can show all that the server asks for. */}}
{{- define "sluice.hasTest" -}}
{{- $test := .Values.test -}}
{{- if and $test.enabled (or $test.tokenSecret (not .Values.auth.existingSecret)) (or $test.clientCertSecret (not .Values.tls.clientCASecret)) }}true{{ end -}}
{{- end -}}
