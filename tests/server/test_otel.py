"""A request's record as a span."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from openk2.chat.messages import Usage
from openk2.errors import EnvironmentFault
from openk2.server.otel import otlp_sink, span_sink
from openk2.server.request_record import RequestRecord

trace = pytest.importorskip("opentelemetry.trace")


class Span:
    def __init__(self, name: str, **arguments: Any) -> None:
        self.name, self.arguments = name, arguments
        self.status: Any = None
        self.ended: int | None = None

    def set_status(self, status: Any) -> None:
        self.status = status

    def end(self, end_time: int) -> None:
        self.ended = end_time


class Tracer:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name: str, **arguments: Any) -> Span:
        self.spans.append(Span(name, **arguments))
        return self.spans[-1]


def span_of(**fields: Any) -> Span:
    tracer = Tracer()
    span_sink(tracer)(RequestRecord(request_id="r", method="POST", path="/v1/chat/completions", **fields))  # type: ignore[arg-type]
    return tracer.spans[0]


def test_a_span_has_the_records_times_and_fields() -> None:
    span = span_of(started_at=100.0, duration_s=2.5, status=200, model="m", usage=Usage(7, 3), finish_reasons=["stop"])
    assert span.name == "POST /v1/chat/completions" and span.status is None
    assert span.arguments["start_time"] == 100 * 10**9 and span.ended == 102_500_000_000
    attributes = span.arguments["attributes"]
    assert attributes["http.response.status_code"] == 200 and attributes["gen_ai.usage.input_tokens"] == 7
    assert attributes["openk2.request_id"] == "r" and attributes["openk2.finish_reason"] == "stop"


def test_it_belongs_to_the_callers_trace() -> None:
    ids = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    parent = trace.get_current_span(span_of(traceparent=f"00-{ids[0]}-{ids[1]}-01").arguments["context"])
    assert parent.get_span_context().trace_id == int(ids[0], 16)
    for broken in (None, "no trace"):
        context = span_of(traceparent=broken).arguments["context"]
        assert not trace.get_current_span(context).get_span_context().is_valid


@pytest.mark.parametrize("fields", [{"status": 502}, {"status": 200, "error": "api_error"}])
def test_failures_are_marked(fields: dict[str, Any]) -> None:
    assert span_of(**fields).status is trace.StatusCode.ERROR


@pytest.mark.skipif(importlib.util.find_spec("opentelemetry.sdk") is not None, reason="the extra is installed")
def test_without_the_extra_it_says_what_to_install() -> None:
    with pytest.raises(EnvironmentFault, match=r"openk2\[otel\]"):
        otlp_sink("http://127.0.0.1:4318/v1/traces")
