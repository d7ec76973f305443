{{/*
Reference of an image. A digest wins over a tag; without a tag it is the chart's appVersion.
Takes {root, image}. `global.imageRegistry` replaces the registry of every image, as a mirror needs it.
*/}}
{{- define "common.image" -}}
{{- $registry := .root.Values.global.imageRegistry | default .image.registry -}}
{{- $name := printf "%s/%s" $registry .image.repository -}}
{{- if .image.digest -}}
{{ printf "%s@%s" $name .image.digest }}
{{- else -}}
{{ printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end }}
