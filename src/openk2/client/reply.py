"""Reads the answer of an OpenAI-compatible endpoint, also of one that departs from the reference shape.

What servers are known to do, and is understood here: fragments of several calls interleaved; indices that do not
start at 0, or are missing, or are all 0; ids, names or types repeated or missing; arguments missing, empty or given
as an object; no delta, null deltas; `stop` as the reason although there are calls; no `[DONE]`; a whole completion
where a stream was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, ReasoningDelta, TextDelta
from openk2.chat.ids import call_id
from openk2.chat.messages import FinishReason, TokenLogprob
from openk2.client.envelope import Envelope
from openk2.errors import ProviderError


@dataclass(eq=False)
class _Call:
    key: Any
    """The wire index under which its fragments come."""
    id: str = ""
    name: str = ""
    arguments: str = ""
    waiting: list[str] = field(default_factory=list)
    """Fragments not handed out yet: an earlier call is not complete, or the name is still to come."""
    begun: bool = False

    @property
    def complete(self) -> bool:
        """The arguments are a closed JSON object, after which nothing but white space can follow."""
        try:
            return isinstance(json.loads(self.arguments), dict)
        except ValueError:
            return False


class ReplyReader:
    """Turns the JSON chunks of one answer into chat events: `feed` each, then `finish`.

    Calls never interleave in our events: the first incomplete one streams, later ones wait until its JSON is closed.
    """

    def __init__(self, first_index: int = 0, stop: Sequence[str] = ()) -> None:
        """
        Args:
            first_index: Calls in the conversation so far; it numbers calls that come without an id.
            stop: The request's stop strings; an endpoint may name the one that ended the answer.
        """
        self._first_index = first_index
        self._envelope = Envelope("chat completion", stop)
        self._calls: list[_Call] = []
        self._done = 0
        """Calls handed out completely; `_calls[_done]` is the one that streams."""

    @property
    def finish_reason_seen(self) -> bool:
        return self._envelope.reason is not None

    def feed(self, chunk: Any) -> Iterator[ChatEvent]:
        """Events of one chunk, or of a whole completion. Raises ProviderError for an error object."""
        choice = self._envelope.choice_of(chunk)
        if choice is None:
            return
        delta = choice.get("delta") or choice.get("message") or {}
        for name in ("reasoning_content", "reasoning"):  # servers that send both send the same
            if isinstance(thought := delta.get(name), str) and thought:
                yield ReasoningDelta(thought)
                break
        if isinstance(text := delta.get("content"), str) and text:
            yield TextDelta(text, _logprobs(choice.get("logprobs")))
        for part in delta.get("tool_calls") or []:
            self._add(part)
        yield from self._ready()

    def finish(self, *, done_seen: bool) -> Iterator[ChatEvent]:
        """Events at the end of the stream. Raises ProviderError when the answer is not whole."""
        self._envelope.check_end(done_seen=done_seen)
        cut = self._envelope.reason == "length"
        while self._done < len(self._calls):
            call = self._calls[self._done]
            if not call.name:
                raise ProviderError("the endpoint sent a tool call without a name")
            yield from self._stream(call)
            if not call.arguments.strip() and not cut:
                call.arguments = "{}"
                yield CallDelta(self._done, "{}")
            if cut and not call.complete:
                break  # never delivered as complete
            yield CallEnd(self._done)
            self._done += 1
        reason: FinishReason = "length" if cut else "tool_calls" if self._calls else "stop"
        yield Finished(reason, self._envelope.usage, self._envelope.stop_string)

    def _add(self, part: Mapping[str, Any]) -> None:
        function = part.get("function") or {}
        call = self._call_of(part.get("index"), part.get("id") or "", function.get("name") or "")
        call.id = call.id or part.get("id") or ""
        call.name = call.name or function.get("name") or ""
        arguments = function.get("arguments")
        if arguments is None:
            return
        piece = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if piece and not (self._calls.index(call) < self._done and not piece.strip()):
            call.arguments += piece
            call.waiting.append(piece)

    def _call_of(self, index: Any, id: str, name: str) -> _Call:
        """The call that a fragment belongs to; a new one when it belongs to none so far."""
        same = [call for call in self._calls if call.key == index]
        if index is None:
            known = [call for call in self._calls if id and call.id == id]
            if known:
                return known[-1]
            same = [] if id or name else self._calls
        if same:
            last = same[-1]
            # Some servers number every call 0: a second header after a complete call opens another one.
            another = bool(id and name) and id != last.id and bool(last.name) and last.complete
            if not another:
                return last
        self._calls.append(_Call(key=index))
        return self._calls[-1]

    def _ready(self) -> Iterator[ChatEvent]:
        while self._done < len(self._calls):
            call = self._calls[self._done]
            yield from self._stream(call)
            later = self._done + 1 < len(self._calls)
            if not (later and call.name and call.complete):
                return
            yield CallEnd(self._done)
            self._done += 1

    def _stream(self, call: _Call) -> Iterator[ChatEvent]:
        if not call.name:
            return
        if not call.begun:
            call.begun = True
            yield CallBegin(self._done, call.id or call_id(call.name, self._first_index + self._done), call.name)
        for piece in call.waiting:
            yield CallDelta(self._done, piece)
        call.waiting.clear()


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    return tuple(_token(token) for token in (logprobs or {}).get("content") or [])


def _token(token: Mapping[str, Any]) -> TokenLogprob:
    given = token.get("bytes")
    text = token["token"].encode("utf-8", "replace") if given is None else bytes(given)
    return TokenLogprob(text, token["logprob"], tuple(_token(top) for top in token.get("top_logprobs") or []))
