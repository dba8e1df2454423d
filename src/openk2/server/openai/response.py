"""Events turned into the OpenAI wire format: one `chat.completion`, or the chunks that add up to the same.

A choice's chunks are: the role; from a model that thinks, its thoughts; text; for each call a header (index, id, type,
name, empty arguments) followed by argument fragments that carry nothing but the index; an empty delta with the finish
reason. Calls follow one another. Clients rely on each of these: accumulators double repeated ids and read interleaved
calls wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Collector, Finished, ReasoningDelta, TextDelta
from openk2.chat.messages import Completion, Usage
from openk2.server.experts import expert_fields
from openk2.server.openai.logprobs import logprobs_object
from openk2.server.streams import ChoiceEvent


@dataclass(frozen=True)
class ResponseHeader:
    """What all chunks of a response have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def wrap(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "choices": choices,
        }


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Of n answers to one prompt: the prompt counts once."""
    counted = list(usages)
    if not counted:
        return Usage()
    return replace(
        sum(counted, Usage()), prompt_tokens=counted[0].prompt_tokens, cached_tokens=counted[0].cached_tokens
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    """What was cached is told where OpenAI does it, and where Kimi's own API does."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        **expert_fields(usage),
    }


def completion_object(header: ResponseHeader, completions: list[Completion]) -> dict[str, Any]:
    """The whole response, from what `Collector` made of each choice's events."""
    body = header.wrap("chat.completion", [_choice(i, completion) for i, completion in enumerate(completions)])
    body["usage"] = usage_object(total_usage(completion.usage for completion in completions))
    return body


def _choice(index: int, completion: Completion) -> dict[str, Any]:
    calls = completion.message.tool_calls
    message: dict[str, Any] = {
        "role": "assistant",
        # null is for answers that begin with a call; clients call string methods on any other.
        "content": completion.message.text or (None if calls else ""),
        "refusal": None,
    }
    if completion.message.reasoning is not None:
        message["reasoning_content"] = completion.message.reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    logprobs = logprobs_object(completion.logprobs)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": completion.finish_reason}


class CompletionCollector:
    """Adds merged events up to `completion_object`."""

    def __init__(self, num_choices: int) -> None:
        self._collectors = [Collector() for _ in range(num_choices)]

    def add(self, choice: int, event: ChatEvent) -> None:
        self._collectors[choice].add(event)

    def completions(self) -> list[Completion]:
        return [collector.completion() for collector in self._collectors]


class ChunkWriter:
    """Turns merged events into `chat.completion.chunk` objects, each as soon as its event is there."""

    def __init__(self, header: ResponseHeader, *, include_usage: bool) -> None:
        self._header = header
        self._include_usage = include_usage
        self._begun: set[int] = set()
        self._usages: dict[int, Usage] = {}

    def chunks(self, choice_event: ChoiceEvent) -> Iterator[dict[str, Any]]:
        choice, event = choice_event
        if choice not in self._begun:
            self._begun.add(choice)
            content = None if isinstance(event, CallBegin) else ""
            yield self._chunk(choice, {"role": "assistant", "content": content})
        match event:
            case ReasoningDelta(text):
                yield self._chunk(choice, {"reasoning_content": text})
            case TextDelta(text, logprobs):
                yield self._chunk(choice, {"content": text}, logprobs=logprobs_object(logprobs))
            case CallBegin(index, id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": id, "type": "function", "function": function}
                yield self._chunk(choice, {"tool_calls": [call]})
            case CallDelta(index, arguments):
                yield self._chunk(choice, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            case CallEnd():
                pass
            case Finished(finish_reason, usage):
                self._usages[choice] = usage
                last = self._chunk(choice, {}, finish_reason)
                last["choices"][0]["usage"] = usage_object(usage)  # as Kimi's own API does, whether asked or not
                yield last

    def usage_chunk(self) -> dict[str, Any] | None:
        """The last chunk, when the client asked for it."""
        if not self._include_usage:
            return None
        chunk = self._header.wrap("chat.completion.chunk", [])
        chunk["usage"] = usage_object(total_usage(self._usages[choice] for choice in sorted(self._usages)))
        return chunk

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = self._header.wrap("chat.completion.chunk", [entry])
        if self._include_usage:
            chunk["usage"] = None
        return chunk
