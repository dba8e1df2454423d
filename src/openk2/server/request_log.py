"""One record a request: made and named when the request comes, handed to log and traces when its response has ended."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from openk2.server.request_record import RequestRecord

logger = logging.getLogger(__name__)

RequestSink = Callable[[RequestRecord], None]
"""Told of every request when it has ended, on the event loop; must not block."""

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Asked for every few seconds by programs that watch; a log of these would hide the rest."""


def log_request(record: RequestRecord) -> None:
    """One line; `openk2.server.logs` gives it its form."""
    if record.path not in _QUIET_PATHS:
        logger.info("request", extra={"fields": record.fields()})


class RequestLog:
    """ASGI middleware around all others: the request's id, which every response carries, and its record."""

    def __init__(self, app: ASGIApp, sinks: Sequence[RequestSink]) -> None:
        self._app = app
        self._sinks = sinks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _REQUEST_ID.fullmatch(given_id) else f"req_{uuid.uuid4().hex}"
        record = RequestRecord(
            request_id=request_id,
            method=scope["method"],
            path=scope["path"],
            traceparent=headers.get("traceparent"),
        )
        scope.setdefault("state", {}).update(request_id=request_id, record=record)

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            record.duration_s = record.elapsed_s
            for sink in self._sinks:
                sink(record)
