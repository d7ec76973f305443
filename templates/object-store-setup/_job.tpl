{{/* Spec of the Job. The Job's name carries its hash: a Job's spec is immutable, so that a changed one is a new Job. */}}
{{- define "ads.objectStoreSetup" -}}
{{- $component := include "ads.tool" (dict "name" "object-store-setup") | fromJson | merge (dict "root" . "values" .Values.tools) -}}
{{- $store := .Values.global.objectStore -}}
# Retries while the store starts; the tool itself waits too.
backoffLimit: 10
activeDeadlineSeconds: {{ .Values.tools.activeDeadlineSeconds }}
template:
  metadata:
    {{- include "common.podMetadata" $component | nindent 4 }}
  spec:
    restartPolicy: OnFailure
    {{- include "common.podSettings" $component | nindent 4 }}
    containers:
      - name: object-store
        {{- include "common.containerSettings" $component | nindent 8 }}
        command: [python, -m, ads_tools, object-store]
        env:
          - name: S3_ENGINE
            value: {{ .Values.mlflow.objectStore.engine }}
          - name: S3_ENDPOINT_URL
            value: {{ $store.endpointUrl | quote }}
          - name: S3_REGION
            value: {{ $store.region | quote }}
          - name: ARTIFACTS_BUCKET
            value: {{ $store.artifactsBucket | quote }}
          - name: TRAINING_BUCKET
            value: {{ $store.trainingBucket | quote }}
          {{- include "common.secretEnv" (dict "root" . "credential" "objectStoreRoot" "key" "root-user" "name" "S3_ROOT_USER") | nindent 10 }}
          {{- include "common.secretEnv" (dict "root" . "credential" "objectStoreRoot" "key" "root-password" "name" "S3_ROOT_PASSWORD") | nindent 10 }}
          {{- range $user := list "mlflow" "training" "serving" }}
          {{- $credential := printf "%sObjectStore" $user }}
          {{- include "common.secretEnv" (dict "root" $ "credential" $credential "key" "access-key-id" "name" (printf "%s_ACCESS_KEY_ID" (upper $user))) | nindent 10 }}
          {{- include "common.secretEnv" (dict "root" $ "credential" $credential "key" "secret-access-key" "name" (printf "%s_SECRET_ACCESS_KEY" (upper $user))) | nindent 10 }}
          {{- end }}
          {{- with $component.values.extraEnv }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        volumeMounts:
          {{- include "common.volumeMounts" $component | nindent 10 }}
    volumes:
      {{- include "common.volumes" $component | nindent 6 }}
{{- end }}
