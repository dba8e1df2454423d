"""`/tokenize` and `/detokenize`, in the form that vLLM gave them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from openk2.chat.provider import ChatProvider, ChatRequest
from openk2.chat.template import ChatTemplate
from openk2.errors import RequestError
from openk2.server.body import read_json
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.model_slot import ModelSlot
from openk2.server.openai.convert import read_messages, read_template_variables
from openk2.server.openai.tools import read_tool_choice, read_tools
from openk2.server.settings import ServerSettings
from openk2.server.sse import dump_json
from openk2.tokenizer import Tokenizer


class NoTokenizerError(RequestError):
    http_status = 404


def build_router(slot: ModelSlot, settings: ServerSettings) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        template = template_of(slot.provider)
        body = Fields(await read_json(request, settings.max_body_bytes))
        slot.resolve(body.string("model"))
        ids = await asyncio.to_thread(_tokenize, body, template)
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": slot.max_model_len, "tokens": ids}
        if body.boolean("return_token_strs"):
            answer["token_strs"] = [template.tokenizer.decode([token_id]) for token_id in ids]
        return Response(dump_json(answer), media_type="application/json")

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        tokenizer = template_of(slot.provider).tokenizer
        body = Fields(await read_json(request, settings.max_body_bytes))
        slot.resolve(body.string("model"))
        text = await asyncio.to_thread(lambda: tokenizer.decode(read_token_ids(body, "tokens", tokenizer)))
        return Response(dump_json({"prompt": text}), media_type="application/json")

    return router


def read_token_ids(fields: Fields, key: str, tokenizer: Tokenizer) -> list[int]:
    """Raises RequestError naming the first entry that is no token id."""
    fields.require(key)
    ids = fields.array(key) or []
    for i, token_id in enumerate(ids):
        path = fields.at(f"{key}[{i}]")
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise wrong_type(path, "an integer", token_id)
        if not 0 <= token_id < tokenizer.vocab_size:
            raise wrong_value(path, f"token ids are 0 to {tokenizer.vocab_size - 1}, not {token_id}")
    return ids


def _tokenize(body: Fields, template: ChatTemplate) -> list[int]:
    """A text's tokens, in which control tokens are ordinary text; or the prompt that a chat completion would have."""
    prompt = body.string("prompt")
    if (prompt is None) == (body.get("messages") is None):
        raise RequestError("Send either 'prompt' or 'messages'.", param="prompt")
    if prompt is not None:
        return template.tokenizer.encode(prompt)
    tools, tool_choice = read_tool_choice(body, read_tools(body))
    request = ChatRequest(read_messages(body), tools, tool_choice, template_variables=read_template_variables(body))
    opened = body.boolean("add_generation_prompt") is not False
    return template.render(
        request.messages, request.tools, add_generation_prompt=opened, variables=request.template_variables
    )


def template_of(provider: ChatProvider) -> ChatTemplate:
    """The provider's template, and by it the tokenizer; only a model of this machine has one."""
    template = getattr(provider, "template", None)
    if not isinstance(template, ChatTemplate):
        raise NoTokenizerError(f"The tokenizer of {provider.model!r} is not known here.")
    return template
