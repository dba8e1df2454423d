"""The body of `POST /v1/responses`, checked and turned into our own types.

As in chat completions, a parameter is honoured, or refused because leaving it out would change the answer, or ignored
and reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from openk2.chat.messages import Message, ResponseFormat, ToolChoice
from openk2.chat.provider import ChatRequest
from openk2.config.sampling import SamplingParams
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.json_schema import check_object_schema
from openk2.server.openai.logprobs import MAX_TOP_LOGPROBS
from openk2.server.openai.sampling import read_sampling
from openk2.server.openai.tools import read_tool_choice
from openk2.server.responses.convert import Conversation, read_items
from openk2.server.responses.store import Item, ResponseStore
from openk2.server.responses.tools import DeclaredTools, read_tools

_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True)
class ResponsesRequest:
    model: str | None
    """None, when the caller does not care, is the loaded model."""
    chat: ChatRequest
    stream: bool
    store: bool
    new_items: tuple[Item, ...]
    """What this request adds to the conversation, to be kept with its response."""
    settings: dict[str, Any]
    """What the response object repeats of the request."""
    ignored: tuple[str, ...]
    """Parameters, tools and items that were sent and have no effect here."""


def read_response_request(body: object, store: ResponseStore) -> ResponsesRequest:
    """Raises RequestError (400) naming the first field at fault; reads the store for what the request refers to."""
    fields = Fields(body)
    model = fields.string("model")
    instructions = fields.string("instructions")
    previous_id = fields.string("previous_response_id")
    new_items = read_items(fields, store.output_item)
    conversation = Conversation()
    if instructions:
        conversation.messages.append(Message("system", instructions))
    conversation.add(store.conversation(previous_id) if previous_id else [], "previous_response_id")
    conversation.add(new_items, fields.at("input"))
    if not conversation.messages:
        raise wrong_value(fields.at("input"), "it must hold at least one message")
    tools = read_tools(fields)
    specs, tool_choice = read_tool_choice(fields, tools.specs, flat=True)
    response_format, text = _read_text(fields)
    logprobs, other_includes = _read_logprobs(fields)
    sampling = replace(read_sampling(fields, limits=("max_output_tokens",)), logprobs=logprobs)
    stream = fields.boolean("stream") or False
    is_stored = fields.boolean("store") is not False
    metadata = _read_metadata(fields)
    _refuse_what_would_change_the_answer(fields)
    settings = _settings(fields, sampling, tools, tool_choice) | {
        "instructions": instructions,
        "previous_response_id": previous_id,
        "metadata": metadata,
        "store": is_stored,
        "text": text,
    }
    return ResponsesRequest(
        model=model,
        chat=ChatRequest(tuple(conversation.messages), specs, tool_choice, sampling, response_format=response_format),
        stream=stream,
        store=is_stored,
        new_items=tuple(new_items),
        settings=settings,
        ignored=tuple(dict.fromkeys([*conversation.ignored, *tools.ignored, *other_includes, *fields.unread()])),
    )


def _settings(
    fields: Fields, sampling: SamplingParams, tools: DeclaredTools, tool_choice: ToolChoice
) -> dict[str, Any]:
    return {
        "background": False,
        "max_output_tokens": sampling.max_tokens,
        "parallel_tool_calls": tool_choice.parallel,
        "reasoning": {"effort": None, "summary": None},
        "temperature": sampling.temperature,
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": list(tools.sent),
        "top_logprobs": sampling.logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
    }


def _read_text(fields: Fields) -> tuple[ResponseFormat | None, dict[str, Any]]:
    """`text.format`, and `text` as the response repeats it. Raises RequestError or SchemaError naming the field."""
    text = fields.mapping("text")
    declared = None if text is None else text.mapping("format")
    if declared is None:
        return None, {"format": {"type": "text"}}
    match declared.required_string("type"):
        case "text":
            return None, {"format": {"type": "text"}}
        case "json_object":
            return ResponseFormat(), {"format": {"type": "json_object"}}
        case "json_schema":
            name = declared.required_string("name")
            description, strict = declared.string("description"), declared.boolean("strict")
            declared.required_object("schema")
            schema = declared.get("schema")
            check_object_schema(schema, declared.at("schema"))
            repeated = {
                "type": "json_schema", "name": name, "description": description, "schema": schema, "strict": strict,
            }  # fmt: skip
            return ResponseFormat(schema, name), {"format": repeated}
        case kind:
            raise wrong_value(declared.at("type"), f"it must be 'text', 'json_object' or 'json_schema', not {kind!r}")


def _read_logprobs(fields: Fields) -> tuple[int | None, list[str]]:
    """How many likely tokens are to be told beside each one, None for nothing; and what else is to be included."""
    include = fields.array("include") or []
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    others = [f"include.{value}" for value in include if value != _LOGPROBS]
    return top or 0 if top or _LOGPROBS in include else None, others


def _read_metadata(fields: Fields) -> dict[str, str]:
    fields.mapping("metadata")
    metadata: dict[str, Any] = fields.get("metadata") or {}
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise wrong_type(f"{fields.at('metadata')}.{key}", "a string", value)
    return metadata


def _refuse_what_would_change_the_answer(fields: Fields) -> None:
    fields.reject("background", "is not supported: an answer is given at once", harmless=(False,))
    fields.reject("conversation", "is not supported; use 'previous_response_id'")
    fields.reject("prompt", "is not supported: no prompts are kept here; send 'input'")
