"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from openk2.chat.messages import Completion
from openk2.errors import OpenK2Error, RequestError
from openk2.server.answering import Answering
from openk2.server.body import read_json
from openk2.server.error_responses import body_of
from openk2.server.ignored import ignored_header
from openk2.server.model_slot import ModelSlot
from openk2.server.openai.completions import TextChunkWriter, read_completion, text_completion_object, text_provider
from openk2.server.openai.response import ChunkWriter, CompletionCollector, ResponseHeader, completion_object
from openk2.server.openai.schema import read_chat_completion
from openk2.server.settings import ServerSettings
from openk2.server.sse import DONE, SseResponse, data_line, dump_json
from openk2.server.streams import ChoiceEvent, describe_failure, first_of, unless_disconnected

logger = logging.getLogger(__name__)


class NoEmbeddingsError(RequestError):
    http_status = 404
    code = "unknown_url"


def build_router(slot: ModelSlot, settings: ServerSettings, answering: Answering) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def list_models() -> Response:
        return _json({"object": "list", "data": [slot.describe(name) for name in slot.names]})

    @router.get("/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        slot.resolve(name)
        return _json(slot.describe(name))

    def begin(kind: str, model: str | None) -> ResponseHeader:
        return ResponseHeader(
            f"{kind}-{uuid.uuid4().hex}", int(time.time()), slot.resolve(model), slot.system_fingerprint
        )

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        provider = slot.provider
        body = read_chat_completion(await read_json(request, settings.max_body_bytes))
        header = begin("chatcmpl", body.model)
        headers = ignored_header(body.ignored)
        events = answering.chat(request, provider, body.choice_requests())
        if not body.stream:
            completions = await unless_disconnected(request.receive, _collect(events, body.n))
            return _json(completion_object(header, completions), headers)
        # Nothing is sent before the first event: until then a failure still has an HTTP status.
        first = await unless_disconnected(request.receive, first_of(events))
        writer = ChunkWriter(header, include_usage=body.include_usage)
        return SseResponse(_lines(writer, first, events), headers)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        provider = text_provider(slot.provider)
        body = read_completion(await read_json(request, settings.max_body_bytes))
        header = begin("cmpl", body.model)
        headers = ignored_header(body.ignored)
        echoes = body.echoes(provider)
        asked = body.asked()
        events = answering.text(request, provider, asked)
        if not body.stream:
            texts = await unless_disconnected(request.receive, _collect(events, len(asked)))
            return _json(text_completion_object(header, body, echoes, texts), headers)
        first = await unless_disconnected(request.receive, first_of(events))
        writer = TextChunkWriter(header, body, echoes)
        return SseResponse(_lines(writer, first, events), headers)

    @router.post("/embeddings")
    async def embeddings() -> Response:
        raise NoEmbeddingsError("There are no embeddings here: this model generates text. Ask another server for them.")

    return router


def _json(value: dict[str, object], headers: dict[str, str] | None = None) -> Response:
    return Response(dump_json(value), headers=headers, media_type="application/json")


async def _collect(events: AsyncGenerator[ChoiceEvent], num_choices: int) -> list[Completion]:
    collector = CompletionCollector(num_choices)
    try:
        async for choice, event in events:
            collector.add(choice, event)
    finally:
        await events.aclose()
    return collector.completions()


async def _lines(
    writer: ChunkWriter | TextChunkWriter, first: ChoiceEvent, events: AsyncGenerator[ChoiceEvent]
) -> AsyncGenerator[bytes]:
    """The stream's lines. A failure after the first event becomes an error line, and the stream ends without [DONE]."""
    try:
        for chunk in writer.chunks(first):
            yield data_line(chunk)
        async for event in events:
            for chunk in writer.chunks(event):
                yield data_line(chunk)
        usage = writer.usage_chunk()
        if usage is not None:
            yield data_line(usage)
        yield DONE
    except Exception as error:
        is_bug = not isinstance(error, OpenK2Error)
        logger.error("a stream broke off: %s", error, exc_info=error if is_bug else None)
        yield data_line(body_of(describe_failure(error)))
    finally:
        await events.aclose()
