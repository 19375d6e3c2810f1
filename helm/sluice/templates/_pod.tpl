{{/* Parts that pods share. */}}

{{- define "sluice.podSecurityContext" -}}
{{- $security := .Values.security -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" $security.runAsUser) }}
runAsUser: {{ int $security.runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" $security.runAsGroup) }}
runAsGroup: {{ int $security.runAsGroup }}
{{- end }}
{{- if not (kindIs "invalid" $security.fsGroup) }}
fsGroup: {{ int $security.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- with $security.supplementalGroups }}
supplementalGroups:
  {{- range . }}
  - {{ int . }}
  {{- end }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "sluice.containerSecurityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end -}}

{{/* Text for an argument: the kubelet puts a variable's value in the place of $(NAME), and makes one $ of two. */}}
{{- define "sluice.literal" -}}
{{- replace "$" "$$" . -}}
{{- end -}}

{{/* Mode of files of Secrets, 0440 in decimal. They are root's: without a group of the volumes nobody else could read them
then, and it is 0444. */}}
{{- define "sluice.secretMode" -}}
{{- ternary 292 288 (kindIs "invalid" .Values.security.fsGroup) -}}
{{- end -}}

{{/* Where the volume of the model comes from. */}}
{{- define "sluice.modelSource" -}}
{{- with .Values.model -}}
{{- if .existingClaim -}}
persistentVolumeClaim:
  claimName: {{ .existingClaim | quote }}
  readOnly: true
{{- else if .hostPath -}}
hostPath:
  path: {{ .hostPath | quote }}
  type: Directory
{{- else if .image.reference -}}
image:
  reference: {{ .image.reference | quote }}
  pullPolicy: {{ .image.pullPolicy }}
{{- else -}}
csi:
  driver: {{ .csi.driver | quote }}
  readOnly: true
  {{- with .csi.fsType }}
  fsType: {{ . | quote }}
  {{- end }}
  {{- with .csi.volumeAttributes }}
  volumeAttributes:
    {{- include "sluice.texts" . | trim | nindent 4 }}
  {{- end }}
  {{- with .csi.nodePublishSecret }}
  nodePublishSecretRef:
    name: {{ . | quote }}
  {{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.modelPath" -}}
{{- if .Values.model.copy.enabled -}}
/models/{{ base .Values.model.file }}
{{- else if .Values.model.file -}}
/models/{{ .Values.model.file }}
{{- else -}}
/models
{{- end -}}
{{- end -}}

{{/* The flags of `sluice serve`, one a line. Only what differs from the program's defaults, or must be said here. */}}
{{- define "sluice.args" -}}
{{- $server := .Values.server -}}
{{- $listen := include "sluice.listenAddress" . -}}
- serve
- {{ printf "--model=%s" (include "sluice.modelPath" .) | include "sluice.literal" | quote }}
- --listen={{ $listen }}:{{ int .Values.ports.grpc }}
- --ops-listen={{ $listen }}:{{ int .Values.ports.ops }}
- --metrics-listen=0.0.0.0:{{ int .Values.ports.metrics }}
- --lame-duck={{ include "sluice.lameDuckSeconds" . }}s
- --drain-timeout={{ int .Values.termination.drainTimeoutSeconds }}s
{{- with .Values.server.stallTimeoutSeconds }}
- --stall-timeout={{ int . }}s
{{- end }}
{{- with .Values.server.hangTimeoutSeconds }}
- --hang-timeout={{ int . }}s
{{- end }}
- --log-level={{ $server.logLevel }}
- --log-format={{ $server.logFormat }}
- --threads={{ include "sluice.threads" . }}
- --memory-watermark={{ include "sluice.memoryWatermark" . }}
- --prefix-cache={{ ternary "on" "off" $server.prefixCache }}
{{- with .Values.model.name }}
- {{ printf "--model-name=%s" . | include "sluice.literal" | quote }}
{{- end }}
{{- with .Values.model.sha256 }}
- --model-sha256={{ . }}
{{- end }}
{{- if .Values.model.chatTemplate }}
- --chat-template=/etc/sluice/config/chat-template.jinja
{{- end }}
{{- if gt (int $server.engines) 1 }}
- --engines={{ int $server.engines }}
{{- end }}
{{- if .Values.gpu.enabled }}
- --device=cuda:0
{{- if not (kindIs "invalid" .Values.gpu.memoryFraction) }}
- --gpu-memory-fraction={{ .Values.gpu.memoryFraction }}
{{- end }}
{{- end }}
{{- range $flag, $value := dict "isa" $server.isa "kv-memory" $server.kvMemory "kv-dtype" $server.kvDtype "numerics" $server.numerics "max-queue-bytes" $server.maxQueueBytes }}
{{- with $value }}
- --{{ $flag }}={{ . }}
{{- end }}
{{- end }}
{{- range $flag, $value := dict "max-context" $server.maxContext "max-batch" $server.maxBatch "max-step-tokens" $server.maxStepTokens "max-connections" $server.maxConnections "max-connections-per-address" $server.maxConnectionsPerAddress "max-streams" $server.maxStreams "max-queue" $server.maxQueue "max-queue-tokens" $server.maxQueueTokens "max-tokens-cap" $server.maxTokensCap "delivery-threads" $server.deliveryThreads }}
{{- if not (kindIs "invalid" $value) }}
- --{{ $flag }}={{ int64 $value }}
{{- end }}
{{- end }}
{{- range $flag, $value := dict "mlock" $server.mlock "reflection" $server.reflection "channelz" $server.channelz }}
{{- if $value }}
- --{{ $flag }}
{{- end }}
{{- end }}
{{- if .Values.tls.existingSecret }}
- --tls-cert=/etc/sluice/tls/tls.crt
- --tls-key=/etc/sluice/tls/tls.key
{{- end }}
{{- if .Values.tls.clientCASecret }}
- --tls-client-ca=/etc/sluice/client-ca/ca.crt
{{- end }}
{{- if .Values.auth.existingSecret }}
- --auth-file=/etc/sluice/auth/auth.json
{{- end }}
{{- if include "sluice.hasTenants" . }}
- --tenants=/etc/sluice/{{ ternary "tenants" "config" (not (empty .Values.tenants.existingConfigMap)) }}/tenants.json
{{- end }}
{{- end -}}

{{/* Directories of files that are read by name: [name, path, source]. Whole directories, because a single file that is
mounted (subPath) never changes. */}}
{{- define "sluice.fileMounts" -}}
{{- if include "sluice.hasConfig" . }}
- {name: config, mountPath: /etc/sluice/config, readOnly: true}
{{- end }}
{{- if .Values.tenants.existingConfigMap }}
- {name: tenants, mountPath: /etc/sluice/tenants, readOnly: true}
{{- end }}
{{- if .Values.auth.existingSecret }}
- {name: auth, mountPath: /etc/sluice/auth, readOnly: true}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/sluice/tls, readOnly: true}
{{- end }}
{{- if .Values.tls.clientCASecret }}
- {name: client-ca, mountPath: /etc/sluice/client-ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* Their volumes. */}}
{{- define "sluice.fileVolumes" -}}
{{- if include "sluice.hasConfig" . }}
- name: config
  configMap:
    name: {{ include "sluice.fullname" . | quote }}
{{- end }}
{{- with .Values.tenants.existingConfigMap }}
- name: tenants
  configMap:
    name: {{ . | quote }}
    items: [{key: tenants.json, path: tenants.json}]
{{- end }}
{{- with .Values.auth.existingSecret }}
- name: auth
  secret:
    secretName: {{ . | quote }}
    defaultMode: {{ include "sluice.secretMode" $ }}
    items: [{key: auth.json, path: auth.json}]
{{- end }}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: {{ include "sluice.secretMode" $ }}
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}
{{- with .Values.tls.clientCASecret }}
- name: client-ca
  secret:
    secretName: {{ . | quote }}
    defaultMode: {{ include "sluice.secretMode" $ }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end -}}
