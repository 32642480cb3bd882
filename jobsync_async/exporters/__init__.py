"""`Job.metrics` for monitoring: ``exporters.prometheus`` (extra ``prometheus``) and
``exporters.opentelemetry`` (``otel``), which also shows spans.

Both show the same metrics under the same names, once an OpenTelemetry name is translated for
Prometheus.
"""
