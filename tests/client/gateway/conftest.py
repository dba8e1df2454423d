"""A gateway over scripted upstreams."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from openk2.chat.events import ChatEvent, collect
from openk2.chat.messages import Completion, Message, ToolSpec
from openk2.chat.provider import ChatProvider, ChatRequest
from openk2.client.gateway import Gateway, InvalidCalls, Router, Upstream

ADD = ToolSpec.function(
    "add",
    "Add.",
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
)
GREET = ToolSpec.function("greet", "Greet.", {"type": "object", "properties": {"who": {"type": "string"}}})
ASK = ChatRequest((Message("user", "hi"),), (ADD, GREET))


@pytest.fixture(autouse=True)
def pauses() -> None:
    """Nothing here waits for retries; the scripted upstreams take turns by their pauses."""


def gateway(*providers: ChatProvider, invalid_calls: InvalidCalls = InvalidCalls.RETRY) -> Gateway:
    upstreams = [Upstream(f"u{i}", provider) for i, provider in enumerate(providers)]
    return Gateway(Router(upstreams), invalid_calls=invalid_calls)


async def listed(events: AsyncIterator[ChatEvent]) -> list[ChatEvent]:
    return [event async for event in events]


async def complete(provider: ChatProvider, request: ChatRequest = ASK) -> Completion:
    return collect(await listed(provider.stream(request)))
