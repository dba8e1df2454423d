"""The event model: what any provider yields while it answers, and how events add up to a completion.

A stream is: `ReasoningDelta`*, from models that think, then `TextDelta`*, then, when the model calls tools, for each
call in order `CallBegin CallDelta* CallEnd`, then one `Finished`. Calls never interleave; indices are dense from 0. A
call that is cut off has no `CallEnd` and is not part of the completion.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field

from openk2.chat.messages import Completion, FinishReason, Message, TokenLogprob, ToolCall, Usage


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers; endpoints elsewhere may think between pieces of text, too."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that begin in it, when the request asked for them and the provider tells."""


@dataclass(frozen=True)
class CallBegin:
    """The header of a call is complete: its position in this answer, its id and its name."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallDelta:
    """A piece of the arguments' JSON text of the call that began last."""

    index: int
    arguments: str


@dataclass(frozen=True)
class CallEnd:
    """The call is complete."""

    index: int


@dataclass(frozen=True)
class Finished:
    """The last event of every stream that did not raise."""

    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    stop_string: str | None = None
    """The one of the request's stop strings that ended the answer, when one did and the provider tells."""


ChatEvent = ReasoningDelta | TextDelta | CallBegin | CallDelta | CallEnd | Finished


class Collector:
    """Adds events up to a `Completion`; stream and non-stream answers are built by this one class."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._open: CallBegin | None = None
        self._arguments: list[str] = []
        self._calls: list[ToolCall] = []
        self._finished: Finished | None = None

    def add(self, event: ChatEvent) -> None:
        match event:
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case TextDelta(text, logprobs):
                self._text.append(text)
                self._logprobs += logprobs
            case CallBegin():
                self._open, self._arguments = event, []
            case CallDelta(_, arguments):
                self._arguments.append(arguments)
            case CallEnd():
                assert self._open is not None, "CallEnd without CallBegin"
                self._calls.append(ToolCall(self._open.id, self._open.name, "".join(self._arguments)))
                self._open = None
            case Finished():
                self._finished = event

    def completion(self) -> Completion:
        """What was said so far; `finish_reason` is `error` when the stream ended without `Finished`."""
        reasoning = "".join(self._reasoning) or None
        message = Message("assistant", "".join(self._text) or None, tool_calls=tuple(self._calls), reasoning=reasoning)
        finished = self._finished or Finished("error")
        return Completion(message, finished.finish_reason, finished.usage, tuple(self._logprobs))


def collect(events: Iterable[ChatEvent]) -> Completion:
    collector = Collector()
    for event in events:
        collector.add(event)
    return collector.completion()


async def collect_async(events: AsyncIterable[ChatEvent]) -> Completion:
    collector = Collector()
    async for event in events:
        collector.add(event)
    return collector.completion()
