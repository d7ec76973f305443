{{/*
Pod Security "restricted", and stricter where it costs nothing: no token, no service variables, read-only root.
*/}}
{{- define "common.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ int64 .values.securityContext.runAsUser }}
runAsGroup: {{ int64 .values.securityContext.runAsGroup }}
fsGroup: {{ int64 .values.securityContext.fsGroup }}
# A large volume is not walked on every start when its root already belongs to the group.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "common.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* imagePullSecrets of a pod, or nothing. */}}
{{- define "common.imagePullSecrets" -}}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Metadata of a pod template. Takes a component, with optional `checksums`: {name: YAML} that restart the pod when what they say changes. */}}
{{- define "common.podMetadata" -}}
labels:
  {{- include "common.podLabels" . | nindent 2 }}
{{- if or .checksums .values.podAnnotations }}
annotations:
  {{- range $name, $text := .checksums }}
  checksum/{{ $name }}: {{ $text | fromYaml | toJson | sha256sum }}
  {{- end }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Everything of a pod's spec that is neither a container nor a volume. */}}
{{- define "common.podSettings" -}}
serviceAccountName: {{ .name }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "common.podSecurityContext" . | nindent 2 }}
{{- include "common.imagePullSecrets" . }}
{{- include "common.scheduling" . }}
{{- with .values.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- end }}

{{/* Where a pod may run. Without own constraints replicas spread over zones and nodes, softly, so that one node is enough. */}}
{{- define "common.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  {{- $labels := .spreadLabels | default (include "common.selectorLabels" .) }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $labels | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* image, security and resources of a component's main container. */}}
{{- define "common.containerSettings" -}}
image: {{ include "common.image" (dict "root" .root "image" .values.image) }}
imagePullPolicy: {{ .root.Values.global.imagePullPolicy }}
securityContext:
  {{- include "common.containerSecurityContext" . | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- with .values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
The three probes of a container. Takes {values, startup, liveness, readiness}: the last three are handlers, the numbers come from
`probes` of the component's values.
*/}}
{{- define "common.probes" -}}
{{- $probes := dict -}}
{{- range $kind := list "startup" "liveness" "readiness" -}}
{{- $_ := set $probes (printf "%sProbe" $kind) (merge (dict) (get $ $kind) (get $.values.probes $kind)) -}}
{{- end -}}
{{ toYaml $probes }}
{{- end }}

{{/* Mounts every container has: /tmp is the only writable path of a read-only root. */}}
{{- define "common.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "common.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .values.tmpSizeLimit | quote }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
