{{/* Pod template of the head and of the workers. Takes {root, group, container}. */}}
{{- define "rayServe.podTemplate" -}}
{{- $root := .root -}}
{{- $values := include "rayServe.groupValues" . | fromYaml -}}
{{- $component := include "rayServe.component" $root | fromJson | merge (dict "root" $root "values" $values) -}}
metadata:
  labels:
    {{- include "rayServe.selectorLabels" $root | nindent 4 }}
    app.kubernetes.io/component: inference
    app.kubernetes.io/part-of: anomaly-detection-system
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "common.podSettings" $component | nindent 2 }}
  containers:
    - name: {{ .container }}
      {{- include "common.containerSettings" $component | nindent 6 }}
      env:
        - name: LOG_LEVEL
          value: {{ $root.Values.global.logLevel }}
        - name: HOME
          value: /tmp
        # HAProxy in front of the replicas instead of a Python proxy: 13 times the requests per second.
        - name: RAY_SERVE_ENABLE_HA_PROXY
          value: "1"
        - name: RAY_SERVE_THROUGHPUT_OPTIMIZED
          value: "1"
        - name: RAY_SERVE_HAPROXY_NBTHREAD
          value: {{ $values.serve.haproxyThreads | quote }}
        # HAProxy with the same series on the same replica: docs/decisions/0004-series-affinity.md.
        - name: RAY_SERVE_HAPROXY_BINARY_PATH
          value: /opt/app/anomaly_detector/affinity.py
        - name: AFFINITY_MAX_LOAD_PERCENT
          value: {{ int $values.serve.maxLoadPercent | quote }}
        - name: HAPROXY_DIRECTORY
          value: /tmp/haproxy-serve
        - name: HAPROXY_URL
          value: http://127.0.0.1:8000
        # Otherwise a Python process reads a line about every request out of HAProxy, at half the cost of the request itself.
        # HAProxy's own metrics, the replicas' and those of Ray about the replicas remain.
        - name: RAY_SERVE_HAPROXY_METRICS_ENABLED
          value: "0"
        - name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
          value: anomaly_detector.ingress:middlewares
        - name: RAY_USAGE_STATS_ENABLED
          value: "0"
        # `kubectl logs` shows the replicas' logs; nothing is rotated in a file.
        - name: RAY_LOG_TO_STDERR
          value: "1"
        # Ray's own processes otherwise write pages of what only its developers read.
        - name: RAY_BACKEND_LOG_LEVEL
          value: warning
        # Ray's many threads would each keep an arena of freed memory.
        - name: MALLOC_ARENA_MAX
          value: "2"
        {{- include "common.brokerEnv" (merge (dict "user" "serving") $component) | nindent 8 }}
        {{- include "common.objectStoreEnv" (merge (dict "credential" "servingObjectStore" "bucket" $root.Values.global.objectStore.artifactsBucket) $component) | nindent 8 }}
        {{- include "common.mlflowEnv" $component | nindent 8 }}
        - name: MODEL_CACHE_MAX_BYTES
          value: {{ int64 $values.modelCache.maxBytes | quote }}
        - name: MODEL_CACHE_TTL_SECONDS
          value: {{ int $values.modelCache.ttlSeconds | quote }}
        - name: MODEL_CACHE_TTL_JITTER
          value: {{ $values.modelCache.ttlJitter | quote }}
        - name: MODEL_CACHE_NEGATIVE_SECONDS
          value: {{ $values.modelCache.negativeSeconds | quote }}
        - name: MODEL_CACHE_WARM_MODELS
          value: {{ int $values.modelCache.warmModels | quote }}
        - name: MODEL_DISK_DIRECTORY
          value: /tmp/models
        - name: MODEL_DISK_MAX_BYTES
          value: {{ int64 $values.modelDisk.maxBytes | quote }}
        - name: MAX_BODY_BYTES
          value: {{ int64 $values.maxBodyBytes | quote }}
        - name: BATCH_MAX_POINTS
          value: {{ int $values.batchMaxPoints | quote }}
        - name: CIRCUIT_BREAKER_FAILURES
          value: {{ int $values.circuitBreaker.failures | quote }}
        - name: CIRCUIT_BREAKER_RETRY_SECONDS
          value: {{ int $values.circuitBreaker.retrySeconds | quote }}
        {{- with $component.values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      # KubeRay looks for these names, and adds a port of its own where one is missing.
      ports:
        {{- if eq .container "ray-head" }}
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: client
          containerPort: 10001
        {{- end }}
        - name: serve
          containerPort: 8000
        - name: metrics
          containerPort: 8080
        - name: haproxy-metrics
          containerPort: 9101
      # Probes are KubeRay's own: it knows whether a node runs the Serve proxy.
      volumeMounts:
        {{- include "common.volumeMounts" $component | nindent 8 }}
  volumes:
    # KubeRay adds /dev/shm for Ray's object store.
    {{- include "common.volumes" $component | nindent 4 }}
{{- end }}
