"""What a model generates, as a stream of pieces: text, the five markers of tool calls, and the two of thinking.

The last two are text for a model that does not think. Two lexers give the same stream: over token ids (our engine),
where a marker is one id and its literal in ordinary tokens stays text; and over text (other engines), which holds back
what could be the start of a marker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from openk2.tokenizer import IncrementalDetokenizer, Tokenizer


class Marker(Enum):
    """A control token that structures tool calls; the value is its literal."""

    SECTION_BEGIN = "<|tool_calls_section_begin|>"
    CALL_BEGIN = "<|tool_call_begin|>"
    ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
    CALL_END = "<|tool_call_end|>"
    SECTION_END = "<|tool_calls_section_end|>"


class Thought(Enum):
    """What stands around the thoughts of a model that thinks; a special token in some vocabularies, text in others."""

    BEGIN = "<think>"
    END = "</think>"


Piece = Marker | Thought | str


class TokenLexer:
    """Pieces from token ids. Other special tokens (ends of turn) give nothing: they are not part of an answer."""

    def __init__(self, tokenizer: Tokenizer, *, thinks: bool = False) -> None:
        self._specials = tokenizer.special_ids
        wanted = _wanted(thinks)
        self._markers = {
            tokenizer.specials[marker.value]: marker for marker in wanted if marker.value in tokenizer.specials
        }
        self._literals = _Literals(set(wanted) - set(self._markers.values()) - set(Marker))
        self._detokenizer = IncrementalDetokenizer(tokenizer)

    def push(self, token_id: int) -> list[Piece]:
        if token_id not in self._specials:
            return self._literals.push(self._detokenizer.push(token_id))
        pieces = self.flush()
        if token_id in self._markers:
            pieces.append(self._markers[token_id])
        return pieces

    def flush(self) -> list[Piece]:
        """What is left at the end of the stream: U+FFFD for an unfinished character."""
        return self._literals.push(self._detokenizer.flush()) + self._literals.flush()


class TextLexer:
    """Pieces from text in which markers stand as their literals, cut anywhere."""

    def __init__(self, *, thinks: bool = False) -> None:
        self._literals = _Literals(_wanted(thinks))

    def push(self, text: str) -> list[Piece]:
        return self._literals.push(text)

    def flush(self) -> list[Piece]:
        """What is left at the end of the stream: a start of a marker that did not become one."""
        return self._literals.flush()


class _Literals:
    """Finds markers by their literals in text that comes in pieces, holding back what could be the start of one."""

    def __init__(self, markers: Iterable[Marker | Thought]) -> None:
        self._markers = {marker.value: marker for marker in markers}
        self._pattern = re.compile("|".join(map(re.escape, self._markers)) or "(?!)")
        self._longest_prefix = max(map(len, self._markers), default=1) - 1
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        buffer = self._held + text
        start = 0
        for match in self._pattern.finditer(buffer):
            if match.start() > start:
                pieces.append(buffer[start : match.start()])
            pieces.append(self._markers[match[0]])
            start = match.end()
        certain = self._end_of_certain_text(buffer, start)
        if certain > start:
            pieces.append(buffer[start:certain])
        self._held = buffer[certain:]
        return pieces

    def flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [held] if held else []

    def _end_of_certain_text(self, buffer: str, start: int) -> int:
        """Where the longest suffix of `buffer[start:]` that could still become a marker begins."""
        if not self._longest_prefix:
            return len(buffer)
        position = buffer.find("<", max(start, len(buffer) - self._longest_prefix))
        while position != -1:
            suffix = buffer[position:]
            if any(literal.startswith(suffix) for literal in self._markers):
                return position
            position = buffer.find("<", position + 1)
        return len(buffer)


def _wanted(thinks: bool) -> list[Marker | Thought]:
    return [*Marker, *Thought] if thinks else [*Marker]
