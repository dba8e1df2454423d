"""Every answer that is under way: let in or refused, measured, limited in time, ended when the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import TypeVar

from fastapi import Request

from openk2.chat.events import ChatEvent, Finished
from openk2.chat.provider import ChatProvider, ChatRequest, ProviderLoad, TextProvider, TextRequest
from openk2.chat.trace import Trace
from openk2.errors import OverloadedError, QueueFullError, TimeLimitError
from openk2.server.cache_misses import CacheMisses
from openk2.server.metrics import Metrics, NamedLoad
from openk2.server.model_slot import ModelSlot
from openk2.server.request_record import RequestRecord
from openk2.server.settings import ServerSettings
from openk2.server.streams import ChoiceEvent, Merged, describe_failure
from openk2.server.traces import RequestTrace, Traces, is_wanted

Asked = TypeVar("Asked", ChatRequest, TextRequest)


class Answering:
    """The one place where requests become answers of the provider, for every API. Used on the event loop only."""

    def __init__(self, slot: ModelSlot, settings: ServerSettings) -> None:
        self._slot = slot
        self._settings = settings
        self._under_way: set[Merged] = set()
        self._waiting: set[Merged] = set()
        """Those of them that have not had an event yet."""
        self.is_draining = False
        """Whether the server is about to end: no answer is begun any more."""
        self.metrics = Metrics(self._load, lambda: slot.figures)
        self.traces = Traces()
        self.cache_misses = CacheMisses() if settings.explain_cache_misses else None

    @property
    def num_under_way(self) -> int:
        return len(self._under_way)

    def chat(
        self, request: Request, provider: ChatProvider, asked: Sequence[ChatRequest]
    ) -> AsyncGenerator[ChoiceEvent]:
        """The events of all choices; closing the generator aborts them.

        Raises OverloadedError or QueueFullError, at once, when no answer is begun now.
        """
        self._admit()
        asked, trace = self._traced(request, asked)
        return self._answer(request, [provider.stream(choice) for choice in asked], trace)

    def text(
        self, request: Request, provider: TextProvider, asked: Sequence[TextRequest]
    ) -> AsyncGenerator[ChoiceEvent]:
        """Continuations of prompts; otherwise as `chat`."""
        self._admit()
        asked, trace = self._traced(request, asked)
        return self._answer(request, [provider.stream_text(choice) for choice in asked], trace)

    def end_all(self) -> None:
        """End what is under way with an error, when it may not go on any longer."""
        for merged in self._under_way:
            merged.fail(OverloadedError("the server is shutting down, and did not finish this answer in time"))

    def _traced(self, request: Request, asked: Sequence[Asked]) -> tuple[Sequence[Asked], RequestTrace | None]:
        if not is_wanted(request.headers) and self.cache_misses is None:
            return asked, None
        asked = [replace(choice, trace=Trace()) for choice in asked]
        return asked, RequestTrace(RequestRecord.of(request), [choice.trace for choice in asked if choice.trace])

    def _admit(self) -> None:
        if self.is_draining:
            raise OverloadedError("the server is shutting down; try again")
        if len(self._waiting) >= self._settings.max_waiting:
            self.metrics.refused()
            raise QueueFullError(f"too many requests wait for their first token ({len(self._waiting)}); try again")

    async def _answer(
        self, request: Request, streams: Sequence[AsyncIterator[ChatEvent]], trace: RequestTrace | None = None
    ) -> AsyncGenerator[ChoiceEvent]:
        record = RequestRecord.of(request)
        record.model = self._slot.names[0]
        meter = self.metrics.meter(record)
        merged = Merged(streams)
        limit = self._settings.request_timeout_s
        timer = asyncio.get_running_loop().call_later(
            limit, merged.fail, TimeLimitError(f"the answer took longer than the {limit:g} s that a request may")
        )
        self._under_way.add(merged)
        self._waiting.add(merged)
        if trace is not None and is_wanted(request.headers):
            self.traces.add(trace)
        events = merged.events()
        record.was_aborted = True
        try:
            async for choice, event in events:
                self._waiting.discard(merged)
                meter.saw(choice, event)
                if trace is not None and isinstance(event, Finished):
                    self._finish(trace, choice, event)
                yield choice, event
            record.was_aborted = False
        except Exception as error:
            record.was_aborted = False
            record.error = describe_failure(error).error_type
            raise
        finally:
            timer.cancel()
            self._under_way.discard(merged)
            self._waiting.discard(merged)
            meter.end()
            await events.aclose()

    def _finish(self, trace: RequestTrace, choice: int, finished: Finished) -> None:
        """A chat's choices have one prompt, so the first to end tells what became of it in the cache."""
        if not trace.finished and self.cache_misses is not None:
            cached_tokens = finished.usage.cached_tokens
            trace.cache_miss = self.cache_misses.explain(trace.record.request_id, trace.choices[choice], cached_tokens)
        trace.finished[choice] = finished

    def _load(self) -> NamedLoad | None:
        """What there is to do: as the provider tells, else as it is seen from here."""
        if not self._slot.is_loaded:
            return None
        waiting = len(self._waiting)
        seen = ProviderLoad(running=self.num_under_way - waiting, waiting=waiting)
        return self._slot.names[0], self._slot.load or seen
