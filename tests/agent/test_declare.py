"""Declarations from signatures and docstrings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional

import jsonschema_rs
import pytest

from openk2.agent import Tool, tool
from openk2.agent.declare import declaration


def test_everything_at_once() -> None:
    @tool
    def book_room(
        room: str,
        seats: int,
        unit: Literal["h", "min"] = "h",
        length: float = 1.5,
        guests: list[str] | None = None,
        options: Optional[dict[str, bool]] = None,  # noqa: UP045 - the older spelling is what is tested
        note: Annotated[str, "Shown on the door"] = "",
        anything: Any = None,
    ) -> str:
        """Book a meeting room,
        for today.

        Only for members.

        Args:
            room: Name of the room,
                as on the door.
            seats (int): How many: at least one.

        Returns:
            A confirmation.
        """
        return f"{room}:{seats}"

    assert isinstance(book_room, Tool)
    assert book_room("A", seats=2) == "A:2", "a tool is still callable"
    assert book_room.spec.description == "Book a meeting room, for today. Only for members."
    assert book_room.spec.declaration["type"] == "function"
    assert book_room.spec.parameters == {
        "type": "object",
        "properties": {
            "room": {"type": "string", "description": "Name of the room, as on the door."},
            "seats": {"type": "integer", "description": "How many: at least one."},
            "unit": {"type": "string", "enum": ["h", "min"], "default": "h"},
            "length": {"type": "number", "default": 1.5},
            "guests": {"type": "array", "items": {"type": "string"}},
            "options": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "note": {"type": "string", "description": "Shown on the door", "default": ""},
            "anything": {},
        },
        "required": ["room", "seats"],
    }
    jsonschema_rs.validator_for(dict(book_room.spec.parameters))


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (bool, {"type": "boolean"}),
        (list, {"type": "array"}),
        (dict, {"type": "object"}),
        (list[list[int]], {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        (tuple[str, ...], {"type": "array", "items": {"type": "string"}}),
        (int | str, {"type": ["integer", "string"]}),
        (str | None, {"type": ["string", "null"]}),
        (list[str] | None, {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2]}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (Any, {}),
    ],
)
def test_types(annotation: Any, schema: dict[str, Any]) -> None:
    def f(x): ...  # type: ignore[no-untyped-def]

    f.__annotations__["x"] = annotation
    assert declaration(f).parameters["properties"]["x"] == schema


def test_a_parameter_without_a_type_takes_anything() -> None:
    def f(x): ...  # type: ignore[no-untyped-def]

    assert declaration(f).parameters == {"type": "object", "properties": {"x": {}}, "required": ["x"]}


def test_sphinx_fields() -> None:
    def f(a: str, b: int) -> None:
        """Do it.

        :param a: the first
            of two
        :param int b: the second
        :returns: nothing
        """

    spec = declaration(f)
    described = {name: schema["description"] for name, schema in spec.parameters["properties"].items()}
    assert spec.description == "Do it." and described == {"a": "the first of two", "b": "the second"}


def test_settings_of_the_decorator() -> None:
    @tool(name="other", timeout_s=2, needs_approval=True)
    async def f() -> None: ...

    assert (f.name, f.timeout_s, f.needs_approval) == ("other", 2, True)
    assert f.spec.description == "" and f.spec.parameters == {"type": "object", "properties": {}, "required": []}


def _positional(x: int, /) -> None: ...
def _variable(*x: int) -> None: ...
def _keywords(**x: int) -> None: ...
def _object(x: object) -> None: ...
def _bytes(x: bytes) -> None: ...
def _default(x: Any = object()) -> None: ...  # noqa: B008
def _pair(x: tuple[int, str]) -> None: ...
def _keys(x: dict[int, str]) -> None: ...


@pytest.mark.parametrize("function", [_positional, _variable, _keywords, _object, _bytes, _default, _pair, _keys])
def test_what_json_cannot_fill_is_refused_by_name(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=rf"tool {function.__name__}.*x"):
        tool(function)
