"""How an answer came about, for a request that asks for it by a header: kept for a while, read by the request's id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from openk2.chat.events import Finished
from openk2.chat.trace import Trace
from openk2.errors import RequestError
from openk2.server.cache_misses import CacheMiss
from openk2.server.request_record import RequestRecord
from openk2.server.sse import dump_json

HEADER = "x-openk2-trace"
MAX_TRACES = 32


class TraceNotFoundError(RequestError):
    http_status = 404


def is_wanted(headers: Mapping[str, str]) -> bool:
    return headers.get(HEADER, "").strip().lower() in {"1", "true"}


@dataclass
class RequestTrace:
    """One request's; complete when the record is."""

    record: RequestRecord
    choices: list[Trace]
    finished: dict[int, Finished] = field(default_factory=dict)
    """By the index of the choice."""
    cache_miss: CacheMiss | None = None

    def describe(self) -> dict[str, Any]:
        return {
            **self.record.fields(),
            "choices": [self._describe_choice(i, trace) for i, trace in enumerate(self.choices)],
            "cache_miss": self.cache_miss and asdict(self.cache_miss),
        }

    def _describe_choice(self, index: int, trace: Trace) -> dict[str, Any]:
        finished = self.finished.get(index)
        return {
            "index": index,
            "prompt": trace.text_of(trace.prompt_token_ids),
            "prompt_token_ids": list(trace.prompt_token_ids),
            "cached_tokens": finished and finished.usage.cached_tokens,
            "constraint": trace.constraint,
            "sampling": trace.sampling and asdict(trace.sampling),
            "text": trace.text_of(trace.token_ids),
            "token_ids": list(trace.token_ids),
            "finish_reason": finished and finished.finish_reason,
            "stop_string": finished and finished.stop_string,
        }


class Traces:
    """The newest ones, by their requests' ids."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, RequestTrace] = OrderedDict()

    def add(self, trace: RequestTrace) -> None:
        self._traces[trace.record.request_id] = trace
        self._traces.move_to_end(trace.record.request_id)
        if len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)

    def get(self, request_id: str) -> RequestTrace | None:
        return self._traces.get(request_id)


def build_router(traces: Traces) -> APIRouter:
    router = APIRouter()

    @router.get("/debug/trace/{request_id}")
    async def trace(request_id: str) -> Response:
        """Of a request that is being answered, what is known so far."""
        found = traces.get(request_id)
        if found is None:
            raise TraceNotFoundError(f"No trace of {request_id!r} is kept; send '{HEADER}: 1' with the request.")
        return Response(dump_json(found.describe()), media_type="application/json")

    return router
