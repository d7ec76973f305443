{{/* Apart from the ConfigMap's labels, which name the chart's version and must not restart the broker. */}}
{{- define "rabbitmq.configuration" -}}
enabled_plugins: |
  [rabbitmq_management, rabbitmq_prometheus].
rabbitmq.conf: |
  listeners.tcp.default = 5672
  management.tcp.port = 15672
  prometheus.tcp.port = 15692
  log.console = true
  log.console.level = {{ .Values.logLevel }}
  log.file = false
  # Imported at every boot: a changed password or topology takes effect with a restart.
  load_definitions = /etc/rabbitmq/definitions/definitions.json
  default_vhost = {{ .Values.global.broker.vhost }}
  disk_free_limit.absolute = {{ .Values.diskFreeLimit }}
  {{- with (.Values.resources.limits).memory }}
  # The container's limit, not the node's memory, is what there is.
  total_memory_available_override_value = {{ regexReplaceAll "([KMGT])i$" . "${1}iB" }}
  {{- end }}
  vm_memory_high_watermark.relative = 0.6
  {{- if gt (int .Values.replicas) 1 }}
  cluster_formation.peer_discovery_backend = classic_config
  {{- range $index := until (int .Values.replicas) }}
  cluster_formation.classic_config.nodes.{{ add1 $index }} = {{ include "rabbitmq.node" (dict "root" $ "pod" (printf "rabbitmq-%d" $index)) }}
  {{- end }}
  cluster_formation.target_cluster_size_hint = {{ .Values.replicas }}
  cluster_partition_handling = pause_minority
  # The first node declares the queues before the others have joined: they become members here.
  quorum_queue.continuous_membership_reconciliation.enabled = true
  quorum_queue.continuous_membership_reconciliation.target_group_size = {{ .Values.replicas }}
  {{- end }}
  {{- range $name, $value := .Values.configuration }}
  {{ $name }} = {{ $value }}
  {{- end }}
{{- end }}

{{- define "rabbitmq.definitions" -}}
definitions.json: |
  {{- .Files.Get "files/definitions.json" | replace "@vhost@" .Values.global.broker.vhost | nindent 2 }}
render.sh: |
  {{- .Files.Get "files/render-definitions.sh" | nindent 2 }}
{{- end }}
