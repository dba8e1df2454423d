"""The endpoint under test, asked with bounded patience."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from openk2.client import RemoteProvider
from openk2.client.failures import error_for
from openk2.client.wire import WireAnswer
from openk2.errors import ProviderError
from openk2.evals.verify.reply import Reply, read_reply

BUSY_STATUSES = frozenset({429, 503, 529})
BUSY_RETRIES = 6
FIRST_WAIT_S = 0.5
"""Doubled before each further try of an endpoint that has no room."""


class Deployment:
    """Sends bodies to one model of an endpoint, at most `concurrency` at a time."""

    def __init__(self, provider: RemoteProvider, concurrency: int) -> None:
        """Asks the endpoint for its model when the provider was given none, and raises as `RemoteProvider.model`."""
        self.model = provider.model
        self.base_url = provider.base_url
        self.concurrency = concurrency
        self._provider = provider
        self._room = asyncio.Semaphore(concurrency)

    async def check_reachable(self) -> None:
        """Ask for one word. Raises ProviderError or RequestError when no chat is answered here at all."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        answer = await self._exchange(body)
        if answer.status in (401, 403, 404):
            raise error_for(answer.status, "\n".join(answer.payloads), url=f"{self.base_url}/chat/completions")

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The answer to a chat-completions body, with the model's name put in when it has none."""
        body = {"model": self.model, **body}
        try:
            answer = await self._exchange(body)
        except ProviderError as error:
            return Reply(0, {"error": str(error)}, error=str(error))
        return read_reply(answer, streamed=bool(body.get("stream")))

    async def abandon(self, body: Mapping[str, Any]) -> bool:
        """Hang up at a stream's first event; whether there was one."""
        sent = {"model": self.model, **body, "stream": True}
        try:
            answer = await self._exchange(sent, most_events=1)
        except ProviderError:
            return False
        return answer.status == 200 and answer.broken is None and bool(answer.payloads)

    async def _exchange(self, body: dict[str, Any], most_events: int | None = None) -> WireAnswer:
        wait_s = FIRST_WAIT_S
        async with self._room:
            for attempt in range(BUSY_RETRIES + 1):
                last = attempt == BUSY_RETRIES
                answer = await self._provider.exchange("/chat/completions", body, most_events=most_events)
                if last or answer.status not in BUSY_STATUSES:
                    return answer
                await asyncio.sleep(wait_s)
                wait_s *= 2
        raise AssertionError("the last attempt returns or raises")
