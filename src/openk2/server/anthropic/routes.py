"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from openk2.chat.events import ChatEvent
from openk2.errors import OpenK2Error, RequestError
from openk2.server.answering import Answering
from openk2.server.anthropic.errors import PATH, error_event
from openk2.server.anthropic.response import PING, EventWriter, MessageHeader, message_object
from openk2.server.anthropic.schema import read_count_tokens, read_messages_request
from openk2.server.body import read_json
from openk2.server.ignored import ignored_header
from openk2.server.model_slot import ModelSlot
from openk2.server.settings import ServerSettings
from openk2.server.sse import SseResponse, dump_json, event_line
from openk2.server.streams import ChoiceEvent, describe_failure, first_of, marking_idle, unless_disconnected

logger = logging.getLogger(__name__)

PING_SECONDS = 10.0
"""After so long without an event a stream shows a sign of life; clients give silent ones up."""


class CountingUnsupportedError(RequestError):
    http_status = 404


def build_router(slot: ModelSlot, settings: ServerSettings, answering: Answering) -> APIRouter:
    router = APIRouter(prefix=PATH)

    @router.post("")
    async def messages(request: Request) -> Response:
        provider = slot.provider
        body = read_messages_request(await read_json(request, settings.max_body_bytes))
        chat_request = body.chat_request()
        header = MessageHeader(f"msg_{uuid.uuid4().hex}", slot.resolve(body.model), body.max_tokens, slot.max_model_len)
        headers = ignored_header(body.ignored)
        if not body.stream:
            events = answering.chat(request, provider, [chat_request])
            message = await unless_disconnected(request.receive, _collect(header, events))
            return _json(message, headers)
        # The first event of the stream tells the prompt's length, which the model's own events tell in the last.
        prompt_tokens = await asyncio.to_thread(slot.count_prompt_tokens, chat_request) or 0
        marked = marking_idle(answering.chat(request, provider, [chat_request]), PING_SECONDS)
        # Nothing is sent before the first event, unless it is slow to come: until then a failure has an HTTP status.
        first = await unless_disconnected(request.receive, first_of(marked))
        return SseResponse(_lines(EventWriter(header), prompt_tokens, first, marked, _request_id(request)), headers)

    @router.post("/count_tokens")
    async def count_tokens(request: Request) -> Response:
        body = read_count_tokens(await read_json(request, settings.max_body_bytes))
        slot.resolve(body.model)
        tokens = await asyncio.to_thread(slot.count_prompt_tokens, body.chat_request())
        if tokens is None:
            raise CountingUnsupportedError(f"Tokens cannot be counted here: {slot.provider.model!r} runs elsewhere.")
        return _json({"input_tokens": tokens}, ignored_header(body.ignored))

    return router


def _json(value: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(dump_json(value), headers=headers, media_type="application/json")


async def _collect(header: MessageHeader, events: AsyncGenerator[ChoiceEvent]) -> dict[str, Any]:
    collected: list[ChatEvent] = []
    try:
        async for _, event in events:
            collected.append(event)
    finally:
        await events.aclose()
    return message_object(header, collected)


async def _lines(
    writer: EventWriter,
    prompt_tokens: int,
    first: ChoiceEvent | None,
    events: AsyncGenerator[ChoiceEvent | None],
    request_id: str,
) -> AsyncGenerator[bytes]:
    """The stream's lines; None in the events is a long silence. A failure ends them with an `error` event."""
    try:
        yield event_line(writer.begin(prompt_tokens))
        for line in _lines_of(writer, first):
            yield line
        async for event in events:
            for line in _lines_of(writer, event):
                yield line
    except Exception as error:
        is_bug = not isinstance(error, OpenK2Error)
        logger.error("a stream broke off: %s", error, exc_info=error if is_bug else None)
        yield event_line(error_event(describe_failure(error), request_id))
    finally:
        await events.aclose()


def _lines_of(writer: EventWriter, choice_event: ChoiceEvent | None) -> Iterator[bytes]:
    if choice_event is None:
        yield event_line(PING)
        return
    for event in writer.events(choice_event[1]):
        yield event_line(event)


def _request_id(request: Request) -> str:
    return str(request.state.request_id)
