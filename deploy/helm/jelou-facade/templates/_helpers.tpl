{{/* The name of everything of a release. */}}
{{- define "jelou-facade.name" -}}
{{- if contains "jelou-facade" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-jelou-facade" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "jelou-facade.selector" -}}
app.kubernetes.io/name: jelou-facade
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "jelou-facade.labels" -}}
{{ include "jelou-facade.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "jelou-facade.image" -}}
{{- if .Values.image.digest }}{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}{{ else }}{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{/* The configuration file: that of the values, on the addresses of a pod. */}}
{{- define "jelou-facade.config" -}}
{{- if not .Values.config.companies }}{{ fail "config.companies: name at least one company; docs/deploy.md shows a whole file of values" }}{{ end }}
{{- if not (dig "ledger" "url" "" .Values.config) }}{{ fail "config.ledger.url: replicas share a PostgreSQL, as in postgres://facade@db.example/facade; SQLite serves one process only" }}{{ end }}
{{- if not .Values.config.callers }}{{ fail "config.callers: name who may call; without callers the server listens on loopback addresses only" }}{{ end }}
{{- $listen := .Values.config.listen | default dict }}
{{- if not (or $listen.tls $listen.plaintext_behind_proxy) }}{{ fail "config.listen.tls: set cert_file and key_file, or config.listen.plaintext_behind_proxy where a mesh ends TLS; without either the server listens on loopback addresses only" }}{{ end }}
{{- $pod := dict
  "listen" (dict "grpc" "0.0.0.0:50051" "http" "0.0.0.0:8080")
  "admin" (dict "address" "0.0.0.0:9464" "open_to_network" true) }}
{{- mergeOverwrite $pod (deepCopy .Values.config) | toYaml }}
{{- end }}

{{/* The port of an address of the configuration. */}}
{{- define "jelou-facade.port" -}}
{{- regexFind "[0-9]+$" . }}
{{- end }}

{{/* Whole seconds of a duration such as 20s or 1.5s, rounded up. */}}
{{- define "jelou-facade.seconds" -}}
{{- trimSuffix "s" . | float64 | ceil | int }}
{{- end }}

{{/* How long a pod may take to end: it leaves its Services, calls and attempts end side by side, the ledger closes. */}}
{{- define "jelou-facade.grace" -}}
{{- $drain := include "jelou-facade.seconds" (dig "shutdown" "drain_timeout" "20s" .Values.config) | int }}
{{- range .Values.config.companies }}
{{- $drain = max $drain (include "jelou-facade.seconds" (.attempt_timeout | default "10s")) }}
{{- end }}
{{- add .Values.preStopSeconds $drain 15 }}
{{- end }}

{{/* What the server takes up only at its start: all but what docs/configuration.md calls live. */}}
{{- define "jelou-facade.restart" -}}
{{- $config := include "jelou-facade.config" . | fromYaml }}
{{- $once := omit $config "companies" "callers" "authentication" "shutdown" "bounds" "log" }}
{{- $_ := set $once "log" (omit ($config.log | default dict) "level") }}
{{- $_ := set $once "listen" (omit $config.listen "tls") }}
{{- $_ := set $once "tls" (not (empty $config.listen.tls)) }}
{{- $once | toYaml | sha256sum }}
{{- end }}
