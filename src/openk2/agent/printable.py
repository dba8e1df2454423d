"""Text of a model or a tool on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters: escape sequences could forge output or drive the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, width: int) -> str:
    """The text's first line, cut to `width` characters, with the number of lines that follow."""
    first, *rest = printable(text).strip().split("\n")
    more = f" (+{len(rest)} lines)" if len(rest) > 1 else " (+1 line)" if rest else ""
    room = max(8, width - len(more))
    return (first if len(first) <= room else first[: room - 3] + "...") + more
