"""A model's answer as chat events: one parser for streamed and whole answers, over ids and over text.

Grammar of an answer (Kimi K2's public tool-calling guide): from a model that thinks `<think>` thoughts `</think>`, then
prose, then `section_begin { call_begin ID argument_begin JSON call_end }+ section_end`. The parser never shows a call's
marker, nor any text inside or after the section, as prose; a call is delivered only when its end was seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum, auto

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, ReasoningDelta, TextDelta, collect
from openk2.chat.ids import call_id, parse_call_id
from openk2.chat.lexers import Marker, Piece, TextLexer, Thought, TokenLexer
from openk2.chat.messages import Completion, FinishReason, Usage
from openk2.tokenizer import Tokenizer

__all__ = ["Marker", "Piece", "ReplyParser", "TextLexer", "Thought", "TokenLexer", "parse_ids", "parse_text"]


class _State(Enum):
    REASONING = auto()
    PROSE = auto()
    BETWEEN = auto()  # in a section, outside of a call, or after the section: text is dropped
    HEADER = auto()  # after call_begin
    ARGUMENTS = auto()  # after argument_begin


class ReplyParser:
    """Turns pieces into events, the same events for any cut of the stream once adjacent deltas are joined.

    `first_index` is how many calls the conversation already has: the n-th call of the answer gets the id
    `functions.NAME:{first_index + n}`, whatever number the model wrote. `names`, the declared tools, lets headers
    without an index (`functions.search`, `functionssearch0`) be understood. Whitespace around prose that has nothing
    else, and around arguments, is dropped; arguments are otherwise passed on unchanged, and empty ones become `{}`.

    Thinking comes before all prose, perhaps in several parts, and goes on to its end marker or to the first call; its
    markers stand for themselves anywhere else. `is_thinking`: the prompt has begun it already.
    """

    def __init__(self, first_index: int = 0, names: Collection[str] = (), *, is_thinking: bool = False) -> None:
        self.malformed_calls = 0
        """Calls that were dropped for a header without a name."""
        self._first_index = first_index
        self._names = sorted(names, key=len, reverse=True)
        self._state = _State.REASONING if is_thinking else _State.PROSE
        self._blank = ""  # whitespace held back until it is known to be inside the text
        self._started = False  # the prose, or the open call's arguments, has text already
        self._header: list[str] = []
        self._next_call = 0
        self._completed = 0

    @property
    def is_thinking(self) -> bool:
        return self._state is _State.REASONING

    def feed(self, piece: Piece) -> list[ChatEvent]:
        """Events that `piece` gives rise to."""
        if isinstance(piece, Marker):
            return self._marker(piece)
        if isinstance(piece, Thought):
            return self._thought(piece)
        match self._state:
            case _State.REASONING:
                return [ReasoningDelta(piece)] if piece else []
            case _State.PROSE:
                return self._prose(piece)
            case _State.HEADER:
                self._header.append(piece)
            case _State.ARGUMENTS:
                return self._arguments(piece)
        return []

    def finish(self, reason: FinishReason, usage: Usage | None = None) -> list[ChatEvent]:
        """The last events, ending in `Finished`. A call still open was cut off and is not completed.

        A model that stopped by itself after at least one complete call finished with `tool_calls`; a length limit
        or an error stays what it is.
        """
        events: list[ChatEvent] = []
        if self._state is _State.PROSE and self._blank:
            events.append(TextDelta(self._blank))
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if self._completed else "stop"
        events.append(Finished(reason, usage or Usage()))
        return events

    def _marker(self, marker: Marker) -> list[ChatEvent]:
        match marker, self._state:
            case Marker.CALL_BEGIN, _:
                events = self._close()
                self._state, self._header = _State.HEADER, []
                return events
            case Marker.ARGUMENT_BEGIN, _State.HEADER:
                return self._open()
            case Marker.SECTION_BEGIN, (_State.REASONING | _State.PROSE):
                self._state = _State.BETWEEN
            case ((Marker.CALL_END | Marker.SECTION_END), (_State.HEADER | _State.ARGUMENTS)):
                events = self._close()
                self._state = _State.BETWEEN
                return events
        return []

    def _thought(self, thought: Thought) -> list[ChatEvent]:
        if thought is Thought.END and self._state is _State.REASONING:
            self._state = _State.PROSE
            return []
        if thought is Thought.BEGIN and self._state is _State.PROSE and not self._started:
            blank, self._blank, self._state = self._blank, "", _State.REASONING
            return [ReasoningDelta(blank)] if blank else []
        return self.feed(thought.value)

    def _prose(self, text: str) -> list[ChatEvent]:
        if not self._started:
            self._blank += text
            if not self._blank.strip():
                return []
            text, self._blank, self._started = self._blank, "", True
        return [TextDelta(text)] if text else []

    def _arguments(self, text: str) -> list[ChatEvent]:
        text = self._blank + text
        if not self._started:
            text = text.lstrip()
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if not shown:
            return []
        self._started = True
        return [CallDelta(self._next_call, shown)]

    def _open(self) -> list[ChatEvent]:
        name = self._name("".join(self._header))
        if name is None:
            self.malformed_calls += 1
            self._state = _State.BETWEEN
            return []
        self._state, self._started, self._blank = _State.ARGUMENTS, False, ""
        return [CallBegin(self._next_call, call_id(name, self._first_index + self._next_call), name)]

    def _close(self) -> list[ChatEvent]:
        """Complete the open call, if there is one; a header without arguments marker is dropped."""
        if self._state is _State.HEADER:
            self.malformed_calls += 1
        if self._state is not _State.ARGUMENTS:
            return []
        index = self._next_call
        self._next_call += 1
        self._completed += 1
        return [CallEnd(index)] if self._started else [CallDelta(index, "{}"), CallEnd(index)]

    def _name(self, header: str) -> str | None:
        parsed = parse_call_id(header)
        if parsed is not None:
            return parsed[0]
        # Ids without `.` or `:` have been seen from models whose history had foreign ids.
        bare = header.strip().removeprefix("functions").removeprefix(".")
        return next((name for name in self._names if bare.startswith(name)), None)


def parse_ids(
    tokenizer: Tokenizer,
    ids: Iterable[int],
    reason: FinishReason = "stop",
    *,
    first_index: int = 0,
    names: Collection[str] = (),
) -> Completion:
    """A whole answer given as token ids."""
    lexer = TokenLexer(tokenizer)
    pieces = [piece for token_id in ids for piece in lexer.push(token_id)] + lexer.flush()
    return _parse(pieces, reason, first_index, names)


def parse_text(
    text: str, reason: FinishReason = "stop", *, first_index: int = 0, names: Collection[str] = ()
) -> Completion:
    """A whole answer given as text, markers as their literals."""
    lexer = TextLexer()
    return _parse(lexer.push(text) + lexer.flush(), reason, first_index, names)


def _parse(pieces: Iterable[Piece], reason: FinishReason, first_index: int, names: Collection[str]) -> Completion:
    parser = ReplyParser(first_index, names)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return collect(events + parser.finish(reason))
