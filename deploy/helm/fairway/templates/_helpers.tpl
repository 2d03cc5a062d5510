{{/* The picker's name, as the reference's charts have it: the pool's (the release's) and -epp. */}}
{{- define "fairway.name" -}}
{{- printf "%s-epp" (.Release.Name | lower | trunc 40 | trimSuffix "-") -}}
{{- end -}}

{{/* For objects without a namespace. */}}
{{- define "fairway.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "fairway.name" .) -}}
{{- end -}}

{{- define "fairway.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "fairway.name" .) -}}
{{- end -}}

{{- define "fairway.selectorLabels" -}}
app.kubernetes.io/name: fairway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fairway.labels" -}}
{{ include "fairway.selectorLabels" . }}
app.kubernetes.io/component: endpoint-picker
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "fairway.image" -}}
{{- $image := .Values.inferenceExtension.image -}}
{{- $repository := $image.name | default $image.repository -}}
{{- $registry := $image.hub | default $image.registry -}}
{{- if $registry }}{{ $registry | trimSuffix "/" }}/{{ end }}{{ $repository }}:{{ $image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{/* "true" or nothing, as all conditions below. */}}
{{- define "fairway.poolMode" -}}
{{- if .Values.inferenceExtension.endpointsServer.createInferencePool }}true{{ end -}}
{{- end -}}

{{- define "fairway.manyPools" -}}
{{- $pools := .Values.inferenceExtension.pools -}}
{{- if or $pools.all $pools.selector }}true{{ end -}}
{{- end -}}

{{/* Whether the chart makes the pool. */}}
{{- define "fairway.ownPool" -}}
{{- if and (include "fairway.poolMode" .) (not (include "fairway.manyPools" .)) .Values.inferencePool.create }}true{{ end -}}
{{- end -}}

{{- define "fairway.leaderElection" -}}
{{- $epp := .Values.inferenceExtension -}}
{{- if kindIs "bool" $epp.enableLeaderElection -}}
{{- if $epp.enableLeaderElection }}true{{ end -}}
{{- else if gt (int $epp.replicas) 1 }}true{{ end -}}
{{- end -}}

{{/* Whether replicas that all serve tell one another what they know. */}}
{{- define "fairway.peers" -}}
{{- $epp := .Values.inferenceExtension -}}
{{- if include "fairway.leaderElection" . -}}
{{- else if kindIs "bool" $epp.peers.enabled -}}
{{- if $epp.peers.enabled }}true{{ end -}}
{{- else if gt (int $epp.replicas) 1 }}true{{ end -}}
{{- end -}}

{{- define "fairway.metricsAuth" -}}
{{- $prometheus := .Values.inferenceExtension.monitoring.prometheus -}}
{{- if and $prometheus.enabled $prometheus.auth.enabled }}true{{ end -}}
{{- end -}}

{{- define "fairway.poolGroup" -}}
{{- (splitList "/" .Values.inferencePool.apiVersion) | first -}}
{{- end -}}

{{/* The Lease of the leader election: as the reference names it. */}}
{{- define "fairway.lease" -}}
{{- $name := .Release.Name -}}
{{- if not (include "fairway.poolMode" .) }}{{ $name = include "fairway.name" . }}{{ end -}}
{{- if include "fairway.manyPools" . }}{{ $name = "all-pools" }}{{ end -}}
{{- printf "epp-%s-%s.llm-d.ai" .Release.Namespace $name -}}
{{- end -}}

{{/* The picker's flags as YAML: what the chart knows, then what the user says, who has the last word. */}}
{{- define "fairway.flags" -}}
{{- $epp := .Values.inferenceExtension -}}
{{- $flags := dict
    "grpc-port" $epp.extProcPort
    "grpc-health-port" 9003
    "metrics-port" 9090
    "drain-timeout" (printf "%ds" (int $epp.drainTimeoutSeconds))
    "log-format" "json" -}}
{{- if include "fairway.manyPools" . -}}
{{- if $epp.pools.selector }}{{ $_ := set $flags "pool-selector" $epp.pools.selector }}{{ else }}{{ $_ := set $flags "all-pools" true }}{{ end -}}
{{- if $epp.pools.allNamespaces }}{{ $_ := set $flags "all-namespaces" true }}{{ end -}}
{{- $_ := set $flags "picker-service" (include "fairway.name" .) -}}
{{- $_ := set $flags "pool-group" (include "fairway.poolGroup" .) -}}
{{- else if include "fairway.poolMode" . -}}
{{- $_ := set $flags "pool-name" .Release.Name -}}
{{- $_ := set $flags "pool-group" (include "fairway.poolGroup" .) -}}
{{- else -}}
{{- $_ := set $flags "endpoint-selector" $epp.endpointsServer.endpointSelector -}}
{{- $_ := set $flags "endpoint-target-ports" (toString $epp.endpointsServer.targetPorts) -}}
{{- end -}}
{{- if include "fairway.leaderElection" . }}{{ $_ := set $flags "ha-enable-leader-election" true }}{{ end -}}
{{- if include "fairway.peers" . -}}
{{- $_ := set $flags "peers" (printf "%s-peers" (include "fairway.name" .)) -}}
{{- $_ := set $flags "peer-port" $epp.peers.port -}}
{{- end -}}
{{- if $epp.sidecar.enabled }}{{ $_ := set $flags "health-checking" true }}{{ end -}}
{{- if $epp.tls.secretName -}}
{{- $_ := set $flags "cert-path" "/etc/fairway/tls" -}}
{{- $_ := set $flags "enable-cert-reload" true -}}
{{- end -}}
{{- if $epp.pluginsCustomConfig -}}
{{- if hasKey $epp.pluginsCustomConfig $epp.pluginsConfigFile }}{{ $_ := set $flags "config-file" (printf "/etc/fairway/plugins/%s" $epp.pluginsConfigFile) }}{{ end -}}
{{- if include "fairway.manyPools" . }}{{ $_ := set $flags "config-dir" "/etc/fairway/plugins" }}{{ end -}}
{{- end -}}
{{- if $epp.monitoring.prometheus.enabled -}}
{{- $_ := set $flags "metrics-endpoint-auth" $epp.monitoring.prometheus.auth.enabled -}}
{{- else -}}
{{- $_ := set $flags "metrics-host" "127.0.0.1" -}}
{{- end -}}
{{- if $epp.monitoring.tls.secretName -}}
{{- $_ := set $flags "metrics-cert-dir" "/etc/fairway/metrics-tls" -}}
{{- if $epp.monitoring.tls.verifyClients }}{{ $_ := set $flags "metrics-client-ca-file" "/etc/fairway/metrics-tls/ca.crt" }}{{ end -}}
{{- end -}}
{{- if $epp.monitoring.allowedHosts }}{{ $_ := set $flags "metrics-allowed-hosts" $epp.monitoring.allowedHosts }}{{ end -}}
{{- toYaml (mergeOverwrite $flags (deepCopy $epp.flags)) -}}
{{- end -}}

{{/* Whether the picker speaks TLS: on but where the user's flags say otherwise. */}}
{{- define "fairway.secureServing" -}}
{{- $value := get .Values.inferenceExtension.flags "secure-serving" -}}
{{- if ne (toString $value) "false" }}true{{ end -}}
{{- end -}}

{{/* What a schema cannot say. */}}
{{- define "fairway.validate" -}}
{{- $epp := .Values.inferenceExtension -}}
{{- if include "fairway.manyPools" . -}}
{{- if not (include "fairway.poolMode" .) -}}
{{- fail "inferenceExtension.pools and endpointsServer.createInferencePool=false do not go together: either pools, or Pods by label" -}}
{{- end -}}
{{- if or .Values.inferencePool.modelServers.matchLabels .Values.inferenceObjectives .Values.experimentalHttpRoute.enabled -}}
{{- fail "inferenceExtension.pools: with many pools the chart makes none, nor what belongs to one (inferencePool.modelServers, inferenceObjectives, experimentalHttpRoute)" -}}
{{- end -}}
{{- if $epp.sidecar.enabled -}}
{{- fail "inferenceExtension.pools: the Envoy of standalone mode asks for one pool; use a Gateway" -}}
{{- end -}}
{{- if not $epp.pools.ports -}}
{{- fail "inferenceExtension.pools.ports is required: the port of each pool's endpointPickerRef, for the Service" -}}
{{- end -}}
{{- else if include "fairway.poolMode" . -}}
{{- if and .Values.inferencePool.create (not .Values.inferencePool.modelServers.matchLabels) -}}
{{- fail "inferencePool.modelServers.matchLabels is required: the labels of the model servers' Pods, e.g. --set inferencePool.modelServers.matchLabels.app=vllm-llama3-8b-instruct" -}}
{{- end -}}
{{- else if not $epp.endpointsServer.endpointSelector -}}
{{- fail "inferenceExtension.endpointsServer.endpointSelector is required without an InferencePool, e.g. app=vllm-qwen3-32b" -}}
{{- end -}}
{{- if and (not (include "fairway.poolMode" .)) .Values.inferenceObjectives -}}
{{- fail "inferenceObjectives belong to an InferencePool: set inferenceExtension.endpointsServer.createInferencePool=true, or leave them out" -}}
{{- end -}}
{{- if and (not (include "fairway.poolMode" .)) .Values.experimentalHttpRoute.enabled -}}
{{- fail "experimentalHttpRoute leads to an InferencePool: set inferenceExtension.endpointsServer.createInferencePool=true, or send clients to the Service's own port" -}}
{{- end -}}
{{- if $epp.tracing.enabled -}}
{{- fail "inferenceExtension.tracing.enabled: Fairway writes no traces yet; set it to false" -}}
{{- end -}}
{{- if $epp.latencyPredictor.enabled -}}
{{- fail "inferenceExtension.latencyPredictor.enabled: Fairway has no latency predictor; set it to false" -}}
{{- end -}}
{{- range $flag, $instead := dict "grpc-port" "inferenceExtension.extProcPort" "grpc-health-port" "nothing: probes use 9003" "drain-timeout" "inferenceExtension.drainTimeoutSeconds" "ha-enable-leader-election" "inferenceExtension.enableLeaderElection" "cert-path" "inferenceExtension.tls.secretName" "peer-port" "inferenceExtension.peers.port" -}}
{{- if hasKey $epp.flags $flag -}}
{{- fail (printf "inferenceExtension.flags.%s: the rest of the chart depends on it; set %s" $flag $instead) -}}
{{- end -}}
{{- end -}}
{{- if and $epp.pluginsCustomConfig (not (include "fairway.manyPools" .)) (not (hasKey $epp.pluginsCustomConfig $epp.pluginsConfigFile)) -}}
{{- fail (printf "inferenceExtension.pluginsConfigFile is %q, and inferenceExtension.pluginsCustomConfig has only %s" $epp.pluginsConfigFile (keys $epp.pluginsCustomConfig | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $monitoring := $epp.monitoring -}}
{{- if and $monitoring.tls.verifyClients (not $monitoring.tls.secretName) -}}
{{- fail "inferenceExtension.monitoring.tls.verifyClients needs monitoring.tls.secretName: its ca.crt is who signs readers' certificates" -}}
{{- end -}}
{{- if and $monitoring.prometheus.enabled $monitoring.tls.verifyClients (not $monitoring.prometheus.clientCertSecret) -}}
{{- fail "inferenceExtension.monitoring.prometheus.clientCertSecret is required with monitoring.tls.verifyClients: Prometheus has to show a certificate" -}}
{{- end -}}
{{- if and $monitoring.prometheus.enabled $monitoring.tls.secretName (not $monitoring.tls.verifyClients) (not $monitoring.prometheus.auth.enabled) -}}
{{- fail "inferenceExtension.monitoring.tls.secretName with prometheus.auth.enabled=false lets everybody read: set tls.verifyClients, or leave both away for plain HTTP" -}}
{{- end -}}
{{- if and $epp.peers.enabled (include "fairway.leaderElection" .) -}}
{{- fail "inferenceExtension.peers.enabled: with leader election one replica serves at a time; set enableLeaderElection=false, or leave it out" -}}
{{- end -}}
{{- if and $epp.podDisruptionBudget.enabled (include "fairway.leaderElection" .) -}}
{{- fail "inferenceExtension.podDisruptionBudget.enabled: with leader election one replica is ready at a time, so a budget would block every drain of its node; set enableLeaderElection=false, or leave the budget out" -}}
{{- end -}}
{{- end -}}

{{/* A flag's value as text: whole numbers without an exponent, lists by commas. */}}
{{- define "fairway.scalar" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}{{ int64 . }}
{{- else }}{{ . }}{{ end -}}
{{- end -}}

{{- define "fairway.metricsPort" -}}
{{- include "fairway.scalar" (index (include "fairway.flags" . | fromYaml) "metrics-port") -}}
{{- end -}}

{{/* Whether the metrics page is on the Pod's address. */}}
{{- define "fairway.metricsExposed" -}}
{{- $host := index (include "fairway.flags" . | fromYaml) "metrics-host" | default "::" -}}
{{- if not (has $host (list "127.0.0.1" "::1" "localhost")) }}true{{ end -}}
{{- end -}}

{{/* What is read. */}}
{{- define "fairway.readRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if include "fairway.poolMode" . }}
- apiGroups: [{{ include "fairway.poolGroup" . }}]
  resources: [inferencepools]
  verbs: [list, watch]
- apiGroups: [llm-d.ai, inference.networking.x-k8s.io]
  resources: [inferenceobjectives, inferencemodelrewrites]
  verbs: [list, watch]
- apiGroups: [inference.networking.x-k8s.io]
  resources: [inferencemodels]
  verbs: [list, watch]
{{- end }}
{{- end -}}
