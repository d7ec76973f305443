{{/* Annotations of a hook that runs before an install or an upgrade and is deleted when it has succeeded. Takes its weight. */}}
{{- define "ads.secretsHook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
