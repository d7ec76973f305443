{{/* The components of this chart as the library takes them; each returns JSON, a template's only way to return a dict. */}}
{{- define "mlflow.server" -}}
{{- dict "name" "mlflow-server" "app" "mlflow" "part" "model-registry" | toJson -}}
{{- end }}

{{- define "mlflow.postgresql" -}}
{{- dict "name" "postgresql-mlflow" "app" "postgresql-mlflow" "part" "database" | toJson -}}
{{- end }}

{{/* Called after the seed's store whatever engine runs: its clients know it by this name. */}}
{{- define "mlflow.objectStore" -}}
{{- dict "name" "minio-mlflow" "app" "minio-mlflow" "part" "object-store" | toJson -}}
{{- end }}
