"""Event streams on their way to a client: held to the event grammar, merged for `n` choices, dropped on disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished
from openk2.chat.messages import FinishReason
from openk2.errors import OpenK2Error, ProviderError

T = TypeVar("T")
ChoiceEvent = tuple[int, ChatEvent]
"""(index of the choice, event)"""


class ClientDisconnected(Exception):
    """The client went away before its answer began: there is nobody to tell."""


async def checked(events: AsyncIterator[ChatEvent]) -> AsyncGenerator[ChatEvent]:
    """The same events, with what every client relies on made certain whatever the provider is.

    A call without arguments gets `{}` ("" is not JSON); `finish_reason` is `tool_calls` exactly when a turn that ended
    by itself holds a complete call. Raises ProviderError for an answer that ended in error or without an end.
    """
    has_arguments, complete_calls = False, 0
    try:
        async for event in events:
            match event:
                case CallBegin():
                    has_arguments = False
                case CallDelta(_, arguments):
                    has_arguments = has_arguments or bool(arguments.strip())
                case CallEnd(index):
                    complete_calls += 1
                    if not has_arguments:
                        yield CallDelta(index, "{}")
                case Finished(reason, usage, stop_string):
                    if reason == "error":
                        raise ProviderError("the model's answer ended with an error")
                    ended_by_itself: FinishReason = "tool_calls" if complete_calls else "stop"
                    yield Finished("length" if reason == "length" else ended_by_itself, usage, stop_string)
                    return
            yield event
    finally:
        await close(events)
    raise ProviderError("the model's answer broke off")


async def close(events: AsyncIterator[Any]) -> None:
    """Abort the request behind an iterator; a no-op on a finished one."""
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await aclose()


class Merged:
    """Events of several answers as they come. The first error ends all; closing `events` aborts all."""

    def __init__(self, streams: Sequence[AsyncIterator[ChatEvent]]) -> None:
        self._streams = streams
        self._queue: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    def fail(self, error: Exception) -> None:
        """Abort all; the reader gets the events that are there, and then `error`."""
        for task in self._tasks:
            task.cancel()
        self._queue.put_nowait(error)

    async def events(self) -> AsyncGenerator[ChoiceEvent]:
        """To be read once."""
        self._tasks += [asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(self._streams)]
        try:
            running = len(self._tasks)
            while running:
                item = await self._queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, index: int, events: AsyncIterator[ChatEvent]) -> None:
        try:
            async for event in checked(events):
                self._queue.put_nowait((index, event))
        except Exception as error:  # delivered to the reader, who decides
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)


async def first_of(events: AsyncGenerator[T]) -> T:
    """The first event, the others left to be read; the events are closed if it does not come."""
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise


async def marking_idle(events: AsyncGenerator[T], seconds: float) -> AsyncGenerator[T | None]:
    """The same events, and None whenever for `seconds` none has come: time to show a sign of life."""
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            await asyncio.wait({pending}, timeout=seconds)
            if not pending.done():
                yield None
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            pending = asyncio.ensure_future(anext(events))
            yield event
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client is gone. To be used after the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises ClientDisconnected, the work being cancelled, if the client goes away first."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return await task
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def describe_failure(error: Exception) -> OpenK2Error:
    """What a client is told: our own errors as they are, anything else without its internals."""
    if isinstance(error, OpenK2Error):
        return error
    return OpenK2Error("internal error; the server's log has the details")
