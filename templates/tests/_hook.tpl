{{/* Annotations of what `helm test` runs. A pod that failed stays, for its log. Takes its weight. */}}
{{- define "ads.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
