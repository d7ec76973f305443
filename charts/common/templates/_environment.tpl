{{/* Connections of the services, as environment variables. Every template here takes a component. */}}

{{/* Takes also `user`: training or serving. */}}
{{- define "common.brokerEnv" -}}
{{- $broker := .root.Values.global.broker -}}
- name: RABBITMQ_HOST
  value: {{ $broker.host | quote }}
- name: RABBITMQ_PORT
  value: {{ $broker.port | quote }}
- name: RABBITMQ_VHOST
  value: {{ $broker.vhost | quote }}
- name: RABBITMQ_USER
  value: {{ .user }}
{{ include "common.secretEnv" (dict "root" .root "credential" "broker" "key" (printf "%s-password" .user) "name" "RABBITMQ_PASSWORD") }}
{{- end }}

{{- define "common.trainingDatabaseEnv" -}}
{{- $database := .root.Values.global.database -}}
- name: DATABASE_HOST
  value: {{ $database.host | quote }}
- name: DATABASE_PORT
  value: {{ $database.port | quote }}
- name: DATABASE_NAME
  value: {{ $database.training.name | quote }}
- name: DATABASE_USER
  value: {{ $database.training.user | quote }}
{{ include "common.secretEnv" (dict "root" .root "credential" "trainingDatabase" "key" "password" "name" "DATABASE_PASSWORD") }}
{{- include "common.databaseTlsEnv" . }}
{{- end }}

{{/* libpq reads this variable in every client, psycopg and psycopg2 alike. */}}
{{- define "common.databaseTlsEnv" -}}
{{- with .root.Values.global.database.sslMode }}
- name: PGSSLMODE
  value: {{ . }}
{{- end }}
{{- end }}

{{/* Takes also `credential` and `bucket`. */}}
{{- define "common.objectStoreEnv" -}}
- name: S3_ENDPOINT_URL
  value: {{ .root.Values.global.objectStore.endpointUrl | quote }}
- name: S3_REGION
  value: {{ .root.Values.global.objectStore.region | quote }}
- name: S3_BUCKET
  value: {{ .bucket | quote }}
{{ include "common.secretEnv" (dict "root" .root "credential" .credential "key" "access-key-id" "name" "S3_ACCESS_KEY_ID") }}
{{ include "common.secretEnv" (dict "root" .root "credential" .credential "key" "secret-access-key" "name" "S3_SECRET_ACCESS_KEY") }}
{{- end }}

{{- define "common.mlflowEnv" -}}
- name: MLFLOW_TRACKING_URI
  value: {{ .root.Values.global.mlflow.trackingUri | quote }}
{{- end }}
