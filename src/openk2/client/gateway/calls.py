"""Every call that an upstream delivers: repaired where it can be, judged, and named as the model's own format names it.

Repaired: foreign or repeated ids (the canonical ones are handed on); a name that carries its id (`functions.NAME:3`);
arguments that were encoded twice; calls that an upstream's parser has left in the text, markers and all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, TextDelta
from openk2.chat.ids import call_id, count_calls, parse_call_id
from openk2.chat.lexers import Marker, TextLexer
from openk2.chat.messages import FinishReason, TokenLogprob
from openk2.chat.parser import ReplyParser
from openk2.chat.provider import ChatRequest
from openk2.chat.validity import schema_fault
from openk2.errors import ProviderError

FaultKind = Literal["undeclared", "not json", "schema", "missing", "cut"]


class InvalidCallError(ProviderError):
    """An upstream's call that no client could use, or none where one is required."""

    code = "invalid_tool_call"

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind


class CallCheck:
    """One answer's events, its calls repaired and judged.

    A call is held back until it is complete and judged; with `passes_invalid` it is handed on as it comes, and only
    counted when it is not valid. Text is never held back, but for what could be the start of a marker.
    """

    def __init__(self, request: ChatRequest, counts: Counter[str], *, passes_invalid: bool = False) -> None:
        """`counts` grows by what was repaired, left out or found invalid."""
        self._counts = counts
        self._passes_invalid = passes_invalid
        self._choice = request.tool_choice
        self._checks_schemas = request.grammar
        self._first_index = count_calls(request.messages)
        callable_tools = () if self._choice.mode == "none" else request.tools
        self._schemas = {tool.name: tool.enforced for tool in callable_tools if self._choice.name in (None, tool.name)}
        # Without tools, markers can only be something that the answer talks about.
        self._lexer = TextLexer() if request.tools else None
        self._parser = ReplyParser(self._first_index, tuple(self._schemas))
        self._is_leaking = False
        self._logprobs: tuple[TokenLogprob, ...] = ()
        """Of text that the lexer still holds."""
        self._delivered = 0
        self._name = ""
        self._id = ""
        self._arguments: list[str] | None = None
        """Of the open call; None between calls."""
        self._late_text: list[ChatEvent] = []
        """What came while a call was handed on, which nothing may interrupt."""

    def feed(self, event: ChatEvent) -> Iterator[ChatEvent]:
        """The events that follow. Raises InvalidCallError."""
        match event:
            case TextDelta(text, logprobs) if self._lexer is not None:
                self._logprobs += logprobs
                yield from self._text(self._lexer.push(text))
            case CallBegin(_, id, name):
                if self._lexer is not None:
                    yield from self._text(self._lexer.flush())
                yield from self._begin(id, name)
            case CallDelta(_, arguments):
                yield from self._delta(arguments)
            case CallEnd():
                yield from self._end()
            case Finished():
                yield from self._finish(event)
            case _:
                yield from self._aside(event)

    def _text(self, pieces: Sequence[Any]) -> Iterator[ChatEvent]:
        """Text as it is, until a marker begins a section of calls: from there on what the parser makes of it."""
        for piece in pieces:
            if isinstance(piece, Marker) and not self._is_leaking:
                self._is_leaking = True
                self._counts["leaked"] += 1
            if not self._is_leaking:
                logprobs, self._logprobs = self._logprobs, ()
                yield from self._aside(TextDelta(piece, logprobs))
                continue
            for event in self._parser.feed(piece):
                match event:
                    case CallBegin(_, id, name):
                        yield from self._begin(id, name)
                    case CallDelta(_, arguments):
                        yield from self._delta(arguments)
                    case CallEnd():
                        yield from self._end()
                    case _:
                        yield from self._aside(event)

    def _aside(self, event: ChatEvent) -> Iterator[ChatEvent]:
        if self._arguments is not None and self._passes_invalid:
            self._late_text.append(event)
        else:
            yield event

    def _begin(self, id: str, name: str) -> Iterator[ChatEvent]:
        self._name = self._declared_name(name)
        self._id = call_id(self._name, self._first_index + self._delivered)
        self._arguments = []
        if id != self._id:
            self._counts["ids"] += 1
        if self._passes_invalid:
            yield CallBegin(self._delivered, self._id, self._name)

    def _delta(self, arguments: str) -> Iterator[ChatEvent]:
        if self._arguments is None:
            return
        self._arguments.append(arguments)
        if self._passes_invalid:
            yield CallDelta(self._delivered, arguments)

    def _end(self) -> Iterator[ChatEvent]:
        if self._arguments is None:
            return
        arguments, self._arguments = "".join(self._arguments), None
        if self._passes_invalid:
            fault = self._fault(arguments or "{}")
            if fault is not None:
                self._counts[f"invalid {fault.kind}"] += 1
            yield CallEnd(self._delivered)
            self._delivered += 1
            yield from self._late_text
            self._late_text.clear()
            return
        if self._delivered and not self._choice.parallel:
            self._counts["surplus"] += 1
            return
        arguments = self._mended(arguments)
        fault = self._fault(arguments)
        if fault is not None:
            self._counts[f"invalid {fault.kind}"] += 1
            raise fault
        yield CallBegin(self._delivered, self._id, self._name)
        yield CallDelta(self._delivered, arguments)
        yield CallEnd(self._delivered)
        self._delivered += 1

    def _finish(self, finished: Finished) -> Iterator[ChatEvent]:
        if self._lexer is not None:
            yield from self._text(self._lexer.flush())
        yield from self._late_text
        reason: FinishReason = finished.finish_reason
        if reason in ("stop", "tool_calls"):
            fault = self._fault_of_the_whole()
            if fault is not None:
                self._counts[f"invalid {fault.kind}"] += 1
                if not self._passes_invalid:
                    raise fault
            reason = "tool_calls" if self._delivered else "stop"
        yield replace(finished, finish_reason=reason)

    def _declared_name(self, name: str) -> str:
        if name in self._schemas:
            return name
        parsed = parse_call_id(name)
        bare = parsed[0] if parsed else name.removeprefix("functions.")
        if bare not in self._schemas:
            return name
        self._counts["names"] += 1
        return bare

    def _mended(self, arguments: str) -> str:
        """The arguments, without the string around them where they were encoded twice; none are an empty object."""
        if not arguments.strip():
            return "{}"
        try:
            inner = json.loads(arguments)
            if isinstance(inner, str) and isinstance(json.loads(inner), dict):
                self._counts["arguments"] += 1
                return inner
        except (ValueError, RecursionError):
            pass
        return arguments

    def _fault_of_the_whole(self) -> InvalidCallError | None:
        """Of an answer that ended by itself."""
        if self._arguments is not None:
            return InvalidCallError("cut", f"the upstream's answer ends within a call of {self._name!r}")
        if self._parser.malformed_calls:
            return InvalidCallError("undeclared", "the upstream's answer has a call without a name")
        if self._choice.mode == "required" and not self._delivered:
            return InvalidCallError("missing", "the upstream's answer calls no tool, although one is required")
        return None

    def _fault(self, arguments: str) -> InvalidCallError | None:
        if self._name not in self._schemas:
            allowed = ", ".join(self._schemas) or "none"
            message = f"the upstream's answer calls {self._name!r}, which may not be called (allowed: {allowed})"
            return InvalidCallError("undeclared", message)
        try:
            value = json.loads(arguments, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return InvalidCallError(
                "not json", f"the upstream's answer calls {self._name!r} with arguments that are no JSON"
            )
        if not self._checks_schemas:
            return None
        reason = schema_fault(value, self._schemas[self._name])
        if reason is None:
            return None
        return InvalidCallError(
            "schema", f"the upstream's answer calls {self._name!r} with arguments that its schema forbids: {reason}"
        )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
