"""Events turned into the Anthropic wire format: one `message`, or the stream that adds up to the same.

Thoughts are a block of their own before the text. A stream is `message_start`, then block after block (start, deltas,
stop; indices dense from 0), then `message_delta` with the reason and the usage, then `message_stop`; `ping` may stand
anywhere between them.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Collector, Finished, ReasoningDelta, TextDelta
from openk2.chat.messages import Usage
from openk2.errors import ProviderError
from openk2.server.experts import expert_fields

PING = {"type": "ping"}


@dataclass(frozen=True)
class MessageHeader:
    """What is known of a message before it begins."""

    id: str
    model: str
    max_tokens: int
    max_model_len: int | None

    def stop_reason(self, finished: Finished) -> str:
        if finished.finish_reason == "tool_calls":
            return "tool_use"
        if finished.finish_reason == "stop":
            return "end_turn" if finished.stop_string is None else "stop_sequence"
        usage = finished.usage
        window_is_full = self.max_model_len is not None and usage.total_tokens >= self.max_model_len
        if window_is_full and usage.completion_tokens < self.max_tokens:
            return "model_context_window_exceeded"
        return "max_tokens"

    def message(self, content: list[dict[str, Any]], usage: Usage, finished: Finished | None) -> dict[str, Any]:
        """The message object; `finished` None: it only begins."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None if finished is None else self.stop_reason(finished),
            "stop_sequence": None if finished is None else finished.stop_string,
            "usage": usage_object(usage),
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    """`input_tokens` are those that were not found in the cache; nothing is charged for keeping a prompt there."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        **expert_fields(usage),
    }


def new_call_id() -> str:
    """What a client is told in place of `functions.NAME:INDEX`, whose characters this API does not allow.

    Drawn at random, so that a client may cut its history short and still never meets an id twice. The prompt is always
    rendered with canonical ids, so a client may send back what it likes.
    """
    return f"toolu_{uuid.uuid4().hex[:24]}"


def signature(thinking: str) -> str:
    """What stands for Anthropic's seal on a block of thoughts: clients want one, and this server checks none."""
    return hashlib.sha256(thinking.encode("utf-8", "replace")).hexdigest()


def message_object(header: MessageHeader, events: Iterable[ChatEvent]) -> dict[str, Any]:
    """The whole response. Raises ProviderError for a call whose arguments are no JSON object."""
    collector = Collector()
    finished = Finished("error")
    for event in events:
        collector.add(event)
        if isinstance(event, Finished):
            finished = event
    answer = collector.completion().message
    content: list[dict[str, Any]] = []
    if thinking := answer.reasoning:
        content.append({"type": "thinking", "thinking": thinking, "signature": signature(thinking)})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    for call in answer.tool_calls:
        arguments = read_arguments(call.name, call.arguments)
        content.append({"type": "tool_use", "id": new_call_id(), "name": call.name, "input": arguments})
    return header.message(content, finished.usage, finished)


def read_arguments(name: str, text: str) -> dict[str, Any]:
    """Raises ProviderError for what is no JSON object; a grammar never lets a model write that, another server may."""
    try:
        arguments = json.loads(text)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ProviderError(f"the model called {name!r} with arguments that are no JSON object")
    return arguments


class EventWriter:
    """Turns chat events into the stream's events, each as soon as it is there."""

    def __init__(self, header: MessageHeader) -> None:
        self._header = header
        self._next_index = 0
        self._open_type: str | None = None
        self._call = ""
        self._arguments: list[str] = []
        self._thinking: list[str] = []

    def begin(self, prompt_tokens: int) -> dict[str, Any]:
        """The first event. How much of the prompt is cached is known only at the end."""
        message = self._header.message([], Usage(prompt_tokens), None)
        return {"type": "message_start", "message": message}

    def events(self, event: ChatEvent) -> Iterator[dict[str, Any]]:
        """Raises ProviderError at the end of a call whose arguments are no JSON object."""
        match event:
            case ReasoningDelta(text):
                if self._open_type != "thinking":
                    yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
                    self._thinking = []
                self._thinking.append(text)
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case TextDelta(text):
                if self._open_type != "text":
                    yield from self._open({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case CallBegin(_, _, name):
                self._call, self._arguments = name, []
                yield from self._open({"type": "tool_use", "id": new_call_id(), "name": name, "input": {}})
            case CallDelta(_, arguments):
                self._arguments.append(arguments)
                yield self._delta({"type": "input_json_delta", "partial_json": arguments})
            case CallEnd():
                read_arguments(self._call, "".join(self._arguments))
                yield from self._close()
            case Finished():
                yield from self._close()  # of text, or of a call that was cut off: the reason then says so
                yield {
                    "type": "message_delta",
                    "delta": {
                        "stop_reason": self._header.stop_reason(event),
                        "stop_sequence": event.stop_string,
                    },
                    "usage": usage_object(event.usage),
                }
                yield {"type": "message_stop"}

    def _open(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self._open_type = block["type"]
        yield {"type": "content_block_start", "index": self._next_index, "content_block": block}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open_type is not None:
            if self._open_type == "thinking":
                yield self._delta({"type": "signature_delta", "signature": signature("".join(self._thinking))})
            yield {"type": "content_block_stop", "index": self._next_index}
            self._next_index += 1
            self._open_type = None

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._next_index, "delta": delta}
