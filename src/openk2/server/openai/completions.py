"""`/v1/completions`: a prompt is continued as it stands, without a chat around it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from openk2.chat.events import Finished, TextDelta
from openk2.chat.messages import Completion, Usage
from openk2.chat.provider import ChatProvider, TextProvider
from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.openai.logprobs import MAX_TEXT_LOGPROBS, TextLogprobs
from openk2.server.openai.response import ResponseHeader, total_usage, usage_object
from openk2.server.openai.sampling import read_num_choices, read_sampling, read_stream_options
from openk2.server.streams import ChoiceEvent

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default, which clients count on."""


class NoCompletionsError(RequestError):
    http_status = 404


@dataclass(frozen=True)
class CompletionRequest:
    model: str | None
    prompt: str | tuple[int, ...]
    sampling: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    """Parameters that were sent and have no effect here."""


def text_provider(provider: ChatProvider) -> TextProvider:
    """Raises NoCompletionsError (404) for a provider that knows chats only."""
    if not hasattr(provider, "stream_text"):
        raise NoCompletionsError(f"{provider.model!r} answers chats only; use /v1/chat/completions.")
    return cast("TextProvider", provider)


def read_completion(body: object) -> CompletionRequest:
    """Raises RequestError (400) naming the first field at fault."""
    fields = Fields(body)
    model = fields.string("model")
    prompt = _read_prompt(fields)
    sampling = replace(read_sampling(fields), logprobs=fields.integer("logprobs", 0, MAX_TEXT_LOGPROBS))
    if sampling.max_tokens is None:
        sampling = replace(sampling, max_tokens=DEFAULT_MAX_TOKENS)
    n = read_num_choices(fields)
    stream = fields.boolean("stream") or False
    include_usage = read_stream_options(fields, stream)
    fields.reject("echo", "is not supported by this server; leave it out", harmless=(False,))
    fields.reject("suffix", "is not supported: this model only continues a text", harmless=("",))
    fields.reject("best_of", "can only be 1 here; use 'n'", harmless=(1,))
    return CompletionRequest(
        model=model,
        prompt=prompt,
        sampling=sampling,
        n=n,
        stream=stream,
        include_usage=include_usage,
        ignored=tuple(fields.unread()),
    )


def _read_prompt(fields: Fields) -> str | tuple[int, ...]:
    """A text, or token ids; an array that holds just one of these is the same."""
    value = fields.require("prompt")
    path = fields.at("prompt")
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise wrong_value(path, "one prompt in a request, please; send several requests")
        value = value[0]
    if isinstance(value, str):
        if not value:
            raise wrong_value(path, "it must not be empty")
        return value
    if not isinstance(value, list):
        raise wrong_type(path, "a string or an array of token ids", value)
    if not value:
        raise wrong_value(path, "it must not be empty")
    for i, token_id in enumerate(value):
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise wrong_type(f"{path}[{i}]", "an integer", token_id)
    return tuple(value)


def text_completion_object(header: ResponseHeader, completions: Sequence[Completion]) -> dict[str, Any]:
    """The whole response."""
    body = header.wrap(
        "text_completion",
        [
            _choice(i, completion.message.text, completion.finish_reason, TextLogprobs().next(completion.logprobs))
            for i, completion in enumerate(completions)
        ],
    )
    body["usage"] = usage_object(total_usage(completion.usage for completion in completions))
    return body


class TextChunkWriter:
    """Turns merged events into the chunks of a stream, each as soon as its event is there."""

    def __init__(self, header: ResponseHeader, *, include_usage: bool) -> None:
        self._header = header
        self._include_usage = include_usage
        self._usages: dict[int, Usage] = {}
        self._logprobs: defaultdict[int, TextLogprobs] = defaultdict(TextLogprobs)

    def chunks(self, choice_event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        choice, event = choice_event
        if isinstance(event, TextDelta):
            yield self._chunk([_choice(choice, event.text, None, self._logprobs[choice].next(event.logprobs))])
        elif isinstance(event, Finished):
            self._usages[choice] = event.usage
            yield self._chunk([_choice(choice, "", event.finish_reason)])

    def usage_chunk(self) -> dict[str, Any] | None:
        """The last chunk, when the client asked for it."""
        if not self._include_usage:
            return None
        usage = total_usage(self._usages[choice] for choice in sorted(self._usages))
        return self._chunk([]) | {"usage": usage_object(usage)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._header.wrap("text_completion", choices)
        return chunk | {"usage": None} if self._include_usage else chunk


def _choice(index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
