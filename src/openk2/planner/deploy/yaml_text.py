"""YAML of plain values. Every string is written as a JSON string, which YAML reads as it stands: nothing in a name, a
flag or a piece of JSON can become a number, a truth value or a reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
RESERVED = frozenset("y n yes no on off true false null".split())
"""Keys that need quotes all the same, in any case: YAML 1.1 reads them as truth values and nothing."""
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""What YAML 1.1 (5.1) lets stand in a text only as an escape, and its separators of lines."""


def yaml_text(value: Mapping[str, Any]) -> str:
    """One document of mappings, lists, strings, numbers and truth values. Raises TypeError for anything else."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            is_plain = PLAIN_KEY.fullmatch(key) and key.lower() not in RESERVED
            name = key if is_plain else _quoted(key)
            yield from _entry(f"{name}:", item, "  ")
    elif isinstance(value, list | tuple) and value:
        for item in value:
            yield from _entry("-", item, "  ")
    else:
        yield _scalar(value)


def _entry(start: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, Mapping | list | tuple) and item:
        lines = _lines(item)
        if start == "-" and isinstance(item, Mapping):
            yield f"- {next(lines)}"
        else:
            yield start
            yield f"{indent}{next(lines)}"
        for line in lines:
            yield f"{indent}{line}"
    else:
        yield f"{start} {_scalar(item)}"


def _quoted(text: str) -> str:
    """A JSON string without pairs of surrogates, which YAML would read as two characters."""
    return UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    raise TypeError(f"no YAML for {type(value).__name__}")
