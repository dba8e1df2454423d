"""A rendered conversation read back: its turns, the tools it declares, the arguments it gives, as ranges of tokens."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openk2.tokenizer import Tokenizer

FUNCTION_WORDS = frozenset(
    b"the of in to it an and for that this on or is by at with when its use you user lets want from".split()
)
"""They tell no tool from another."""


@dataclass(frozen=True)
class DeclaredParameter:
    spelling: range
    """The key's tokens."""
    key: tuple[int, ...]
    """The key's words."""
    description: tuple[int, ...]
    """The description's words."""
    end: int
    """The token that ends its schema."""


@dataclass(frozen=True)
class DeclaredTool:
    name_start: int
    """The first token of the name."""
    name: range
    """The name's tokens."""
    description: tuple[int, ...]
    """The description's words."""
    parameters: Mapping[str, DeclaredParameter]


class RenderedTokens:
    """A rendered conversation with its bytes: spans of text to spans of tokens."""

    def __init__(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        self.ids = list(token_ids)
        self.special = tokenizer.specials
        self.named = {v: k for k, v in tokenizer.specials.items()}
        self.pieces = [b"" if i in tokenizer.special_ids else tokenizer.token_bytes(i) for i in self.ids]
        self.offsets = [0]
        for piece in self.pieces:
            self.offsets.append(self.offsets[-1] + len(piece))

    def text(self, span: range) -> bytes:
        return b"".join(self.pieces[span.start : span.stop])

    def turns(self) -> Iterator[tuple[str, range]]:
        """(role, tokens of the content) of each turn."""
        role_start = content = 0
        for i, token_id in enumerate(self.ids):
            name = self.named.get(token_id)
            if name in ("<|im_system|>", "<|im_user|>", "<|im_assistant|>"):
                role_start = i + 1
            elif name == "<|im_middle|>":
                role, content = self.text(range(role_start, i)).decode(errors="replace"), i + 1
            elif name == "<|im_end|>" and content > role_start:
                yield role, range(content, i)

    def starting_at(self, offset: int) -> int | None:
        """The token whose first byte stands at `offset`."""
        i = bisect_left(self.offsets, offset)
        while i < len(self.pieces) and not self.pieces[i]:
            i += 1
        return i if i < len(self.pieces) and self.offsets[i] == offset else None

    def holding(self, offset: int) -> int:
        """The token that the byte at `offset` belongs to."""
        return bisect_right(self.offsets, offset) - 1

    def words(self, start: int, end: int) -> tuple[int, ...]:
        """The tokens wholly in these bytes that hold at least two letters or digits and are no function word."""
        first = bisect_left(self.offsets, start)
        found = []
        for i in range(first, len(self.pieces)):
            if self.offsets[i + 1] > end:
                break
            if sum(chr(b).isalnum() or b > 127 for b in self.pieces[i]) >= 2 and not self.is_function_word(i):
                found.append(i)
        return tuple(found)

    def is_function_word(self, i: int) -> bool:
        around = (self.pieces[i - 1][-1:] if i else b"") + (self.pieces[i + 1][:1] if i + 1 < len(self.pieces) else b"")
        return self.pieces[i].lower() in FUNCTION_WORDS and not any(chr(b).isalnum() for b in around)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def declared_tools(text: RenderedTokens, span: range) -> dict[str, DeclaredTool]:
    """The tools of a declaration turn, found again by writing each part as the template does."""
    raw = text.text(span)
    try:
        objects = json.loads(raw)
    except ValueError:
        return {}
    base, at = text.offsets[span.start], 0
    tools = {}
    for item in objects:
        function = item["function"]
        start = raw.find(_compact(item), at)
        marker = b'"name":' + _compact(function["name"]) + b',"parameters"'
        name_at = raw.find(marker, start)
        if start < 0 or name_at < 0:
            return {}
        name_start = text.starting_at(base + name_at + len(b'"name":"'))
        description: tuple[int, ...] = ()
        if function.get("description"):
            opening = start + len(b'{"function":{"description":"')
            description = text.words(base + opening, base + name_at - 2)
        at = name_at + len(marker)
        parameters = {}
        for key, schema in function["parameters"].get("properties", {}).items():
            written = _compact(key) + b":" + _compact(schema)
            at = raw.find(written, at)
            if at < 0:
                return {}
            inside = base + at + 1, base + at + len(_compact(key)) - 1
            words = text.words(inside[0] - 1, inside[1] + 1)
            told = schema.get("description") if isinstance(schema, dict) else None
            described: tuple[int, ...] = ()
            if told:
                where = raw.find(b'"description":' + _compact(told), at)
                described = text.words(base + where + len(b'"description":"'), base + where + 15 + len(told.encode()))
            at += len(written)
            spelling = range(text.holding(inside[0]), bisect_left(text.offsets, inside[1]))
            parameters[key] = DeclaredParameter(spelling, words, described, text.holding(base + at - 1))
        if name_start is not None:
            last = bisect_left(text.offsets, base + name_at + len(b'"name":') + len(_compact(function["name"])) - 1)
            tools[function["name"]] = DeclaredTool(name_start, range(name_start, last), description, parameters)
    return tools


def arguments(text: RenderedTokens, span: range) -> Iterator[tuple[str, int, int, range]]:
    """Of each top-level argument: the key, its first token, the value's first token, the value without quotes."""
    raw = text.text(span).decode(errors="replace")
    if not raw.isascii():
        return  # characters and bytes differ: not worth the bookkeeping
    decoder, at = json.JSONDecoder(), 1
    base = text.offsets[span.start]
    while at < len(raw) and raw[at] == '"':
        key_start = text.holding(base + at + 1)
        key, at = decoder.raw_decode(raw, at)
        start = at + 2  # past `: `
        value, at = decoder.raw_decode(raw, start)
        quote = isinstance(value, str)
        first = text.starting_at(base + start + quote)
        if first is not None and at - start > 2 * quote:
            last = bisect_left(text.offsets, base + at - quote)
            yield key, key_start, text.holding(base + start - 1), range(first, max(last, first + 1))
        at += 2  # past `, `


@dataclass(frozen=True)
class RenderedCall:
    begin: int
    """The token that begins it."""
    opening: int
    """The one that begins its arguments."""
    end: int
    """The token that ends it."""
    name: str
    arguments: Sequence[tuple[str, int, int, range]]
    """As `arguments` gives them."""


def declared_calls(
    text: RenderedTokens, reply: range, tools: Mapping[str, DeclaredTool]
) -> Iterator[tuple[DeclaredTool, RenderedCall]]:
    """The calls of declared tools in a reply; none after one that was cut."""
    for begin in reply:
        if text.named.get(text.ids[begin]) != "<|tool_call_begin|>":
            continue
        named = [text.named.get(i) for i in text.ids[begin : reply.stop]]
        try:
            opening, end = begin + named.index("<|tool_call_argument_begin|>"), begin + named.index("<|tool_call_end|>")
        except ValueError:
            return
        name = text.text(range(begin, opening)).decode(errors="replace").removeprefix("functions.").rpartition(":")[0]
        if name in tools:
            yield tools[name], RenderedCall(begin, opening, end, name, list(arguments(text, range(opening + 1, end))))
