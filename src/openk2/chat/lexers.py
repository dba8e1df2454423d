"""What a model generates, as a stream of pieces: text, and the five markers of tool calls.

Two lexers give the same stream: over token ids (our engine), where each marker is one id and a marker's literal in
ordinary tokens stays text; and over text (other engines), which holds back what could be the start of a marker.
"""

from __future__ import annotations

import re
from enum import Enum

from openk2.tokenizer import IncrementalDetokenizer, Tokenizer


class Marker(Enum):
    """A control token that structures tool calls; the value is its literal."""

    SECTION_BEGIN = "<|tool_calls_section_begin|>"
    CALL_BEGIN = "<|tool_call_begin|>"
    ARGUMENT_BEGIN = "<|tool_call_argument_begin|>"
    CALL_END = "<|tool_call_end|>"
    SECTION_END = "<|tool_calls_section_end|>"


Piece = Marker | str

_MARKER = re.compile("|".join(re.escape(marker.value) for marker in Marker))
_LONGEST_PREFIX = max(len(marker.value) for marker in Marker) - 1


class TokenLexer:
    """Pieces from token ids. Other special tokens (ends of turn) give nothing: they are not part of an answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._specials = tokenizer.special_ids
        self._markers = {
            tokenizer.specials[marker.value]: marker for marker in Marker if marker.value in tokenizer.specials
        }
        self._detokenizer = IncrementalDetokenizer(tokenizer)

    def push(self, token_id: int) -> list[Piece]:
        if token_id not in self._specials:
            text = self._detokenizer.push(token_id)
            return [text] if text else []
        pieces = self.flush()
        if token_id in self._markers:
            pieces.append(self._markers[token_id])
        return pieces

    def flush(self) -> list[Piece]:
        """What is left at the end of the stream: U+FFFD for an unfinished character."""
        text = self._detokenizer.flush()
        return [text] if text else []


class TextLexer:
    """Pieces from text in which markers stand as their literals, cut anywhere."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        buffer = self._held + text
        start = 0
        for match in _MARKER.finditer(buffer):
            if match.start() > start:
                pieces.append(buffer[start : match.start()])
            pieces.append(Marker(match[0]))
            start = match.end()
        certain = _end_of_certain_text(buffer, start)
        if certain > start:
            pieces.append(buffer[start:certain])
        self._held = buffer[certain:]
        return pieces

    def flush(self) -> list[Piece]:
        """What is left at the end of the stream: a start of a marker that did not become one."""
        held, self._held = self._held, ""
        return [held] if held else []


def _end_of_certain_text(buffer: str, start: int) -> int:
    """Where the longest suffix of `buffer[start:]` that could still become a marker begins."""
    position = buffer.find("<", max(start, len(buffer) - _LONGEST_PREFIX))
    while position != -1:
        suffix = buffer[position:]
        if any(marker.value.startswith(suffix) for marker in Marker):
            return position
        position = buffer.find("<", position + 1)
    return len(buffer)
