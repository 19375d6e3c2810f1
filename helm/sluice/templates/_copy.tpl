{{/* The init container that copies the model to the node. It goes on where an earlier try of the same pod broke off, and a
file with another hash is never left under the model's name: the server does not start then. */}}
{{- define "sluice.copyContainer" -}}
{{- $file := .Values.model.file -}}
- name: copy-model
  image: {{ default (include "sluice.image" .) .Values.model.copy.image | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/bin/sh, -c]
  args:
    - |
      set -eu
      source=$1 target=$2 hash=$3 part=$2.part
      matches() { test "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$hash"; }
      if [ -f "$target" ] && matches "$target"; then
        echo "$target is there and has the hash"
        exit 0
      fi
      rm -f "$target"
      [ -f "$source" ] || { echo "$source: no such file" >&2; exit 1; }
      size=$(wc -c <"$source")
      have=0
      if [ -f "$part" ]; then have=$(wc -c <"$part"); fi
      if [ "$have" -gt "$size" ]; then
        rm -f "$part"
        have=0
      fi
      echo "copying $source, $size bytes, from byte $have"
      tail -c +"$((have + 1))" "$source" >>"$part"
      if ! matches "$part"; then
        rm -f "$part"
        echo "$source: the copy has another sha256 than $hash" >&2
        exit 1
      fi
      mv "$part" "$target"
      echo "$target has the hash"
    - copy-model
    - {{ printf "/source/%s" $file | include "sluice.literal" | quote }}
    - {{ include "sluice.modelPath" . | include "sluice.literal" | quote }}
    - {{ .Values.model.sha256 | lower | quote }}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- include "sluice.containerSecurityContext" . | nindent 4 }}
  {{- $copy := .Values.model.copy }}
  {{- $disk := get .Values.resources.limits "ephemeral-storage" | default "1Gi" }}
  # The disk of a pod's volumes counts: that of the copy beside what the server may use.
  resources:
    requests: {cpu: {{ $copy.cpu | quote }}, memory: {{ $copy.memory | quote }}, ephemeral-storage: {{ $copy.sizeLimit | quote }}}
    limits: {memory: {{ $copy.memory | quote }}, ephemeral-storage: {{ add (include "sluice.bytes" $copy.sizeLimit) (include "sluice.bytes" $disk) | quote }}}
  volumeMounts:
    - {name: source, mountPath: /source, readOnly: true}
    - {name: model, mountPath: /models}
{{- end -}}
