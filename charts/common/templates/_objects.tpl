{{- define "common.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "common.metadata" . | nindent 2 }}
  {{- with .values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{/* maxUnavailable, not minAvailable: one replica must not block the drain of its node. */}}
{{- define "common.podDisruptionBudget" -}}
{{- if .values.podDisruptionBudget.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "common.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  # A pod that never becomes ready must not block the drain of its node either.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- .spreadLabels | default (include "common.selectorLabels" .) | nindent 6 }}
{{- end }}
{{- end }}

{{/* volumeClaimTemplates of a StatefulSet with one volume called `data`. Its labels are immutable: only what is selected by. */}}
{{- define "common.volumeClaimTemplates" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
    labels:
      {{- include "common.selectorLabels" . | nindent 6 }}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .values.persistence.storageClassName }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ .values.persistence.size | quote }}
{{- end }}

{{/* Neither `helm uninstall` nor scaling down deletes data. */}}
{{- define "common.persistentVolumeClaimRetentionPolicy" -}}
whenDeleted: Retain
whenScaled: Retain
{{- end }}
