"""One step of an agent: ask the model once, then run everything that it called, all at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from openk2.agent.events import CallFinished, CallStarted
from openk2.agent.toolset import Toolset
from openk2.chat.events import ChatEvent, Collector, TextDelta
from openk2.chat.messages import Completion, Message, ToolCall
from openk2.chat.provider import ChatProvider, ChatRequest


async def answer(provider: ChatProvider, request: ChatRequest) -> AsyncGenerator[TextDelta | Completion, None]:
    """Yield the answer's text as it comes, then the whole completion. Raises what the provider raises.

    Calls are not started before the answer is complete: one that is cut off or fails half-way has no effects, and the
    calls of a turn begin together.
    """
    collector = Collector()
    # ChatProvider promises an iterator whose closing aborts the request: an async generator.
    stream = cast("AsyncGenerator[ChatEvent, None]", provider.stream(request))
    async with aclosing(stream):
        async for event in stream:
            collector.add(event)
            if isinstance(event, TextDelta):
                yield event
    yield collector.completion()


async def run_calls(
    toolset: Toolset, calls: Sequence[ToolCall], turn: int
) -> AsyncGenerator[CallStarted | CallFinished, None]:
    """Run the calls of one turn at once; yield each start, then each end when it comes.

    Closing the generator cancels what still runs (a sync tool's thread is abandoned).
    """
    started_s = time.monotonic()

    async def run(index: int, call: ToolCall) -> CallFinished:
        outcome = await toolset.run(call)
        return CallFinished(turn, index, call, outcome.text, outcome.is_error, started_s, time.monotonic())

    tasks = [asyncio.create_task(run(index, call)) for index, call in enumerate(calls)]
    try:
        await asyncio.sleep(0)  # every task has begun before the first event is handed out
        for index, call in enumerate(calls):
            yield CallStarted(turn, index, call, started_s)
        for ended in asyncio.as_completed(tasks):
            yield await ended
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def result_messages(finished: Sequence[CallFinished]) -> list[Message]:
    """The `tool` messages of a turn, in the order of its calls, whichever ended first."""
    ordered = sorted(finished, key=lambda end: end.index)
    return [Message("tool", end.result, tool_call_id=end.call.id) for end in ordered]
