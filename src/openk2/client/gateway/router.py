"""Several upstreams as one: a request goes to one of them, and to another one if that fails before it has answered."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from openk2.chat.events import ChatEvent
from openk2.chat.provider import ChatProvider, ChatRequest, ProviderFigure, TextProvider, TextRequest
from openk2.client.failures import EndpointError, SilenceError, UnreachableError
from openk2.client.gateway.health import HealthWatch
from openk2.client.gateway.routing import choose, conversation_key, text_key
from openk2.client.gateway.upstream import Upstream
from openk2.errors import ModelNotFoundError, OpenK2Error, ProviderError

logger = logging.getLogger(__name__)


class Router:
    """Sends each conversation to the upstream that has its beginning in its cache, and around those that fail.

    A request that fails before its first event is tried at each of the others; one that has begun cannot be.
    """

    def __init__(self, upstreams: Sequence[Upstream], *, watch: HealthWatch | None = None) -> None:
        """At least one upstream. `watch` over them, where there is one, ends with the router."""
        self.upstreams = tuple(upstreams)
        self._watch = watch

    @property
    def model(self) -> str:
        """The first upstream's name for it that can be learned; raises what the last one raised."""
        failure: OpenK2Error | None = None
        for upstream in self.upstreams:
            try:
                return upstream.provider.model
            except OpenK2Error as error:
                failure = error
        raise failure or ProviderError("there is no upstream")

    @property
    def max_model_len(self) -> int | None:
        """The smallest window of those that tell."""
        windows = [window for upstream in self.upstreams if (window := _window(upstream.provider)) is not None]
        return min(windows, default=None)

    @property
    def is_alive(self) -> bool:
        return any(upstream.is_up for upstream in self.upstreams)

    @property
    def figures(self) -> Iterator[ProviderFigure]:
        """Of each upstream, for the server's metrics."""
        for upstream in self.upstreams:
            labels = {"upstream": upstream.name}
            answered, failed = labels | {"outcome": "answered"}, labels | {"outcome": "failed"}
            about = "Requests that upstreams have answered, or failed to."
            yield ProviderFigure("openk2:upstream_requests", about, "counter", answered, upstream.answered)
            yield ProviderFigure("openk2:upstream_requests", about, "counter", failed, upstream.failed)
            about = "Answers that upstreams are making."
            yield ProviderFigure("openk2:upstream_requests_running", about, "gauge", labels, upstream.running)
            about = "Whether upstreams get new requests."
            yield ProviderFigure("openk2:upstream_up", about, "gauge", labels, float(upstream.is_up))

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """See `ChatProvider.stream`; raises what the last upstream raised that was tried."""
        return self._answer(conversation_key(request), lambda provider: provider.stream(request))

    def stream_text(self, request: TextRequest) -> AsyncGenerator[ChatEvent, None]:
        """See `TextProvider.stream_text`."""
        key = text_key(request.prompt)
        return self._answer(key, lambda provider: cast("TextProvider", provider).stream_text(request))

    async def _answer(
        self, key: bytes, ask: Callable[[ChatProvider], AsyncIterator[ChatEvent]]
    ) -> AsyncGenerator[ChatEvent, None]:
        tried: list[Upstream] = []
        while True:
            upstream = self._choose(key, tried)
            tried.append(upstream)
            has_begun = False
            upstream.running += 1
            try:
                events = cast("AsyncGenerator[ChatEvent, None]", ask(upstream.provider))
                async with aclosing(events):
                    async for event in events:
                        has_begun = True
                        yield event
                upstream.answered += 1
                return
            except (ProviderError, EndpointError, ModelNotFoundError) as error:
                upstream.failed += 1
                if isinstance(error, UnreachableError):
                    upstream.is_up = False
                # One that says nothing may still be working on it: nothing is gained by all of them doing so.
                is_final = has_begun or isinstance(error, SilenceError) or len(tried) == len(self.upstreams)
                what, then = type(error).__name__, "" if is_final else "; another one is tried"
                logger.warning("upstream %s failed: %s%s", upstream.name, what, then)
                if is_final:
                    raise
            finally:
                upstream.running -= 1

    def _choose(self, key: bytes, tried: Sequence[Upstream]) -> Upstream:
        left = [upstream for upstream in self.upstreams if upstream not in tried]
        # Where all seem to be down, one may be back without having been seen yet.
        able = {upstream.name: upstream for upstream in left if upstream.is_up} or {
            upstream.name: upstream for upstream in left
        }
        return able[choose({name: upstream.running for name, upstream in able.items()}, key)]


def _window(provider: ChatProvider) -> int | None:
    try:
        found: Any = getattr(provider, "max_model_len", None)
    except OpenK2Error:
        return None
    return found if isinstance(found, int) else None
