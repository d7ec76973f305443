{{/*
Name of the Secret that holds a credential: the user's own, else the one the secrets Job makes. Takes {root, credential}.
*/}}
{{- define "common.secretName" -}}
{{- $own := get (get .root.Values.global.secrets .credential) "existingSecret" -}}
{{- $made := dict
      "databaseAdmin" "postgresql-mlflow-secret"
      "mlflowDatabase" "mlflow-database-secret"
      "trainingDatabase" "training-database-secret"
      "objectStoreRoot" "minio-mlflow-secret"
      "mlflowObjectStore" "mlflow-s3-secret"
      "trainingObjectStore" "training-s3-secret"
      "servingObjectStore" "serving-s3-secret"
      "broker" "rabbitmq-secret" -}}
{{- $own | default (get $made .credential) -}}
{{- end }}

{{/* An environment variable from a key of a credential. Takes {root, credential, key, name}. */}}
{{- define "common.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ include "common.secretName" . | quote }}
      key: {{ .key }}
{{- end }}
