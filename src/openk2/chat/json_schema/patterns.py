"""Patterns as the grammar compiler reads them right."""

from __future__ import annotations

import re

_PROPERTY = re.compile(r"\\[pP](?:\{[^}]*\}|.)")
_MAY_HAVE_CONTROLS = re.compile(r"\\[xucWDSpP0]|[\x00-\x1f]")
"""Of a class that lists its members: a range from the first control character on, or what a letter stands for."""
_CONTROL = r"\x00"


def compiler_pattern(pattern: str) -> str:
    """A pattern of the same strings, but for those with the character NUL.

    llguidance (1.9.1) takes a class that has all 32 control characters for one that has every character which JSON
    escapes: `[^"]` then admits `\\"`. A class that lacks one of them is read to the letter, so none is left with NUL.
    What its syntax, Rust's, gives a meaning inside a class and JSON schema's does not (`[`, `&&`, `~~`) is escaped.
    """
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        if found := _PROPERTY.match(pattern, at):
            parts.append(f"[{found[0]}&&[^{_CONTROL}]]")
            at = found.end()
        elif pattern[at] == "\\":
            parts.append(pattern[at : at + 2])
            at += 2
        elif pattern[at] == "[":
            text, at = _class(pattern, at)
            parts.append(text)
        else:
            parts.append(pattern[at])
            at += 1
    return "".join(parts)


def _class(pattern: str, start: int) -> tuple[str, int]:
    """The class that begins at `start`, and where it has ended; one that never ends stays as it is."""
    at = start + 1
    is_negated = pattern[at : at + 1] == "^"
    at += is_negated
    members: list[str] = []
    while at < len(pattern) and pattern[at] != "]":
        if pattern[at] == "\\":
            members.append(pattern[at : at + 2])
            at += 2
            continue
        members.append("\\" * (pattern[at] in "[&~") + pattern[at])
        at += 1
    if at >= len(pattern):
        return pattern[start:], len(pattern)
    inside = "".join(members)
    if is_negated:
        return f"[^{_CONTROL}{inside}]", at + 1
    return f"[[{inside}]&&[^{_CONTROL}]]" if _MAY_HAVE_CONTROLS.search(inside) else f"[{inside}]", at + 1
