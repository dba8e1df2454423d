"""Chat events turned into the events of the responses API, and into the response that they add up to.

`response.created`, `response.in_progress`, then item after item: `output_item.added`, for text or thoughts one part
(`content_part` with `output_text` or `reasoning_text`), for a call `function_call_arguments`, `output_item.done`; at
last `response.completed`, `response.incomplete` or `response.failed`. A call that was cut off gets no `done` and is not
part of the response.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, ReasoningDelta, TextDelta
from openk2.chat.messages import Usage
from openk2.errors import OpenK2Error
from openk2.server.experts import expert_fields
from openk2.server.openai.logprobs import token_objects


@dataclass(frozen=True)
class ResponseHeader:
    """What is known of a response before it begins."""

    id: str
    created_at: int
    model: str
    settings: dict[str, Any]

    def response(self, status: str, output: list[dict[str, Any]], usage: Usage | None, **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": output,
            "usage": None if usage is None else usage_object(usage),
            **self.settings,
            **more,
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
        **expert_fields(usage),
    }


class ResponseWriter:
    """Turns chat events into the stream's events, each as soon as it is there; `response` is what they add up to."""

    def __init__(self, header: ResponseHeader) -> None:
        self._header = header
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._next_number = 0
        self.response = header.response("in_progress", [], None)

    def begin(self) -> Iterator[dict[str, Any]]:
        """The first two events."""
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def events(self, event: ChatEvent) -> Iterator[dict[str, Any]]:
        match event:
            case ReasoningDelta(text):
                if self._open_type != "reasoning":
                    yield from self._close_text("completed")
                    item = {"type": "reasoning", "summary": [], "content": []}
                    yield from self._open_text("rs", item, _reasoning_part(""))
                self._pieces.append(text)
                yield self._item_event("response.reasoning_text.delta", content_index=0, delta=text)
            case TextDelta(text, logprobs):
                if self._open_type != "message":
                    yield from self._close_text("completed")
                    item = {"type": "message", "role": "assistant", "content": []}
                    yield from self._open_text("msg", item, _text_part("", []))
                self._pieces.append(text)
                told = token_objects(logprobs)
                self._logprobs += told
                yield self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=told)
            case CallBegin(_, id, name):
                yield from self._close_text("completed")
                item = {"type": "function_call", "call_id": id, "name": name, "arguments": ""}
                yield self._open_item("fc", item)
            case CallDelta(_, arguments):
                self._pieces.append(arguments)
                yield self._item_event("response.function_call_arguments.delta", delta=arguments)
            case CallEnd():
                yield from self._close_call()
            case Finished(reason, usage):
                is_cut = reason == "length"
                if self._open_type != "function_call":
                    yield from self._close_text("incomplete" if is_cut else "completed")
                status = "incomplete" if is_cut else "completed"
                details = {"incomplete_details": {"reason": "max_output_tokens"}} if is_cut else {}
                self.response = self._header.response(status, self._output, usage, **details)
                yield self._event(f"response.{status}", response=self.response)

    def failed(self, error: OpenK2Error) -> dict[str, Any]:
        """The last event of an answer that broke off."""
        self.response = self._header.response(
            "failed", self._output, None, error={"code": "server_error", "message": str(error)}
        )
        return self._event("response.failed", response=self.response)

    @property
    def _open_type(self) -> str | None:
        return None if self._open is None else self._open["type"]

    def _open_text(self, prefix: str, item: dict[str, Any], part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield self._open_item(prefix, item)
        yield self._item_event("response.content_part.added", content_index=0, part=part)

    def _close_text(self, status: str) -> Iterator[dict[str, Any]]:
        """Of a message or of thoughts, where one is open."""
        if self._open is None:
            return
        text = "".join(self._pieces)
        if self._open_type == "reasoning":
            part = _reasoning_part(text)
            yield self._item_event("response.reasoning_text.done", content_index=0, text=text)
        else:
            part = _text_part(text, self._logprobs)
            yield self._item_event("response.output_text.done", content_index=0, text=text, logprobs=self._logprobs)
        yield self._item_event("response.content_part.done", content_index=0, part=part)
        yield self._close_item(status, content=[part])

    def _close_call(self) -> Iterator[dict[str, Any]]:
        assert self._open is not None, "CallEnd without CallBegin"
        arguments = "".join(self._pieces)
        name = self._open["name"]
        yield self._item_event("response.function_call_arguments.done", name=name, arguments=arguments)
        yield self._close_item("completed", arguments=arguments)

    def _open_item(self, prefix: str, item: dict[str, Any]) -> dict[str, Any]:
        self._open = {"id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **item}
        self._pieces, self._logprobs = [], []
        return self._event("response.output_item.added", output_index=len(self._output), item=self._open)

    def _close_item(self, status: str, **more: Any) -> dict[str, Any]:
        assert self._open is not None, "an item is open"
        item = {**self._open, "status": status, **more}
        index = len(self._output)
        self._output.append(item)
        self._open = None
        return self._event("response.output_item.done", output_index=index, item=item)

    def _item_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert self._open is not None, "an item is open"
        return self._event(kind, item_id=self._open["id"], output_index=len(self._output), **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number, self._next_number = self._next_number, self._next_number + 1
        return {"type": kind, "sequence_number": number, **fields}


def _text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}
