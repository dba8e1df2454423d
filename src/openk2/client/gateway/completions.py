"""Chats over an upstream's raw completions: the prompt is rendered here, and the answer's text is parsed here.

So nothing depends on the upstream's template or on its parser of tool calls, only on its tokens being ours. The prompt
goes out as token ids, in which no text of a caller can be a control token. Where a call is required, its beginning is
put at the prompt's end, so that the answer goes on with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from openk2.chat.events import CallEnd, ChatEvent, Finished, TextDelta
from openk2.chat.ids import call_id, count_calls
from openk2.chat.lexers import Marker, Piece, TextLexer
from openk2.chat.messages import FinishReason, Usage
from openk2.chat.parser import ReplyParser
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.chat.stop_strings import StopStrings
from openk2.chat.template import ChatTemplate
from openk2.client.remote import RemoteProvider
from openk2.config.sampling import SamplingParams
from openk2.errors import ContextLengthError, RequestError

DEFAULT_MAX_TOKENS = 8192
"""Of an answer, where neither the request nor the upstream's window says: completions would else end after 16."""
END_OF_TURN = "<|im_end|>"
_NEVER = -100.0
"""The logit bias that forbids a token."""


class CompletionsProvider:
    """A ChatProvider over `stream_text` of an endpoint whose tokenizer is the template's."""

    def __init__(self, upstream: RemoteProvider, template: ChatTemplate) -> None:
        self._upstream = upstream
        self._template = template

    @property
    def model(self) -> str:
        return self._upstream.model

    @property
    def max_model_len(self) -> int | None:
        return self._upstream.max_model_len

    def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        """See `TextProvider.stream_text`. The prompt goes out as token ids, so control tokens in a text are text."""
        prompt = request.prompt
        ids = self._template.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._upstream.stream_text(replace(request, prompt=ids))

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """See `ChatProvider.stream`. Raises RequestError for what raw completions cannot do."""
        _refuse_what_cannot_be_done(request)
        prompt, answer, sampling = await asyncio.to_thread(self._prepare, request)
        async with aclosing(self._upstream.stream_text(TextRequest(prompt, sampling))) as events:
            async for event in events:
                for following in answer.feed(event):
                    yield following
                if answer.is_finished:
                    return  # closing the events ends the request at the upstream

    def _prepare(self, request: ChatRequest) -> tuple[list[int], _Answer, SamplingParams]:
        template = self._template
        prompt = template.render(request.messages, request.tools, variables=request.template_variables)
        answer = _Answer(request, template, prompt)
        prompt = [*prompt, *answer.opening]
        limit = request.sampling.max_tokens
        window = self._upstream.max_model_len
        if window is not None:
            if len(prompt) >= window:
                raise ContextLengthError(prompt_tokens=len(prompt), max_model_len=window)
            limit = min(limit or window, window - len(prompt))
        biases = request.sampling.logit_bias
        if request.tools and request.tool_choice.mode == "none":
            biases = (*biases, (template.tokenizer.specials[Marker.SECTION_BEGIN.value], _NEVER))
        sampling = replace(
            request.sampling,
            max_tokens=limit or DEFAULT_MAX_TOKENS,
            stop=(END_OF_TURN,),
            logit_bias=biases,
            skip_special_tokens=False,
        )
        return prompt, answer, sampling


class _Answer:
    """One answer's text, as events."""

    def __init__(self, request: ChatRequest, template: ChatTemplate, prompt: Sequence[int]) -> None:
        self._tokenizer = template.tokenizer
        self._prompt_tokens = len(prompt)
        self._choice = request.tool_choice
        first_index = count_calls(request.messages)
        names = [tool.name for tool in request.tools]
        is_thinking = template.opens_thought(prompt)
        self._parser = ReplyParser(first_index, names, is_thinking=is_thinking)
        self._lexer = TextLexer(thinks=template.thinks)
        self._turn = StopStrings((END_OF_TURN,))
        """An upstream may show the end of a turn in place of ending there."""
        self._stops = StopStrings(request.sampling.stop)
        self._opening: list[Piece] = []
        if request.tool_choice.mode == "required" and not is_thinking:
            self._opening = [Marker.SECTION_BEGIN, Marker.CALL_BEGIN]
            if request.tool_choice.name is not None:
                self._opening += [call_id(request.tool_choice.name, first_index), Marker.ARGUMENT_BEGIN]
        self._text: list[str] = []
        self.is_finished = False

    @property
    def opening(self) -> list[int]:
        """Ids of what the answer has to begin with; it stands in the prompt, and is no part of the upstream's text."""
        tokenizer = self._tokenizer
        ids: list[int] = []
        for piece in self._opening:
            ids += tokenizer.encode(piece) if isinstance(piece, str) else [tokenizer.specials[piece.value]]
        return ids

    def feed(self, event: ChatEvent) -> Iterator[ChatEvent]:
        for piece in self._opening:
            yield from self._through_stops(self._parser.feed(piece))
        self._opening = []
        if isinstance(event, TextDelta):
            self._text.append(event.text)
            text, end = self._turn.push(event.text)
            yield from self._parsed(self._lexer.push(text))
            if end is not None and not self.is_finished:
                yield from self._finish("stop", Usage())
        elif isinstance(event, Finished):
            yield from self._parsed(self._lexer.push(self._turn.flush()))
            if not self.is_finished:
                yield from self._finish(event.finish_reason, event.usage)

    def _parsed(self, pieces: Sequence[Piece]) -> Iterator[ChatEvent]:
        for piece in pieces:
            if self.is_finished:
                return
            yield from self._through_stops(self._parser.feed(piece))

    def _through_stops(self, events: Sequence[ChatEvent]) -> Iterator[ChatEvent]:
        """The events, ended by a stop string in their prose, or by the first call where only one may be made."""
        for event in events:
            if isinstance(event, TextDelta):
                text, stop = self._stops.push(event.text)
                if text:
                    yield TextDelta(text)
                if stop is not None:
                    yield self._finished("stop", Usage(), stop)
                    return
                continue
            if held := self._stops.flush():
                yield TextDelta(held)
            yield event
            if isinstance(event, CallEnd) and not self._choice.parallel:
                yield self._finished("tool_calls", Usage())
                return

    def _finish(self, reason: FinishReason, usage: Usage) -> Iterator[ChatEvent]:
        yield from self._parsed(self._lexer.flush())
        if self.is_finished:
            return
        for event in self._through_stops(self._parser.finish(reason, usage)):
            if isinstance(event, Finished):
                event = self._finished(event.finish_reason, usage, event.stop_string)
            yield event

    def _finished(self, reason: FinishReason, usage: Usage, stop: str | None = None) -> Finished:
        """The end; an upstream that was left before its end, or counts nothing, has its tokens counted here."""
        self.is_finished = True
        if not usage.prompt_tokens:
            usage = Usage(self._prompt_tokens, len(self._tokenizer.encode("".join(self._text))))
        return Finished(reason, usage, stop)


def _refuse_what_cannot_be_done(request: ChatRequest) -> None:
    for name, asked in (("response_format", request.response_format), ("logprobs", request.sampling.logprobs)):
        if asked is not None:
            raise RequestError(f"'{name}' cannot be had over an upstream's raw completions; leave it out.", param=name)
