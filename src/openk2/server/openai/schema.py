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
from openk2.server.fields import Fields
from openk2.server.openai.convert import read_messages, read_template_variables
from openk2.server.openai.logprobs import read_logprobs
from openk2.server.openai.response_format import read_response_format
from openk2.server.openai.sampling import choice_sampling, read_num_choices, read_sampling, read_stream_options
from openk2.server.openai.tools import read_tool_choice, read_tools


@dataclass(frozen=True)
class ChatCompletionRequest:
    model: str | None
    """None, when the caller does not care, is the loaded model."""
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    response_format: ResponseFormat | None
    template_variables: dict[str, Any]
    sampling: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    """Parameters that were sent and have no effect here."""

    def choice_requests(self) -> list[ChatRequest]:
        """One independent request for each choice; with a seed, choice i samples with seed + i."""
        return [
            ChatRequest(
                self.messages,
                self.tools,
                self.tool_choice,
                sampling,
                response_format=self.response_format,
                template_variables=self.template_variables,
            )
            for sampling in choice_sampling(self.sampling, self.n)
        ]


def read_chat_completion(body: object) -> ChatCompletionRequest:
    """Raises RequestError (400) naming the first field at fault."""
    fields = Fields(body)
    model = fields.string("model")
    messages = read_messages(fields)
    tools = read_tools(fields)
    tools, tool_choice = read_tool_choice(fields, tools)
    response_format = read_response_format(fields)
    sampling = replace(read_sampling(fields), logprobs=read_logprobs(fields))
    n = read_num_choices(fields)
    stream = fields.boolean("stream") or False
    include_usage = read_stream_options(fields, stream)
    _refuse_what_would_change_the_answer(fields)
    return ChatCompletionRequest(
        model=model,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        response_format=response_format,
        template_variables=read_template_variables(fields),
        sampling=sampling,
        n=n,
        stream=stream,
        include_usage=include_usage,
        ignored=tuple(fields.unread()),
    )


def _refuse_what_would_change_the_answer(fields: Fields) -> None:
    for key in ("functions", "function_call"):
        fields.reject(key, "is OpenAI's retired form and is not supported; use 'tools' and 'tool_choice'")
    fields.reject("modalities", 'can only be ["text"] here', harmless=(["text"],))
    fields.reject("audio", "is not supported: this model reads and writes text")
