{{/* A NetworkPolicy's header: it takes both directions, so what no rule names is denied. Takes a component. */}}
{{- define "common.networkPolicyHeader" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "common.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- .spreadLabels | default (include "common.selectorLabels" .) | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end }}

{{/* Pods of this release by their label `app`. Takes {root, apps}. */}}
{{- define "common.peers" -}}
{{- $peers := list -}}
{{- range .apps -}}
{{- $labels := dict "app" . "app.kubernetes.io/instance" $.root.Release.Name -}}
{{- $peers = append $peers (dict "podSelector" (dict "matchLabels" $labels)) -}}
{{- end -}}
{{ toYaml $peers }}
{{- end }}

{{/* An ingress rule from pods of this release. Takes {root, apps, ports}. */}}
{{- define "common.ingressFrom" -}}
- from:
    {{- include "common.peers" . | nindent 4 }}
  ports:
    {{- include "common.policyPorts" .ports | nindent 4 }}
{{- end }}

{{/* An egress rule. Takes {root, app, ports, external}: a dependency outside the release is allowed by port, its address being unknown. */}}
{{- define "common.egressTo" -}}
{{- if .external -}}
- ports:
    {{- include "common.policyPorts" .ports | nindent 4 }}
{{- else -}}
- to:
    {{- include "common.peers" (dict "root" .root "apps" (list .app)) | nindent 4 }}
  ports:
    {{- include "common.policyPorts" .ports | nindent 4 }}
{{- end }}
{{- end }}

{{/* TCP ports of a rule. Takes a list of numbers. */}}
{{- define "common.policyPorts" -}}
{{- $ports := list -}}
{{- range . -}}
{{- $ports = append $ports (dict "protocol" "TCP" "port" (int .)) -}}
{{- end -}}
{{ toYaml $ports }}
{{- end }}

{{/* pod --> cluster DNS. 5353 too: some distributions run DNS on it behind port 53. */}}
{{- define "common.egressDns" -}}
- to:
    {{- toYaml .root.Values.global.networkPolicy.dns | nindent 4 }}
  ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
    - protocol: UDP
      port: 5353
    - protocol: TCP
      port: 5353
{{- end }}

{{/* Prometheus --> metrics port. Takes {root, ports}. */}}
{{- define "common.ingressMetrics" -}}
- from:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .root.Values.global.networkPolicy.monitoringNamespace | quote }}
  ports:
    {{- include "common.policyPorts" .ports | nindent 4 }}
{{- end }}

{{/* Port of a URL. Takes the URL. */}}
{{- define "common.urlPort" -}}
{{- $url := urlParse . -}}
{{- $host := splitList ":" $url.host -}}
{{- if gt (len $host) 1 -}}
{{ last $host }}
{{- else if eq $url.scheme "https" -}}
443
{{- else -}}
80
{{- end -}}
{{- end }}

{{/*
Egress to the dependencies a service names. Takes a component and `to`: a list of broker, database, objectStore, mlflow.
Whether a dependency is inside the release is known by its host: the fixed Service name.
*/}}
{{- define "common.egressToDependencies" -}}
{{- $global := .root.Values.global -}}
{{- $dependencies := dict
      "broker" (dict "app" "rabbitmq" "port" $global.broker.port
        "external" (ne $global.broker.host "rabbitmq"))
      "database" (dict "app" "postgresql-mlflow" "port" $global.database.port
        "external" (ne $global.database.host "postgresql-mlflow"))
      "objectStore" (dict "app" "minio-mlflow" "port" (include "common.urlPort" $global.objectStore.endpointUrl)
        "external" (not (contains "//minio-mlflow:" $global.objectStore.endpointUrl)))
      "mlflow" (dict "app" "mlflow" "port" (include "common.urlPort" $global.mlflow.trackingUri)
        "external" (not (contains "//mlflow-server:" $global.mlflow.trackingUri))) -}}
{{- $rules := list -}}
{{- range .to -}}
{{- $dependency := get $dependencies . -}}
{{- $rule := include "common.egressTo" (dict "root" $.root "app" $dependency.app "external" $dependency.external "ports" (list $dependency.port)) -}}
{{- $rules = append $rules (printf "# service --> %s\n%s" . $rule) -}}
{{- end -}}
{{ join "\n" $rules }}
{{- end }}
