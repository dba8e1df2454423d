"""Server-sent events: the response that writes them, and stops the work behind them when the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openk2.server.streams import wait_for_disconnect

DONE = b"data: [DONE]\n\n"


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Compact UTF-8. A lone surrogate, which has no UTF-8, becomes a question mark rather than an error."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def data_line(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dump_json(value) + b"\n\n"


def event_line(value: Mapping[str, Any]) -> bytes:
    """One with its `type` before it: official clients drop data that has no `event:`."""
    return b"event: " + value["type"].encode() + b"\n" + data_line(value)


class SseResponse(Response):
    """Writes lines as they come; closes their generator whatever happens, so that the provider can abort."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._write(send))
        watcher = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                await writer
        finally:
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
            await self._lines.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
