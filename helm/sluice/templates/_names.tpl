{{/* Names, labels and images. */}}

{{/* A name of at most 52 characters, so that "-headless" and "-dashboard" fit behind it in 63, of which a Service can be
made: no dots, a letter first. One that had to be changed ends with a hash of what it was, so that two releases never meet.
Call: text. */}}
{{- define "sluice.shorten" -}}
{{- $name := replace "." "-" . -}}
{{- if regexMatch "^[^a-z]" $name }}{{ $name = printf "s-%s" $name }}{{ end -}}
{{- if or (gt (len $name) 52) (ne $name .) -}}
{{- printf "%s-%s" (trunc 43 $name | trimSuffix "-") (sha256sum . | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "sluice.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- include "sluice.shorten" .Values.fullnameOverride -}}
{{- else if contains (include "sluice.name" .) .Release.Name -}}
{{- include "sluice.shorten" .Release.Name -}}
{{- else -}}
{{- include "sluice.shorten" (printf "%s-%s" .Release.Name (include "sluice.name" .)) -}}
{{- end -}}
{{- end -}}

{{- define "sluice.headlessName" -}}
{{- include "sluice.fullname" . }}-headless
{{- end -}}

{{- define "sluice.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sluice.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What never changes while a release lives: Deployments cannot be given another selector. */}}
{{- define "sluice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end -}}

{{/* Labels of a pod: nothing that changes with the chart alone, for that would restart it. What is given in "extra" and in
commonLabels gives way to the chart's own. Call: dict "root" $ "component" NAME "extra" LABELS. */}}
{{- define "sluice.podLabels" -}}
{{- $own := dict
  "app.kubernetes.io/name" (include "sluice.name" .root)
  "app.kubernetes.io/instance" .root.Release.Name
  "app.kubernetes.io/component" .component
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/part-of" "sluice" -}}
{{- toYaml (merge $own (default dict .extra) (default dict .root.Values.commonLabels)) -}}
{{- end -}}

{{/* Labels of an object. Called likewise. */}}
{{- define "sluice.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- toYaml (merge $own (include "sluice.podLabels" . | fromYaml)) -}}
{{- end -}}

{{- define "sluice.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $variant := ternary "-cuda" "" .Values.gpu.enabled -}}
{{- printf "%s:%s" $image.repository (default (printf "%s%s" .Chart.AppVersion $variant) $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A map of texts, each on its line whatever is in it. Call: map. */}}
{{- define "sluice.texts" -}}
{{- range $key, $text := . }}
{{ $key | quote }}: {{ $text | quote }}
{{- end }}
{{- end -}}

{{/* The address by which clients in the cluster call. */}}
{{- define "sluice.target" -}}
{{- printf "%s.%s.svc:%d" (include "sluice.fullname" .) .Release.Namespace (int .Values.service.port) -}}
{{- end -}}
