"""What an OpenTelemetry collector gets: requests of a served model, read with OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from tests.server.conftest import HTTP
from tests.support.loopback import on_loopback

from openk2 import __version__
from openk2.chat.messages import Usage
from openk2.chat.scripted import ScriptedProvider, ScriptedTurn
from openk2.errors import ProviderError
from openk2.server.app import create_app
from openk2.server.otel import otlp_sink

pytestmark = pytest.mark.clients
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECONDS = 30
"""Only ends a test that fails: spans are sent every few seconds."""


@contextmanager
def collector() -> Iterator[tuple[str, queue.Queue[Any]]]:
    """An OTLP/HTTP receiver: its URL, and the requests that it was sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )

    received: queue.Queue[Any] = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            received.put(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def value_of(attribute: Any) -> Any:
    return getattr(attribute.value, attribute.value.WhichOneof("value"))


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_collector_gets_a_span_for_each_request(monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    broken = ScriptedTurn("some", error=ProviderError("the engine ended"))
    provider = ScriptedProvider([ScriptedTurn("A secret answer.", usage=Usage(20, 9, 4)), broken])
    ask = {"messages": [{"role": "user", "content": "A secret question?"}]}
    spans: dict[str, Any] = {}
    with collector() as (endpoint, received), on_loopback(create_app(provider, sinks=[otlp_sink(endpoint)])) as url:
        for name, headers in ("right", {"traceparent": f"00-{TRACE}-{PARENT}-01"}), ("wrong", {}):
            headers = {**headers, "x-request-id": name, "authorization": "Bearer secret-key"}
            HTTP.post(f"{url}/v1/chat/completions?key=secret-query", json=ask, headers=headers)
        while len(spans) < 2:
            export = received.get(timeout=SECONDS)
            assert b"secret" not in export.SerializeToString()
            for resource in export.resource_spans:
                about = {attribute.key: value_of(attribute) for attribute in resource.resource.attributes}
                assert (about["service.name"], about["service.version"]) == ("openk2", __version__)
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    spans[{a.key: value_of(a) for a in span.attributes}["openk2.request_id"]] = span
    right, wrong = spans["right"], spans["wrong"]
    assert (right.name, right.kind) == ("POST /v1/chat/completions", right.SPAN_KIND_SERVER)
    assert (right.trace_id.hex(), right.parent_span_id.hex()) == (TRACE, PARENT)
    assert right.end_time_unix_nano > right.start_time_unix_nano > 1_600_000_000 * 10**9
    said = {attribute.key: value_of(attribute) for attribute in right.attributes}
    assert said["gen_ai.response.model"] == "scripted" and said["http.response.status_code"] == 200
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (20, 9)
    assert said["openk2.cached_tokens"] == 4 and said["openk2.finish_reason"] == "stop"
    assert right.status.code == right.status.STATUS_CODE_UNSET
    assert wrong.status.code == wrong.status.STATUS_CODE_ERROR and not wrong.parent_span_id
