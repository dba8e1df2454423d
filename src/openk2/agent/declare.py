"""Tools: a Python function and the declaration that the model is shown.

@tool
def fetch_weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    '''Tell the weather of a city.

    Args:
        city: Name of the city.
    '''
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, overload

from openk2.chat.messages import ToolSpec

DEFAULT_TIMEOUT_S = 60.0


class ToolError(Exception):
    """Raised by a tool to tell the model what went wrong; the model sees the message alone, on one line."""


@dataclass(frozen=True)
class Tool:
    """One tool: what the model is shown and what runs when it calls. Calling the object calls the function."""

    spec: ToolSpec
    function: Callable[..., Any]
    """Takes the arguments by name; sync functions run in a thread of their own, coroutine functions in the loop."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    needs_approval: bool = False
    """True for what changes something outside the conversation: it runs only once the agent's `approve` agrees."""

    @property
    def name(self) -> str:
        return self.spec.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *, name: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S, needs_approval: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    needs_approval: bool = False,
) -> Any:
    """Make a `Tool` of a function; used as `@tool` or `@tool(timeout_s=5)`.

    The declaration comes from the signature and the docstring: see `declaration`. Raises TypeError for a signature
    that JSON arguments cannot fill.
    """

    def make(function: Callable[..., Any]) -> Tool:
        return Tool(declaration(function, name=name), function, timeout_s, needs_approval)

    return make if function is None else make(function)


def declaration(function: Callable[..., Any], *, name: str | None = None) -> ToolSpec:
    """The declaration of a function.

    Types: str, int, float, bool, Literal, list, tuple[X, ...], dict[str, X], unions, Any. A parameter with a default
    may be left out; one whose default is None shows the schema of its other type. The description is the docstring up
    to its first section; parameters are described by `Annotated[X, "text"]`, an `Args:` section or `:param name:`.
    Raises TypeError naming the parameter that cannot be declared.
    """
    name = name or function.__name__
    hints = typing.get_type_hints(function, include_extras=True)
    description, described = _read_docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: parameter {parameter.name!r} must be passable by name")
        schema = _parameter_schema(hints.get(parameter.name, Any), parameter, f"tool {name}, {parameter.name}")
        if parameter.name in described:
            schema["description"] = described[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return ToolSpec.function(name, description, {"type": "object", "properties": properties, "required": required})


def _parameter_schema(annotation: Any, parameter: inspect.Parameter, where: str) -> dict[str, Any]:
    if parameter.default is None:
        annotation = _without_none(annotation)
    schema = json_schema(annotation, where)
    if parameter.default is not parameter.empty and parameter.default is not None:
        try:
            json.dumps(parameter.default)
        except TypeError:
            raise TypeError(f"{where}: the default {parameter.default!r} cannot be written as JSON") from None
        schema["default"] = parameter.default
    return schema


_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_ARRAYS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_OBJECTS = (dict, collections.abc.Mapping)


def json_schema(annotation: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type annotation; `where` opens the TypeError of one that has none."""
    if annotation in (Any, inspect.Parameter.empty):
        return {}
    if isinstance(annotation, type) and annotation in _SCALARS:
        return {"type": _SCALARS[annotation]}
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is Annotated:
        texts = [note for note in arguments[1:] if isinstance(note, str)]
        return json_schema(arguments[0], where) | ({"description": texts[0]} if texts else {})
    if origin is Literal:
        kinds = {_SCALARS.get(type(value)) for value in arguments}
        if None in kinds:
            raise TypeError(f"{where}: Literal holds strings, numbers, booleans or None")
        typed = {"type": kinds.pop()} if len(kinds) == 1 else {}
        return typed | {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        choices = [json_schema(choice, where) for choice in arguments]
        if all(set(choice) == {"type"} for choice in choices):
            return {"type": [choice["type"] for choice in choices]}
        return {"anyOf": choices}
    if origin in _ARRAYS and (origin is not tuple or not arguments or arguments[1:] == (...,)):
        return {"type": "array"} | ({"items": json_schema(arguments[0], where)} if arguments else {})
    if origin in _OBJECTS and (not arguments or arguments[0] is str):
        return {"type": "object"} | ({"additionalProperties": json_schema(arguments[1], where)} if arguments else {})
    raise TypeError(f"{where}: {annotation!r} has no JSON form that a model could fill in")


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    kept = tuple(choice for choice in typing.get_args(annotation) if choice is not type(None))
    return Union[kept]  # noqa: UP007 - built at run time


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?):\s*$")
_ENTRY = re.compile(r"^\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_FIELD = re.compile(r"^:(param|return|returns|raises?|type|rtype)\b\s*(?:[\w.\[\], |]*\s)?(\w*)\s*:\s*(.*)$")


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description on one line and the parameters' descriptions."""
    description: list[str] = []
    described: dict[str, str] = {}
    section, current, entry_indent = "", "", 0
    for line in text.splitlines():
        if heading := _SECTION.match(line):
            section, current = heading[1], ""
            entry_indent = 0
        elif field := _FIELD.match(line):
            section, current = field[1], field[2] if field[1] == "param" else ""
            if current:
                described[current] = field[3].strip()
        elif not section:
            description.append(line.strip())
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            indent = len(line) - len(line.lstrip())
            entry = _ENTRY.match(line)
            if entry and indent <= (entry_indent or indent):
                current, entry_indent = entry[1], indent
                described[current] = entry[2].strip()
            elif current:
                described[current] += " " + line.strip()
        elif section == "param" and current and line.strip():
            described[current] += " " + line.strip()
    return " ".join(" ".join(description).split()), {name: text.strip() for name, text in described.items()}
