{{- define "trainingApi.component" -}}
{{- dict "name" "training-api" "app" "training-api" "part" "api" | toJson -}}
{{- end }}
