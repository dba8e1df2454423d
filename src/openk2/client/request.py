"""A `ChatRequest` as the JSON body of OpenAI's chat completions, and a raw prompt as that of its completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openk2.chat.messages import Message, ResponseFormat
from openk2.chat.provider import ChatRequest
from openk2.config.sampling import SamplingParams

_SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "mode", "topk",
    "frequency_penalty", "presence_penalty", "repetition_penalty",
)  # fmt: skip
"""Sent as they are. top_k, min_p and repetition_penalty, like stop_token_ids, min_tokens and ignore_eos, are beyond
OpenAI's API; the engines for open models take them at the top level. mode and topk are ours."""


def request_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The body of a streamed request. Settings that are None are left to the endpoint; ids go out as they came."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [message_json(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        choice = request.tool_choice
        body["tools"] = [dict(spec.declaration) for spec in request.tools]
        body["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}} if choice.name is not None else choice.mode
        )
        if not choice.parallel:
            body["parallel_tool_calls"] = False
    if request.template_variables:
        body["chat_template_kwargs"] = dict(request.template_variables)
    if request.response_format is not None:
        body["response_format"] = response_format_json(request.response_format)
    sampling = request.sampling
    body |= _sampling_fields(sampling)
    if sampling.logprobs is not None:
        body["logprobs"], body["top_logprobs"] = True, sampling.logprobs
    return body


def text_body(prompt: str | Sequence[int], sampling: SamplingParams, model: str) -> dict[str, Any]:
    """The body of a streamed continuation."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling_fields(sampling),
    }
    if not sampling.skip_special_tokens:
        body["skip_special_tokens"] = False
    if sampling.logprobs is not None:
        body["logprobs"] = sampling.logprobs
    if sampling.prompt_logprobs is not None:
        body["echo"] = True
    return body


def _sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    body = {name: getattr(sampling, name) for name in _SAMPLING if getattr(sampling, name) is not None}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.stop_token_ids:
        body["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.min_tokens:
        body["min_tokens"] = sampling.min_tokens
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    return body


def response_format_json(response_format: ResponseFormat) -> dict[str, Any]:
    if response_format.schema is None:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {"name": response_format.name, "schema": dict(response_format.schema), "strict": True},
    }


def message_json(message: Message) -> dict[str, Any]:
    """One message on the wire."""
    content = message.content
    wire: dict[str, Any] = {
        "role": message.role,
        "content": content if content is None or isinstance(content, str) else [dict(part) for part in content],
    }
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_calls:
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.reasoning is not None:
        wire["reasoning_content"] = message.reasoning
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.partial:
        wire["partial"] = True
    return wire
