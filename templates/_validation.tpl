{{/* What an external dependency needs the user to say; a JSON list of sentences. */}}
{{- define "ads.externalProblems" -}}
{{- $problems := list -}}
{{- $needed := list -}}
{{- $global := .Values.global -}}
{{- if not .Values.mlflow.postgresql.enabled -}}
{{- $needed = concat $needed (list "mlflowDatabase" "trainingDatabase") -}}
{{- if eq $global.database.host "postgresql-mlflow" -}}
{{- $problems = append $problems "mlflow.postgresql.enabled=false needs global.database.host: the host of your PostgreSQL" -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.mlflow.objectStore.engine "external" -}}
{{- $needed = concat $needed (list "mlflowObjectStore" "trainingObjectStore" "servingObjectStore") -}}
{{- if contains "//minio-mlflow:" $global.objectStore.endpointUrl -}}
{{- $problems = append $problems "mlflow.objectStore.engine=external needs global.objectStore.endpointUrl: the URL of your S3 store" -}}
{{- end -}}
{{- end -}}
{{- if not .Values.rabbitmq.enabled -}}
{{- $needed = append $needed "broker" -}}
{{- if eq $global.broker.host "rabbitmq" -}}
{{- $problems = append $problems "rabbitmq.enabled=false needs global.broker.host: the host of your RabbitMQ" -}}
{{- end -}}
{{- end -}}
{{- if and (not .Values.mlflow.server.enabled) (contains "//mlflow-server:" $global.mlflow.trackingUri) -}}
{{- $problems = append $problems "mlflow.server.enabled=false needs global.mlflow.trackingUri: the URL of your MLflow tracking server" -}}
{{- end -}}
{{- range $needed -}}
{{- if not (get (get $global.secrets .) "existingSecret") -}}
{{- $problems = append $problems (printf "global.secrets.%s.existingSecret is needed: the chart cannot make credentials of an external service" .) -}}
{{- end -}}
{{- end -}}
{{ toJson $problems }}
{{- end }}

{{/* Fails with everything in the values that no schema can refuse. Of a subchart that is off, helm knows no values but `enabled`. */}}
{{- define "ads.validate" -}}
{{- $problems := include "ads.externalProblems" . | fromJsonArray -}}
{{- $resources := dict
      "mlflow.server.resources" .Values.mlflow.server.resources
      "mlflow.postgresql.resources" .Values.mlflow.postgresql.resources
      "mlflow.objectStore.resources" .Values.mlflow.objectStore.resources
      "tools.resources" .Values.tools.resources -}}
{{- $strategies := dict "mlflow.server.strategy" .Values.mlflow.server.strategy -}}
{{- $orders := list -}}
{{- if .Values.rabbitmq.enabled -}}
{{- $_ := set $resources "rabbitmq.resources" .Values.rabbitmq.resources -}}
{{- end -}}
{{- $api := index .Values "training-api" -}}
{{- if $api.enabled -}}
{{- $_ := set $resources "training-api.resources" $api.resources -}}
{{- $_ := set $strategies "training-api.strategy" $api.strategy -}}
{{- $orders = append $orders (dict "lowKey" "training-api.limits.minPoints" "low" $api.limits.minPoints
      "highKey" "training-api.limits.maxPoints" "high" $api.limits.maxPoints) -}}
{{- end -}}
{{- $worker := index .Values "training-worker" -}}
{{- if $worker.enabled -}}
{{- $_ := set $resources "training-worker.resources" $worker.resources -}}
{{- $_ := set $strategies "training-worker.strategy" $worker.strategy -}}
{{- $orders = append $orders (dict "lowKey" "training-worker.autoscaling.minReplicas" "low" $worker.autoscaling.minReplicas
      "highKey" "training-worker.autoscaling.maxReplicas" "high" $worker.autoscaling.maxReplicas) -}}
{{- end -}}
{{- $serving := index .Values "ray-serve" -}}
{{- if $serving.enabled -}}
{{- range $group, $values := dict "head" $serving.head "workers" $serving.workers -}}
{{- $own := get $values "resources" | default dict -}}
{{- $_ := set $resources (printf "ray-serve.%sresources" (ternary (printf "%s." $group) "" (not (empty $own))))
      (mergeOverwrite (deepCopy $serving.resources) $own) -}}
{{- end -}}
{{- $scaling := $serving.serve.autoscaling -}}
{{- $orders = append $orders (dict "lowKey" "ray-serve.serve.autoscaling.minReplicas" "low" $scaling.minReplicas
      "highKey" "ray-serve.serve.autoscaling.maxReplicas" "high" $scaling.maxReplicas) -}}
{{- $orders = append $orders (dict "lowKey" "ray-serve.modelDisk.maxBytes" "low" $serving.modelDisk.maxBytes
      "highKey" "ray-serve.tmpSizeLimit in bytes" "high" (divf (include "common.milli" $serving.tmpSizeLimit | float64) 1000)) -}}
{{- end -}}
{{- range $key, $values := $resources -}}
{{- $problems = include "common.resourceProblems" (dict "key" $key "resources" $values) | fromJsonArray | concat $problems -}}
{{- end -}}
{{- range $key, $strategy := $strategies -}}
{{- $problems = include "common.strategyProblems" (dict "key" $key "strategy" $strategy) | fromJsonArray | concat $problems -}}
{{- end -}}
{{- range $orders -}}
{{- $problems = include "common.orderProblems" . | fromJsonArray | concat $problems -}}
{{- end -}}
{{- include "common.failWith" $problems -}}
{{- end }}
