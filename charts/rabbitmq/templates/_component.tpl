{{- define "rabbitmq.component" -}}
{{- dict "name" "rabbitmq" "app" "rabbitmq" "part" "message-broker" | toJson -}}
{{- end }}

{{/* Name of a node, which is its pod's DNS name. Takes {root, pod}. */}}
{{- define "rabbitmq.node" -}}
rabbit@{{ .pod }}.rabbitmq-headless.{{ .root.Release.Namespace }}.svc.{{ .root.Values.global.clusterDomain }}
{{- end }}
