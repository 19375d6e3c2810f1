{{/* Resources of the server, and on which nodes it runs. */}}

{{- define "sluice.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if kindIs "invalid" (get $resources.limits "cpu") -}}
{{- $_ := unset $resources.limits "cpu" -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}
{{- $gpu := dict .Values.gpu.resourceName (int .Values.gpu.count) -}}
{{- $resources = dict "requests" (merge (default dict $resources.requests) $gpu) "limits" (merge (default dict $resources.limits) $gpu) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "sluice.nodeAffinity" -}}
{{- $affinity := default dict .Values.nodeAffinity | deepCopy -}}
{{- if and .Values.gpu.enabled .Values.gpu.products -}}
{{- $product := dict "key" "nvidia.com/gpu.product" "operator" "In" "values" .Values.gpu.products -}}
{{- $terms := list -}}
{{- range dig "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity -}}
{{- $terms = append $terms (merge (dict "matchExpressions" (append (default list .matchExpressions) $product)) .) -}}
{{- end -}}
{{- $_ := set $affinity "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- end -}}
{{- if $affinity -}}
{{- toYaml $affinity -}}
{{- end -}}
{{- end -}}

{{- define "sluice.apart" -}}
labelSelector:
  matchLabels:
    {{- include "sluice.selectorLabels" . | nindent 4 }}
topologyKey: kubernetes.io/hostname
{{- end -}}

{{/* Nodes that are chosen for their GPUs have the taint of GPUs, for the pod of the test too. */}}
{{- define "sluice.tolerations" -}}
{{- if or .Values.tolerations .Values.gpu.enabled -}}
tolerations:
  {{- if .Values.gpu.enabled }}
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with .Values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "sluice.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "sluice.tolerations" . }}
{{- . | nindent 0 }}
{{- end }}
{{- $nodes := include "sluice.nodeAffinity" . }}
{{- if or $nodes (ne .Values.podAntiAffinity "none") }}
affinity:
  {{- with $nodes }}
  nodeAffinity:
    {{- . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.podAntiAffinity "hard" }}
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - {{ include "sluice.apart" . | nindent 8 | trim }}
  {{- else if eq .Values.podAntiAffinity "soft" }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          {{- include "sluice.apart" . | nindent 10 }}
  {{- end }}
{{- end }}
{{- $zones := dict "topology.kubernetes.io/zone" .Values.topologySpread.zone "kubernetes.io/hostname" .Values.topologySpread.host }}
{{- if or (ne .Values.topologySpread.zone "none") (ne .Values.topologySpread.host "none") }}
topologySpreadConstraints:
  {{- range $key, $way := $zones }}
  {{- if ne $way "none" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $way }}
    labelSelector:
      matchLabels:
        {{- include "sluice.selectorLabels" $ | nindent 8 }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}
