"""An endpoint's answer as it came over the wire: for tools that judge endpoints, and must not understand too much."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx2

from openk2.client.sse import event_data


@dataclass(frozen=True)
class WireAnswer:
    """One HTTP answer, unread."""

    status: int
    content_type: str
    payloads: tuple[str, ...]
    """The data of each event of an event stream; else the whole body."""
    first_ms: float
    """From the request to the first payload."""
    total_ms: float
    broken: str | None = None
    """How the connection ended, when it ended before the answer did."""


async def read_answer(response: httpx2.Response, started: float, most_events: int | None = None) -> WireAnswer:
    """Read what answers a request that was sent at `started` (`time.perf_counter()`): to the end, or so many events."""
    kind = response.headers.get("content-type", "")
    payloads: list[str] = []
    first_ms: float | None = None
    broken = None
    try:
        if "event-stream" in kind:
            async for data in event_data(response.aiter_bytes()):
                first_ms = _ms_since(started) if first_ms is None else first_ms
                payloads.append(data)
                if len(payloads) == most_events:
                    break
        else:
            payloads.append((await response.aread()).decode("utf-8", errors="replace"))
    except httpx2.TransportError as error:
        broken = " ".join(str(error).split()) or type(error).__name__
    total_ms = _ms_since(started)
    first_ms = total_ms if first_ms is None else first_ms
    return WireAnswer(response.status_code, kind, tuple(payloads), first_ms, total_ms, broken)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
