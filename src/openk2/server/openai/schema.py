"""The body of `POST /v1/chat/completions`, checked and turned into our own types.

Three kinds of parameters: honoured; refused with a 400, because leaving them out would give another answer than was
asked for; and all others, which are accepted, ignored and reported (clients send what their newest server takes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from openk2.chat.messages import Message, ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.provider import ChatRequest
from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.openai.convert import read_messages
from openk2.server.openai.response_format import read_response_format
from openk2.server.openai.tools import read_tool_choice, read_tools

MAX_CHOICES = 8
MAX_STOP_STRINGS = 4


@dataclass(frozen=True)
class ChatCompletionRequest:
    model: str | None
    """None, when the caller does not care, is the loaded model."""
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    response_format: ResponseFormat | None
    sampling: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    """Parameters that were sent and have no effect here."""

    def choice_requests(self) -> list[ChatRequest]:
        """One independent request for each choice; with a seed, choice i samples with seed + i."""
        seed = self.sampling.seed
        return [
            ChatRequest(
                self.messages,
                self.tools,
                self.tool_choice,
                self.sampling if seed is None else replace(self.sampling, seed=seed + i),
                response_format=self.response_format,
            )
            for i in range(self.n)
        ]


def read_chat_completion(body: object) -> ChatCompletionRequest:
    """Raises RequestError (400) naming the first field at fault."""
    fields = Fields(body)
    model = fields.string("model")
    messages = read_messages(fields)
    tools = read_tools(fields)
    tools, tool_choice = read_tool_choice(fields, tools)
    response_format = read_response_format(fields)
    sampling = _read_sampling(fields)
    n = fields.integer("n", 1, MAX_CHOICES) or 1
    stream = fields.boolean("stream") or False
    include_usage = _read_stream_options(fields, stream)
    _refuse_what_would_change_the_answer(fields)
    return ChatCompletionRequest(
        model=model,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        response_format=response_format,
        sampling=sampling,
        n=n,
        stream=stream,
        include_usage=include_usage,
        ignored=tuple(fields.unread()),
    )


def _read_sampling(fields: Fields) -> SamplingParams:
    limit_name = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    fields.get("max_tokens")  # overruled by max_completion_tokens when both are given
    return SamplingParams(
        max_tokens=fields.integer(limit_name, 1),
        temperature=_number_between(fields, "temperature", 0, 2),
        top_p=_number_between(fields, "top_p", 0, 1, above_minimum=True),
        top_k=_read_top_k(fields),
        min_p=_number_between(fields, "min_p", 0, 1),
        seed=fields.integer("seed", -(2**63), 2**63 - 1),
        stop=_read_stop(fields),
        ignore_eos=fields.boolean("ignore_eos") or False,
    )


def _number_between(
    fields: Fields, key: str, minimum: float, maximum: float, *, above_minimum: bool = False
) -> float | None:
    value = fields.number(key)
    if value is not None and not (minimum <= value <= maximum and (value > minimum or not above_minimum)):
        rule = f"above {minimum} and at most {maximum}" if above_minimum else f"between {minimum} and {maximum}"
        raise wrong_value(fields.at(key), f"it must be {rule}, not {value:g}")
    return value


def _read_top_k(fields: Fields) -> int | None:
    """-1, as other engines write it, and 0 keep every token."""
    value = fields.integer("top_k", -1)
    return 0 if value == -1 else value


def _read_stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    strings: list[Any] = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise wrong_type("stop", "a string or an array of strings", value)
    for i, string in enumerate(strings):
        if not isinstance(string, str):
            raise wrong_type(f"stop[{i}]", "a string", string)
        if not string:
            raise wrong_value(f"stop[{i}]", "it must not be empty")
    if len(strings) > MAX_STOP_STRINGS:
        raise wrong_value("stop", f"at most {MAX_STOP_STRINGS} strings, not {len(strings)}")
    return tuple(strings)


def _read_stream_options(fields: Fields, stream: bool) -> bool:
    options = fields.mapping("stream_options")
    if options is None:
        return False
    if not stream:
        raise RequestError("'stream_options' is only allowed with 'stream': true.", param="stream_options")
    return options.boolean("include_usage") or False


def _refuse_what_would_change_the_answer(fields: Fields) -> None:
    for key in ("functions", "function_call"):
        fields.reject(key, "is OpenAI's retired form and is not supported; use 'tools' and 'tool_choice'")
    for key in ("frequency_penalty", "presence_penalty"):
        fields.reject(key, "is not supported by this server; leave it out or send 0", harmless=(0,))
    fields.reject("repetition_penalty", "is not supported by this server; leave it out or send 1", harmless=(1,))
    fields.reject("min_tokens", "is not supported by this server; leave it out or send 0", harmless=(0,))
    fields.reject("logit_bias", "is not supported by this server; leave it out", harmless=({},))
    fields.reject("modalities", 'can only be ["text"] here', harmless=(["text"],))
    fields.reject("audio", "is not supported: this model reads and writes text")
    if fields.boolean("logprobs"):
        raise RequestError("'logprobs' is not supported by this server yet; leave it out.", param="logprobs")
    if fields.integer("top_logprobs", 0):
        raise RequestError("'top_logprobs' is not supported by this server yet; leave it out.", param="top_logprobs")
