"""Changes to a settings file in JSON with comments: what is not changed keeps its every character.

Editors' settings have comments and trailing commas, which a round trip through `json` would lose or refuse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from json import JSONDecodeError
from typing import Any, NoReturn

WHITESPACE = " \t\r\n\ufeff"


@dataclass(frozen=True)
class Named:
    """The object of an array whose `name` is this."""

    name: str


Step = str | Named
"""One step of a path: a key of an object, or an object of an array."""

MISSING = object()
"""What `value_at` gives where there is no value; JSON's null is a value."""


@dataclass(frozen=True)
class _Node:
    """A value in the text."""

    start: int
    end: int
    value: Any
    first: int
    """Where its member starts: at the key in an object, at the value elsewhere."""
    children: dict[Step, _Node] = field(default_factory=dict)
    last: _Node | None = None
    trailing_comma: bool = False


def with_value(text: str, path: Sequence[Step], value: Any) -> str:
    """The text with `value` at the path; what is missing on the way there is added at the end of its container.

    Raises JSONDecodeError: the text is not JSON with comments. TypeError: a value on the way is of another kind.
    """
    root = _parse(text)
    if root is None:
        start = text if not text or text.endswith("\n") else f"{text}\n"
        return f"{start}{_render(_wrapped(path, value), '', '  ')}\n"
    node = parent = root
    for depth, step in enumerate(path):
        _check_kind(node, path[:depth], step)
        child = node.children.get(step)
        if child is None:
            return _with_member(text, node, step, _wrapped(path[depth + 1 :], value))
        node, parent = child, node
    rendered = _render(value, *_indents(text, parent, node))
    return text[: node.start] + _newlines(text, rendered) + text[node.end :]


def value_at(text: str, path: Sequence[Step]) -> Any:
    """The value at the path, or MISSING. Raises JSONDecodeError: the text is not JSON with comments."""
    node = _parse(text)
    for step in path:
        if node is None:
            return MISSING
        node = node.children.get(step)
    return MISSING if node is None else node.value


def _check_kind(node: _Node, path: Sequence[Step], step: Step) -> None:
    wanted, kind = (dict, "an object") if isinstance(step, str) else (list, "an array")
    if not isinstance(node.value, wanted):
        where = ".".join(str(step) for step in path) or "the whole"
        raise TypeError(f"{where} is not {kind}")


def _wrapped(path: Sequence[Step], value: Any) -> Any:
    for step in reversed(path):
        value = {step: value} if isinstance(step, str) else [value]
    return value


def _with_member(text: str, node: _Node, step: Step, value: Any) -> str:
    """The text with one more member at the end of an object or array."""
    outer = _indent(text, node.first)
    inner, unit = _indents(text, node, node.last)
    if node.last is None or inner == outer:
        inner = outer + unit
    key = f"{json.dumps(step, ensure_ascii=False)}: " if isinstance(step, str) else ""
    added = f"\n{inner}{key}{_render(value, inner, unit)}"
    close = node.end - 1
    at = len(text[:close].rstrip(WHITESPACE))
    if "\n" not in text[at:close]:
        added += f"\n{outer}"
    added = _newlines(text, added)
    if node.last is None or node.trailing_comma:
        return text[:at] + added + text[at:]
    # The comma goes right behind the last member, before any comment on its line.
    return f"{text[: node.last.end]},{text[node.last.end : at]}{added}{text[at:]}"


def _render(value: Any, indent: str, unit: str) -> str:
    return json.dumps(value, indent=unit, ensure_ascii=False).replace("\n", f"\n{indent}")


def _indents(text: str, parent: _Node, child: _Node | None) -> tuple[str, str]:
    """The child's indentation, and one level of it: as the child stands to its parent, else a tab or two spaces."""
    outer = _indent(text, parent.first)
    inner = outer if child is None else _indent(text, child.first)
    if inner != outer and inner.startswith(outer):
        return inner, inner.removeprefix(outer)
    return inner, "\t" if outer.startswith("\t") else "  "


def _newlines(text: str, added: str) -> str:
    return added.replace("\n", "\r\n") if "\r\n" in text else added


def _indent(text: str, at: int) -> str:
    """The white space that the line of this position starts with."""
    line = text[text.rfind("\n", 0, at) + 1 : at].lstrip("\ufeff")
    return line[: len(line) - len(line.lstrip(" \t"))]


def _parse(text: str) -> _Node | None:
    """The text's one value; None when it holds only white space and comments. Raises JSONDecodeError."""
    reader = _Reader(text)
    reader.skip()
    if reader.at == len(text):
        return None
    node = reader.value(reader.at)
    reader.skip()
    if reader.at != len(text):
        reader.fail("something follows the value")
    return node


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._scalars = json.JSONDecoder(parse_constant=lambda name: self.fail(f"{name} is no value"))

    def fail(self, message: str) -> NoReturn:
        raise JSONDecodeError(message, self.text, self.at)

    def skip(self) -> None:
        """Pass white space and comments."""
        while self.at < len(self.text):
            if self.text[self.at] in WHITESPACE:
                self.at += 1
            elif self.text.startswith("//", self.at):
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text.startswith("/*", self.at):
                end = self.text.find("*/", self.at + 2)
                if end < 0:
                    self.fail("a comment that does not end")
                self.at = end + 2
            else:
                return

    def value(self, first: int) -> _Node:
        start = self.at
        opened = self.text[start : start + 1]
        if opened == "{":
            return self._container(first, "}", self._member, dict)
        if opened == "[":
            return self._container(first, "]", self._item, list)
        found, self.at = self._scalars.raw_decode(self.text, start)
        return _Node(start, self.at, found, first)

    def _member(self) -> tuple[str, _Node]:
        first = self.at
        if self.text[first : first + 1] != '"':
            self.fail("expected a key in double quotes")
        key, self.at = self._scalars.raw_decode(self.text, first)
        self.skip()
        if self.text[self.at : self.at + 1] != ":":
            self.fail("expected ':'")
        self.at += 1
        self.skip()
        return key, self.value(first)

    def _item(self) -> tuple[Named | None, _Node]:
        node = self.value(self.at)
        name = node.value.get("name") if isinstance(node.value, dict) else None
        return (Named(name) if isinstance(name, str) else None), node

    def _container(
        self, first: int, close: str, read: Callable[[], tuple[Step | None, _Node]], kind: type[dict] | type[list]
    ) -> _Node:
        start, comma = self.at, True
        found: list[tuple[Step | None, _Node]] = []
        self.at += 1
        while True:
            self.skip()
            if self.text[self.at : self.at + 1] == close:
                break
            if not comma:
                self.fail(f"expected ',' or '{close}'")
            found.append(read())
            self.skip()
            comma = self.text[self.at : self.at + 1] == ","
            self.at += comma
        self.at += 1
        value = {key: node.value for key, node in found} if kind is dict else [node.value for _, node in found]
        children = {key: node for key, node in found if key is not None}
        last = found[-1][1] if found else None
        return _Node(start, self.at, value, first, children, last, trailing_comma=bool(found) and comma)
