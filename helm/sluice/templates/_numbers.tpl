{{/* Quantities of Kubernetes, seconds, and what follows from them. */}}

{{/* Bytes of "4Gi", "500M", "1000": a whole number. Call: text. */}}
{{- define "sluice.bytes" -}}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- printf "%.0f" (mulf (float64 $number) (get $units (trimPrefix $number .) | float64)) -}}
{{- end -}}

{{/* The same of a size as the program's flags take it, "4G" being a power of 1024. Call: text. */}}
{{- define "sluice.sizeBytes" -}}
{{- include "sluice.bytes" (regexReplaceAll "([KMGT])$" . "${1}i") -}}
{{- end -}}

{{/* Thousandths of a CPU of "2", "1500m", 1.5. Call: text or number. */}}
{{- define "sluice.millicores" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text -}}
{{- else -}}
{{- printf "%.0f" (mulf (float64 $text) 1000.0) -}}
{{- end -}}
{{- end -}}

{{/* --threads; empty: the program's default, all cores of the node. */}}
{{- define "sluice.threads" -}}
{{- $server := .Values.server -}}
{{- if not (kindIs "invalid" $server.threads) -}}
{{- int $server.threads -}}
{{- else -}}
{{- $cpu := default .Values.resources.requests.cpu (get (default dict .Values.resources.limits) "cpu") -}}
{{- max 1 (div (include "sluice.millicores" $cpu | int) (mul 1000 (int $server.engines))) -}}
{{- end -}}
{{- end -}}

{{/* --memory-watermark, in bytes. */}}
{{- define "sluice.memoryWatermark" -}}
{{- if .Values.server.memoryWatermark -}}
{{- .Values.server.memoryWatermark -}}
{{- else -}}
{{- div (mul (include "sluice.bytes" .Values.resources.limits.memory | int64) 9) 10 -}}
{{- end -}}
{{- end -}}

{{/* Whether the cluster knows the sleep hook without a feature gate (Kubernetes 1.30). Before that the server itself goes
on taking calls for as long, and needs no shell for it either. */}}
{{- define "sluice.hasSleepHook" -}}
{{- if and (semverCompare ">=1.30-0" .Capabilities.KubeVersion.Version) (gt (int .Values.termination.preStopSeconds) 0) -}}
true
{{- end -}}
{{- end -}}

{{- define "sluice.lameDuckSeconds" -}}
{{- $termination := .Values.termination -}}
{{- if include "sluice.hasSleepHook" . -}}
{{- int $termination.lameDuckSeconds -}}
{{- else -}}
{{- add (int $termination.lameDuckSeconds) (int $termination.preStopSeconds) -}}
{{- end -}}
{{- end -}}

{{/* What a pod needs to end by itself: the server ends 7 s after its drain at the latest. */}}
{{- define "sluice.leastGraceSeconds" -}}
{{- $termination := .Values.termination -}}
{{- add (int $termination.preStopSeconds) (int $termination.lameDuckSeconds) (int $termination.drainTimeoutSeconds) 15 -}}
{{- end -}}

{{- define "sluice.graceSeconds" -}}
{{- if kindIs "invalid" .Values.termination.gracePeriodSeconds -}}
{{- include "sluice.leastGraceSeconds" . -}}
{{- else -}}
{{- int .Values.termination.gracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* Looks of the startup probe, one every 5 s, for twice the slowest load. */}}
{{- define "sluice.startupFailures" -}}
{{- div (add (mul 2 (int .Values.probes.worstLoadSeconds)) 4) 5 -}}
{{- end -}}

{{- define "sluice.leastProgressSeconds" -}}
{{- add (mul 5 (include "sluice.startupFailures" . | int)) (int .Values.strategy.minReadySeconds) 60 -}}
{{- end -}}

{{- define "sluice.progressSeconds" -}}
{{- if kindIs "invalid" .Values.strategy.progressDeadlineSeconds -}}
{{- include "sluice.leastProgressSeconds" . -}}
{{- else -}}
{{- int .Values.strategy.progressDeadlineSeconds -}}
{{- end -}}
{{- end -}}
