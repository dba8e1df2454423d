"""`/v1/completions`: a prompt is continued as it stands, without a chat around it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from openk2.chat.events import Finished, TextDelta
from openk2.chat.messages import Completion, Usage
from openk2.chat.provider import ChatProvider, TextProvider, TextRequest
from openk2.config.sampling import SamplingParams
from openk2.errors import RequestError
from openk2.server.fields import Fields, wrong_type, wrong_value
from openk2.server.openai.logprobs import MAX_TEXT_LOGPROBS, TextLogprobs
from openk2.server.openai.response import ResponseHeader, total_usage, usage_object
from openk2.server.openai.sampling import (
    MAX_CHOICES,
    choice_sampling,
    read_num_choices,
    read_sampling,
    read_stream_options,
)
from openk2.server.streams import ChoiceEvent
from openk2.server.tokenize import template_of

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default, which clients count on."""
MAX_CONTINUATIONS = 128
"""In one request: prompts times continuations of each."""


class NoCompletionsError(RequestError):
    http_status = 404


Prompt = str | tuple[int, ...]
"""A text, or token ids."""


@dataclass(frozen=True)
class CompletionRequest:
    model: str | None
    prompts: tuple[Prompt, ...]
    sampling: SamplingParams
    n: int
    """Choices for each prompt."""
    best_of: int
    """Continuations of each prompt, at least n; the likeliest are the choices."""
    echo: bool
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]
    """Parameters that were sent and have no effect here."""

    def asked(self) -> list[TextRequest]:
        """Every continuation, those of a prompt together."""
        sampling = self.sampling
        if self.best_of > self.n and sampling.logprobs is None:
            sampling = replace(sampling, logprobs=0)
        return [
            TextRequest(prompt, each) for prompt in self.prompts for each in choice_sampling(sampling, self.best_of)
        ]

    def chosen(self, completions: Sequence[Completion]) -> list[Completion]:
        """The choices among what was asked for, each prompt's likeliest first."""
        if self.best_of == self.n:
            return list(completions)
        best: list[Completion] = []
        for at in range(0, len(completions), self.best_of):
            likeliest = sorted(completions[at : at + self.best_of], key=self._logprob_per_token, reverse=True)
            best += likeliest[: self.n]
        return best if self.sampling.logprobs is not None else [replace(each, logprobs=()) for each in best]

    def _logprob_per_token(self, completion: Completion) -> float:
        """Of the continuation: the prompt's tokens, where they are told of too, are the same for all."""
        tokens = completion.logprobs
        if self.sampling.prompt_logprobs is not None:
            tokens = tokens[completion.usage.prompt_tokens :]
        return sum(token.logprob or 0.0 for token in tokens) / len(tokens) if tokens else -math.inf

    def usage(self, usages: Sequence[Usage]) -> Usage:
        """Of what was asked for: each prompt counts once."""
        of_prompts = (total_usage(usages[at : at + self.best_of]) for at in range(0, len(usages), self.best_of))
        return sum(of_prompts, Usage())

    def echoes(self, provider: ChatProvider) -> list[str]:
        """What each choice's text begins with. Raises NoTokenizerError for ids that cannot be read here."""
        if not self.echo or self.sampling.prompt_logprobs is not None:  # then the provider begins with the prompt
            return [""] * (len(self.prompts) * self.n)
        texts = (prompt if isinstance(prompt, str) else _text_of(prompt, provider) for prompt in self.prompts)
        return [text for text in texts for _ in range(self.n)]


def _text_of(prompt: Sequence[int], provider: ChatProvider) -> str:
    """Ids without an entry have no text; whether the model knows them is for the provider to say."""
    tokenizer = template_of(provider).tokenizer
    return tokenizer.decode(token_id for token_id in prompt if 0 <= token_id < tokenizer.vocab_size)


def text_provider(provider: ChatProvider) -> TextProvider:
    """Raises NoCompletionsError (404) for a provider that knows chats only."""
    if not hasattr(provider, "stream_text"):
        raise NoCompletionsError(f"{provider.model!r} answers chats only; use /v1/chat/completions.")
    return cast("TextProvider", provider)


def read_completion(body: object) -> CompletionRequest:
    """Raises RequestError (400) naming the first field at fault."""
    fields = Fields(body)
    model = fields.string("model")
    prompts = _read_prompts(fields)
    sampling = replace(read_sampling(fields), logprobs=fields.integer("logprobs", 0, MAX_TEXT_LOGPROBS))
    if sampling.max_tokens is None:
        sampling = replace(sampling, max_tokens=max(DEFAULT_MAX_TOKENS, sampling.min_tokens))
    if fields.boolean("skip_special_tokens") is False:
        sampling = replace(sampling, skip_special_tokens=False)
    n = read_num_choices(fields)
    stream = fields.boolean("stream") or False
    best_of = fields.integer("best_of", n, MAX_CHOICES) or n
    if stream and best_of > n:
        raise wrong_value(fields.at("best_of"), "the best can only be chosen at the end, so not with 'stream': true")
    if len(prompts) * best_of > MAX_CONTINUATIONS:
        rule = f"at most {MAX_CONTINUATIONS} continuations in one request, not {len(prompts) * best_of}"
        raise wrong_value(fields.at("prompt"), rule)
    echo = fields.boolean("echo") or False
    if echo and sampling.logprobs is not None:
        sampling = replace(sampling, prompt_logprobs=sampling.logprobs)
    fields.reject("suffix", "is not supported: this model only continues a text", harmless=("",))
    include_usage = read_stream_options(fields, stream)
    return CompletionRequest(
        model=model,
        prompts=prompts,
        sampling=sampling,
        n=n,
        best_of=best_of,
        echo=echo,
        stream=stream,
        include_usage=include_usage,
        ignored=tuple(fields.unread()),
    )


def _read_prompts(fields: Fields) -> tuple[Prompt, ...]:
    """One prompt, or an array of them; an array of numbers is one of token ids."""
    value, path = fields.require("prompt"), fields.at("prompt")
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        return tuple(_read_prompt(prompt, f"{path}[{i}]") for i, prompt in enumerate(value))
    return (_read_prompt(value, path),)


def _read_prompt(value: Any, path: str) -> Prompt:
    if not isinstance(value, str | list):
        raise wrong_type(path, "a string or an array of token ids", value)
    if not value:
        raise wrong_value(path, "it must not be empty")
    if isinstance(value, str):
        return value
    for i, token_id in enumerate(value):
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise wrong_type(f"{path}[{i}]", "an integer", token_id)
    return tuple(value)


def text_completion_object(
    header: ResponseHeader, request: CompletionRequest, echoes: Sequence[str], completions: Sequence[Completion]
) -> dict[str, Any]:
    """The whole response, from all that was asked for."""
    chosen = zip(echoes, request.chosen(completions), strict=True)
    body = header.wrap(
        "text_completion",
        [
            _choice(i, echo + each.message.text, each.finish_reason, TextLogprobs().next(each.logprobs))
            for i, (echo, each) in enumerate(chosen)
        ],
    )
    body["usage"] = usage_object(request.usage([completion.usage for completion in completions]))
    return body


class TextChunkWriter:
    """Turns merged events into the chunks of a stream, each as soon as its event is there."""

    def __init__(self, header: ResponseHeader, request: CompletionRequest, echoes: Sequence[str]) -> None:
        self._header = header
        self._request = request
        self._echoes = dict(enumerate(echoes))
        """Of the choices that have not begun."""
        self._usages: dict[int, Usage] = {}
        self._logprobs: defaultdict[int, TextLogprobs] = defaultdict(TextLogprobs)

    def chunks(self, choice_event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        choice, event = choice_event
        if echo := self._echoes.pop(choice, ""):
            yield self._chunk([_choice(choice, echo, None)])
        if isinstance(event, TextDelta):
            yield self._chunk([_choice(choice, event.text, None, self._logprobs[choice].next(event.logprobs))])
        elif isinstance(event, Finished):
            self._usages[choice] = event.usage
            yield self._chunk([_choice(choice, "", event.finish_reason)])

    def usage_chunk(self) -> dict[str, Any] | None:
        """The last chunk, when the client asked for it."""
        if not self._request.include_usage:
            return None
        usage = self._request.usage([self._usages[choice] for choice in sorted(self._usages)])
        return self._chunk([]) | {"usage": usage_object(usage)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._header.wrap("text_completion", choices)
        return chunk | {"usage": None} if self._request.include_usage else chunk


def _choice(index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
