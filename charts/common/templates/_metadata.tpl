{{/*
Every template of this library that speaks of one component takes a "component", a dict with
  root:    the chart's own context ($), for .Values, .Release and .Chart
  name:    name of the workload and of the objects around it
  app:     value of the label `app`; the documented kubectl commands select by it
  part:    role in the system (app.kubernetes.io/component)
  values:  the values of this component
*/}}

{{/* What a Service, a PodDisruptionBudget and a workload select by. Immutable in a workload: never add to it. */}}
{{- define "common.selectorLabels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* Labels of a pod. Without the chart's version, so that a new version alone restarts nothing. */}}
{{- define "common.podLabels" -}}
app: {{ .app }}
{{ include "common.selectorLabels" . }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: anomaly-detection-system
{{- with .values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of every object but pods. */}}
{{- define "common.labels" -}}
app: {{ .app }}
{{ include "common.selectorLabels" . }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: anomaly-detection-system
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* name, namespace and labels of an object called like its component. */}}
{{- define "common.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "common.labels" . | nindent 2 }}
{{- end }}
