{{- define "trainingWorker.component" -}}
{{- dict "name" "training-worker" "app" "training-worker" "part" "worker" | toJson -}}
{{- end }}
