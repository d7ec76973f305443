{{/*
Ray's pods are KubeRay's: the operator sets app.kubernetes.io/name on them, so this component selects them by labels of its own.
*/}}
{{- define "rayServe.component" -}}
{{- dict "name" "ray-serve" "app" "ray-serve" "part" "inference" "spreadLabels" (include "rayServe.selectorLabels" .) | toJson -}}
{{- end }}

{{- define "rayServe.selectorLabels" -}}
app: ray-serve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* A group's values: what the groups share, with the group's own values over it. Takes {root, group}; returns YAML. */}}
{{- define "rayServe.groupValues" -}}
{{- mergeOverwrite (dict) (omit .root.Values "head" "workers" "global") .group | toYaml -}}
{{- end }}
