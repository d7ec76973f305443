{{/*
Checks that a schema cannot express. Each template returns a JSON list of sentences: what is wrong, and what to do.
*/}}

{{/* A quantity as a number in thousandths, so that CPUs and bytes compare alike. Takes the quantity. */}}
{{- define "common.milli" -}}
{{- $factors := dict "m" 1 "k" 1e6 "M" 1e9 "G" 1e12 "T" 1e15 "P" 1e18
      "Ki" 1024e3 "Mi" 1048576e3 "Gi" 1073741824e3 "Ti" 1099511627776e3 "Pi" 1125899906842624e3 -}}
{{- $text := toString . -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- $factor := 1000 -}}
{{- if $unit -}}
{{- $factor = get $factors $unit -}}
{{- end -}}
{{ mulf (float64 (trimSuffix $unit $text)) $factor | printf "%.0f" }}
{{- end }}

{{/* Requests are not above limits. Takes {resources, key}. */}}
{{- define "common.resourceProblems" -}}
{{- $problems := list -}}
{{- $requests := get .resources "requests" | default dict -}}
{{- range $name, $limit := get .resources "limits" | default dict -}}
{{- if and $limit (hasKey $requests $name) -}}
{{- $request := get $requests $name -}}
{{- if gt (include "common.milli" $request | float64) (include "common.milli" $limit | float64) -}}
{{- $problems = append $problems (printf "%s.requests.%s (%v) is above its limit (%v): Kubernetes refuses the pod; lower the request or raise the limit" $.key $name $request $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ toJson $problems }}
{{- end }}

{{/* A strategy that Kubernetes accepts. Takes {strategy, key}. */}}
{{- define "common.strategyProblems" -}}
{{- $problems := list -}}
{{- $rolling := get .strategy "rollingUpdate" -}}
{{- if and (eq (get .strategy "type") "Recreate") $rolling -}}
{{- $problems = append $problems (printf "%s.type is Recreate, which has no rollingUpdate: set %s.rollingUpdate to null" .key .key) -}}
{{- else if $rolling -}}
{{- if and (has (get $rolling "maxSurge" | toString) (list "0" "0%")) (has (get $rolling "maxUnavailable" | toString) (list "0" "0%")) -}}
{{- $problems = append $problems (printf "%s.rollingUpdate has neither maxSurge nor maxUnavailable above 0: no pod could ever be replaced; raise one of them" .key) -}}
{{- end -}}
{{- end -}}
{{ toJson $problems }}
{{- end }}

{{/* The first number is not above the second. Takes {low, lowKey, high, highKey}. */}}
{{- define "common.orderProblems" -}}
{{- $problems := list -}}
{{- if gt (float64 .low) (float64 .high) -}}
{{- $problems = append $problems (printf "%s (%.0f) is above %s (%.0f): lower the first or raise the second" .lowKey (float64 .low) .highKey (float64 .high)) -}}
{{- end -}}
{{ toJson $problems }}
{{- end }}

{{/* Fails with every problem at once. Takes a list of sentences. */}}
{{- define "common.failWith" -}}
{{- if . -}}
{{- fail (printf "the values contradict each other:\n- %s" (join "\n- " .)) -}}
{{- end -}}
{{- end }}
