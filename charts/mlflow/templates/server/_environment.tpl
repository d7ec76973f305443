{{/*
The driver is named: which one a plain postgresql:// means depends on the version of SQLAlchemy. The password stays out of the URI,
which MLflow logs and lists among its processes' arguments: libpq reads it from PGPASSWORD.
*/}}
{{- define "mlflow.serverDatabaseEnv" -}}
{{- $database := .Values.global.database -}}
- name: HOME
  value: /tmp
- name: MLFLOW_BACKEND_STORE_URI
  value: postgresql+psycopg://{{ $database.mlflow.user }}@{{ $database.host }}:{{ $database.port }}/{{ $database.mlflow.name }}
{{ include "common.secretEnv" (dict "root" . "credential" "mlflowDatabase" "key" "password" "name" "PGPASSWORD") }}
{{- include "common.databaseTlsEnv" (dict "root" .) }}
{{- end }}

{{/* The Service's names, with and without port, what `kubectl port-forward` sends, and the hosts the user adds. */}}
{{- define "mlflow.allowedHosts" -}}
{{- $namespace := .Release.Namespace -}}
{{- $hosts := list "localhost" "127.0.0.1" "mlflow-server"
      (printf "mlflow-server.%s" $namespace)
      (printf "mlflow-server.%s.svc" $namespace)
      (printf "mlflow-server.%s.svc.%s" $namespace .Values.global.clusterDomain) -}}
{{- $allowed := list -}}
{{- range concat $hosts .Values.server.allowedHosts -}}
{{- $allowed = append $allowed . | concat (list (printf "%s:*" .)) -}}
{{- end -}}
{{- join "," ($allowed | sortAlpha) -}}
{{- end }}
