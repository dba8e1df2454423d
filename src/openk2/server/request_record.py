"""What is known of one request: its line in the log, its span. Never what was said, and never a key."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import HTTPConnection

from openk2.chat.messages import Usage

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that went away before its answer began; only the log sees it."""


@dataclass(kw_only=True)
class RequestRecord:
    """Filled in by whoever learns something, and complete when the response has ended."""

    request_id: str
    method: str
    path: str
    """Without the query, which may hold a key."""
    traceparent: str | None = None
    """The caller's place in a distributed trace, as it was sent."""
    started_at: float = field(default_factory=time.time)
    """Unix seconds."""
    started: float = field(default_factory=time.perf_counter)
    duration_s: float = 0.0
    status: int = CLIENT_CLOSED_REQUEST
    """Of the response, once it has begun."""
    model: str | None = None
    first_event_s: float | None = None
    """From the request's beginning to the first of its answer."""
    usage: Usage | None = None
    """Of all choices that finished; the prompt, which is the same for all, counts once."""
    finish_reasons: list[str] = field(default_factory=list)
    """Of the choices, in the order in which they ended."""
    error: str | None = None
    """The type of the error that ended the answer."""
    was_aborted: bool = False
    """Whether the client went away before the end of the answer."""

    @classmethod
    def of(cls, connection: HTTPConnection) -> RequestRecord:
        record = connection.state.record
        assert isinstance(record, cls)
        return record

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    def add_usage(self, usage: Usage) -> None:
        before = self.usage or Usage()
        self.usage = replace(
            before + usage,
            prompt_tokens=max(before.prompt_tokens, usage.prompt_tokens),
            cached_tokens=max(before.cached_tokens, usage.cached_tokens),
        )

    def fields(self) -> dict[str, Any]:
        """Name and value of everything that is known, in the order of a log line; times in milliseconds."""
        experts = self.usage and self.usage.experts
        known = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "duration_ms": round(1000 * self.duration_s, 1),
            "model": self.model,
            "first_event_ms": None if self.first_event_s is None else round(1000 * self.first_event_s, 1),
            "prompt_tokens": self.usage and self.usage.prompt_tokens,
            "cached_tokens": self.usage and self.usage.cached_tokens,
            "completion_tokens": self.usage and self.usage.completion_tokens,
            "mode": experts and experts.mode,
            "experts_per_token": experts and experts.per_token and round(experts.per_token, 3),
            "finish_reason": ",".join(self.finish_reasons) or None,
            "error": self.error,
            "aborted": self.was_aborted or None,
        }
        return {name: value for name, value in known.items() if value is not None}
