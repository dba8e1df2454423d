"""The bodies of `POST /v1/messages` and of its `count_tokens`, checked and turned into our own types.

As in the OpenAI API, a parameter is honoured, or refused because leaving it out would change the answer, or ignored
and reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openk2.chat.messages import Message, ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.provider import ChatRequest
from openk2.config.modes import MODES
from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError
from openk2.server.anthropic.convert import ConversationReader
from openk2.server.anthropic.tools import read_tool_choice, read_tools
from openk2.server.fields import MAX_STOP_STRINGS, Fields, wrong_value
from openk2.server.json_schema import check_object_schema

TEMPERATURE_SCALE = 0.6
"""A given temperature is multiplied by it, as Moonshot's own Anthropic endpoint does: programs written for this API
send 1.0, which is K2's 0.6. One that is absent stays absent, and means the same as in the OpenAI API."""

ANTHROPIC_MODELS = "claude-"
"""So begin the names of Anthropic's own models. Programs written for this API ask for them, several in one session,
and mean whatever answers."""


@dataclass(frozen=True)
class MessagesRequest:
    model: str | None
    """None, when the caller does not care, is the loaded model."""
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    response_format: ResponseFormat | None
    sampling: SamplingParams
    stream: bool
    ignored: tuple[str, ...]
    """Parameters, tools and blocks that were sent and have no effect here."""

    @property
    def max_tokens(self) -> int:
        assert self.sampling.max_tokens is not None, "required in the body"
        return self.sampling.max_tokens

    def chat_request(self) -> ChatRequest:
        return ChatRequest(
            self.messages, self.tools, self.tool_choice, self.sampling, response_format=self.response_format
        )


def read_messages_request(body: object) -> MessagesRequest:
    """Raises RequestError (400) naming the first field at fault."""
    fields = Fields(body)
    fields.require("max_tokens")
    sampling = SamplingParams(
        max_tokens=fields.integer("max_tokens", 1),
        temperature=_read_temperature(fields),
        top_p=fields.number("top_p"),
        top_k=fields.integer("top_k", 0),
        stop=fields.strings("stop_sequences", MAX_STOP_STRINGS),
        mode=fields.choice("mode", MODES),
    )
    stream = fields.boolean("stream") or False
    request = _read(fields, sampling, stream)
    if request.messages[-1].tool_calls:
        raise RequestError("The last message calls tools: their results must follow.", param="messages")
    return request


def read_count_tokens(body: object) -> MessagesRequest:
    """The same without what only matters to an answer. Raises RequestError (400) naming the first field at fault."""
    return _read(Fields(body), SamplingParams(), stream=False)


def _read(fields: Fields, sampling: SamplingParams, stream: bool) -> MessagesRequest:
    model = fields.string("model")
    if model is not None and model.startswith(ANTHROPIC_MODELS):
        model = None
    conversation = ConversationReader()
    messages = _left_open(conversation.read(fields))
    tools, ignored_tools = read_tools(fields)
    tool_choice = read_tool_choice(fields, tools)
    response_format = _read_output_format(fields)
    ignored = dict.fromkeys([*conversation.ignored, *ignored_tools, *fields.unread()])
    return MessagesRequest(
        model=model,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        response_format=response_format,
        sampling=sampling,
        stream=stream,
        ignored=tuple(ignored),
    )


def _left_open(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A last message of the assistant is the beginning of its answer."""
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls:
        return messages
    return (*messages[:-1], replace(last, partial=True))


def _read_temperature(fields: Fields) -> float | None:
    value = fields.number("temperature")
    if value is None:
        return None
    if not 0 <= value <= 1:
        raise wrong_value(fields.at("temperature"), f"it must be between 0 and 1, not {value:g}")
    return value * TEMPERATURE_SCALE


def _read_output_format(fields: Fields) -> ResponseFormat | None:
    """None: free text. `output_format` is what betas called it."""
    config = fields.mapping("output_config")
    newer = None if config is None else config.mapping("format")
    older = fields.mapping("output_format")
    declared = newer or older
    if declared is None:
        return None
    kind = declared.required_string("type")
    if kind != "json_schema":
        raise wrong_value(declared.at("type"), f"it must be 'json_schema', not {kind!r}")
    declared.required_object("schema")
    schema = declared.get("schema")
    check_object_schema(schema, declared.at("schema"))
    return ResponseFormat(schema)
