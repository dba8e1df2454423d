"""`/v1/responses`."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from openk2.chat.events import Finished
from openk2.errors import OpenK2Error
from openk2.server.answering import Answering
from openk2.server.body import read_json
from openk2.server.ignored import ignored_header
from openk2.server.model_slot import ModelSlot
from openk2.server.responses.response import ResponseHeader, ResponseWriter
from openk2.server.responses.schema import read_response_request
from openk2.server.responses.store import ResponseStore
from openk2.server.settings import ServerSettings
from openk2.server.sse import SseResponse, dump_json, event_line
from openk2.server.streams import ChoiceEvent, describe_failure, first_of, unless_disconnected

logger = logging.getLogger(__name__)


def build_router(slot: ModelSlot, settings: ServerSettings, answering: Answering) -> APIRouter:
    """Raises ConfigError when the settings' store cannot be used."""
    router = APIRouter(prefix="/v1/responses")
    store = ResponseStore(settings.response_store)

    @router.post("")
    async def create(request: Request) -> Response:
        provider = slot.provider
        sent = await read_json(request, settings.max_body_bytes)
        body = await asyncio.to_thread(read_response_request, sent, store)
        id = f"resp_{uuid.uuid4().hex}"
        writer = ResponseWriter(ResponseHeader(id, int(time.time()), slot.resolve(body.model), body.settings))
        headers = ignored_header(body.ignored)

        def keep() -> None:
            if body.store:
                store.add(writer.response, body.new_items)

        events = answering.chat(request, provider, [body.chat])
        if not body.stream:
            await unless_disconnected(request.receive, _collect(writer, events))
            await asyncio.to_thread(keep)
            return _json(writer.response, headers)
        # Nothing is sent before the first event: until then a failure still has an HTTP status.
        first = await unless_disconnected(request.receive, first_of(events))
        return SseResponse(_lines(writer, first, events, keep), headers)

    @router.get("/{response_id}")
    async def retrieve(response_id: str) -> Response:
        return _json(await asyncio.to_thread(store.get, response_id))

    @router.delete("/{response_id}")
    async def delete(response_id: str) -> Response:
        await asyncio.to_thread(store.delete, response_id)
        return _json({"id": response_id, "object": "response", "deleted": True})

    return router


def _json(value: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(dump_json(value), headers=headers, media_type="application/json")


async def _collect(writer: ResponseWriter, events: AsyncGenerator[ChoiceEvent]) -> None:
    try:
        async for _, event in events:
            for _ in writer.events(event):
                pass
    finally:
        await events.aclose()


async def _lines(
    writer: ResponseWriter, first: ChoiceEvent, events: AsyncGenerator[ChoiceEvent], keep: Callable[[], None]
) -> AsyncGenerator[bytes]:
    """The stream's lines. A failure ends them with `response.failed`."""
    try:
        for event in writer.begin():
            yield event_line(event)
        for line in await _lines_of(writer, first, keep):
            yield line
        async for choice_event in events:
            for line in await _lines_of(writer, choice_event, keep):
                yield line
    except Exception as error:
        is_bug = not isinstance(error, OpenK2Error)
        logger.error("a stream broke off: %s", error, exc_info=error if is_bug else None)
        yield event_line(writer.failed(describe_failure(error)))
    finally:
        await events.aclose()


async def _lines_of(writer: ResponseWriter, choice_event: ChoiceEvent, keep: Callable[[], None]) -> list[bytes]:
    """The response is kept before its last event is sent: a client may go on from it at once."""
    lines = [event_line(event) for event in writer.events(choice_event[1])]
    if isinstance(choice_event[1], Finished):
        await asyncio.to_thread(keep)
    return lines
