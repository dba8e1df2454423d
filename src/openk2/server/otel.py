"""Requests as OpenTelemetry spans: one each, made of its record when it has ended. Needs the extra `otel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openk2 import __version__
from openk2.errors import EnvironmentFault
from openk2.server.request_log import RequestSink
from openk2.server.request_record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_NAMES = {
    "method": "http.request.method",
    "path": "url.path",
    "status": "http.response.status_code",
    "error": "error.type",
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}
"""Fields that OpenTelemetry has names for; the others begin with `openk2.`."""


def otlp_sink(endpoint: str) -> RequestSink:
    """Sends spans to an OTLP collector over HTTP, from a thread of its own; the SDK's variables (OTEL_...) hold too.

    Raises EnvironmentFault when the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise EnvironmentFault(
            "--otlp-traces-endpoint needs OpenTelemetry; add it with: pip install 'openk2[otel]'",
            param="otlp_traces_endpoint",
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "openk2", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return span_sink(provider.get_tracer("openk2"))


def span_sink(tracer: Tracer) -> RequestSink:
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    def make_span(record: RequestRecord) -> None:
        began = int(record.started_at * 1e9)
        # A path that is no address of ours may be anything; a name must be one of a few.
        name = record.method if record.model is None else f"{record.method} {record.path}"
        span = tracer.start_span(
            name,
            context=propagator.extract({} if record.traceparent is None else {"traceparent": record.traceparent}),
            kind=SpanKind.SERVER,
            attributes={_NAMES.get(key, f"openk2.{key}"): value for key, value in record.fields().items()},
            start_time=began,
        )
        if record.status >= 500 or record.error is not None:
            span.set_status(StatusCode.ERROR)
        span.end(began + int(record.duration_s * 1e9))

    return make_span
