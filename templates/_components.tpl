{{/* The umbrella's own pods, which run the tools image, as the library takes them. Takes {root, name}. */}}
{{- define "ads.tool" -}}
{{- dict "name" .name "app" .name "part" "tools" | toJson -}}
{{- end }}

{{/*
Credentials the hook Job makes: a JSON list of {name, labels, keys: {key: {length} or {value}}}, without those that have an
`existingSecret` and those nothing in the release needs.
*/}}
{{- define "ads.secretsSpecification" -}}
{{- $credentials := dict -}}
{{- if .Values.mlflow.postgresql.enabled -}}
{{- $_ := set $credentials "databaseAdmin" (dict "postgres-password" (dict "length" 32)) -}}
{{- $_ := set $credentials "mlflowDatabase" (dict "password" (dict "length" 32)) -}}
{{- $_ := set $credentials "trainingDatabase" (dict "password" (dict "length" 32)) -}}
{{- end -}}
{{- if ne .Values.mlflow.objectStore.engine "external" -}}
{{- $_ := set $credentials "objectStoreRoot" (dict "root-user" (dict "value" "admin") "root-password" (dict "length" 32)) -}}
{{- range $credential, $user := dict "mlflowObjectStore" "mlflow" "trainingObjectStore" "training" "servingObjectStore" "serving" -}}
{{- $_ := set $credentials $credential (dict "access-key-id" (dict "value" $user) "secret-access-key" (dict "length" 40)) -}}
{{- end -}}
{{- end -}}
{{- if .Values.rabbitmq.enabled -}}
{{- $passwords := dict -}}
{{- range list "admin-password" "training-password" "serving-password" "erlang-cookie" -}}
{{- $_ := set $passwords . (dict "length" 32) -}}
{{- end -}}
{{- $_ := set $credentials "broker" $passwords -}}
{{- end -}}
{{- $specification := list -}}
{{- range $credential, $keys := $credentials -}}
{{- if not (get (get $.Values.global.secrets $credential) "existingSecret") -}}
{{- $labels := dict "app.kubernetes.io/part-of" "anomaly-detection-system" "app.kubernetes.io/instance" $.Release.Name "app.kubernetes.io/component" "credentials" -}}
{{- $name := include "common.secretName" (dict "root" $ "credential" $credential) -}}
{{- $specification = append $specification (dict "name" $name "labels" $labels "keys" $keys) -}}
{{- end -}}
{{- end -}}
{{- toPrettyJson $specification -}}
{{- end }}

{{/* "true" when the release has every part the smoke test goes through. */}}
{{- define "ads.hasSmokeTest" -}}
{{- $parts := list (index .Values "training-api") (index .Values "training-worker") (index .Values "ray-serve") -}}
{{- $enabled := true -}}
{{- range $parts -}}
{{- $enabled = and $enabled .enabled -}}
{{- end -}}
{{- if $enabled }}true{{ end -}}
{{- end }}
