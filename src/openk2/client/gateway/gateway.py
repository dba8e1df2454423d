"""The `ChatProvider` that a server puts before upstreams: what goes in and what comes out is as it should be."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from enum import StrEnum

from openk2.chat.events import ChatEvent
from openk2.chat.ids import canonicalize
from openk2.chat.provider import ChatRequest, ProviderFigure, TextRequest
from openk2.chat.template import ChatTemplate
from openk2.client.gateway.calls import CallCheck, InvalidCallError
from openk2.client.gateway.router import Router

_ABOUT_CALLS = "What was done to tool calls of upstreams, or found wrong with them."

logger = logging.getLogger(__name__)


class InvalidCalls(StrEnum):
    """What becomes of an answer with a call that no client could use."""

    RETRY = "retry"
    """It is asked for once more, if nothing of it has been handed on yet; then it is an error."""
    ERROR = "error"
    """It is an error; the call is not handed on."""
    PASS = "pass"
    """It is handed on as it is, and counted."""


class Gateway:
    """Answers with the router's upstreams.

    Histories go out with canonical call ids, and calls come in with them. `template`, where the upstreams' is known
    here, lets prompts be counted.
    """

    def __init__(
        self, router: Router, *, invalid_calls: InvalidCalls = InvalidCalls.RETRY, template: ChatTemplate | None = None
    ) -> None:
        self.router = router
        self.template = template
        self.count_prompt_tokens: Callable[[ChatRequest], int] | None = None if template is None else self._count
        self.counts: Counter[str] = Counter()
        """Of calls: what was repaired, left out, found invalid or asked for again, since the start."""
        self._invalid_calls = invalid_calls

    @property
    def model(self) -> str:
        return self.router.model

    @property
    def max_model_len(self) -> int | None:
        return self.router.max_model_len

    @property
    def is_alive(self) -> bool:
        return self.router.is_alive

    @property
    def figures(self) -> Iterator[ProviderFigure]:
        """For the server's metrics."""
        for what, count in sorted(self.counts.items()):
            yield ProviderFigure("openk2:gateway_calls", _ABOUT_CALLS, "counter", {"what": what}, count)
        yield from self.router.figures

    def close(self) -> None:
        self.router.close()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """See `ChatProvider.stream`. Raises InvalidCallError too, a ProviderError."""
        request = replace(request, messages=canonicalize(request.messages))
        may_ask_again = self._invalid_calls is InvalidCalls.RETRY
        while True:
            has_begun = False
            try:
                async with aclosing(self._checked(request)) as events:
                    async for event in events:
                        has_begun = True
                        yield event
                return
            except InvalidCallError as error:
                is_final = has_begun or not may_ask_again
                then = "an error" if is_final else "asked for again"
                logger.warning("an answer's call is invalid (%s): %s", error.kind, then)
                if is_final:
                    raise
                may_ask_again = False
                self.counts["asked again"] += 1

    def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        """See `TextProvider.stream_text`; whether control tokens in a text are ones is the upstream's business."""
        return self.router.stream_text(request)

    async def _checked(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        check = CallCheck(request, self.counts, passes_invalid=self._invalid_calls is InvalidCalls.PASS)
        async with aclosing(self.router.stream(request)) as events:
            async for event in events:
                for following in check.feed(event):
                    yield following

    def _count(self, request: ChatRequest) -> int:
        assert self.template is not None
        return len(self.template.render(request.messages, request.tools, variables=request.template_variables))
