{{/*
The Envoy of standalone mode. It knows no endpoints: the picker's header says where each request goes (ORIGINAL_DST), so there is
nothing to fall back to when the picker is gone; both are in one Pod. What a client sends under the picker's names is removed before.
*/}}
{{- define "fairway.envoyConfig" -}}
{{- $epp := .Values.inferenceExtension -}}
{{- if $epp.sidecar.configMap.data -}}
{{ index $epp.sidecar.configMap.data "envoy.yaml" }}
{{- else -}}
{{- $full := eq $epp.sidecar.responseMode "full" -}}
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 19000}
# Who has many requests on a connection takes turns with others.
layered_runtime:
  layers: [{name: fairway, static_layer: {http.max_requests_per_io_cycle: 2}}]
# All requests together: near this limit of Envoy's heap the streams that hold most are reset, then nothing new is taken. To be set
# below the memory that Envoy may have.
overload_manager:
  refresh_interval: 0.25s
  # Streams that hold a MiB or more are known by name.
  buffer_factory_config: {minimum_account_to_track_power_of_two: 20}
  resource_monitors:
    - name: envoy.resource_monitors.fixed_heap
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig
        max_heap_size_bytes: {{ $epp.sidecar.maxHeapBytes | int64 }}
    - name: envoy.resource_monitors.global_downstream_max_connections
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
        max_active_downstream_connections: 50000
  actions:
    - name: envoy.overload_actions.shrink_heap
      triggers:
        - {name: envoy.resource_monitors.fixed_heap, threshold: {value: 0.8}}
    - name: envoy.overload_actions.reset_high_memory_stream
      triggers:
        - {name: envoy.resource_monitors.fixed_heap, scaled: {scaling_threshold: 0.85, saturation_threshold: 0.95}}
    # Of HTTP/1 Envoy does not know which stream holds what: what is silent, as an upload that stalls, goes after 30 s.
    - name: envoy.overload_actions.reduce_timeouts
      triggers:
        - {name: envoy.resource_monitors.fixed_heap, scaled: {scaling_threshold: 0.85, saturation_threshold: 0.95}}
      typed_config:
        "@type": type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig
        timer_scale_factors:
          - {timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_timeout: 30s}
    - name: envoy.overload_actions.stop_accepting_requests
      triggers:
        - {name: envoy.resource_monitors.fixed_heap, threshold: {value: 0.95}}
static_resources:
  listeners:
    - name: ready
      address:
        socket_address: {address: 0.0.0.0, port_value: 19001}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: ready
                route_config:
                  virtual_hosts:
                    - name: ready
                      domains: ["*"]
                      routes:
                        - match: {path: /stats/prometheus}
                          route: {cluster: admin}
                http_filters:
                  - name: envoy.filters.http.health_check
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
                      pass_through_mode: false
                      headers:
                        - name: ":path"
                          string_match: {exact: /ready}
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
    - name: inference
      address:
        socket_address: {address: 0.0.0.0, port_value: {{ $epp.sidecar.port }}}
      # What is read of a connection before the others have their turn, and what an upload holds beside what the picker keeps of it.
      per_connection_buffer_limit_bytes: 65536
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: inference
                use_remote_address: true
                normalize_path: true
                merge_slashes: true
                # A stream may be silent while a long prompt is read.
                stream_idle_timeout: 3600s
                # All of a request, however it drips; its headers.
                request_timeout: 300s
                request_headers_timeout: 30s
                http2_protocol_options: {initial_stream_window_size: 262144, initial_connection_window_size: 1048576}
                # The realtime APIs: their frames pass by the picker.
                upgrade_configs: [{upgrade_type: websocket}]
                route_config:
                  virtual_hosts:
                    - name: inference
                      domains: ["*"]
                      routes:
                        - match: {prefix: /}
                          route:
                            cluster: picked
                            timeout: 0s
                http_filters:
                  - name: envoy.filters.http.header_mutation
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
                      mutations:
                        request_mutations:
                          - remove_on_match:
                              key_matcher: {prefix: x-gateway-destination-endpoint}
                  - name: envoy.filters.http.ext_proc
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
                      grpc_service:
                        envoy_grpc: {cluster_name: picker}
                      failure_mode_allow: false
                      message_timeout: 10s
                      processing_mode:
                        request_header_mode: SEND
                        request_body_mode: FULL_DUPLEX_STREAMED
                        request_trailer_mode: SEND
                        response_header_mode: SEND
                        response_body_mode: {{ ternary "FULL_DUPLEX_STREAMED" "NONE" $full }}
                        response_trailer_mode: {{ ternary "SEND" "SKIP" $full }}
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                      suppress_envoy_headers: true
  clusters:
    - name: admin
      type: STATIC
      load_assignment:
        cluster_name: admin
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: {address: 127.0.0.1, port_value: 19000}
    - name: picked
      type: ORIGINAL_DST
      lb_policy: CLUSTER_PROVIDED
      connect_timeout: 5s
      original_dst_lb_config:
        use_http_header: true
        http_header_name: x-gateway-destination-endpoint
      # Who may get how much is the picker's business.
      circuit_breakers:
        thresholds:
          - {max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          # Python model servers (uvicorn) close idle connections after 5 s: be first.
          common_http_protocol_options: {idle_timeout: 4s}
          explicit_http_config:
            {{ ternary "http2_protocol_options" "http_protocol_options" (eq .Values.inferencePool.appProtocol "kubernetes.io/h2c") }}: {}
    - name: picker
      type: STATIC
      connect_timeout: 1s
      circuit_breakers:
        thresholds:
          - {max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000}
      health_checks:
        - timeout: 2s
          interval: 2s
          no_traffic_interval: 2s
          unhealthy_threshold: 2
          healthy_threshold: 1
          grpc_health_check: {service_name: envoy.service.ext_proc.v3.ExternalProcessor}
          {{- if include "fairway.secureServing" . }}
          tls_options: {alpn_protocols: [h2]}
          {{- end }}
      {{- if include "fairway.secureServing" . }}
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2]
      {{- end }}
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config:
            http2_protocol_options:
              # A call holds little here, and what one leaves unread does not keep the others' answers back.
              initial_stream_window_size: 262144
              initial_connection_window_size: 1073741824
              # Nor do a thousand clients that leave at once end everybody's calls.
              max_outbound_frames: 1000000
              max_outbound_control_frames: 1000000
      load_assignment:
        cluster_name: picker
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: {address: 127.0.0.1, port_value: {{ $epp.extProcPort }}}
{{- end -}}
{{- end -}}
