"""One answer read strictly: what it says, and where its form departs from the API.

Unlike the client's reader, which understands every known deviation, this one notes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openk2.client.failures import read_error
from openk2.client.wire import WireAnswer


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: str


class Completion:
    """What can be read off a `chat.completion` object, in whatever keeps one."""

    response: Mapping[str, Any]

    @property
    def text(self) -> str:
        content = _message(self.response).get("content")
        return content if isinstance(content, str) else ""

    @property
    def calls(self) -> tuple[Call, ...]:
        found = []
        for call in _dicts(_message(self.response).get("tool_calls")):
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            arguments = function.get("arguments")
            if not isinstance(arguments, str):  # the form's fault is noted apart
                arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
            found.append(Call(str(call.get("id") or ""), str(function.get("name") or ""), arguments))
        return tuple(found)

    @property
    def prompt_tokens(self) -> int | None:
        usage = self.response.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return count if isinstance(count, int) else None


@dataclass(frozen=True)
class Reply(Completion):
    """The first choice of one answer."""

    status: int
    response: Mapping[str, Any]
    """The `chat.completion` object; a stream's chunks added up to one. `{"error": ...}` when there is none."""
    faults: tuple[str, ...] = ()
    """Where the form departs from the API."""
    error: str | None = None
    """Why there is no whole answer."""
    error_code: str = ""
    first_ms: float = 0.0
    duration_ms: float = 0.0

    @property
    def finish_reason(self) -> str | None:
        return _finish_reason(self.response)


def read_reply(answer: WireAnswer, *, streamed: bool) -> Reply:
    """What the endpoint answered to a request that asked for a stream or not."""
    first_ms, total_ms = round(answer.first_ms, 1), round(answer.total_ms, 1)

    def failed(error: str, code: str = "", faults: tuple[str, ...] = ()) -> Reply:
        return Reply(answer.status, {"error": error}, faults, error, code, first_ms, total_ms)

    if answer.status != 200:
        message, code = read_error("\n".join(answer.payloads))
        return failed(f"HTTP {answer.status}: {message}" if message else f"HTTP {answer.status}", code)
    if answer.broken is not None:
        return failed(f"the connection broke: {answer.broken}")
    if streamed and "event-stream" not in answer.content_type:
        return failed(f"asked for a stream, got {answer.content_type or 'no content type'}")
    try:
        if streamed:
            response, faults = _StreamReader().read(answer.payloads)
        else:
            response = json.loads(answer.payloads[0])
            faults = _body_faults(response)
    except _UnreadableError as error:
        return failed(str(error), error.code)
    except ValueError:
        return failed("the answer is no JSON")
    return Reply(answer.status, response, tuple(dict.fromkeys(faults)), None, "", first_ms, total_ms)


def _finish_reason(response: Mapping[str, Any]) -> str | None:
    reason = _choice(response).get("finish_reason")
    return reason if isinstance(reason, str) else None


class _UnreadableError(Exception):
    """An answer that holds no completion."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class _StreamReader:
    """Adds the chunks of a stream up to the object that a request without a stream would have got."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._text: list[str] = []
        self._calls: dict[Any, dict[str, Any]] = {}
        self._reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._faults: list[str] = []

    def read(self, payloads: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
        done = False
        for payload in payloads:
            if payload.strip() == "[DONE]":
                done = True
                continue
            chunk = json.loads(payload)
            if not isinstance(chunk, dict):
                raise _UnreadableError("the stream holds something that is no chunk")
            if chunk.get("error"):
                message, code = read_error(payload)
                raise _UnreadableError(f"the stream broke off: {message}", code)
            if done:
                self._faults.append("chunks after [DONE]")
            self._add(chunk)
        if not self._head:
            raise _UnreadableError("the stream is empty")
        if self._reason is None:
            raise _UnreadableError("the stream ended without a finish_reason")
        if not done:
            self._faults.append("no [DONE] at the end of the stream")
        if self._usage is None:
            self._faults.append("no usage in the stream although it was asked for")
        return self._response(), self._faults

    def _add(self, chunk: Mapping[str, Any]) -> None:
        self._head = self._head or {key: chunk.get(key) for key in ("id", "created", "model")}
        if chunk.get("id") != self._head["id"]:
            self._faults.append("the chunks carry different ids")
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        for choice in _dicts(chunk.get("choices")):
            if choice.get("index", 0) != 0:
                continue
            if isinstance(usage := choice.get("usage"), dict):  # where the model's own API has it
                self._usage = self._usage or usage
            self._add_choice(choice)

    def _add_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        content, calls = delta.get("content"), _dicts(delta.get("tool_calls"))
        if self._reason is not None and (content or calls):
            self._faults.append("content after the finish_reason")
        if content:
            self._text.append(str(content))
        for part in calls:
            self._add_call(part)
        if reason := choice.get("finish_reason"):
            if self._reason is not None:
                self._faults.append("more than one finish_reason")
            self._reason = str(reason)

    def _add_call(self, part: Mapping[str, Any]) -> None:
        index = part.get("index")
        if not isinstance(index, int):
            self._faults.append("a fragment of a tool call without its index")
            index = part.get("id") or max(len(self._calls) - 1, 0)
        function = part.get("function")
        function = function if isinstance(function, dict) else {}
        call = self._calls.get(index)
        if call is None:
            call = {"id": part.get("id"), "type": "function", "function": {"name": function.get("name")}}
            call["function"]["arguments"] = ""
            self._calls[index] = call
            self._faults += [
                f"a tool call begins without its {key}"
                for key, value in (("id", part.get("id")), ("name", function.get("name")))
                if not value
            ]
        elif part.get("id") not in (None, "", call["id"]):
            self._faults.append("a tool call's id changes within the stream")
        call["id"] = call["id"] or part.get("id")
        call["function"]["name"] = call["function"]["name"] or function.get("name")
        arguments = function.get("arguments")
        if arguments is None:
            return
        if not isinstance(arguments, str):
            self._faults.append("arguments that are no string")
            arguments = json.dumps(arguments, ensure_ascii=False)
        call["function"]["arguments"] += arguments

    def _response(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text) or None}
        if self._calls:
            message["tool_calls"] = list(self._calls.values())
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage}


def _body_faults(response: Any) -> list[str]:
    """Raises `_UnreadableError` when this is no completion."""
    if not isinstance(response, dict) or not _choice(response):
        if isinstance(response, dict) and response.get("error"):
            message, code = read_error(json.dumps(response))
            raise _UnreadableError(f"an error with status 200: {message}", code)
        raise _UnreadableError("the answer has no choices")
    if _finish_reason(response) is None:
        raise _UnreadableError("the answer has no finish_reason")
    faults = [] if isinstance(response.get("usage"), dict) else ["no usage"]
    content = _message(response).get("content")
    if content is not None and not isinstance(content, str):
        faults.append("content that is no string")
    for call in _dicts(_message(response).get("tool_calls")):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
            faults.append("arguments that are no string")
        if not call.get("id"):
            faults.append("a tool call without its id")
    return faults


def _choice(response: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = _dicts(response.get("choices"))
    return choices[0] if choices else {}


def _message(response: Mapping[str, Any]) -> Mapping[str, Any]:
    message = _choice(response).get("message")
    return message if isinstance(message, dict) else {}


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
