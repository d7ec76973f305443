{{/* Apart from the ConfigMap's labels, which name the chart's version and must not restart the database. */}}
{{- define "mlflow.postgresqlConfiguration" -}}
start.sh: |
  {{- .Files.Get "files/postgresql-start.sh" | nindent 2 }}
roles.sql: |
  {{- .Files.Get "files/postgresql-roles.sql" | nindent 2 }}
pg_hba.conf: |
  {{- .Files.Get "files/pg_hba.conf" | nindent 2 }}
pg_hba_preparation.conf: |
  {{- .Files.Get "files/pg_hba_preparation.conf" | nindent 2 }}
postgresql.conf: |
  listen_addresses = '*'
  port = 5432
  hba_file = '/etc/postgresql/pg_hba.conf'
  unix_socket_directories = '/tmp'
  password_encryption = scram-sha-256
  dynamic_shared_memory_type = mmap
  {{- range $name, $value := .Values.postgresql.configuration }}
  {{ $name }} = '{{ $value }}'
  {{- end }}
{{- end }}
